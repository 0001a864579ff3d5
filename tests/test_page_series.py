"""Checkpoints of a training run on the pages: their times in step 1, and asking an analyzer of series about them."""

from __future__ import annotations

import pytest

from probes.specs import DataSpec
from tests.test_pages import MODEL, PREVIEW, VERDICT, described, finish, page, store  # noqa: F401
from ui import questions
from ui.bench import Bench
from ui.text import as_text
from workspace.jobs import Jobs
from workspace.store import Store


def laid_run(store: Store, *epochs: int | None, names: tuple[str, ...] = ()) -> tuple[str, ...]:  # noqa: F811
    """Lay checkpoints with data onto the bench "run"; return their references in the order given."""
    texts = []
    for place, epoch in enumerate(epochs):
        name = names[place] if names else f"weights{place}.pt"
        sha256 = store.add_bytes(f"{place}".encode(), name).sha256
        facts = {} if epoch is None else {"epoch": epoch}
        finish(store, questions.inspection(sha256), {**described(name, epoch=epoch, facts=facts), "sha256": sha256})
        texts.append(sha256)
    data = DataSpec((store.add_bytes(b"x,y", "data.csv").sha256,), examples=500)
    store.save_bench("run", Bench(tuple(texts), None, data, None, data.files).to_json())
    finish(store, questions.preview(data), PREVIEW)
    for text in texts:
        finish(store, questions.gate(text, MODEL, data, "cross_entropy"), VERDICT)
    return tuple(texts)


def test_step_1_shows_the_run_in_the_order_of_time(store: Store) -> None:  # noqa: F811
    laid_run(store, 200, 0, 50)
    test = page(bench="run")
    about = next(each for each in test.expander if each.label.startswith("Training run"))
    assert as_text("3 checkpoints, epoch 0 to 200 (from the files)") in about.label
    table = next(each.value for each in test.dataframe if "From" in each.value)
    assert table["Epoch"].tolist() == ["0", "50", "200"]
    assert table["File"].tolist() == ["weights1.pt", "weights2.pt", "weights0.pt"]
    assert any("weights0" in each.value for each in test.error)  # the gate is that of the last in time


def test_times_are_typed_and_taken_back(store: Store) -> None:  # noqa: F811
    first, second = laid_run(store, None, None)
    test = page(bench="run")
    assert any("Neither the files nor their names" in each.value for each in test.warning)
    field = next(each for each in test.text_input if each.label.startswith("Epochs or steps"))
    assert field.value == ""
    field.input("step 300, 20")
    next(each for each in test.button if each.label == "Use these times").click().run()
    assert not test.exception
    bench = Bench.from_json(store.bench("run") or {})
    assert (bench.times, bench.unit) == ({first: 300.0, second: 20.0}, "step")
    table = next(each.value for each in test.dataframe if "From" in each.value)
    assert table[["Step", "File", "From"]].values.tolist() == [
        ["20", "weights1.pt", "typed"],
        ["300", "weights0.pt", "typed"],
    ]
    field = next(each for each in test.text_input if each.label.startswith("Epochs or steps"))
    assert field.value == "step 20, 300"
    field.input(" ")
    next(each for each in test.button if each.label == "Use these times").click().run()
    assert Bench.from_json(store.bench("run") or {}).times == {}


def test_wrong_times_are_said_and_change_nothing(store: Store) -> None:  # noqa: F811
    laid_run(store, 1, 2, names=("a<b>.pt", "c.pt"))
    before = store.bench("run")
    test = page(bench="run")
    for text, error in (("3", "1 epochs or steps for 2"), ("4 4", "are both of epoch 4"), ("x y", "numbers from 0")):
        next(each for each in test.text_input if each.label.startswith("Epochs or steps")).input(text)
        next(each for each in test.button if each.label == "Use these times").click().run()
        assert any(error in each.value.replace("\\", "") for each in test.error), text
        assert not any("a<b>" in each.value for each in test.error)
    assert store.bench("run") == before


def test_a_series_is_asked_about_in_the_order_of_time(store: Store) -> None:  # noqa: F811
    last, first, middle = laid_run(store, 200, 0, 50)
    test = page("gradient_alignment.py", bench="run")
    chosen = test.multiselect[0]
    assert chosen.options == ["epoch 0 · weights1.pt", "epoch 50 · weights2.pt", "epoch 200 · weights0.pt"]
    assert not any(each.label == "Epochs or steps" for each in test.text_input)
    next(each for each in test.button if each.label == "Run").click().run()
    assert not test.exception
    (job,) = [job for job in Jobs(store).list() if job.task == "analysis"]
    assert job.payload["checkpoints"] == [first, middle, last] and job.payload["options"]["times"] == ""
    assert job.payload["model"] == MODEL.to_json() and job.payload["loss"] == "cross_entropy"
    assert job.title == "Gradient-weight alignment: weights1.pt … weights0.pt (3 checkpoints)"


def test_some_of_a_series_with_typed_times(store: Store) -> None:  # noqa: F811
    one, two, three = laid_run(store, None, None, None)
    bench = store.bench("run") or {}
    store.save_bench("run", {**bench, "times": {one: 30.0, two: 20.0, three: 10.0}, "unit": "step"})
    test = page("gradient_alignment.py", bench="run")
    test.multiselect[0].unselect(two).run()
    next(each for each in test.button if each.label == "Run").click().run()
    (job,) = [job for job in Jobs(store).list() if job.task == "analysis"]
    assert job.payload["checkpoints"] == [three, one] and job.payload["options"]["times"] == "step 10, 30"


@pytest.mark.parametrize("times", [{}, {"typed": 7.0}])
def test_nothing_runs_while_two_are_of_one_time(store: Store, times: dict[str, float]) -> None:  # noqa: F811
    texts = laid_run(store, None, None)
    bench = store.bench("run") or {}
    store.save_bench("run", {**bench, "times": dict.fromkeys(texts, 7.0) if times else {}})
    test = page("opposing_signals.py", bench="run")
    button = next(each for each in test.button if each.label == "Run")
    assert button.disabled == bool(times)
    assert any("both of epoch 7" in each.value for each in test.error) == bool(times)


def test_a_lone_checkpoint_is_no_run(store: Store) -> None:  # noqa: F811
    laid_run(store, 5)
    assert not any(each.label.startswith("Training run") for each in page(bench="run").expander)
