"""What leaves the app is what was measured, and harmless where it is opened."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from workspace.export import (
    ExportError,
    as_cell,
    as_filename,
    csv_of,
    find_browser,
    html_of,
    image_of,
    parquet_of,
    snippet_of,
)

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "\rx", "＝1"]


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2, 3], y=[3, 1, 2], name="line"))


def test_csv_has_the_numbers_and_no_formula() -> None:
    table = pd.DataFrame({"layer": HOSTILE, "=value": range(len(HOSTILE))})
    rows = list(csv.reader(io.StringIO(csv_of(table).decode(), newline="")))
    assert rows[0] == ["layer", "'=value"]
    assert [row[0] for row in rows[1:]] == [f"'{each}" for each in HOSTILE]
    assert [int(row[1]) for row in rows[1:]] == list(range(len(HOSTILE)))
    assert as_cell("conv1.weight") == "conv1.weight"


def test_parquet_gives_the_table_back() -> None:
    table = pd.DataFrame({"eigenvalue": [2.5, 1.0], "name": ["a", "=b"]})
    back = pd.read_parquet(io.BytesIO(parquet_of(table)))
    assert back["eigenvalue"].tolist() == [2.5, 1.0]
    assert back["name"].tolist() == ["a", "=b"]


def test_html_carries_its_own_plotly(figure: go.Figure) -> None:
    page = html_of(figure).decode()
    assert len(page) > 1_000_000
    assert "https://cdn" not in page.split("</head>")[0]


@pytest.mark.parametrize("text", ["../../etc/passwd", "a/b\\c", ".hidden", "x" * 500, "\x00", "CON:aux", "日本.pt"])
def test_file_names_stay_in_their_folder(text: str) -> None:
    name = as_filename(text)
    assert Path(name).name == name
    assert 0 < len(name) <= 100
    assert not name.startswith(".")
    assert not set(name) & set('/\\:\0"')


def test_without_a_browser_the_reason_is_said(figure: go.Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    with pytest.raises(ExportError, match="install chromium"):
        image_of(figure, "png")


@pytest.mark.browser
@pytest.mark.parametrize(("format", "magic"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_pictures_are_drawn(figure: go.Figure, format: str, magic: bytes) -> None:
    assert find_browser()
    assert image_of(figure, format).startswith(magic)  # type: ignore[arg-type]


def test_the_snippet_is_python_and_holds_hostile_names_as_literals() -> None:
    payload = {
        "analyzer": "hessian_spectrum",
        "options": {"top": 5},
        "checkpoints": ["ab" * 32],
        "model": {"source": "text", "text": '"""); import os; os.system("id") #'},
        "data": {"files": ["cd" * 32], "label": "'''\n"},
        "loss": "cross_entropy",
    }
    text = snippet_of(payload, {"ab" * 32: '"; evil'})
    compile(text, "reproduce.py", "exec")
    assert json.dumps("HessianSpectrum")[1:-1] in text
    assert "probes.objective" in text
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute) and node.attr == "system"]
    assert not calls


def test_the_snippet_of_names_and_tensors_asks_for_no_data() -> None:
    payload = {"analyzer": "layer_rotation", "options": {"times": "0, 5"}, "checkpoints": ["ab" * 32, "cd" * 32]}
    text = snippet_of(payload, {"ab" * 32: "epoch-000.pt"})
    compile(text, "reproduce.py", "exec")
    assert "objective = None" in text and "LayerRotation" in text
    assert "read_batches" not in text and "build_objective" not in text
    assert "'epoch-000.pt'" in text and text.count("ab" * 32) == 2


@pytest.mark.parametrize("analyzer", ["opposing_signals", "layer_rotation"])
def test_the_snippet_gives_the_same_numbers_again(analyzer: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from analyzers import catalogue
    from analyzers._base import Quiet
    from probes.checkpoint import hash_file, read_checkpoint
    from probes.data import read_batches
    from probes.objective import build_objective
    from probes.specs import DataSpec, ModelSpec

    module, paths = torch.nn.Sequential(torch.nn.Linear(3, 2)), []
    for step in (0, 10):
        weights = {name: each + 0.1 * step * torch.rand_like(each) for name, each in module.state_dict().items()}
        paths.append(tmp_path / f"step-{step}.safetensors")
        save_file(weights, paths[-1])
    x = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(200) % 2)
    model, data = ModelSpec("text", text="Sequential(Linear(3, 2))"), DataSpec((hash_file(tmp_path / "data.npz"),))
    given: dict[str, Any] = {"times": "step 0, 10"}
    asked = catalogue()[analyzer](**given)
    hashes = [hash_file(path) for path in paths]
    payload = {"analyzer": analyzer, "options": asdict(asked), "checkpoints": hashes}
    objective = None
    checkpoints = tuple(map(read_checkpoint, paths))
    if asked.needs_objective:
        payload |= {"model": model.to_json(), "data": data.to_json(), "loss": "cross_entropy"}
        batches = read_batches(DataSpec((str(tmp_path / "data.npz"),)))
        objective = build_objective(model, checkpoints[0], batches, "cross_entropy")
    names = {hash_file(path): path.name for path in tmp_path.iterdir()}
    (tmp_path / "reproduce.py").write_text(snippet_of(payload, names))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "reproduce.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = asked.run(objective, checkpoints, Quiet())  # type: ignore[arg-type]
    again = ast.literal_eval(done.stdout)
    assert again["times"] == [0.0, 10.0] and again["unit"] == "step"
    assert json.dumps(again) == json.dumps(dict(expected.values))
    assert (tmp_path / f"{next(iter(expected.figures()))}.html").is_file()
