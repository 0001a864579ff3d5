"""What the tests of pages share: a workspace with answers laid into it by hand, and a page without a browser."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from probes.specs import DataSpec, ModelSpec
from ui import questions, state
from ui.bench import Bench
from workspace import runs
from workspace.jobs import HEARTBEAT, JobSpec
from workspace.store import Store

ROOT = Path(__file__).resolve().parents[1]
MODEL = ModelSpec("catalogue", "mlp", {"widths": [4, 3], "names": ["0"], "bias": True, "activation": "relu"})


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
