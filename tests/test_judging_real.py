"""On networks that others trained: gradients and masks beat random orders, and maps forget with the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_nets import MNIST_CNN, resnet20

from probes.attribution import Settings, attribute, case_of
from probes.attribution.judging import Scoreboard, curves, null_curves, sanity, scoreboard
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.objective import Objective, build_objective
from probes.specs import DataSpec

DIGITS, IMAGES = 6, 12


def mnist(real: Path) -> Objective:
    """The first digits of the test set; the mean baseline is theirs."""
    data = read_batches(DataSpec((str(real / "mnist"),), examples=64))
    checkpoint = read_checkpoint(real / "mnist-cnn" / "run1" / "epoch-200.pt")
    return build_objective(MNIST_CNN, checkpoint, data, "cross_entropy", device="cpu")


def judged(objective: Objective, count: int, names: tuple[str, ...], settings: Settings) -> list[Scoreboard]:
    """Judge methods by each of the two baselines, beside random orders."""
    rows: list[list[dict[str, object]]] = [[], []]
    for row in range(count):
        found = case_of(objective, row)
        null = null_curves(found, "random", 6, points=16)
        for name in names:
            drawn = curves(found, attribute(found, name, settings).values, points=16)
            for which, each in enumerate(rows):
                each.append({"method": name, **areas(drawn, "", which), **areas(null, "random_", which)})
    return [scoreboard(each) for each in rows]


def areas(drawn, begin, which):
    """The areas of curves as a row names them."""
    return {f"{begin}{name}_auc": float(getattr(drawn, f"{name}_auc")[which]) for name in ("insertion", "deletion")}


def test_on_digits_integrated_gradients_and_extremal_masks_beat_random_orders(real: Path) -> None:
    settings = Settings(steps=16, tolerance=1e-2, areas=(0.1, 0.2))
    for board in judged(mnist(real), DIGITS, ("integrated_gradients", "extremal"), settings):
        for each in board.standings:
            for area in ("insertion_auc", "deletion_auc"):
                gain = each.gains["random"][area]
                assert gain.n == DIGITS and each.above(area), f"{each.method} {area}: {gain}"
                assert gain.low > 0.05 and gain.low < gain.mean < gain.high


def test_on_resnet20_insertion_puts_saliency_and_integrated_gradients_above_random(real: Path) -> None:
    settings = Settings(steps=16, tolerance=1)
    blur, _ = judged(resnet20(real, IMAGES), IMAGES, ("saliency", "integrated_gradients"), settings)
    for each in blur.standings:
        gain = each.gains["random"]["insertion_auc"]
        assert gain.n == IMAGES and each.above("insertion_auc"), f"{each.method}: {gain}"


def test_on_resnet20_maps_forget_with_the_weights_and_edges_do_not(real: Path) -> None:
    objective = resnet20(real, 4)
    found = [sanity(case_of(objective, row), "saliency", draws=2) for row in range(4)]
    kept = np.mean([each.spearman for each in found], 0)
    assert found[0].layers == ("linear", "layer3", "layer2", "layer1", "conv1")
    np.testing.assert_allclose(kept, [0.49, 0.24, 0.19, 0.13, 0.10], atol=0.15)  # of another implementation
    assert kept[-1] <= 0.3 and kept[0] > kept[2] and {each.verdict for each in found} == {"pass"}
    assert all(each.edge == pytest.approx(np.ones(5)) for each in found)
    product = [sanity(case_of(objective, row), "input_x_gradient", draws=2) for row in range(4)]
    np.testing.assert_allclose(np.mean([each.sizes for each in product], 0), [0.5, 0.38, 0.32, 0.23, 0.21], atol=0.12)
    assert abs(np.mean([each.spearman for each in product], 0)[-1]) < 0.1
