"""Slices of the loss: evaluations and true error of the adaptive surface against every cell of a 51 x 51 grid.

    OMP_NUM_THREADS=1 python benchmarks/loss_planes.py [--small]

Four planes: a small MLP on scikit-learn's digits (random), the CNN of ../shared/real/mnist-cnn (three checkpoints of
two runs), the real ResNet-20 (its Hessian's eigenvectors 1 and 2), and a small GPT on text (random). "Every cell"
evaluates all 2 601 nodes by the same probe and is what the surface is compared with; the fixed grid is what a bicubic
spline makes of 17 x 17 nodes. Errors are shares of the range of the loss on the grid. The fewer examples, the rougher
the loss: where the error asked for (0.5 %) is not reached, the stated one is larger. --small leaves ResNet-20 out and
takes fewer examples of the others.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from nets import REAL, batches_of, gpt, mlp, resnet20
from scipy.interpolate import RectBivariateSpline
from torch import nn

from analyzers._base import Quiet
from analyzers._planes import PlaneOptions, Planes, measure_planes
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.objective import Objective
from probes.paths import read


@dataclass(frozen=True)
class Case:
    """A plane to draw: its kind, the objective and the checkpoints."""

    name: str
    kind: str
    make: Callable[[int], tuple[Objective, tuple[Checkpoint, ...]]]
    examples: int
    few: int


class Here:
    """A checkpoint that is never read: the objective stands at it already."""

    name, facts = "model", {}


def of(make: Callable[[], Objective]) -> Callable[[int], tuple[Objective, tuple[Checkpoint, ...]]]:
    """Return an objective of so many of its examples."""

    def chosen(examples: int) -> tuple[Objective, tuple[Checkpoint, ...]]:
        whole = make()
        return whole.chosen(list(range(min(examples, len(whole.inputs))))), (Here(),)  # type: ignore[return-value]

    return chosen


def mnist(examples: int) -> tuple[Objective, tuple[Checkpoint, ...]]:
    """Return the CNN at epoch 200 of two runs and at the start of the first."""
    images, labels = (
        next(each for each in (REAL / "mnist").iterdir() if word in each.name) for word in ("images", "labels")
    )
    pixels = np.frombuffer(gzip.decompress(images.read_bytes())[16:], dtype=np.uint8).reshape(-1, 1, 28, 28)[:examples]
    classes = np.frombuffer(gzip.decompress(labels.read_bytes())[8:], dtype=np.uint8)[:examples]
    data = batches_of(torch.from_numpy(pixels / np.float32(255)), torch.from_numpy(classes.astype(np.int64)))

    def load(checkpoint: Checkpoint) -> nn.Module:
        layers = (nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1600, 10))
        net.load_state_dict(checkpoint.load())
        return net

    folder = REAL / "mnist-cnn"
    files = (folder / "run1" / "epoch-200.pt", folder / "run2" / "epoch-200.pt", folder / "run1" / "epoch-000.pt")
    checkpoints = tuple(read_checkpoint(each) for each in files)
    objective = Objective.of(load(checkpoints[0]), data, "cross_entropy")
    objective.load = load
    return objective, checkpoints


CASES = (
    Case("MLP 64-32-32-10, digits", "random", of(mlp), 800, 200),
    Case("CNN, MNIST", "checkpoints", mnist, 200, 40),
    Case("ResNet-20, CIFAR-10", "hessian", of(resnet20), 32, 0),
    Case("GPT, text", "random", of(gpt), 100, 40),
)


def every_cell(found: Planes, objective: Objective) -> tuple[np.ndarray, float]:
    """Evaluate all nodes of the plane; return their losses and the seconds that it took."""
    surface, plane = found.surfaces[0], found.laid.slices[0].plane
    statistics = objective if found.about["batch_norm"] == "measured" else None
    started = time.perf_counter()
    rows = [[read(objective, plane.at(x, y), statistics).loss[0] for x in surface.x] for y in surface.y]
    return np.array(rows), time.perf_counter() - started


def fixed(true: np.ndarray) -> float:
    """Return the true error of a bicubic spline through 17 x 17 of the nodes."""
    side = np.round(np.linspace(0, len(true) - 1, 17)).astype(int)
    every = np.arange(len(true))
    drawn = RectBivariateSpline(side, side, true[np.ix_(side, side)])(every, every)
    return float(np.abs(drawn - true).max() / np.ptp(true))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    print("| net | plane | examples | every cell | ours | stated error | true error | 17 x 17 spline (289) | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        count = case.few if small else case.examples
        if not count:
            continue
        objective, checkpoints = case.make(count)
        started = time.perf_counter()
        found = measure_planes(case.kind, objective, checkpoints, PlaneOptions(curvature=False), Quiet())
        seconds = time.perf_counter() - started
        true, whole = every_cell(found, objective)
        surface = found.surfaces[0]
        error = float(np.abs(surface.values - true).max() / np.ptp(true))
        print(
            f"| {case.name} | {case.kind} | {count} | {true.size:,} | {len(surface.at)} "
            f"({true.size / len(surface.at):.1f}x fewer) | {100 * (surface.error or 0):.2g} % | {100 * error:.2g} % "
            f"| {100 * fixed(true):.2g} % | {seconds:.1f} s for {whole:.1f} s ({whole / seconds:.1f}x) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
