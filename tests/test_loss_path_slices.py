"""The loss path's two-dimensional slices, and its Gauss length."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from curvature_oracles import gpt
from loss_path_runs import SMALL, a_path, data
from series_runs import a_run, moved
from torch import nn
from torch.nn.functional import cross_entropy

from analyzers._base import Quiet
from analyzers.loss_path import LossPath, LossPathResult


@pytest.fixture
def run(tmp_path: Path):
    return a_path(tmp_path)


class Shown(Quiet):
    """A tick that keeps what it is shown."""

    def __init__(self) -> None:
        self.results: list[LossPathResult] = []
        self.shares: list[float] = []

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        self.shares.append(share)

    def show(self, result) -> None:
        self.results.append(result)


def test_slices_join_the_path_and_are_shown_while_they_get_finer(run, tmp_path: Path) -> None:
    objective, checkpoints = run
    tick = Shown()
    options = {**SMALL, "refine": 0, "plane": "checkpoints", "resolution": 11}
    result = LossPath(**options).run(objective, checkpoints, tick)
    plain = LossPath(**SMALL | {"refine": 0}).run(objective, checkpoints, Quiet())
    assert plain.values["planes"] == [] and not set(plain.figures()) - {"loss", "accuracy", "controls"}
    assert {**result.values, "planes": []} == dict(plain.values)
    (plane,) = result.values["planes"]
    assert plane["kind"] == "checkpoints"
    corners = sorted(each["loss"] for each in plane["points"])
    ends = [result.values["loss"][result.values["alpha"].index(alpha)] for alpha in (0.0, 1.0)]
    assert corners == pytest.approx(sorted([*ends, result.values["on_the_way"][0]["loss"]]), rel=1e-9)
    assert {"plane_0_contour", "plane_0_surface", "loss"} <= set(result.figures())
    assert {"plane_0_points", "loss"} <= set(result.tables())
    assert tick.results[0].values["planes"] == [] and len(tick.results) > 1
    assert tick.shares == sorted(tick.shares) and max(tick.shares) <= 1.0
    result.save(tmp_path / "out")
    assert set(LossPathResult.read(tmp_path / "out").figures()) == set(result.figures())


def test_slices_that_cannot_be_made_leave_the_path(run) -> None:
    objective, checkpoints = run
    result = LossPath(**SMALL, plane="checkpoints").run(objective, checkpoints[:2], Quiet())
    assert result.values["planes"] == [] and len(result.values["loss"]) >= 7
    assert any(each.startswith("There are no slices: ") for each in result.caveats)


def test_a_language_model_weighs_tokens_and_follows_them(tmp_path: Path) -> None:
    module, examples = gpt()
    objective, checkpoints = a_run(
        tmp_path, module, moved(module, 2, 0.2), examples, "causal_lm", dtype="float64", micro_batch=2
    )
    values = LossPath(**SMALL).run(objective, checkpoints, Quiet()).values
    counted = int((examples.targets != -100).sum())
    assert values["gauss_predictions"] == counted and values["gauss_length"] > 0
    state = checkpoints[1].load()
    module = copy.deepcopy(module).double()
    module.load_state_dict(state)
    with torch.no_grad():
        expected = cross_entropy(module(examples.inputs).flatten(0, 1), examples.targets.flatten(), ignore_index=-100)
    assert values["loss"][values["alpha"].index(1.0)] == pytest.approx(float(expected), rel=1e-9)


def test_gauss_length_of_a_linear_network_is_none_and_of_a_quadratic_one_is_known(tmp_path: Path) -> None:
    """With one linear layer outputs move straight; with two, z(alpha) = (1 + alpha)^2 z(0) is straight as well."""
    straight = nn.Sequential(nn.Linear(5, 3))
    objective, checkpoints = a_run(tmp_path, straight, moved(straight, 2, 1.0), data(), dtype="float64")
    values = LossPath(**SMALL, controls=False).run(objective, checkpoints, Quiet()).values
    assert values["gauss_length"] == pytest.approx(0, abs=1e-5)  # float32 files
    (tmp_path / "two").mkdir()
    bent = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    objective, checkpoints = a_run(tmp_path / "two", bent, moved(bent, 2, 1.0), data(), dtype="float64")
    values = LossPath(points=201, refine=0, start=0.0, stop=1.0, controls=False, dtype="float64").run(
        objective, checkpoints, Quiet()
    ).values  # fmt: skip
    (a0, b0), (a1, b1) = ([each.double() for each in checkpoint.load().values()] for checkpoint in checkpoints)
    x, da, db = data().inputs.double(), a1 - a0, b1 - b0
    ends = []
    for alpha in (0.0, 1.0):  # v = dz / d alpha is affine in alpha: it turns by the angle between its ends
        a, b = a0 + alpha * da, b0 + alpha * db
        ends.append(nn.functional.normalize(x @ (db @ a + b @ da).T, dim=1))
    angles = torch.acos((ends[0] * ends[1]).sum(1).clamp(-1, 1))
    assert values["gauss_length"] == pytest.approx(float(angles.mean()), rel=0.02)
    assert values["gauss_length"] <= float(angles.mean())
