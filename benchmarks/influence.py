"""TracIn at one checkpoint on one example: ours against Captum's TracInCP and a loop of backward passes.

    python benchmarks/influence.py [--small]

All give <grad l(z_i), grad l(z')> for each training example; they take turns in one process on one thread, on the same
examples. Times are medians of the processor's time. Ours includes its check of two examples against autograd. With
`relative` (`own_squares`) and the random examples that the analyzer adds the cost is theirs times as many.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from captum.influence import TracInCP
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.per_example import cnn, mlp, resnet20
from probes.influence.inverse_fisher import fisher_gradients, influences, inverse_fisher
from probes.influence.products import chosen_parameters, gradient_of
from probes.influence.tracin import at_checkpoint
from probes.objective import Objective


def ours(objective: Objective) -> np.ndarray:
    """Forward mode."""
    return at_checkpoint(objective, objective, [0], chosen_parameters(objective)).values[:, 0]


def fisher(objective: Objective) -> np.ndarray:
    """The inverse Fisher of 64 gradients; another number, for its cost."""
    places = chosen_parameters(objective)
    inverse = inverse_fisher(
        fisher_gradients(objective, range(min(64, len(objective.inputs))), places), 0.1, relative=True
    )
    return influences(objective, objective, [0], places, inverse).values[:, 0]


def loop(objective: Objective) -> np.ndarray:
    """One backward pass for each example."""
    places = chosen_parameters(objective)
    flat = lambda row: torch.cat([each.flatten() for each in gradient_of(objective, row, places)])
    own = flat(0)
    return np.array([float(flat(row) @ own) for row in range(len(objective.inputs))])


def captum(objective: Objective) -> np.ndarray:
    """TracInCP in its faster setting, by hooks; it has none for BatchNorm, whose parameters it leaves out silently."""
    data = TensorDataset(objective.inputs, objective.targets)
    loss, size = nn.CrossEntropyLoss(reduction="sum"), objective.micro_batch
    load = lambda _net, _path: 1.0
    theirs = TracInCP(
        objective.module, data, ["-"], load, loss_fn=loss, batch_size=size, sample_wise_grads_per_batch=True
    )
    return theirs.influence((objective.inputs[:1], objective.targets[:1]))[0].numpy()


def seconds(run: Callable[[Objective], np.ndarray], objective: Objective) -> tuple[float, np.ndarray]:
    """Return the processor's time of a run, and its answer."""
    start = time.process_time()
    found = run(objective)
    return time.process_time() - start, found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Input Tensor 0 did not")
    sizes = (32, 16) if small else (512, 64)
    heads = ("network", "ours", "Captum", "loop", "inverse Fisher", "Captum / ours", "Captum off by")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, make in {"MLP": mlp, "MNIST CNN": cnn, "ResNet-20": resnet20}.items():
        torch.manual_seed(0)
        objective = make(*sizes)
        ways = (ours, captum, loop)
        answers = {way: way(objective) for way in ways}  # warm up, and compare
        scale = abs(answers[loop]).max()
        np.testing.assert_allclose(answers[ours], answers[loop], rtol=1e-3, atol=1e-4 * scale)
        off = abs(answers[captum] - answers[loop]).max() / scale
        times: dict[Callable[[Objective], np.ndarray], list[float]] = {way: [] for way in (*ways, fisher)}
        for _ in range(1 if small else 5):
            for way, each in times.items():
                each.append(seconds(way, objective)[0])
        cells = [
            f"{statistics.median(times[way]):.3f} s" if way in times else "-" for way in (ours, captum, loop, fisher)
        ]
        ratio = statistics.median(times[captum]) / statistics.median(times[ours])
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} | {off:.1e} |", flush=True)


if __name__ == "__main__":
    main()
