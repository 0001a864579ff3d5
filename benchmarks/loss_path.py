"""One point of a loss path: ours against the usual loop and vmap over points; and how many points a path needs.

    python benchmarks/loss_path.py [--small] [--turns N] [--device cuda]

The usual loop mixes two state dicts, calls load_state_dict, and walks a DataLoader with cross_entropy and argmax; with
BatchNorm it first walks the data once more in train mode with cumulative averages. Ours reads loss and right answers of
each example of data that lie on the device, and follows the outputs of up to 1 000 predictions. vmap evaluates CHUNK
points in one call. The methods take turns in one process, each turn over the same points; medians count. The second
table counts the points that refinement took until the error it states was below its tolerance, the error it truly had
(against 768 even intervals), and the smallest even grid that is as near.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from analyzers._base import Quiet
from benchmarks import nets
from probes.batch_statistics import has_batch_norm
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.line_readings import TOLERANCE, Reader, walked
from probes.lines import Line, grid
from probes.models import recognise
from probes.objective import Objective, build_objective
from probes.points import Point, point_of, tensors_of
from probes.specs import DataSpec

CHUNK = 5  # points that vmap takes at a time
BATCH = 512  # of the DataLoader
ALPHAS = [step / 10 for step in range(10)]
START, STOP, FIRST = -0.25, 1.25, 25
FINE = 768  # intervals of the grid that stands for the truth


@dataclass(frozen=True)
class Case:
    """A path: an objective at its start, and its end."""

    name: str
    objective: Objective
    end: Point
    states: tuple[dict[str, Tensor], dict[str, Tensor]]  # of the two ends, a tied weight under each of its names


def cases(device: str, small: bool) -> list[Case]:
    """Return the MNIST CNN, a small MLP, a tiny GPT (each from its start to its end), and ResNet-20 with BatchNorm."""
    found = [mnist(device, 200 if small else 1000)]
    for name, made in (("MLP", nets.mlp), ("tiny GPT", nets.gpt)):
        found.append(from_noise(name, made(), device))
    resnet = nets.resnet20(examples=32 if small else 200)
    return [*found, from_noise("ResNet-20, BatchNorm anew", resnet, device)]


def mnist(device: str, examples: int) -> Case:
    """Return the real CNN, from its initialisation to epoch 200."""
    paths = [nets.REAL / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt" for epoch in (0, 200)]
    checkpoints = [read_checkpoint(path) for path in paths]
    files = tuple(str(nets.REAL / "mnist" / f"t10k-{each}-ubyte.gz") for each in ("images-idx3", "labels-idx1"))
    spec = recognise(checkpoints[0]).spec
    if spec is None:
        raise ValueError("the CNN was not recognised")
    data = read_batches(DataSpec(files, examples=examples))
    objective = build_objective(spec, checkpoints[0], data, "cross_entropy", device=device)
    return case_of("MNIST CNN", objective, objective.at(checkpoints[1]))


def from_noise(name: str, trained: Objective, device: str) -> Case:
    """Return the path to a trained network from one with every layer drawn anew."""
    torch.manual_seed(1)
    module = copy.deepcopy(trained.module)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    options = {"device": device, "dtype": "float32"}
    here = Objective.of(module, trained.batches, trained.loss, **options)
    return case_of(name, here, Objective.of(trained.module, trained.batches, trained.loss, **options))


def case_of(name: str, start: Objective, end: Objective) -> Case:
    """Return the path from where one objective stands to where another does."""
    states = tuple({key: each.to(start.device) for key, each in at.module.state_dict().items()} for at in (start, end))
    return Case(name, start, point_of(end), states)  # type: ignore[arg-type]


def ours(case: Case) -> Callable[[], list[float]]:
    """Return what reads the points as the analyzer does."""
    reader = Reader(case.objective, renew=True, follow=len(ALPHAS))
    line = Line(point_of(case.objective), case.end)

    def work() -> list[float]:
        rows = [reader.row(line.at(alpha)) for alpha in ALPHAS]
        return [float(row["losses"].sum() / row["counts"].sum()) for row in rows]

    return work


def usual(case: Case) -> Callable[[], list[float]]:
    """Return the loop of load_state_dict and DataLoader."""
    here, module = case.objective, copy.deepcopy(case.objective.module).to(case.objective.device)
    device, renews = case.objective.device, has_batch_norm(case.objective)
    loader = DataLoader(TensorDataset(here.inputs.cpu(), here.targets.cpu()), batch_size=BATCH)
    one, other = case.states

    def work() -> list[float]:
        losses = []
        for alpha in ALPHAS:
            mixed = {k: (1 - alpha) * v + alpha * other[k] if v.is_floating_point() else v for k, v in one.items()}
            module.load_state_dict(mixed)
            with torch.no_grad():
                if renews:
                    measure_anew(module, loader, device)
                losses.append(walk(module, loader, device))
        return losses

    return work


def measure_anew(module: nn.Module, loader: DataLoader[tuple[Tensor, ...]], device: torch.device) -> None:
    """Measure BatchNorm's statistics as dnn-mode-connectivity and REPAIR do: one pass, cumulative averages."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    for x, _ in loader:
        module(x.to(device))
    module.eval()


