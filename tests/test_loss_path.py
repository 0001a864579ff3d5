"""The loss path: its values against a plain loop, its controls, its doubts, what it refuses, resuming."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, cnn
from loss_path_runs import SMALL, a_path, data, net, trained
from series_runs import a_run, moved
from torch import nn
from torch.nn.functional import cross_entropy

from analyzers._base import Quiet
from analyzers.loss_path import LossPath, LossPathResult
from probes import line_readings
from probes.errors import DataError


@pytest.fixture
def run(tmp_path: Path):
    return a_path(tmp_path)


def loss_at(module: nn.Module, one, other, alpha: float, examples) -> float:
    module = copy.deepcopy(module).double()
    module.load_state_dict({name: (1 - alpha) * one[name].double() + alpha * other[name].double() for name in one})
    with torch.no_grad():
        return float(cross_entropy(module(examples.inputs.double()), examples.targets))


def test_the_path_is_what_a_loop_over_networks_finds(run, tmp_path: Path) -> None:
    objective, checkpoints = run
    result = LossPath(**SMALL).run(objective, checkpoints, Quiet())
    values, states = result.values, [each.load() for each in checkpoints]
    for key, examples in (("loss", data()), ("test_loss", data(23))):
        expected = [loss_at(net(), states[0], states[1], alpha, examples) for alpha in values["alpha"]]
        np.testing.assert_allclose(values[key], expected, rtol=1e-9)
    assert values["alpha"][0] == -0.25 and values["alpha"][-1] == 1.25 and {0.0, 1.0} <= set(values["alpha"])
    inside = [each for a, each in zip(values["alpha"], values["loss"], strict=True) if 0 <= a <= 1]
    rises = [later - early for i, early in enumerate(inside) for later in inside[i:]]
    assert values["delta"] == pytest.approx(max(rises))
    assert values["delta_low"] <= values["delta_high"]
    assert all(
        low <= each <= high
        for low, each, high in zip(values["loss_low"], values["loss"], values["loss_high"], strict=True)
    )
    assert values["checkpoints"] == ["step-0.pt", "step-1.pt"] and values["uncorrected"] is None
    assert len(values["added"]) <= 3 and set(values["added"]) < set(values["alpha"])
    result.save(tmp_path / "out")
    again = LossPathResult.read(tmp_path / "out")
    assert again.values == json.loads(json.dumps(values))


def test_bands_are_those_of_the_mean_over_examples(run) -> None:
    objective, checkpoints = run
    values = LossPath(**SMALL, controls=False).run(objective, checkpoints, Quiet()).values
    place = values["alpha"].index(0.0)
    losses = objective.converted("float64").tallied().losses.numpy()
    half = 1.96 * losses.std() / math.sqrt(len(losses))
    assert values["loss_high"][place] - values["loss_low"][place] == pytest.approx(2 * half, rel=0.12)
    assert values["controls"] == {}


def test_a_checkpoint_on_the_way_is_projected_and_read_where_it_is(run) -> None:
    objective, checkpoints = run
    values = LossPath(**SMALL, controls=False).run(objective, checkpoints, Quiet()).values
    one, other, there = (
        torch.cat([each.flatten().double() for each in checkpoint.load().values()]).numpy()
        for checkpoint in checkpoints
    )
    (alpha,), (left,), _, _ = np.linalg.lstsq((other - one)[:, None], there - one, rcond=None)
    (row,) = values["on_the_way"]
    assert row["checkpoint"] == "step-2.pt"
    assert row["alpha"] == pytest.approx(alpha, rel=1e-6) and row["distance"] == pytest.approx(math.sqrt(left))
    assert row["relative"] == pytest.approx(math.sqrt(left) / np.linalg.norm(other - one))
    state = checkpoints[2].load()
    assert row["loss"] == pytest.approx(loss_at(net(), state, state, 0.5, data()), rel=1e-9)
    assert row["test_loss"] == pytest.approx(loss_at(net(), state, state, 0.5, data(23)), rel=1e-9)
    assert values["distance"] == pytest.approx(np.linalg.norm(other - one))
    assert values["relative_distance"] == pytest.approx(np.linalg.norm(other - one) / np.linalg.norm(one))


def test_the_controls_go_to_the_same_end_from_elsewhere(run) -> None:
    objective, checkpoints = run
    result = LossPath(**SMALL).run(objective, checkpoints, Quiet())
    values, end = result.values, checkpoints[1].load()
    zeros = {name: torch.zeros_like(each) for name, each in end.items()}
    found = values["controls"]["zeros"]
    assert found["alpha"][0] == 0 and found["alpha"][-1] == 1
    expected = [loss_at(net(), zeros, end, alpha, data()) for alpha in found["alpha"]]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-9)
    assert found["loss"][0] == pytest.approx(math.log(3))
    noise = values["controls"]["noise"]
    assert noise["loss"][-1] == pytest.approx(found["loss"][-1])
    assert abs(noise["loss"][0] - values["loss"][values["alpha"].index(0.0)]) > 1e-3
    again = LossPath(**SMALL, seed=1).run(objective, checkpoints, Quiet()).values["controls"]["noise"]
    assert noise["loss"][0] != again["loss"][0]
    assert found["delta"] == pytest.approx(max(0, *np.diff(found["loss"])), abs=1e-12)
    assert any("so it does on the path from noise and from zeros" in each for each in result.caveats)


def test_a_path_that_rises_is_not_told_to_be_like_its_controls(tmp_path: Path) -> None:
    """Two minima that are mirror images: between them, all outputs are 0."""
    examples = data()
    end = trained(net(), examples)[-1]
    mirror = {name: -each if name.startswith(("0", "2.weight")) else each for name, each in end.items()}
    objective, checkpoints = a_run(tmp_path, net(), [end, mirror], examples)
    result = LossPath(start=0.0, stop=1.0, points=9, refine=20).run(objective, checkpoints, Quiet())
    ends = (result.values["loss"][0], result.values["loss"][-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    assert result.values["delta"] == pytest.approx(max(result.values["loss"]) - ends[0], rel=1e-6)
    assert (result.values["delta_from"], result.values["delta_to"]) == (0.0, 0.5)
    assert 0 < result.values["delta_low"] < result.values["delta"] < result.values["delta_high"]
    assert result.values["area"] is None or abs(result.values["area"]) > 1
    assert not any("training went" in each for each in result.caveats)


def test_batch_norm_is_measured_anew_and_drawn_as_interpolated_beside(tmp_path: Path) -> None:
    module, examples = cnn()
    objective, checkpoints = a_run(tmp_path, module, moved(module, 3, 0.3), examples, dtype="float64")
    anew = LossPath(**SMALL, start=0.0, stop=1.0).run(objective, checkpoints, Quiet())
    kept = LossPath(**SMALL, start=0.0, stop=1.0, batch_norm=False).run(objective, checkpoints, Quiet())
    assert kept.values["uncorrected"] is None
    beside = dict(zip(anew.values["alpha"], anew.values["uncorrected"]["loss"], strict=True))
    shared = [place for place, alpha in enumerate(kept.values["alpha"]) if alpha in beside]
    assert len(shared) >= 7
    expected = [kept.values["loss"][place] for place in shared]
    np.testing.assert_allclose([beside[kept.values["alpha"][place]] for place in shared], expected, rtol=1e-9)
    assert anew.values["loss"] != anew.values["uncorrected"]["loss"]
    assert "measured anew at each place" in anew.card["mode"] and "as interpolated" in kept.card["mode"]
    assert any("interpolated with the weights" in each for each in kept.caveats)
    own = anew.values["on_the_way"][0]["loss"]
    truth = copy.deepcopy(module).double()
    truth.load_state_dict(checkpoints[2].load())
    truth[1].train().momentum = 1.0
    with torch.no_grad():
        truth(examples.inputs.double())
        expected_own = float(cross_entropy(truth.eval()(examples.inputs.double()), examples.targets))
    assert own == pytest.approx(expected_own, rel=1e-9)


def test_a_loss_that_overflows_is_left_out_and_named(tmp_path: Path) -> None:
    linear = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
    start = linear.state_dict()
    far = {name: each * 1e20 for name, each in start.items()}
    objective, checkpoints = a_run(tmp_path, linear, [start, far, far], data())
    result = LossPath(points=7, refine=2).run(objective, checkpoints, Quiet())
    lost = [alpha for alpha, each in zip(result.values["alpha"], result.values["loss"], strict=True) if each is None]
    assert 1.0 in lost and result.values["loss"][result.values["alpha"].index(0.0)] is not None
    assert result.values["delta"] is None and result.values["plateau"] is None and result.values["delta_low"] is None
    assert result.values["on_the_way"][0]["loss"] is None
    (told,) = [each for each in result.caveats if each.startswith("The loss is not finite at alpha = ")]
    assert "Delta is not given" in told
    json.dumps(dict(result.values), allow_nan=False)
    assert set(result.figures()) == {"loss", "accuracy", "controls"} and result.tables()


def test_everything_may_be_lost_and_still_there_is_an_answer(tmp_path: Path) -> None:
    objective, checkpoints = a_run(tmp_path, net(), [net().state_dict(), net(2.0).state_dict()], data())
    with torch.no_grad():
        objective.theta[0].fill_(math.nan)
    result = LossPath(points=7, refine=2, start=0.0, stop=1.0).run(objective, checkpoints, Quiet())
    assert all(each is None for each in result.values["loss"][:-1]) and result.values["gauss_length"] is None
    json.dumps(dict(result.values), allow_nan=False)
    assert result.figures()


def test_it_says_what_it_cannot_do(tmp_path: Path, run) -> None:
    objective, checkpoints = run
    with pytest.raises(DataError, match="give two"):
        LossPath().run(objective, checkpoints[:1], Quiet())
    with pytest.raises(DataError, match="same weights"):
        LossPath().run(objective, (checkpoints[0], checkpoints[0]), Quiet())
    for wrong in ({"start": 0.1}, {"stop": 0.9}, {"points": 2}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LossPath(**wrong)
    assert any("used up" in each for each in LossPath(points=5, refine=0).run(objective, checkpoints, Quiet()).caveats)


def test_the_same_again_and_after_a_kill_gives_the_same(run, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, checkpoints = run
    monkeypatch.setattr(line_readings, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, notes = LossPath(**SMALL).run(objective, checkpoints, Quiet()), Notes(stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        LossPath(**SMALL).run(objective, checkpoints, notes)
    notes.stop_after = None
    again = LossPath(**SMALL).run(objective, checkpoints, notes)
    assert dict(again.values) == dict(whole.values) and again.caveats == whole.caveats
    assert set(notes.kept) >= {"line", "noise", "zeros"}
    assert notes.shares[-1] == pytest.approx(1.0)


def test_micro_batches_do_not_matter(run) -> None:
    objective, checkpoints = run
    one, other = (LossPath(**SMALL, micro_batch=size).run(objective, checkpoints, Quiet()) for size in (3, 40))
    np.testing.assert_allclose(one.values["loss"], other.values["loss"], rtol=1e-12)
    assert one.values["gauss_length"] == pytest.approx(other.values["gauss_length"], rel=1e-9)
