"""Full gradients and extremal perturbations: seconds, residuals, areas and what equal areas keep of the score.

Run from the project's folder: PYTHONPATH=. .venv/bin/python benchmarks/attribution_masks.py [examples]
It needs the real MNIST network (../shared/real). Printed: full gradients against one gradient; extremal masks after
ever more steps, by the share of the score that they keep, beside the top pixels of integrated gradients.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from probes.attribution import attribute, case_of
from probes.attribution.case import Case
from probes.attribution.extremal import image_masks, levels_of
from probes.attribution.extremal_masks import blended
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.objective import build_objective
from probes.specs import DataSpec, ModelSpec

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
TEXT = (
    "Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))"
)
AREAS = (0.05, 0.1, 0.2)


def cases(count: int) -> list[Case]:
    """The first digits, and the network at its last epoch."""
    checkpoint = read_checkpoint(REAL / "mnist-cnn" / "run1" / "epoch-200.pt")
    data = read_batches(DataSpec((str(REAL / "mnist"),), examples=count))
    objective = build_objective(ModelSpec("text", text=TEXT), checkpoint, data, "cross_entropy", device="cpu")
    return [case_of(objective, row) for row in range(count)]


def full_gradients(found: list[Case]) -> None:
    """Print the residuals and the cost in gradients."""
    attribute(found[0], "fullgrad")  # torch compiles its forward-mode rules the first time
    start = time.perf_counter()
    errors = [attribute(one, "fullgrad").completeness_error or 0.0 for one in found]
    taken = time.perf_counter() - start
    start = time.perf_counter()
    for one in found:
        one.gradients(one.features)
    plain = time.perf_counter() - start
    print(f"full gradients: {taken / len(found) * 1e3:.1f} ms an example, a gradient {plain / len(found) * 1e3:.1f} ms")
    print(f"  completeness error: median {np.median(errors):.1e}, largest {max(errors):.1e}")


def masks(found: list[Case], smoothness: float, iterations: int) -> None:
    """Print what the masks keep of the score, their areas and their cost."""
    start, shares, areas = time.perf_counter(), [], []
    for one in found:
        made = image_masks(one, AREAS, smoothness=smoothness, iterations=iterations)
        shares.append((made.kept - made.blank) / (made.score - made.blank))
        areas.append(made.achieved)
    taken = (time.perf_counter() - start) / len(found)
    kept = ", ".join(f"{each:.2f}" for each in np.mean(shares, 0))
    off = np.abs(np.array(areas) / AREAS - 1).max()
    print(f"  smoothness {smoothness:g}, {iterations:4} steps: kept {kept}; areas off by {off:.1%}; {taken:.2f} s")


def integrated(one: Case) -> np.ndarray:
    """Share of the score that the top pixels of integrated gradients keep, by area."""
    levels = levels_of(one)[0]
    x, blank = one.features, levels[:1]
    at = ((torch.arange(64) + 0.5) / 64).view(-1, 1, 1, 1)
    values = ((x - blank) * one.gradients(blank + (x - blank) * at)[1].mean(0)).sum(1)[0].flatten()
    ranks = values.argsort(descending=True).argsort().view(x.shape[2:])
    tops = torch.stack([(ranks < round(area * ranks.numel())).float() for area in AREAS])
    nothing = float(one.in_chunks(blank)[0])
    return (one.in_chunks(blended(levels, tops)).numpy() - nothing) / (one.score - nothing)


def main() -> None:
    """Print everything."""
    torch.set_num_threads(1)
    found = cases(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    full_gradients(found)
    print(f"extremal masks, areas {AREAS}, share of the score kept:")
    for steps in (30, 60, 120, 400):
        masks(found, 3.0, steps)
    masks(found, 0.5, 120)
    kept = ", ".join(f"{each:.2f}" for each in np.mean([integrated(one) for one in found], 0))
    print(f"  top pixels of integrated gradients: kept {kept}")


if __name__ == "__main__":
    main()
