"""The workbench, clicked through without a browser: finished answers are laid into a workspace by hand."""

# ruff: noqa: F811

from __future__ import annotations

from pathlib import Path

import pytest

from probes.specs import DataSpec, ModelSpec
from tests.laid_pages import MODEL, PREVIEW, VERDICT, all_markdown, described, finish, full_bench, page, store, wait  # noqa: F401
from tests.test_text import HOSTILE
from ui import questions
from ui.bench import Bench
from ui.text import as_text
from workspace import runs
from workspace.jobs import Jobs
from workspace.requests import example
from workspace.store import Store


def test_a_newcomer_is_offered_the_example(store: Store) -> None:
    test = page()
    assert test.title[0].value == "Workbench"
    next(each for each in test.button if each.label == "Train the example").click().run()
    assert not test.exception
    job = Jobs(store).status(example().id)
    assert job and job.state == "waiting"
    assert "Train the example" not in [each.label for each in test.button]


def test_the_finished_example_is_laid_on_the_bench(store: Store) -> None:
    first, last, data = (store.add_bytes(text, f"{text.decode()}.npz").sha256 for text in (b"a", b"b", b"c"))
    found = {"checkpoints": [{"sha256": first, "name": "a"}, {"sha256": last, "name": "b"}]}
    spec = {"model": MODEL.to_json(), "data": DataSpec((data,)).to_json(), "loss": "cross_entropy", "run": None}
    finish(store, example(), {**found, **spec})
    test = page(bench="mine")
    next(each for each in test.button if each.label == "Load the example").click().run()
    bench = Bench.from_json(store.bench("mine") or {})
    assert bench.checkpoints == (last,) and bench.data == DataSpec((data,)) and bench.model == MODEL


def test_a_whole_run_of_the_example_is_laid_on_the_bench(store: Store) -> None:
    files = [store.add_bytes(text, f"{text.decode()}.npz").sha256 for text in (b"a", b"b", b"c", b"d")]
    rows = [{"sha256": sha256, "name": "x", "run": number} for sha256, number in zip(files, (1, 1, 2, 2), strict=True)]
    spec = {"model": MODEL.to_json(), "data": DataSpec((files[0],)).to_json(), "loss": "cross_entropy", "run": None}
    finish(store, example(), {"checkpoints": rows, **spec})
    test = page(bench="mine")
    next(each for each in test.button if each.label == "Load a whole training run (2 checkpoints)").click().run()
    assert Bench.from_json(store.bench("mine") or {}).checkpoints == tuple(files[2:])


def test_the_workbench_says_what_was_found_and_the_gate_is_loud(store: Store) -> None:
    weights, data = full_bench(store)
    finish(store, questions.gate(weights, MODEL, DataSpec((data,), examples=500), "cross_entropy"), VERDICT)
    test = page(bench="b1")
    table = test.dataframe[0].value
    row = table.iloc[0].to_dict()
    assert row["Parameters"] == "15" and row["Epoch"] == "7" and row["Stored figures"] == "best_prec1 91.78"
    assert any("not finite" in each.value for each in test.warning)
    assert any(as_text("MLP 4-3, ReLU") in each.value for each in test.success)
    assert any(as_text(VERDICT["sentence"]) in each.value for each in test.error)
    metrics = {each.label: each.value for each in test.metric}
    assert metrics["Loss"] == "0.610 ± 0.020" and metrics["Accuracy"] == "81.00 ± 1.75 %"


def test_asking_shows_the_same_bench_to_every_tab(store: Store) -> None:
    weights, _ = full_bench(store)
    page(bench="b1")
    page(bench="b1")
    asked = [job for job in Jobs(store).list() if job.task == "gate"]
    assert len(asked) == 1 and asked[0].payload["checkpoint"] == weights and asked[0].state == "waiting"


def test_a_model_that_does_not_fit_is_shown_and_nothing_runs(store: Store) -> None:
    weights, _ = full_bench(store)
    other = ModelSpec("text", text="Linear(9, 9)")
    store.save_bench("b1", {**(store.bench("b1") or {}), "model": other.to_json()})
    mismatch = {"missing": ["1.weight"], "unexpected": ["extra"], "shapes": [["0.weight", [9, 9], [3, 4]]]}
    answer = {"title": "Linear", "mismatch": mismatch, "exact": False}
    finish(store, questions.comparison(weights, other), answer)
    test = page(bench="b1")
    assert any("does not fit this checkpoint" in each.value for each in test.error)
    rows = next(each.value for each in test.dataframe if "Difference" in each.value)
    assert list(rows["Tensor"]) == ["1.weight", "extra", "0.weight"]
    assert rows["Difference"][2] == "model 9 × 9, checkpoint 3 × 4"
    assert not [job for job in Jobs(store).list() if job.task in ("gate", "analysis")]


