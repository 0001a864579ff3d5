"""The page of the whole run: finished answers become panels, holes are named and asked for by one click."""

from __future__ import annotations

import json
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analyzers import catalogue
from probes.specs import DataSpec
from tests.test_page_series import laid_run
from tests.test_pages import MODEL, finish, page, store  # noqa: F401
from ui import bench as benches
from ui import timeline
from ui.ready import Laid, Ready, laid, ready
from ui.run_page import learning_rates
from ui.runs import question
from ui.text import as_text
from workspace import runs
from workspace.jobs import Jobs
from workspace.store import Store

SERIES = ("layer_rotation", "gradient_alignment", "gradient_statistics")


def what_is_ready() -> Ready:
    found = ready(benches.read("run"))
    assert isinstance(found, Ready)
    return found


def spectrum(top: float, trace: float) -> dict[str, Any]:
    ends = {"eigenvalues": [top, 1.0], "eigenvalue_residuals": [0.01, 0.01]}
    return {"values": {**ends, "trace": trace, "trace_stderr": 0.5}}


def alignment(count: int) -> dict[str, Any]:
    columns = {"mean_stderr": 0.001, "gwa": 0.01, "gwa_stderr": 0.002}
    values: dict[str, Any] = {name: [each] * count for name, each in columns.items()}
    values["mean"] = [0.02 + 0.01 * place for place in range(count)]
    values["gwa_undefined"] = [place == 0 for place in range(count)]
    return {"values": values}


def drawn(test: AppTest) -> dict[str, list[Any]]:
    """Return the curves of the figure: name -> values, None for a hole."""
    (chart,) = test.get("plotly_chart")
    return {each["name"]: each["y"] for each in json.loads(chart.proto.spec)["data"]}


def table_of(test: AppTest) -> dict[str, tuple[str, str]]:
    table = next(each.value for each in test.dataframe if "Missing" in each.value)
    return {row["Analysis"]: (row["Measured"], row["Missing"]) for _, row in table.iterrows()}


def test_an_empty_bench_is_sent_to_the_workbench(store: Store) -> None:  # noqa: F811
    test = page("training_run.py", bench="nothing")
    assert any("no checkpoint on the bench" in each.value for each in test.info)
    laid_run(store, 3)
    test = page("training_run.py", bench="run")
    assert any("two or more checkpoints" in each.value for each in test.info)


def test_what_is_finished_is_drawn_in_the_order_of_time_and_holes_stay_holes(store: Store) -> None:  # noqa: F811
    last, first, middle = laid_run(store, 200, 0, 50)
    what = what_is_ready()
    for text, top in ((first, 3.0), (last, 90.0)):
        finish(store, question(catalogue()["hessian_spectrum"](), what, [text]), spectrum(top, 12.0))
    usual = catalogue()["gradient_alignment"]()
    finish(store, question(usual, what, [first, middle, last]), alignment(3))
    test = page("training_run.py", bench="run")
    curves = drawn(test)
    assert curves["loss"] == [0.61] * 3 and curves["accuracy"] == [81.0] * 3
    assert curves["largest eigenvalue"] == [3.0, None, 90.0] and curves["trace"] == [12.0, None, 12.0]
    assert curves["mean alignment"] == pytest.approx([0.02, 0.03, 0.04])
    assert curves["GWA"] == [None, 0.01, 0.01]  # undefined at first
    rows = table_of(test)
    assert rows["Loss and accuracy"] == ("3 of 3", "nothing")
    assert rows["Hessian spectrum"] == ("2 of 3", "epoch 50")
    assert rows["Layer rotation"] == ("0 of 3", "epoch 0, epoch 50, epoch 200")


def test_one_click_asks_for_all_that_is_missing_once(store: Store) -> None:  # noqa: F811
    texts = laid_run(store, 0, 50)
    finish(store, question(catalogue()["hessian_spectrum"](), what_is_ready(), [texts[0]]), spectrum(3.0, 12.0))
    test = page("training_run.py", bench="run")
    for _ in range(2):
        next(each for each in test.button if each.label == "Measure what is missing").click().run()
        assert not test.exception
    asked = [job.payload for job in Jobs(store).list() if job.task == "analysis" and job.state == "waiting"]
    spectra = [each["checkpoints"] for each in asked if each["analyzer"] == "hessian_spectrum"]
    assert spectra == [[texts[1]]]
    series = {each["analyzer"]: each for each in asked if each["analyzer"] != "hessian_spectrum"}
    assert sorted(series) == sorted(SERIES) and len(asked) == 4
    assert all(each["checkpoints"] == list(texts) for each in series.values())
    assert "data" not in series["layer_rotation"] and series["gradient_alignment"]["model"] == MODEL.to_json()


