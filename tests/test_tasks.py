"""What the child is asked to do, asked directly: on real files, without the queue."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analyzers import catalogue
from analyzers._base import Quiet
from probes.errors import ProbeError
from probes.specs import DataSpec, ModelSpec
from workspace.export import snippet_of
from workspace.jobs import LANES, Jobs, JobSpec
from workspace.requests import analysis, result_of
from workspace.store import Store
from workspace.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
CNN = (
    "Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), "
    "Flatten(), Linear(1600, 10))"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "workspace")


@pytest.fixture
def cnn(store: Store, real: Path) -> str:
    return store.add_file(real / "mnist-cnn" / "run1" / "epoch-200.pt", "epoch-200.pt").sha256


@pytest.fixture
def digits(store: Store, real: Path) -> DataSpec:
    files = sorted((real / "mnist").glob("*.gz"))
    return DataSpec(tuple(store.add_file(each, each.name).sha256 for each in files), examples=300)


def ask(store: Store, spec: JobSpec) -> dict:
    folder = store.folder(spec.id)
    folder.mkdir(parents=True, exist_ok=True)
    TASKS[spec.task].run(json.loads(json.dumps(spec.payload)), store, folder, Quiet())
    return json.loads((folder / "result.json").read_text())


def test_every_task_has_a_lane() -> None:
    assert set(TASKS) == set(LANES)


def test_inspect_says_what_it_is_and_which_model(store: Store, cnn: str) -> None:
    found = ask(store, JobSpec("inspect", {"file": cnn}, ""))
    assert found["name"] == "epoch-200.pt"
    assert found["epoch"] == 200
    assert found["parameters"] == 32 * 9 + 32 + 64 * 32 * 9 + 64 + 16010
    assert found["recognition"]["spec"] is not None


def test_compare_shows_what_differs(store: Store, cnn: str) -> None:
    exact = ask(store, JobSpec("compare", {"file": cnn, "model": ModelSpec("text", text=CNN).to_json()}, ""))
    assert exact["exact"]
    wrong = ModelSpec("text", text=CNN.replace("1600", "1601"))
    found = ask(store, JobSpec("compare", {"file": cnn, "model": wrong.to_json()}, ""))
    assert not found["exact"]
    assert found["mismatch"]["shapes"]


def test_the_gate_agrees_on_the_real_network(store: Store, cnn: str, digits: DataSpec) -> None:
    model = ModelSpec("text", text=CNN).to_json()
    payload = {"checkpoint": cnn, "model": model, "data": digits.to_json(), "loss": "cross_entropy"}
    found = ask(store, JobSpec("gate", payload, ""))
    assert found["accuracy"] > 0.97
    assert found["examples"] == 300


def test_an_analysis_and_what_follows_from_it(store: Store, cnn: str, digits: DataSpec, browser_found: bool) -> None:
    analyzer = catalogue()["hessian_spectrum"](top=2, bottom=0, probes=1, steps=6)
    asked = analysis(analyzer, [cnn], ModelSpec("text", text=CNN), digits, "cross_entropy", "Spectrum")
    found = ask(store, Jobs(store).enqueue(asked) and asked)
    result = result_of(asked.id, store)
    assert found["analyzer"] == "hessian_spectrum"
    assert result.card["examples"] == 300
    assert np.isfinite(result.values["trace"])
    for name in result.figures():
        assert (store.folder(asked.id) / "figures" / f"{name}.json").exists()
    rows = ask(store, JobSpec("cross_check", {"run": asked.id}, ""))["rows"]
    assert rows
    if browser_found:
        figure = next(iter(result.figures()))
        drawn = JobSpec("render", {"run": asked.id, "figure": figure, "format": "png", "view": {"smoothing": 0.02}}, "")
        path = store.folder(drawn.id) / ask(store, drawn)["file"]
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_exported_script_repeats_the_run(store: Store, cnn: str, digits: DataSpec, tmp_path: Path) -> None:
    analyzer = catalogue()["hessian_spectrum"](top=2, bottom=0, probes=1, steps=3, trace_probes=2)
    few = DataSpec(digits.files, examples=40, shuffle=3)
    asked = analysis(analyzer, [cnn], ModelSpec("text", text=CNN), few, "cross_entropy", "Spectrum")
    found = ask(store, asked)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    names = {each.sha256: each.name for each in store.files()}
    for sha256, name in names.items():
        (folder / name).write_bytes(store.path_of(sha256).read_bytes())
    (folder / "reproduce.py").write_text(snippet_of(asked.payload, names))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "reproduce.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    again = ast.literal_eval(done.stdout)
    np.testing.assert_allclose(again["eigenvalues"], found["values"]["eigenvalues"], rtol=1e-5)
    assert again["trace"] == pytest.approx(found["values"]["trace"], rel=1e-4)
    assert (folder / "spectral_density.html").exists()
    (folder / "epoch-200.pt").write_bytes(b"another file")
    wrong = subprocess.run(
        [sys.executable, "reproduce.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert wrong.returncode == 1
    assert "is not the file of the run" in wrong.stderr


@pytest.fixture
def browser_found() -> bool:
    from workspace.export import find_browser

    return find_browser() is not None


def test_import_takes_files_and_folders_below_the_roots_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "images" / "cat", other):
        folder.mkdir(parents=True)
    (root / "images" / "cat" / "1.txt").write_text("one")
    (root / "a.bin").write_bytes(b"abc")
    (other / "secret").write_text("secret")
    (root / "link").symlink_to(other / "secret")
    monkeypatch.setenv("THEODOLITE_ROOTS", str(root))
    found = ask(store, JobSpec("import", {"path": str(root / "a.bin")}, ""))
    assert store.path_of(found["sha256"]).read_bytes() == b"abc"
    folder = ask(store, JobSpec("import", {"path": str(root / "images")}, ""))
    assert folder["name"] == "images.zip"
    again = ask(store, JobSpec("import", {"path": str(root / "images") + "/"}, ""))
    assert again["sha256"] == folder["sha256"]
    for path in (root / "link", root / ".." / "other" / "secret", other / "secret"):
        with pytest.raises(ProbeError):
            ask(store, JobSpec("import", {"path": str(path)}, ""))
