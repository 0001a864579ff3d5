"""The loss path of the two real runs: the figures measured elsewhere, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analyzers._base import Quiet
from analyzers.loss_path import LossPath
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import recognise
from probes.objective import build_objective
from probes.specs import DataSpec
from workspace.command_line import main

IMAGES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
MIDDLES = {"run1": 0.517, "run2": 0.585}


@pytest.mark.parametrize("run", MIDDLES)
def test_the_figures_measured_elsewhere(real: Path, run: str) -> None:
    """25 points on [0, 1], the first 1 000 images: monotone, and these losses."""
    checkpoints = tuple(read_checkpoint(real / "mnist-cnn" / run / f"epoch-{epoch:03d}.pt") for epoch in (0, 200))
    data = read_batches(DataSpec(tuple(str(real / "mnist" / each) for each in IMAGES), examples=1000))
    spec = recognise(checkpoints[0]).spec
    assert spec is not None
    objective = build_objective(spec, checkpoints[0], data, "cross_entropy")
    path = LossPath(start=0.0, stop=1.0, points=25, refine=0, controls=False)
    values = path.run(objective, checkpoints, Quiet()).values
    np.testing.assert_allclose(values["alpha"], np.linspace(0, 1, 25), atol=1e-15)
    assert values["delta"] == 0
    at = dict(zip(values["alpha"], values["loss"], strict=True))
    assert round(at[0.5], 3) == MIDDLES[run]
    if run == "run1":
        assert (round(at[0.0], 3), round(at[1.0], 3)) == (2.305, 0.028)
    assert round(values["relative_distance"], 2) == {"run1": 1.35, "run2": 1.36}[run]


def test_the_command_writes_what_the_page_shows(real: Path, tmp_path: Path) -> None:
    paths = [str(real / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt") for epoch in (0, 200, 50)]
    files = [str(real / "mnist" / each) for each in IMAGES]
    words = ["run", "loss_path", *(word for each in paths for word in ("--checkpoint", each))]
    words += [word for each in files for word in ("--data", each)]
    words += [word for each in files for word in ("--test-data", each)]
    words += ["--examples", "60", "--test-examples", "50", "--set", "points=7", "--set", "refine=2"]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 0
    values = json.loads((tmp_path / "out" / "result.json").read_text())["values"]
    assert len(values["alpha"]) == len(values["loss"]) == len(values["test_accuracy"]) == 9
    assert values["delta"] >= 0 and values["on_the_way"][0]["checkpoint"] == "epoch-050.pt"
    figures = sorted(each.stem for each in (tmp_path / "out" / "figures").iterdir())
    assert figures == ["accuracy", "controls", "loss"]
    tables = sorted(each.stem for each in (tmp_path / "out" / "tables").iterdir())
    assert tables == ["accuracy", "controls", "loss", "on_the_way"]
