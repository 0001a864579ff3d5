"""The page of an analyzer, clicked through without a browser, with a result laid there by hand."""

# ruff: noqa: F811

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from analyzers import catalogue
from analyzers._base import Result
from probes.specs import DataSpec
from tests.laid_pages import MODEL, VERDICT, finish, full_bench, page, store, wait  # noqa: F401
from ui import questions
from ui.text import as_text
from workspace import runs
from workspace.jobs import Jobs
from workspace.requests import analysis
from workspace.store import Store

ANALYZER = catalogue()["hessian_spectrum"]


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