def test_an_analysis_may_be_left_out(store: Store) -> None:  # noqa: F811
    laid_run(store, 0, 50)
    test = page("training_run.py", bench="run")
    test.multiselect[0].set_value(["Layer rotation"]).run()
    next(each for each in test.button if each.label == "Measure what is missing").click().run()
    (job,) = [job for job in Jobs(store).list() if job.task == "analysis"]
    assert job.payload["analyzer"] == "layer_rotation"


def test_what_failed_says_why_and_is_asked_again(store: Store) -> None:  # noqa: F811
    texts = laid_run(store, 0, 50)
    found = laid(benches.read("run"))
    assert isinstance(found, Laid)
    spec = question(catalogue()["layer_rotation"](), found, texts)
    Jobs(store).enqueue(spec)
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "failed", "The tensor of a<b> is broken.")
    test = page("training_run.py", bench="run")
    assert any(as_text("The tensor of a<b> is broken.") in each.value for each in test.error)
    next(each for each in test.button if each.label == "Measure what is missing").click().run()
    job = Jobs(store).status(spec.id)
    assert job and job.state == "waiting"


def test_without_data_the_rotation_alone_can_be_measured(store: Store) -> None:  # noqa: F811
    texts = laid_run(store, 0, 50)
    store.save_bench("run", {"checkpoints": list(texts)})
    test = page("training_run.py", bench="run")
    assert any("No data has been chosen yet" in each.value for each in test.info)
    next(each for each in test.button if each.label == "Measure what is missing").click().run()
    (job,) = [job for job in Jobs(store).list() if job.task == "analysis"]
    assert job.payload["analyzer"] == "layer_rotation"


def test_a_finished_run_over_some_checkpoints_counts_where_it_looked(store: Store) -> None:  # noqa: F811
    texts = laid_run(store, 0, 50, 200)
    what = what_is_ready()
    spec = question(catalogue()["gradient_alignment"](listed=3), what, [texts[2], texts[0]])  # not in order of time
    names = ["weights0.pt", "weights2.pt"]
    finish(store, spec, {"values": {**alignment(2)["values"], "checkpoints": names}})
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "done")
    test = page("training_run.py", bench="run")
    assert drawn(test)["mean alignment"] == pytest.approx([0.02, None, 0.03])
    assert table_of(test)["Gradient-weight alignment"] == ("2 of 3", "epoch 50")


def test_results_on_other_data_do_not_count(store: Store) -> None:  # noqa: F811
    (text, _) = laid_run(store, 0, 50)
    what = what_is_ready()
    other = Ready(what.checkpoints, what.model, DataSpec(what.data.files, examples=7), what.loss)
    spec = question(catalogue()["hessian_spectrum"](), other, [text])
    finish(store, spec, spectrum(3.0, 12.0))
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "done")
    assert "largest eigenvalue" not in drawn(page("training_run.py", bench="run"))


def test_the_learning_rate_draws_the_edge(store: Store) -> None:  # noqa: F811
    text, _ = laid_run(store, 0, 50)
    finish(store, question(catalogue()["hessian_spectrum"](), what_is_ready(), [text]), spectrum(3.0, 12.0))
    test = page("training_run.py", bench="run")
    assert "2 / learning rate" not in drawn(test)
    next(each for each in test.text_input if each.label == "Learning rate").input("0.1, 0.05").run()
    assert drawn(test)["2 / learning rate"] == [20.0, 40.0]
    next(each for each in test.text_input if each.label == "Learning rate").input("fast").run()
    assert any("learning rate" in each.value for each in test.error)
    assert "2 / learning rate" not in drawn(test)


def test_a_learning_rate_is_one_number_or_one_for_each() -> None:
    assert learning_rates("", 3) == ()
    assert learning_rates("0.1", 3) == (0.1, 0.1, 0.1)
    assert learning_rates("1e-1; 0.2 0.3", 3) == (0.1, 0.2, 0.3)
    for text in ("0", "-1", "nan", "a", "0.1 0.2"):
        with pytest.raises(ValueError, match="learning rate"):
            learning_rates(text, 3)


def test_names_are_only_text(store: Store) -> None:  # noqa: F811
    laid_run(store, 0, 50, names=("<b>x<i>.pt", "$y$ :red[z].pt"))
    test = page("training_run.py", bench="run")
    assert any(as_text("<b>x<i>.pt … $y$ :red[z].pt (2 checkpoints)") == each.value for each in test.subheader)
    (chart,) = test.get("plotly_chart")
    assert "<b>x" not in chart.proto.spec


def test_typed_times_move_the_points(store: Store) -> None:  # noqa: F811
    one, two = laid_run(store, None, None)
    store.save_bench("run", {**(store.bench("run") or {}), "times": {one: 20.0, two: 10.0}, "unit": "step"})
    line = timeline.of(benches.read("run"), [one, two])
    assert line.checkpoints == (two, one)
    (chart,) = page("training_run.py", bench="run").get("plotly_chart")
    spec = json.loads(chart.proto.spec)
    assert spec["data"][0]["x"] == [10.0, 20.0] and spec["layout"]["xaxis"]["title"]["text"] == "Step"
