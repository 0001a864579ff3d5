"""The controls of matching: a permuted copy found again or not, and noise with the moments of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn
from torch import nn

from probes.controls import gain, noise_like, planted
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, Use
from probes.points import Point, at, point_of


def net() -> tuple[Objective, PermutationSpec]:
    """Six hidden units, the fourth and fifth of which are alike."""
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        for tensor, axis in ((module[0].weight, 0), (module[0].bias, 0), (module[2].weight, 1)):
            tensor.select(axis, 4).copy_(tensor.select(axis, 3))
    objective = Objective.of(module, batches(torch.randn(7, 3), torch.randint(2, (7,))), "cross_entropy")
    index = np.arange(6)[:, None]
    uses = tuple(Use(*each, index) for each in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)))
    return objective, PermutationSpec((Permutation("hidden", 6, uses),), "by hand")


def first_like(original: dict, copy: dict) -> dict:
    """For each unit of the original the first one of the copy that is like it and not taken."""
    rows = [torch.cat([each["0.weight"], each["0.bias"][:, None]], 1) for each in (original, copy)]
    taken: list[int] = []
    for row in rows[0]:
        taken.append(next(u for u in range(6) if u not in taken and torch.equal(row, rows[1][u])))
    return {"hidden": np.array(taken)}


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_found_again_leaves_no_distance_though_units_that_are_alike_may_change_places(seed: int) -> None:
    objective, spec = net()
    found = planted(objective, point_of(objective), spec, first_like, seed)
    assert found.exact and found.distance == 0.0 and found.units == 6
    hidden = np.random.default_rng(seed).permutation(6)
    in_order = list(hidden).index(3) < list(hidden).index(4)
    assert found.found_again == (1.0 if in_order else pytest.approx(4 / 6))


def test_a_matcher_that_finds_nothing_is_told_by_the_distance() -> None:
    objective, spec = net()
    found = planted(objective, point_of(objective), spec, lambda _a, _b: {"hidden": np.arange(6)}, 0)
    hidden = np.random.default_rng(0).permutation(6)
    assert found.found_again == pytest.approx(float((hidden == np.arange(6)).mean()))
    parts = [(each.detach(), axis) for each, axis in zip(objective.theta[:3], (0, 0, 1), strict=True)]
    gaps = [(each - each.index_select(axis, torch.as_tensor(hidden))).square().sum() for each, axis in parts]
    assert found.distance == pytest.approx(float(sum(gaps).sqrt())) and not found.exact


def test_noise_has_the_moments_of_each_tensor_and_nothing_else_of_it() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(50, 80), nn.Linear(80, 2))
    with torch.no_grad():
        module[0].weight.mul_(3).add_(0.5)
    objective = Objective.of(module, batches(torch.randn(5, 50), torch.randint(2, (5,))), "cross_entropy")
    one, again, other = (noise_like(objective, point_of(objective), seed) for seed in (0, 0, 1))
    weight = module[0].weight.detach()
    drawn = one.theta[0]
    assert float(drawn.mean()) == pytest.approx(float(weight.mean()), abs=4 * float(weight.std()) / 4000**0.5)
    assert float(drawn.std()) == pytest.approx(float(weight.std()), rel=4 / 8000**0.5)
    assert abs(float(torch.corrcoef(torch.stack([drawn.flatten(), weight.flatten()]))[0, 1])) < 4 / 4000**0.5
    assert all(torch.equal(a, b) for a, b in zip(one.theta, again.theta, strict=True))
    assert not torch.equal(one.theta[0], other.theta[0])


def test_noise_has_the_running_statistics_that_belong_to_it() -> None:
    module, data = cnn()
    objective = Objective.of(module, data, "cross_entropy", dtype="float64")
    noise = noise_like(objective, point_of(objective), 0)
    conv = nn.functional.conv2d(data.inputs.double(), noise.theta[0], noise.theta[1])
    torch.testing.assert_close(noise.buffers["1.running_mean"], conv.mean((0, 2, 3)))
    torch.testing.assert_close(noise.buffers["1.running_var"], conv.transpose(0, 1).flatten(1).var(1))
    moved: Point = point_of(at(objective, noise))
    assert torch.equal(moved.buffers["1.running_mean"], noise.buffers["1.running_mean"])


def test_the_gain_is_the_share_of_the_squared_distance() -> None:
    assert gain(2.0, 1.0) == 0.75
    assert gain(2.0, 2.0) == 0.0
    assert gain(0.0, 0.0) is None
