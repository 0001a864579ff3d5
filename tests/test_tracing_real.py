"""The real networks: what is free in them by hand, and whether the gate holds at their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.equivalence import check
from probes.models import recognise
from probes.objective import Objective, build_objective
from probes.permutations import PermutationSpec, drawn
from probes.specifications import specification
from probes.specs import DataSpec, ModelSpec

MNIST_CNN = ModelSpec(
    "text",
    "text",
    text="Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))",
)


def resnet20(real: Path) -> Objective:
    folder = real / "cifar10-resnet20"
    checkpoint = read_checkpoint(folder / "resnet20-12fca82f.th")
    model = recognise(checkpoint).spec
    assert model is not None
    files = (str(folder / "cifar10-train-1000.npz"),)
    data = read_batches(DataSpec(files=files, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), examples=32))
    return build_objective(model, checkpoint, data, "cross_entropy", device="cpu", micro_batch=16)


def positions(spec: PermutationSpec, tensor: str, axis: int) -> dict[str, list[int]]:
    """Return which positions of a tensor each permutation moves."""
    found = {each.name: use.index for each in spec for use in each.uses if (use.tensor, use.axis) == (tensor, axis)}
    return {name: index.ravel().tolist() for name, index in found.items()}


def test_resnet20_with_padded_shortcuts(real: Path) -> None:
    """16 channels run through all three stages, 16 more from the second on, 32 more in the third; nine blocks."""
    objective = resnet20(real)
    spec = specification(objective)
    streams = [each for each in spec if any(use.tensor == "linear.weight" for use in each.uses)]
    assert [each.size for each in streams] == [16, 16, 32]
    inner = [each for each in spec if each not in streams]
    assert sorted(each.size for each in inner) == [16] * 3 + [32] * 3 + [64] * 3
    assert all([use.axis for use in each.uses if use.counts] == [0, 0, 0, 1] for each in inner)
    through, second, third = (each.name for each in streams)
    in_last = positions(spec, "linear.weight", 1)
    assert in_last[through] == list(range(24, 40))
    assert in_last[second] == [*range(16, 24), *range(40, 48)]
    assert in_last[third] == [*range(16), *range(48, 64)]
    in_second = positions(spec, "layer2.0.conv2.weight", 0)
    assert in_second[through] == list(range(8, 24)) and in_second[second] == [*range(8), *range(24, 32)]
    result = check(objective, spec, found=drawn(spec, 9))
    assert result.passed and 0 < result.error < 1e-12 and result.scale > 1


def test_the_mnist_cnn(real: Path) -> None:
    checkpoint = read_checkpoint(real / "mnist-cnn" / "run1" / "epoch-200.pt")
    data = read_batches(DataSpec((str(real / "mnist"),), examples=32))
    objective = build_objective(MNIST_CNN, checkpoint, data, "cross_entropy", device="cpu")
    spec = specification(objective)
    assert [each.size for each in spec] == [32, 64] and spec.source == "traced" and spec.notes == ()
    blocks = next(use.index for use in spec.permutations[1].uses if use.axis == 1)
    assert np.array_equal(blocks, np.arange(1600).reshape(64, 25))
    assert check(objective, spec).error < 1e-13
