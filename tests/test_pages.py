"""Every page, clicked through without a browser: finished answers are laid into a workspace by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analyzers import catalogue
from analyzers._base import Result
from probes.specs import DataSpec, ModelSpec
from tests.test_text import HOSTILE
from ui import questions, state
from ui.bench import Bench
from ui.text import as_text
from workspace import runs
from workspace.jobs import HEARTBEAT, Jobs, JobSpec
from workspace.requests import analysis, example
from workspace.store import Store

ROOT = Path(__file__).resolve().parents[1]
MODEL = ModelSpec("catalogue", "mlp", {"widths": [4, 3], "names": ["0"], "bias": True, "activation": "relu"})
ANALYZER = catalogue()["hessian_spectrum"]
PAGES = sorted(path.name for path in (ROOT / "pages").glob("*.py") if path.name != "__init__.py")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("THEODOLITE_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("THEODOLITE_ROOTS", raising=False)
    (tmp_path / HEARTBEAT).write_text("{}")
    os.utime(tmp_path / HEARTBEAT, (time.time() + 3600,) * 2)
    yield state.store()
    state.store().close()


def page(name: str = "workbench.py", **query: str) -> AppTest:
    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    for key, value in query.items():
        test.query_params[key] = value
    if name != "workbench.py":
        test.switch_page(f"pages/{name}")
    test.run()
    assert not test.exception, test.exception
    return test


def finish(store: Store, spec: JobSpec, answer: dict[str, Any]) -> str:
    """Lay a finished job into the workspace."""
    folder = store.folder(spec.id)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(answer))
    runs.add(store, id=spec.id, payload=spec.payload, task=spec.task, title=spec.title, lane=spec.lane, priority=5)
    return spec.id


def wait(store: Store, spec: JobSpec) -> str:
    """Lay a job that waits into the workspace."""
    runs.add(store, id=spec.id, payload=spec.payload, task=spec.task, title=spec.title, lane=spec.lane, priority=5)
    return spec.id


def described(name: str, **changes: Any) -> dict[str, Any]:
    recognition = {
        "spec": MODEL.to_json(),
        "title": "MLP 4-3, ReLU",
        "reasons": ["One matrix."],
        "choices": {},
        "mismatch": None,
    }
    found = {
        "name": name,
        "format": "safetensors",
        "bytes": 60,
        "sha256": "0" * 64,
        "tensors": 2,
        "parameters": 15,
        "dtypes": {"float32": 2},
        "epoch": 7,
        "metrics": {"best_prec1": 91.78},
        "optimizer": None,
        "doubts": ["One tensor is not finite."],
        "shapes": [["0.weight", [3, 4], "float32"], ["0.bias", [3], "float32"]],
        "facts": {},
    }
    return {**found, "recognition": recognition, **changes}


PREVIEW = {
    "examples": 500,
    "shape": [4],
    "dtype": "float64",
    "range": [0.0, 1.0],
    "classes": [["a", 200], ["b", 300]],
    "labels": ["a", "b"],
    "sheet": None,
    "lines": ["x,y", "1,2"],
    "about": {"of": 1000, "format": "table"},
    "doubts": [],
}
VERDICT = {
    "verdict": "differs",
    "sentence": "91.8 % stored, 81.0 % here: wrong normalisation, wrong split, lossy images?",
    "stored": {"best_prec1": 91.78},
    "loss": 0.61,
    "loss_stderr": 0.02,
    "accuracy": 0.81,
    "accuracy_stderr": 0.0175,
    "examples": 500,
    "chance": 0.4,
}


def full_bench(store: Store, name: str = "weights.safetensors") -> tuple[str, str]:
    """Lay a whole bench out; return the sha256 of checkpoint and data."""
    weights = store.add_bytes(b"weights", name).sha256
    data = store.add_bytes(b"x,y", "data.csv").sha256
    spec = DataSpec((data,), examples=500)
    store.save_bench("b1", Bench((weights,), None, spec, None, (data,)).to_json())
    finish(store, questions.inspection(weights), described(name))
    finish(store, questions.preview(spec), PREVIEW)
    return weights, data


def all_markdown(test: AppTest) -> list[str]:
    kinds = ("markdown", "title", "subheader", "caption", "success", "info", "warning", "error", "button", "expander")
    values = [getattr(each, "value", "") or each.label for kind in kinds for each in getattr(test, kind)]
    return [str(each) for each in values]


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


# The analysis page, with a result laid there by hand


def spectrum_result(checkpoint: str = "weights.safetensors", **card: Any) -> Result:
    about = {"model": "MLP 4-3", "parameters": 15, "loss": "cross_entropy", "reduction": "mean over examples"}
    about |= {"examples": 500, "examples_sha256": "e" * 64, "mode": "eval: dropout off", "dtype": "float32", "seed": 0}
    values = {
        "eigenvalues": [9.5, 2.0],
        "eigenvalue_residuals": [1e-5, 1e-4],
        "eigenvalues_min": [-0.25],
        "eigenvalues_min_residuals": [1e-3],
        "trace": 12.5,
        "trace_stderr": 0.25,
        "frobenius_norm": 9.75,
        "frobenius_norm_stderr": 0.05,
        "negative_mass": 0.03,
        "negative_mass_stderr": 0.01,
        "loss": 0.61,
        "loss_stderr": 0.02,
        "accuracy": 0.81,
        "accuracy_stderr": 0.0175,
        "examples": 500,
        "products": 40,
    }
    arrays = {
        "eigenvalues": np.array([9.5, 2.0]),
        "eigenvalue_bounds": np.array([1e-5, 1e-4]),
        "eigenvalues_min": np.array([-0.25]),
        "eigenvalue_min_bounds": np.array([1e-3]),
        "outliers": np.array([9.5, 2.0, -0.25]),
        "outlier_bounds": np.array([1e-5, 1e-4, 1e-3]),
        "nodes": np.array([[0.0, 0.5], [0.1, 0.4]]),
        "weights": np.array([[0.5, 0.5], [0.5, 0.5]]),
        "exact": np.zeros(0),
    }
    named = {**about, "checkpoint": {"name": checkpoint, "sha256": "0" * 64}, **card}
    return ANALYZER.result("hessian_spectrum", named, values, arrays, ("One eigenvalue <b>has not</b> converged.",))


def finished_run(store: Store, result: Result, **options: Any) -> str:
    weights, data = full_bench(store) if not store.files() else (store.files()[-1].sha256, store.files()[0].sha256)
    asked = analysis(ANALYZER(**options), [weights], MODEL, DataSpec((data,), examples=500), "cross_entropy", "A run")
    result.save(store.folder(asked.id))
    Jobs(store).enqueue(asked)
    return asked.id


def test_an_analysis_needs_a_whole_bench(store: Store) -> None:
    test = page("hessian_spectrum.py", bench="empty")
    assert any("There is no checkpoint on the bench yet" in each.value for each in test.info)
    assert not [each for each in test.button if each.label == "Run"]


def test_the_form_is_made_from_the_options_and_asks_once(store: Store) -> None:
    weights, data = full_bench(store)
    finish(store, questions.gate(weights, MODEL, DataSpec((data,), examples=500), "cross_entropy"), VERDICT)
    test = page("hessian_spectrum.py", bench="b1")
    labels = {each.label for kind in ("number_input", "selectbox", "checkbox") for each in getattr(test, kind)}
    assert labels >= {option.label for option in ANALYZER.options()}
    assert any(as_text(VERDICT["sentence"]) in each.value for each in test.error)
    next(each for each in test.number_input if each.label == "Largest eigenvalues").set_value(3).run()
    next(each for each in test.button if each.label == "Run").click().run()
    assert not test.exception
    asked = [job for job in Jobs(store).list() if job.task == "analysis"]
    assert len(asked) == 1 and asked[0].payload["options"]["top"] == 3 and asked[0].payload["checkpoints"] == [weights]
    assert test.query_params["run"] == asked[0].id
    page("hessian_spectrum.py", bench="b1", run=asked[0].id)
    assert len([job for job in Jobs(store).list() if job.task == "analysis"]) == 1


def test_a_finished_run_is_shown_to_whoever_has_its_link(store: Store) -> None:
    run = finished_run(store, spectrum_result())
    test = page("hessian_spectrum.py", run=run)
    metrics = {each.label: each.value for each in test.metric}
    assert metrics["Largest eigenvalue"] == "9.5000 ± 1e-05"
    assert metrics["Smallest eigenvalue"] == "-0.2500 ± 0.0010"
    assert metrics["Trace"] == "12.50 ± 0.25"
    assert metrics["Negative mass"] == "3 ± 1 %"
    assert any(as_text("One eigenvalue <b>has not</b> converged.") in each.value for each in test.warning)
    card = next(each.value for each in test.dataframe if "What" in each.value)
    assert "cross_entropy" in set(card["Value"])
    labels = [each.label for each in test.get("download_button")]
    assert labels.count("HTML") == labels.count("CSV") == labels.count("Python") == 2
    assert [each.label for each in test.button].count("PDF") == 2


def test_a_picture_is_drawn_by_the_worker(store: Store) -> None:
    run = finished_run(store, spectrum_result())
    test = page("hessian_spectrum.py", run=run)
    next(each for each in test.button if each.key == "draw-spectral_density-png").click().run()
    asked = next(job for job in Jobs(store).list() if job.task == "render")
    view = {"smoothing": 0.005}
    assert asked.payload == {"run": run, "figure": "spectral_density", "format": "png", "view": view}
    runs.begin(store, asked.id, 1)
    runs.end(store, asked.id, 1, "failed", "No Chromium was found on the server: install it.")
    test.run()
    assert any("No Chromium was found" in each.value for each in test.error)


def test_the_camera_saves_png_or_svg_without_the_server(store: Store) -> None:
    test = page("hessian_spectrum.py", run=finished_run(store, spectrum_result()))

    def formats() -> list[str]:
        configs = [json.loads(each.proto.config) for each in test.get("plotly_chart")]
        return [config["toImageButtonOptions"]["format"] for config in configs]

    assert formats() == ["png", "png"]
    next(each for each in test.radio if each.key == "camera-eigenvalues").set_value("SVG").run()
    assert sorted(formats()) == ["png", "svg"]


def test_results_of_different_things_are_not_laid_over_one_another(store: Store) -> None:
    run = finished_run(store, spectrum_result())
    same = finished_run(store, spectrum_result("other.pt"), seed=1)
    odd = finished_run(store, spectrum_result(dtype="float64"), dtype="float64")
    test = page("hessian_spectrum.py", run=run)
    other = next(each for each in test.selectbox if each.label == "Another run")
    other.set_value(same).run()
    table = next(each.value for each in test.dataframe if "Number" in each.value)
    assert list(table.columns) == ["Number", "weights.safetensors", "other.pt"]
    next(each for each in test.selectbox if each.label == "Another run").set_value(odd).run()
    assert any("dtype" in each.value and "float64" in each.value for each in test.error)


def test_the_cross_check_is_asked_by_its_button(store: Store) -> None:
    run = finished_run(store, spectrum_result())
    test = page("hessian_spectrum.py", run=run)
    assert not [job for job in Jobs(store).list() if job.task == "cross_check"]
    next(each for each in test.button if each.key == "cross-check").click().run()
    spec = questions.cross_check(run)
    assert Jobs(store).status(spec.id) is not None
    store.folder(spec.id).mkdir(parents=True)
    (store.folder(spec.id) / "result.json").write_text(json.dumps({"rows": [{"quantity": "trace", "ours": 12.5}]}))
    test.run()
    assert any("Ours" in each.value for each in test.dataframe)


def test_a_failed_run_says_why_and_can_be_retried(store: Store) -> None:
    weights, data = full_bench(store)
    spec = analysis(ANALYZER(), [weights], MODEL, DataSpec((data,)), "cross_entropy", "A run")
    wait(store, spec)
    test = page("hessian_spectrum.py", run=spec.id)
    assert any(each.label == "Cancel" for each in test.button)
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "failed", "The loss of [w](x) is not finite.")
    test.run()
    assert any(as_text("The loss of [w](x) is not finite.") in each.value for each in test.error)
    next(each for each in test.button if each.label == "Retry").click().run()
    job = Jobs(store).status(spec.id)
    assert job and job.state == "waiting"


@pytest.mark.parametrize("run", ["0" * 24, "../../etc/passwd", "<b>"])
def test_a_link_to_no_run_is_harmless(store: Store, run: str) -> None:
    test = page("hessian_spectrum.py", run=run)
    assert any("not in this workspace" in each.value for each in test.warning) == (run == "0" * 24)


def test_the_queue_shows_places_and_cancels(store: Store) -> None:
    first = wait(store, JobSpec("analysis", {"analyzer": "hessian_spectrum", "n": 1}, "First"))
    wait(store, JobSpec("analysis", {"analyzer": "hessian_spectrum", "n": 2}, "Second"))
    test = page("jobs.py")
    next(each for each in test.button if each.key == f"cancel-{first}").click().run()
    assert not test.exception
    job = Jobs(store).status(first)
    assert job and job.state == "cancelled"
    states = dict(test.dataframe[0].value[["Job", "State"]].values)
    assert states == {"First": "Cancelled"}


def test_an_ended_job_has_its_log_and_a_retry(store: Store) -> None:
    spec = JobSpec("analysis", {"analyzer": "hessian_spectrum"}, "Doomed")
    wait(store, spec)
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "failed", "The loss is not finite.")
    store.folder(spec.id).mkdir(parents=True)
    (store.folder(spec.id) / "log.txt").write_text("Traceback <b>\n")
    test = page("jobs.py", job=spec.id)
    assert any("The loss is not finite" in each.value for each in test.error)
    assert any("Traceback <b>" in each.value for each in test.code)
    next(each for each in test.button if each.label == "Retry").click().run()
    job = Jobs(store).status(spec.id)
    assert job and job.state == "waiting"


@pytest.mark.parametrize("name", PAGES)
def test_every_page_says_when_no_worker_runs(store: Store, name: str) -> None:
    os.utime(store.root / HEARTBEAT, (1, 1))
    test = page(name)
    assert any("The worker is not running" in each.value for each in test.warning)
    assert any("workspace.worker" in each.value for each in test.code)


def test_the_browser_side_never_imports_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "import app\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"for page in {PAGES!r}:\n"
        f"    test = AppTest.from_file({str(ROOT / 'app.py')!r}, default_timeout=60).run()\n"
        "    test.switch_page(f'pages/{page}').run()\n"
        "    assert not test.exception, test.exception\n"
        "print([name for name in ('torch', 'transformers', 'sklearn', 'pyhessian') if name in sys.modules])\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    environment = {**os.environ, "THEODOLITE_WORKSPACE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stdout + done.stderr