def walk(module: nn.Module, loader: DataLoader[tuple[Tensor, ...]], device: torch.device) -> float:
    """Return the mean loss, counting right answers as well."""
    total, right, count = 0.0, 0, 0
    for x, y in loader:
        logits, y = module(x.to(device)).flatten(0, -2), y.to(device).flatten()
        total += float(cross_entropy(logits, y, reduction="sum"))
        right += int((logits.argmax(1) == y).sum())
        count += len(y)
    return total / count


def by_vmap(case: Case) -> Callable[[], list[float]]:
    """Return what evaluates CHUNK points in one call; it knows no statistics of BatchNorm."""
    here = case.objective
    one, other = (tensors_of(here, each) for each in (point_of(here), case.end))
    chunks = [ALPHAS[at : at + CHUNK] for at in range(0, len(ALPHAS), CHUNK)]

    def work() -> list[float]:
        losses: list[float] = []
        for chunk in chunks:
            at = torch.tensor(chunk, device=here.device)
            mix = lambda a, b, at=at: torch.lerp(a[None], b[None], at.view(-1, *[1] * a.ndim))
            stacked = {name: mix(each, other[name]) for name, each in one.items()}
            losses += (sum(parts(here, stacked)) / here.units).tolist()
        return losses

    return work


def parts(here: Objective, stacked: dict[str, Tensor]) -> list[Tensor]:
    """Return the summed losses (CHUNK,) of each micro-batch."""
    rest = {name: each for name, each in here.constants.items() if name not in stacked}
    run = lambda theta, x: functional_call(here.module, {**rest, **theta}, (x,))
    found = []
    for part in here.parts():
        with torch.no_grad():
            logits = vmap(run, in_dims=(0, None))(stacked, here.inputs[part]).flatten(1, -2)
        y = here.targets[part].flatten().expand(len(logits), -1)
        (logits.argmax(2) == y).sum(1).tolist()
        each = cross_entropy(logits.transpose(1, 2), y, reduction="none")
        found.append(each.sum(1))
    return found


METHODS = {"Theodolite": ours, "load_state_dict and DataLoader": usual, f"vmap over {CHUNK} points": by_vmap}


def measured(case: Case, turns: int) -> list[str]:
    """Let the methods take turns on one path; return the rows of its table."""
    makers = {
        name: maker for name, maker in METHODS.items() if maker is not by_vmap or not has_batch_norm(case.objective)
    }
    ready = {name: maker(case) for name, maker in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    losses: dict[str, list[float]] = {}
    for turn in range(turns + 1):
        for name, work in ready.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            losses[name] = work()
            if turn:
                seconds[name].append((time.perf_counter() - started) / len(ALPHAS))
    base, rows = statistics.median(seconds["Theodolite"]), []
    for name, each in seconds.items():
        middle = statistics.median(each)
        apart = max(abs(a / b - 1) for a, b in zip(losses[name], losses["Theodolite"], strict=True))
        count = len(case.objective.inputs)
        rows.append(f"| {case.name} | {count} | {name} | {1e3 * middle:.1f} | {middle / base:.2f} | {apart:.0e} |")
    return rows


def needed(case: Case) -> str:
    """Return the row that says how many points a path needs, refined and even."""
    reader, line = Reader(case.objective, renew=True), Line(point_of(case.objective), case.end)
    walk = lambda places, budget: walked(reader, line, places, budget, "line", Quiet(), (0.0, 1.0))
    found = walk(grid(START, STOP, FIRST), 200)
    even = np.linspace(START, STOP, FINE + 1)
    truth = walk(even.tolist(), 0).data.loss
    error = apart(found.alpha, found.data.loss, even, truth)
    for count in range(FIRST - 1, FINE + 1):
        alpha = np.linspace(START, STOP, count + 1)
        if apart(alpha, np.interp(alpha, even, truth), even, truth) <= error:
            break
    words = f"{100 * found.error:.2f} % | {100 * error:.2f} %"
    return f"| {case.name} | {len(found.alpha)} | {words} | {count + 1} |"


def apart(alpha: Sequence[float], losses: Sequence[float], even: np.ndarray, truth: np.ndarray) -> float:
    """Return how far straight lines are from the truth, by its range between the ends, beyond them by the whole."""
    inside = (even >= 0) & (even <= 1)
    gap = np.abs(np.interp(even, alpha, losses) - truth)
    return float(max(gap[inside].max() / np.ptp(truth[inside]), gap[~inside].max() / np.ptp(truth)))


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer examples and turns, for trying it out")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    made = cases(chosen.device, chosen.small)
    print("| net | examples | method | ms per point | times ours | losses apart |\n|---|---|---|---|---|---|")
    for case in made:
        print("\n".join(measured(case, 1 if chosen.small else chosen.turns)), flush=True)
    print(f"\nUntil the stated error is at most {100 * TOLERANCE:.2f} % of the range:\n")
    print("| net | points, refined | error stated | error | points of an even grid as near |\n|---|---|---|---|---|")
    for case in made[:-1]:  # ResNet-20 would take an hour
        print(needed(case), flush=True)


if __name__ == "__main__":
    main()
