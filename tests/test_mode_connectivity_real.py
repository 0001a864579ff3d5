"""Mode connectivity of the two real runs: the figures measured elsewhere, to the digits given there."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzers._base import Quiet
from analyzers.mode_connectivity import ModeConnectivity, ModeConnectivityResult
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import recognise
from probes.objective import build_objective
from probes.specs import DataSpec
from workspace.command_line import main

IMAGES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


@cache
def of_real(real: Path, examples: int = 2000, **options: Any) -> ModeConnectivityResult:
    """The analysis of the first images."""
    checkpoints = tuple(read_checkpoint(real / "mnist-cnn" / run / "epoch-200.pt") for run in ("run1", "run2"))
    data = read_batches(DataSpec(tuple(str(real / "mnist" / each) for each in IMAGES), examples=examples))
    spec = recognise(checkpoints[0]).spec
    assert spec is not None
    objective = build_objective(spec, checkpoints[0], data, "cross_entropy", micro_batch=250)
    asked = {"points": 3, "controls": False, "micro_batch": 250, **options}
    return ModeConnectivity(**asked).run(objective, checkpoints, Quiet())


def test_all_images_give_the_figures_that_were_measured_elsewhere(real: Path, tmp_path: Path) -> None:
    words = ["run", "mode_connectivity", "--out", str(tmp_path / "out")]
    for run in ("run1", "run2"):
        words += ["--checkpoint", str(real / "mnist-cnn" / run / "epoch-200.pt")]
    words += [word for each in IMAGES for word in ("--data", str(real / "mnist" / each))]
    options = ("points=5", "repair=false", "controls=false", "micro_batch=250")
    assert main([*words, *(word for each in options for word in ("--set", each))]) == 0
    values = json.loads((tmp_path / "out" / "result.json").read_text())["values"]
    assert values["lambda"] == [0, 0.25, 0.5, 0.75, 1]
    rounded = lambda key, stage, digits: np.round(values[key][stage], digits).tolist()
    assert rounded("loss", "naive", 4) == [0.0332, 0.1048, 0.7228, 0.1316, 0.0331]
    assert rounded("accuracy", "naive", 4) == [0.9894, 0.9816, 0.7711, 0.9775, 0.9887]
    assert rounded("loss", "matched", 4)[1:4] == [0.0339, 0.0350, 0.0341]
    assert rounded("accuracy", "matched", 4)[1:4] == [0.9894, 0.9886, 0.9889]
    assert {round(each, 3) for each in values["barrier"]["naive"].values()} == {0.690}
    assert round(values["barrier"]["matched"]["git_rebasin"], 4) == 0.0018
    assert round(values["distance"], 4) == 4.9958
    assert [round(each["distance"], 4) for each in values["restarts"]] == [4.9958] * 5
    assert [each["agreement"] for each in values["restarts"]] == [1.0] * 5
    assert values["equivalence_error"] < 1e-10
    assert (values["verdict"], values["verdict_firm"]) == ("same_after_permutation", True)
    assert values["threshold"] == pytest.approx(0.02 * (values["chance_loss"] - 0.03315), rel=1e-3)
    figures = {each.name.removesuffix(".html") for each in (tmp_path / "out" / "figures").iterdir()}
    assert {"loss", "accuracy", "barriers", "restarts", "layers", "unit_pairs"} <= figures


def test_one_permutation_over_five_seeds(real: Path) -> None:
    found = [of_real(real, examples=100, seed=seed, restarts=3, repair=False) for seed in range(5)]
    for each in found:
        assert round(each.values["distance"], 4) == 4.9958
        for name in ("permutation_0", "permutation_3"):
            np.testing.assert_array_equal(each.arrays[name], found[0].arrays[name])


def test_repair_on_two_thousand_images(real: Path) -> None:
    found = of_real(real).values
    assert round(100 * found["repair_without_matching"]["accuracy"], 1) == 79.0
    assert round(100 * found["accuracy"]["repaired"][1], 2) == 98.50
    ratios = found["variance_ratio"]
    assert ratios["naive"]["3"] < ratios["matched"]["3"] < 1


def test_activation_matching_on_two_thousand_images(real: Path) -> None:
    found = of_real(real, matcher="activations", repair=False).values
    assert found["barrier"]["matched"]["git_rebasin"] == pytest.approx(0.0072, abs=0.0015)
    assert found["verdict"] == "same_after_permutation" and found["matcher"] == "activation matching"
