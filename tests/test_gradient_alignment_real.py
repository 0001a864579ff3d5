"""Gradient-weight alignment on the real checkpoints: the figures measured elsewhere, and what rounding does to them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzers._base import Quiet
from analyzers.gradient_alignment import GradientAlignment, GradientAlignmentResult
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import recognise
from probes.objective import build_objective
from probes.specs import DataSpec
from workspace.command_line import main


@cache
def of_real(real: Path, epochs: tuple[int, ...], **options: Any) -> GradientAlignmentResult:
    files = [real / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt" for epoch in epochs]
    checkpoints = tuple(read_checkpoint(each) for each in files)
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    data = read_batches(DataSpec(tuple(str(real / "mnist" / each) for each in names), examples=5000))
    spec = recognise(checkpoints[0]).spec
    assert spec is not None
    objective = build_objective(spec, checkpoints[0], data, "cross_entropy", micro_batch=500)
    return GradientAlignment(**{"micro_batch": 500, **options}).run(objective, checkpoints, Quiet())


def test_the_real_run_gives_the_figures_that_were_measured_elsewhere(real: Path, tmp_path: Path) -> None:
    checkpoints = [str(real / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt") for epoch in (0, 50, 100, 150, 200)]
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    words = ["run", "gradient_alignment", *(word for each in checkpoints for word in ("--checkpoint", each))]
    words += [word for each in names for word in ("--data", str(real / "mnist" / each))]
    assert main([*words, "--examples", "5000", "--set", "flip=0.2", "--out", str(tmp_path / "out")]) == 0
    values = json.loads((tmp_path / "out" / "result.json").read_text())["values"]
    assert values["times"] == [0, 50, 100, 150, 200]
    np.testing.assert_allclose(values["gwa"], [-0.0003, 0.0130, 0.0127, 0.0085, 0.0068], atol=1e-4)
    assert values["mean"][1] == pytest.approx(0.0230, abs=1e-4)
    assert values["mean"][4] == pytest.approx(0.0206, abs=1e-4)
    assert values["excess_kurtosis"][1] == pytest.approx(0.58, abs=0.01)
    assert values["excess_kurtosis"][4] == pytest.approx(1.82, abs=0.01)
    assert min(values["auroc_flipped"][1:]) >= 0.99
    assert 0.994 <= min(values["auroc_flipped_rounded"][1:]) <= max(values["auroc_flipped_rounded"][1:]) <= 0.9975
    assert values["flipped_mean"][1] == pytest.approx(-0.046, abs=0.002)
    # These figures hold the rounding of softmax minus one in float32. Without it alignment is higher.
    np.testing.assert_allclose(values["exact_gwa"], [-0.0003, 0.0213, 0.0214, 0.0200, 0.0168], atol=1e-4)
    assert values["rounded"][1] > 900
    figures = sorted(each.name for each in (tmp_path / "out" / "figures").iterdir())
    assert figures == ["alignment.html", "alignment_distribution.html", "flip_test.html"]


def test_on_the_real_run_float64_is_what_is_called_exact(real: Path) -> None:
    single, double = (of_real(real, (50,), dtype=each, flip=0.2) for each in ("float32", "float64"))
    assert single.values["exact_gwa"] == pytest.approx(double.values["gwa"], rel=1e-4)
    assert single.values["exact_excess_kurtosis"] == pytest.approx(double.values["excess_kurtosis"], rel=1e-3)
    assert double.values["rounded"] == [0]
    assert any("GWA there from 0.0213 to 0.013" in each for each in single.caveats)
    assert not any("Rounding" in each for each in double.caveats)
    assert any(each.startswith("Fit-dependent") for each in double.caveats)
    wrong = [each for each in single.values["examples"] if each["label"] != each["prediction"]]
    assert len(wrong) >= 20  # of 24
