"""Curves of the real pair of networks, and what is read along them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn
from torch.nn.functional import cross_entropy

from probes.checkpoint import read_checkpoint
from probes.curve_evaluation import evaluated, summarised
from probes.curve_training import trained
from probes.curves import Curve, straight
from probes.data import read_batches
from probes.objective import Objective, build_objective
from probes.paths import resamples
from probes.points import point_of
from probes.specs import DataSpec, ModelSpec

LAYERS = "Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(1600, 10)"


def quiet(share: float, doing: str) -> None:
    assert 0 <= share <= 1 and doing


def example(seed: int = 0, **options) -> tuple[Objective, Curve]:
    """A BatchNorm network with test data, and a curve of one bend that is bent at random."""
    module, data = cnn()
    here = Objective.of(module.double(), data, "cross_entropy", dtype="float64", **options)
    here = here.with_test(batches(torch.randn(7, 1, 8, 8), torch.randint(4, (7,))))
    moved = lambda: here.moved([each + 0.4 * torch.randn_like(each) for each in here.theta])
    line = straight("bezier", point_of(here), point_of(moved()), 1)
    return here, Curve("bezier", line.ends, (point_of(moved()),))


def test_what_is_read_is_the_loss_of_the_networks_themselves() -> None:
    objective, curve = example()
    found = evaluated(objective, curve, quiet, points=5)
    truth = copy.deepcopy(objective.module)
    point = curve.at(0.25)
    truth.load_state_dict(dict(zip(objective.names, point.theta, strict=True)), strict=False)
    norm = truth[1]
    norm.train().momentum = 1.0
    with torch.no_grad():
        truth(objective.inputs)
        norm.eval()
        for readings, seen in ((found.data, objective), (found.test, objective.on_test())):
            logits = truth(seen.inputs)
            np.testing.assert_allclose(readings.losses[1], cross_entropy(logits, seen.targets, reduction="none"))
            np.testing.assert_array_equal(readings.right[1], logits.argmax(1) == seen.targets)
    as_combined = evaluated(objective, curve, quiet, points=5, fresh_statistics=False)
    assert abs(as_combined.data.loss[1] - found.data.loss[1]) > 1e-4
    np.testing.assert_allclose(as_combined.data.loss[0], objective.evaluate().loss)
    assert found.length > found.straight > 0 and found.places.shape == (5, 2) and not found.aside.any()


def test_the_summary_is_that_of_a_hand_computation() -> None:
    values = np.array([[1.0, 3.0], [4.0, 6.0], [2.0, 2.0], [1.0, 7.0]])
    t, lengths = np.linspace(0, 1, 4), np.array([0.0, 1.0, 3.0, 4.0])
    found = summarised(values, np.ones(2), t, lengths, resamples(2, 0, 200))
    assert found.highest.value == 5 and found.highest_at == pytest.approx(1 / 3)
    assert found.lowest.value == 2 and found.lowest_at == 0
    assert found.mean.value == pytest.approx((2 + 5 + 2 + 4) / 4)
    assert found.integral.value == pytest.approx((1 * 3.5 + 2 * 3.5 + 1 * 3) / 4)
    assert found.barrier.value == 5 - 4
    draws = [np.array(rows) for rows in ([0, 0], [0, 1], [1, 1])]  # all that resampling can give
    highest = sorted(values[:, each].mean(1).max() for each in draws)
    assert (found.highest.low, found.highest.high) == (highest[0], highest[-1])
    barriers = sorted(values[:, each].mean(1).max() - values[[0, -1]][:, each].mean(1).max() for each in draws)
    assert (found.barrier.low, found.barrier.high) == (barriers[0], barriers[-1])


def test_tokens_weigh_the_same_and_losses_that_are_not_finite_do_not_stop_it() -> None:
    counts = np.array([1.0, 3.0])
    values = np.array([[1.0, 6.0], [np.inf, 6.0], [1.0, 3.0]])
    found = summarised(values, counts, np.linspace(0, 1, 3), np.array([0.0, 1.0, 2.0]), resamples(2, 0, 50))
    assert found.highest.value == np.inf and found.lowest.value == 1.0


def test_a_curve_without_length_is_averaged_over_t() -> None:
    found = summarised(np.array([[1.0], [1.0]]), np.ones(1), np.array([0.0, 1.0]), np.zeros(2), resamples(1, 0, 9))
    assert found.integral.value == 1.0 and found.barrier.value == 0.0


def runs(real: Path, examples: int) -> list[Objective]:
    spec = ModelSpec("text", text=f"Sequential({LAYERS})")
    files = [read_checkpoint(real / "mnist-cnn" / run / "epoch-200.pt") for run in ("run1", "run2")]
    data = read_batches(DataSpec((str(real / "mnist"),), examples=examples))
    first = build_objective(spec, files[0], data, "cross_entropy")
    return [first, first.at(files[1])]


@pytest.mark.parametrize("kind", ["bezier", "polygonal"])
def test_a_curve_joins_the_two_real_runs(real: Path, kind) -> None:
    """The straight line has a barrier of 0.69; the stored chains of the runs' authors reach 0.0073 to 0.0256."""
    one, two = runs(real, 3000)
    ends = point_of(one), point_of(two)
    some = one.chosen(range(0, 3000, 3))
    line = evaluated(some, straight(kind, *ends, 1), quiet, points=5)
    assert line.data.loss.max() - max(line.data.loss[[0, -1]]) > 0.5
    found = trained(one, *ends, kind=kind, epochs=3, learning_rate=0.05, batch=64, tick=quiet)
    bent = evaluated(some, found.curve, quiet, points=13)
    barrier = summarised(bent.data.losses, bent.data.counts, bent.t, bent.arclength, resamples(1000, 0)).barrier
    assert barrier.high < 0.1
    assert bent.data.accuracy.min() > 0.97
    assert bent.straight == pytest.approx(line.length, rel=1e-12) and bent.length > bent.straight
