"""Points between checkpoints: the objective at them, its test data with it, and nothing written to the module."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from torch import nn
from torch.nn.functional import cross_entropy

from probes.errors import ModelError
from probes.objective import Objective
from probes.points import Point, at, between, combined, distance, point_of


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    made[1].running_mean.uniform_(-1, 1)
    made[1].running_var.uniform_(0.5, 2)
    return made.eval()


def data(count: int = 13, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator), torch.randint(3, (count,), generator=generator)


def objective(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Objective:
    return Objective.of(module, batches(x, y), "cross_entropy", dtype="float64", micro_batch=4)


def test_a_point_between_is_the_network_of_the_mixed_state() -> None:
    one, two, (x, y) = net(1), net(2), data()
    mixed = copy.deepcopy(one)
    states = one.state_dict(), two.state_dict()
    mixed.load_state_dict({k: (0.7 * states[0][k] + 0.3 * states[1][k]) if v.is_floating_point() else v
                           for k, v in states[0].items()})  # fmt: skip
    with torch.no_grad():
        truth = cross_entropy(mixed(x.double()), y, reduction="none")
    here, there = objective(one, x, y), objective(two, x, y)
    moved = at(here, between(point_of(here), point_of(there), 0.3))
    np.testing.assert_allclose(moved.example_losses(), truth, rtol=1e-12)
    assert moved.gradient().shape == (here.size,)
    np.testing.assert_allclose(here.example_losses(), objective(one, x, y).example_losses(), rtol=0)


def test_test_data_move_along() -> None:
    one, two, (x, y), (u, v) = net(1), net(2), data(), data(7, 5)
    here = objective(one, x, y).with_test(batches(u, v))
    moved = at(here, point_of(objective(two, x, y))).on_test()
    assert moved is not None
    np.testing.assert_allclose(moved.example_losses(), objective(two, u, v).example_losses(), rtol=1e-12)
    assert moved.batches is not here.batches
    assert objective(one, x, y).on_test() is None


def test_test_data_follow_the_precision() -> None:
    (x, y), (u, v) = data(), data(7, 5)
    single = Objective.of(net(1).float(), batches(x, y), "cross_entropy", dtype="float32").with_test(batches(u, v))
    tested = single.converted("float64").on_test()
    assert tested is not None
    np.testing.assert_allclose(tested.example_losses(), objective(net(1).float(), u, v).example_losses(), rtol=1e-6)


def test_weights_of_several_points() -> None:
    points = [point_of(objective(net(seed), *data())) for seed in range(3)]
    found = combined(points, (0.5, 0.25, 0.25))
    for place, each in enumerate(found.theta):
        torch.testing.assert_close(
            each, 0.5 * points[0].theta[place] + 0.25 * (points[1].theta[place] + points[2].theta[place])
        )
    assert found.buffers.keys() == {"1.running_mean", "1.running_var"}


def test_distance_is_that_of_the_parameters() -> None:
    one, two = (objective(net(seed), *data()) for seed in (1, 2))
    truth = float((one.flat(one.theta) - two.flat(two.theta)).detach().norm())
    assert distance(point_of(one), point_of(two)) == pytest.approx(truth, rel=1e-14)


def test_other_tensors_are_refused() -> None:
    small = Objective.of(nn.Linear(5, 3), batches(*data()), "cross_entropy")
    with pytest.raises(ModelError, match="same tensors"):
        between(point_of(small), point_of(objective(net(), *data())), 0.5)


def test_losses_that_are_not_finite_can_be_asked_for() -> None:
    here = objective(net(), *data())
    far = here.moved([each * 1e200 for each in here.theta])
    assert not np.isfinite(far.tallied(finite=False).losses.numpy()).all()


def test_masks_of_infinities_stay_what_they_are() -> None:
    mask = torch.tensor([0.0, -torch.inf])
    one = Point((torch.tensor([1.0]),), {"mask": mask})
    other = Point((torch.tensor([3.0]),), {"mask": mask.clone()})
    for alpha in (-0.5, 0.0, 0.25, 1.0, 1.5):
        found = between(one, other, alpha)
        assert torch.equal(found.buffers["mask"], mask)
        assert float(found.theta[0]) == pytest.approx(1 + 2 * alpha)
    clash = between(one, Point(one.theta, {"mask": -mask}), 0.5).buffers["mask"]
    assert torch.isnan(clash[1]), "infinities that differ have no mean"
