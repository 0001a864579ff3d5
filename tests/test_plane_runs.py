"""Slices of the loss as they are measured: against every cell computed, killed and resumed, with BatchNorm."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches
from series_runs import a_run
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from analyzers._planes import PlaneOptions, measure_planes, plane_values
from probes.errors import DataError
from probes.objective import Objective
from probes.points import Point

QUICK = PlaneOptions(resolution=21, error=0.05, curvature=False)


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.from_numpy(data.data[:300]).float() / 16, torch.from_numpy(data.target[:300]).long()
    return batches(x, y)


def a_net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 16), *middle, nn.ReLU(), nn.Linear(16, 10))


def trained(net: nn.Module, data, steps: int, every: int) -> list[dict[str, torch.Tensor]]:
    """States of a net while it is trained."""
    states, adam = [copy.deepcopy(net.state_dict())], torch.optim.Adam(net.parameters(), lr=0.01)
    net.train()
    for step in range(1, steps + 1):
        adam.zero_grad()
        functional.cross_entropy(net(data.inputs), data.targets).backward()
        adam.step()
        if step % every == 0:
            states.append(copy.deepcopy(net.state_dict()))
    net.eval()
    return states


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    data, net = digits(), a_net()
    return a_run(tmp_path_factory.mktemp("run"), net, trained(net, data, 120, 30), data, every=30)


@pytest.mark.parametrize("kind", ["random", "hessian", "checkpoints", "trajectory"])
def test_a_real_net_is_within_half_a_percent_of_every_cell_computed(kind: str, run) -> None:
    objective, checkpoints = run
    order = (0, 4, 1, 2, 3)
    chosen = tuple(checkpoints[place] for place in order)
    found = measure_planes(kind, objective, chosen, PlaneOptions(), Notes())
    values, arrays, caveats = plane_values(found)
    plane, surface = values["planes"][0], found.surfaces[0]
    laid = found.laid.slices[0].plane
    true = np.array([[plain_loss(objective, laid.at(x, y)) for x in plane["x"]] for y in plane["y"]])
    error = np.abs(arrays["plane_0_loss"] - true).max() / np.ptp(true)
    assert plane["evaluations"] <= 520 and plane["error_reached"] and not caveats
    assert error < 0.005 and error <= 1.5 * plane["stated_error"]
    assert arrays["plane_0_values"] == pytest.approx(
        [plain_loss(objective, laid.at(x, y)) for x, y in surface.at], rel=1e-5
    )
    centre = 0 if kind == "checkpoints" else 4
    own = objective.at(checkpoints[centre]).evaluate().loss
    assert plane["loss_at_centre"] == pytest.approx(own, rel=1e-6)
    assert arrays["plane_0_loss"][plane["y"].index(0.0), plane["x"].index(0.0)] == plane["loss_at_centre"]
    assert [each["role"] for each in plane["points"]].count("centre") == 1
    assert 0 < plane["curvature_share"] <= 1 and plane["curvature_share_stderr"] > 0
    if kind == "trajectory":
        assert plane["trajectory_share"] == pytest.approx(sum(plane["explained"]))
        assert plane["trajectory_share"] > 0.9
        assert [each["label"] for each in plane["points"]] == [f"step {30 * place}" for place in range(5)]
    if kind == "checkpoints":
        corners = [each for each in plane["points"] if each["role"] == "corner"]
        assert [each["label"] for each in corners] == ["C: step-30.pt", "B: step-120.pt"]  # in the order of time
        asked = {
            (round(x, 5), round(y, 5)): value for (x, y), value in zip(surface.at, surface.rows[:, 0], strict=True)
        }
        for each in corners:
            assert each["off_plane"] < 1e-4
            assert asked[round(each["x"], 5), round(each["y"], 5)] == pytest.approx(each["loss"], rel=1e-4)


def plain_loss(objective: Objective, point: Point) -> float:
    """Loss at a point by a plain loop-free pass, without the probes."""
    names = dict(zip(objective.names, point.theta, strict=True))
    with torch.no_grad():
        outputs = torch.func.functional_call(objective.module, {**names, **point.buffers}, (objective.inputs,))
    return float(functional.cross_entropy(outputs, objective.targets))


def test_a_killed_run_goes_on_and_shows_what_it_has(run) -> None:
    objective, checkpoints = run
    options = PlaneOptions(planes=2, error=0.02, resolution=31, curvature=False)
    shown = []
    whole = measure_planes("random", objective, checkpoints[:2], options, Notes(), lambda each: shown.append(each))
    sizes = [[len(surface.at) for surface in each.surfaces] for each in shown]
    assert sizes[0] == [81] and sizes[-1] == [len(each.at) for each in whole.surfaces] and len(sizes[-1]) == 2
    for each in shown:
        assert plane_values(each)[0]["planes"]  # whatever is known can be drawn
    notes = Notes(stop_after=100)
    with pytest.raises(KeyboardInterrupt):
        measure_planes("random", objective, checkpoints[:2], options, notes)
    kept = len(notes.kept["planes_0"]["at"])
    assert 80 <= kept < 105
    again = Notes()
    again.kept = notes.kept
    counted = CountedReads(objective)
    resumed = measure_planes("random", counted.objective, checkpoints[:2], options, again)
    total = sum(len(each.at) for each in whole.surfaces)
    assert counted.reads - 3 == total - kept  # two checkpoints and the centre as stored beside the planes
    assert (resumed.surfaces[0].values == whole.surfaces[0].values).all()
    assert again.shares == sorted(again.shares) and again.shares[-1] <= 1


class CountedReads:
    """An objective that counts how often it is evaluated anywhere."""

    def __init__(self, objective: Objective) -> None:
        self.reads = 0
        self.objective = copy.copy(objective)
        counter, tallied = self, Objective.tallied

        class Counted(Objective):
            def tallied(self, *args, **kwargs):
                counter.reads += 1
                return tallied(self, *args, **kwargs)

        self.objective.__class__ = Counted


def test_batch_norm_is_measured_anew_at_every_point_or_moves_with_the_plane(tmp_path: Path) -> None:
    torch.manual_seed(1)
    data, states = digits(), []
    for _ in range(3):
        net = a_net(nn.BatchNorm1d(16))
        states.append(trained(net, data, 30, 30)[-1])
    objective, checkpoints = a_run(tmp_path, net, states, data)
    base = {"resolution": 21, "error": 0.2, "curvature": False, "budget": 60}
    for wanted in ("auto", "running"):
        found = measure_planes("checkpoints", objective, checkpoints, PlaneOptions(batch_norm=wanted, **base), Notes())
        surface, laid = found.surfaces[0], found.laid.slices[0].plane
        for (x, y), row in list(zip(surface.at, surface.rows, strict=True))[::7]:
            point = laid.at(x, y)
            expected = in_train_mode(net, objective, point) if wanted == "auto" else plain_loss(objective, point)
            assert row[0] == pytest.approx(expected, rel=1e-4, nan_ok=True)
        values, _, caveats = plane_values(found)
        assert values["planes"][0]["batch_norm"] == ("measured" if wanted == "auto" else "running")
        drawn, stored = (values["planes"][0][key] for key in ("loss_at_centre", "loss_as_stored"))
        assert (abs(drawn - stored) > 0.01 * stored) == any("measured anew" in each for each in caveats)
    found = measure_planes("hessian", objective, checkpoints[:1], PlaneOptions(**base), Notes())
    assert plane_values(found)[0]["planes"][0]["batch_norm"] == "running"


def in_train_mode(net: nn.Module, objective: Objective, point: Point) -> float:
    """Let torch itself gather the statistics of all examples, and evaluate with them."""
    net = copy.deepcopy(net)
    net.load_state_dict({**dict(zip(objective.names, point.theta, strict=True)), **point.buffers}, strict=False)
    net[1].momentum = 1.0
    with torch.no_grad():
        net.train()(objective.inputs)
        return float(functional.cross_entropy(net.eval()(objective.inputs), objective.targets))


def test_several_planes_of_each_kind(run) -> None:
    objective, checkpoints = run
    two = PlaneOptions(planes=2, resolution=21, error=0.2, budget=60, curvature=False)
    found = {
        kind: plane_values(measure_planes(kind, objective, checkpoints, two, Notes()))[0]["planes"]
        for kind in ("random", "hessian", "checkpoints", "trajectory")
    }
    assert all(len(each) == 2 for each in found.values())
    assert found["random"][1]["y_label"] == "Distance along random direction 4"
    ranks = [each["rank"] for plane in found["hessian"] for each in plane["eigenvalues"]]
    sizes = [each["value"] for plane in found["hessian"] for each in plane["eigenvalues"]]
    assert ranks == [1, 2, 3, 4] and sizes == sorted(sizes, reverse=True)
    for plane in found["hessian"]:
        for label, pair in zip((plane["x_label"], plane["y_label"]), plane["eigenvalues"], strict=True):
            assert label == f"Distance along eigenvector {pair['rank']} (λ = {pair['value']:.4g})"
            assert pair["bound"] < 1e-3 * pair["value"] and pair["residual"] < 0.1 * pair["value"]
    assert found["checkpoints"][1]["title"] == "Plane through the checkpoints A, B and D"
    explained = [share for plane in found["trajectory"] for share in plane["explained"]]
    assert explained == sorted(explained, reverse=True) and sum(explained) == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_laid_is_refused_in_words(run) -> None:
    objective, checkpoints = run
    with pytest.raises(DataError, match="needs three of them, there are 2"):
        measure_planes("checkpoints", objective, checkpoints[:2], QUICK, Notes())
    with pytest.raises(DataError, match="at least three checkpoints, there are 2"):
        measure_planes("trajectory", objective, checkpoints[:2], QUICK, Notes())
    with pytest.raises(ValueError, match="kind is 'square'"):
        measure_planes("square", objective, checkpoints[:2], QUICK, Notes())


def test_a_model_without_second_derivatives_still_has_random_planes(run) -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x**3

        @staticmethod
        @once_differentiable
        def backward(context, gradient):
            return gradient * 3 * context.saved_tensors[0] ** 2

    class Cubed(nn.Module):
        def forward(self, x):
            return Cube.apply(x)

    objective = Objective.of(a_net(Cubed()), digits(), "cross_entropy")
    checkpoints = run[1][:1]
    options = PlaneOptions(resolution=21, error=0.9)
    values, _, caveats = plane_values(measure_planes("random", objective, checkpoints, options, Notes()))
    assert values["planes"][0]["curvature_share"] is None
    assert any("not known" in each and "once_differentiable" in each for each in caveats)
