"""Pairs of checkpoints on the command line: the real runs, with test data, and the values by their promised names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_command_process import command


def values_of(real: Path, out: Path, name: str, checkpoints: tuple[str, ...], *settings: str) -> dict[str, Any]:
    """Run an analyzer on 150 real images and 100 test images; return its values."""
    mnist = [real / "mnist" / f"t10k-{each}-ubyte.gz" for each in ("images-idx3", "labels-idx1")]
    parts: list[Any] = ["run", name, "--examples", "150", "--test-examples", "100", "--device", "cpu", "--out", out]
    for option, files in (("--data", mnist), ("--test-data", mnist)):
        parts += [part for file in files for part in (option, file)]
    parts += [part for each in checkpoints for part in ("--checkpoint", real / "mnist-cnn" / each)]
    done = command(*parts, *(part for each in settings for part in ("--set", each)))
    assert done.returncode == 0, done.stderr
    assert list((out / "figures").glob("*.html")) and list((out / "tables").glob("*.csv"))
    return dict(json.loads((out / "result.json").read_text())["values"])


def test_mode_connectivity_of_two_runs(real: Path, tmp_path: Path) -> None:
    ends = ("run1/epoch-200.pt", "run2/epoch-200.pt")
    found = values_of(real, tmp_path / "out", "mode_connectivity", ends, "points=5", "restarts=2", "controls=false")
    stages, definitions = {"naive", "matched", "repaired"}, {"git_rebasin", "entezari", "midpoint"}
    for key in ("barrier", "barrier_low", "barrier_high", "test_barrier"):
        assert found[key].keys() == stages
        assert all(each.keys() == definitions for each in found[key].values())
    for key in ("loss", "accuracy", "test_loss", "test_accuracy"):
        assert found[key].keys() == stages
        assert {len(each) for each in found[key].values()} == {len(found["lambda"])} == {5}
    assert round(found["distance"], 4) == 4.9958  # shared/real/README.md
    assert found["equivalence_error"] < 1e-10
    assert [round(each["distance"], 4) for each in found["restarts"]] == [4.9958] * 2
    assert found["verdict"] == "same_after_permutation"
    middle = found["loss"]["naive"][2] - (found["loss"]["naive"][0] + found["loss"]["naive"][4]) / 2
    assert found["barrier"]["naive"]["midpoint"] == pytest.approx(middle)


def test_loss_path_from_the_initialisation(real: Path, tmp_path: Path) -> None:
    ends = ("run1/epoch-000.pt", "run1/epoch-200.pt")
    settings = ("start=0", "stop=1", "points=5", "refine=0", "controls=false")
    found = values_of(real, tmp_path / "out", "loss_path", ends, *settings)
    assert found["alpha"] == [0, 0.25, 0.5, 0.75, 1]
    assert {len(found[key]) for key in ("loss", "accuracy", "test_loss", "test_accuracy")} == {5}
    assert found["delta"] == 0 and found["loss"] == sorted(found["loss"], reverse=True)
    assert np.isclose(found["loss"][0], 2.3, atol=0.02)
