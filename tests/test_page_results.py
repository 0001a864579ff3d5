"""The pages of results about a training run or a pair, with what the analyzers really return for a small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest
from torch import nn

from analyzers import catalogue
from analyzers._base import Quiet, Result
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.objective import build_objective
from probes.specs import DataSpec, ModelSpec
from tests.test_pages import page, store  # noqa: F401
from ui import questions
from ui.key_numbers import CELLS
from ui.text import LONGEST_SENTENCE, as_text
from workspace import runs
from workspace.jobs import Job, Jobs
from workspace.requests import analysis
from workspace.store import Store

MODEL = ModelSpec("text", text="Sequential(Linear(6, 5), ReLU(), Linear(5, 3))")
NAMES = {  # analyzer -> what stands above its figures
    "layer_rotation": "Mean rotation, last",
    "gradient_alignment": "Mean alignment, last",
    "opposing_signals": "Cosine of the groups",
    "gradient_statistics": "Covariance trace, last",
    "loss_path": "Greatest rise (Δ)",
    "mode_connectivity": "Barrier on the curve",
    "grafting": "Weights for 95 %",
    "influence": "Shared with random examples",
    "concepts": "TCAV score",
    "predictions": "Loss, last",
    "attribution": "Maps",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient_alignment": {"listed": 4, "flip": 0.2},
    "opposing_signals": {"listed": 3},
    "loss_path": {"points": 7, "refine": 0},
    "mode_connectivity": {"points": 5, "restarts": 2, "curve": "bezier", "curve_epochs": 1, "curve_points": 5},
    "grafting": {"points": 4},
    "attribution": {"examples": "0-3", "methods": "integrated_gradients,occlusion,grad_cam", "sanity": True},
    "influence": {"top": 3, "null_examples": 2},
    "concepts": {"vectors": 10, "controls": 19, "listed": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a network and 200 examples, among them a class that would like to be markup."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for epoch in (0, 1, 2):
        weights = {name: each + 0.3 * epoch * torch.randn_like(each) for name, each in module.state_dict().items()}
        save_file(weights, folder / f"epoch-{epoch}.safetensors")
    rows = np.random.default_rng(0).normal(size=(200, 6)).round(4)
    kinds = ["=1+1", "<b>x</b>", ":red[z]"]
    lines = [",".join([*map(str, row), kinds[place % 3]]) for place, row in enumerate(rows)]
    (folder / "data.csv").write_text("\n".join(["a,b,c,d,e,f,label", *lines]))
    return folder


def finished(store: Store, name: str, folder: Path, *, seed: int = 0, **options: Any) -> Job:  # noqa: F811
    """Run an analyzer here and lay its result into the workspace."""
    options = {**OPTIONS.get(name, {}), **options, **({"leave_out": f"x{seed}"} if seed else {})}
    analyzer = catalogue()[name](**options)
    paths = [folder / f"{each}.safetensors" for each in ("epoch-0", "epoch-1", "epoch-2")]
    checkpoints = tuple(map(read_checkpoint, paths))
    data, objective = DataSpec((str(folder / "data.csv"),)), None
    if analyzer.needs_objective:
        objective = build_objective(MODEL, checkpoints[0], read_batches(data), "cross_entropy")
    texts = [store.add_file(path, path.name).sha256 for path in paths]
    spec = analysis(analyzer, texts, MODEL, data, "cross_entropy", f"{analyzer.title}: {seed}")
    runs.add(store, id=spec.id, payload=spec.payload, task=spec.task, title=spec.title, lane=spec.lane, priority=5)
    runs.begin(store, spec.id, 1)
    result: Result = analyzer.run(objective, checkpoints, Quiet())  # type: ignore[arg-type]
    result.save(store.folder(spec.id))
    runs.end(store, spec.id, 1, "done")
    job = Jobs(store).status(spec.id)
    assert job is not None
    return job


def charts(test: AppTest) -> list[dict[str, Any]]:
    return [json.loads(each.proto.spec) for each in test.get("plotly_chart")]


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_shown_whole(store: Store, folder: Path, name: str) -> None:  # noqa: F811
    job = finished(store, name, folder)
    test = page(f"{name}.py", run=job.id)
    metrics = {each.label: each.value for each in test.metric}
    assert NAMES[name] in metrics and all(metrics.values())
    result = catalogue()[name].result.read(store.folder(job.id))
    assert len(charts(test)) == len(result.figures())
    labels = [each.label for each in test.get("download_button")]
    assert labels.count("HTML") == labels.count("Python") == len(result.figures())
    assert labels.count("CSV") == len(set(result.figures()) & set(result.tables()))
    said = " ".join(each.value for each in test.warning)
    assert all(as_text(each, LONGEST_SENTENCE) in said for each in result.caveats)
    assert {tab.label for tab in test.tabs} >= {as_text(each.replace("_", " ")) for each in result.tables()}


@pytest.mark.parametrize("name", ["gradient_alignment", "opposing_signals"])
def test_examples_to_check_stand_in_a_table(store: Store, folder: Path, name: str) -> None:  # noqa: F811
    job = finished(store, name, folder)
    test = page(f"{name}.py", run=job.id)
    assert any(each.value.startswith("Examples to check") for each in test.subheader)
    assert any("Choose a row" in each.value and as_text("epoch-") in each.value for each in test.caption)
    score = {"gradient_alignment": "alignment", "opposing_signals": "rise"}[name]
    tables = [each.value for each in test.dataframe if list(each.value.columns)[:2] == ["id", score]]
    expected = catalogue()[name].result.read(store.folder(job.id)).values["examples"]
    assert len(tables) == (2 if name == "opposing_signals" else 1)
    shown = [row for table in tables for row in table["id"]]
    assert sorted(shown) == sorted(str(each["id"]) for each in expected)
    assert {label for table in tables for label in table["label"]} <= {"=1+1", "<b>x</b>", ":red[z]"}
    assert "Examples to check as CSV" in [each.label for each in test.get("download_button")]


def test_rotation_with_its_random_walk(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "layer_rotation", folder)
    test = page("layer_rotation.py", run=job.id)
    before = len(charts(test)[0]["data"])
    next(each for each in test.toggle if each.label.startswith("Draw the random walk")).set_value(True).run()
    assert not test.exception
    assert len(charts(test)[0]["data"]) > before


def test_rotation_of_several_runs_against_accuracy(store: Store, folder: Path) -> None:  # noqa: F811
    jobs = [finished(store, "layer_rotation", folder, seed=seed) for seed in (0, 1, 2)]
    last = jobs[0].payload["checkpoints"][-1]
    gate = questions.gate(last, MODEL, DataSpec(("x",)), "cross_entropy")
    runs.add(store, id=gate.id, payload=gate.payload, task="gate", title=gate.title, lane=gate.lane, priority=1)
    runs.begin(store, gate.id, 1)
    store.folder(gate.id).mkdir(parents=True)
    (store.folder(gate.id) / "result.json").write_text(json.dumps({"accuracy": 0.875, "examples": 200}))
    runs.end(store, gate.id, 1, "done")
    test = page("layer_rotation.py", run=jobs[0].id)
    alone = len(charts(test))
    others = next(each for each in test.multiselect if each.label == "Other runs")
    others.set_value([each.id for each in jobs[1:]]).run()
    assert not test.exception
    fields = [each for each in test.number_input if "accuracy in" in each.label]
    assert [each.value for each in fields] == [87.5] * 3
    assert len(charts(test)) == alone + 2
    fields[1].set_value(50.0).run()
    assert [each for each in charts(test)[-1]["data"] if 50.0 in each["y"]]


def test_what_does_not_stand_out_of_its_noise_has_its_bound() -> None:
    known = {key: [2.0] for key in ("gradient_norm", "covariance_trace", "gap_growth")}
    values = {**known, **{f"{name}_stderr": [0.1] for name in known}, "noise_scale": [None], "adequate_batch": [None]}
    values |= {"noise_scale_at_least": [50.0], "adequate_batch_at_least": [200.0]}
    values |= {"theta": 0.5, "learning_rate": 0.0, "training_examples": 9}
    texts = {each.label: each.text for each in CELLS["gradient_statistics"](values)}
    assert (texts["Noise scale, last"], texts["Adequate batch, last"]) == ("above 50", "above 200")


@pytest.mark.parametrize("method", ["tracin", "inverse fisher"])
def test_the_prediction_that_is_explained_stands_beside_the_lists(store: Store, folder: Path, method: str) -> None:  # noqa: F811
    job = finished(store, "influence", folder, method=method)
    test = page("influence.py", run=job.id)
    result = catalogue()["influence"].result.read(store.folder(job.id))
    example = result.values["example"]
    said = [each.value for each in test.markdown]
    assert f"**Example {as_text(example['id'])}**" in said
    assert any(f"Label: **{as_text(example['label'])}**" in each for each in said)
    assert any(each.value == "Of the data themselves." for each in test.caption)
    columns = ["id", "influence", "typical_influence"]
    tables = [each.value for each in test.dataframe if list(each.value.columns)[:3] == columns]
    shown = [each["influence"] for each in result.values["examples"]]
    assert [value for table in tables for value in table["influence"]] == pytest.approx(shown)
    labels = {each.label for each in test.metric}
    assert ("Directions of the Fisher" in labels) == (method == "inverse fisher")


def test_a_score_that_is_not_significant_is_not_shown(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "concepts", folder, concept="0-19")
    result = catalogue()["concepts"].result.read(store.folder(job.id))
    test = page("concepts.py", run=job.id)
    metrics = {each.label: each.value for each in test.metric}
    assert result.values["scores"] == [None]
    assert metrics["TCAV score"] == "insignificant"
    groups = [each["group"] for each in result.values["examples"]]
    assert groups == ["concept"] * 2 + ["most along"] * 2 + ["least along"] * 2
    assert sum(list(each.value.columns)[:2] == ["id", "along"] for each in test.dataframe) == 2