def test_a_model_is_chosen_from_the_catalogue_by_its_sizes(store: Store) -> None:
    full_bench(store)
    other = ModelSpec("catalogue", "mlp", {"widths": [9, 9], "names": ["0"]})
    store.save_bench("b1", {**(store.bench("b1") or {}), "model": other.to_json()})
    test = page(bench="b1")
    fields = {each.label: each for each in test.text_input}
    assert fields["Widths"].value == "9, 9"
    fields["Widths"].input("4, 5,3")
    fields["Names"].input("fc1, fc2")
    fields["Bias"].input("no")
    next(each for each in test.button if each.label == "Use this model").click().run()
    assert not test.exception
    chosen = Bench.from_json(store.bench("b1") or {}).model
    assert chosen and chosen.arguments == {"widths": [4, 5, 3], "names": ["fc1", "fc2"], "bias": False}
    asked = next(job for job in Jobs(store).list() if job.task == "compare")
    assert asked.payload["model"] == chosen.to_json()


def test_a_path_on_the_server_is_taken_only_below_the_allowed_folders(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(each.label == "Path" for each in page().text_input)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "w.pt").write_bytes(b"w")
    (tmp_path / "secret.pt").write_bytes(b"s")
    monkeypatch.setenv("THEODOLITE_ROOTS", str(tmp_path / "open"))
    test = page()
    for path, error in (("../secret.pt", "not below a folder"), ("none.pt", "does not exist")):
        next(each for each in test.text_input if each.label == "Path").input(path)
        next(each for each in test.button if each.label == "Take").click().run()
        assert any(error in each.value.replace("\\", "") for each in test.error)
        assert Jobs(store).list() == []
    next(each for each in test.text_input if each.label == "Path").input("w.pt")
    next(each for each in test.button if each.label == "Take").click().run()
    (job,) = Jobs(store).list()
    assert job.task == "import" and job.payload["path"] == str(tmp_path / "open" / "w.pt")


def test_checkpoints_with_other_tensors_are_named(store: Store) -> None:
    full_bench(store)
    other = store.add_bytes(b"other", "other.pt").sha256
    finish(store, questions.inspection(other), described("other.pt", shapes=[["w", [1], "float32"]]))
    bench = store.bench("b1") or {}
    store.save_bench("b1", {**bench, "checkpoints": [*bench["checkpoints"], other]})
    test = page(bench="b1")
    assert any("has other tensors than" in each.value for each in test.warning)


def test_a_file_that_is_refused_says_why(store: Store) -> None:
    bad = store.add_bytes(b"bad", "bad.pt").sha256
    store.save_bench("b1", {"checkpoints": [bad]})
    spec = questions.inspection(bad)
    wait(store, spec)
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "failed", "bad.pt is an HTML page, not a checkpoint. Download the file itself.")
    test = page(bench="b1")
    assert any("is an HTML page" in each.value for each in test.error)
    assert "Retry" in [each.label for each in test.button]


def test_data_is_described_by_its_form(store: Store) -> None:
    full_bench(store)
    test = page(bench="b1")
    fields = {each.label: each for each in test.text_input}
    fields["Mean"].input("0.5, 0.4")
    fields["Standard deviation"].input("1; 2")
    fields["Shuffle seed"].input("3")
    next(each for each in test.button if each.label == "Use this data").click().run()
    assert not test.exception
    spec = Bench.from_json(store.bench("b1") or {}).data
    assert spec and (spec.mean, spec.std, spec.shuffle, spec.examples) == ((0.5, 0.4), (1.0, 2.0), 3, 500)


def test_a_wrong_number_is_said_and_changes_nothing(store: Store) -> None:
    full_bench(store)
    before = store.bench("b1")
    test = page(bench="b1")
    next(each for each in test.text_input if each.label == "Mean").input("half")
    next(each for each in test.button if each.label == "Use this data").click().run()
    assert any("give one number a channel" in each.value for each in test.error)
    assert store.bench("b1") == before


@pytest.mark.parametrize("name", HOSTILE[:9])
def test_hostile_names_are_only_text(store: Store, name: str) -> None:
    weights, data = full_bench(store, name)
    gate = questions.gate(weights, MODEL, DataSpec((data,), examples=500), "cross_entropy")
    finish(store, gate, {**VERDICT, "sentence": f"{name} differs"})
    written = " ".join(all_markdown(page(bench="b1")))
    stored = store.file(weights)
    assert stored and as_text(stored.name) in written
    assert stored.name not in written.replace(as_text(stored.name), "").replace(as_text(name), "")
