"""Many points read at once, resampled together, and BatchNorm's statistics measured anew."""

from __future__ import annotations

import copy

import numpy as np
import torch
from curvature_oracles import batches
from torch import nn
from torch.nn.functional import cross_entropy

from probes.batch_statistics import has_batch_norm, renewed
from probes.objective import Objective
from probes.paths import interval, read, readings, resampled, resamples
from probes.points import between, point_of


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 3)).double().eval()


def objective(seed: int = 0, count: int = 13, **options: object) -> Objective:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    y = torch.randint(3, (count,), generator=generator)
    return Objective.of(net(seed), batches(x, y), "cross_entropy", dtype="float64", micro_batch=4, **options)


def test_the_statistics_are_those_of_one_pass_over_all_examples_in_train_mode() -> None:
    here = objective()
    truth = copy.deepcopy(here.module).train()
    for layer in truth.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    truth(here.inputs)
    before = {name: each.clone() for name, each in here.constants.items()}
    point = renewed(here, point_of(here))
    for name, each in truth.named_buffers():
        if "running" in name:
            torch.testing.assert_close(point.buffers[name], each, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[name], each) for name, each in here.constants.items()), "the objective was written to"
    assert not any(layer.training for layer in here.module.modules())
    assert has_batch_norm(here)


def test_readings_are_the_losses_of_the_mixed_networks() -> None:
    one, two = objective(1), objective(2)
    line = [between(point_of(one), point_of(two), alpha) for alpha in (0.0, 0.5, 1.0)]
    found = readings(one, line, 3, lambda _share, _doing: None)
    module = copy.deepcopy(one.module)
    pairs = zip(one.module.state_dict().items(), two.module.state_dict().values(), strict=True)
    module.load_state_dict({k: (a + b) / 2 if a.is_floating_point() else a for (k, a), b in pairs})
    with torch.no_grad():
        logits = module(one.inputs)
    np.testing.assert_allclose(found.losses[1], cross_entropy(logits, one.targets, reduction="none"), rtol=1e-12)
    np.testing.assert_allclose(found.right[1], (logits.argmax(1) == one.targets).double())
    np.testing.assert_allclose(found.loss[0], one.evaluate().loss)
    again = found.taken([0]).with_more(found.taken([1, 2]))
    np.testing.assert_array_equal(again.losses, found.losses)
    fresh = read(one, line[1], statistics=one)
    assert abs(fresh.loss[0] - found.loss[1]) > 1e-3


def test_resampling_gives_the_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=(2, 400)) + 3
    counts = np.ones(400)
    weights = resamples(400, seed=1, draws=4000)
    drawn = resampled(values, counts, weights)
    assert drawn.shape == (4000, 2)
    np.testing.assert_allclose(drawn.std(0), values.std(1) / 20, rtol=0.05)
    low, high = interval(drawn)
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std(1) / 20, rtol=0.06)
