"""Weight matching of ResNet-20 and of a 12-layer transformer of width 768: ours against the plain algorithm.

    python benchmarks/matching.py [--small] [--turns N] [--case CASE]

Each case matches B to A in one restart, from the identity and in the same orders; ours also from the fixed axes, where
it begins by itself. B is a permuted copy of A with noise, or
another random initialisation. "Plain" is Algorithm 1 of Git Re-Basin as it is usually written: every permutation in
every sweep, one after the other, every assignment by SciPy, heads by an assignment within for each pair of heads; its
products are in float64 as ours are. The two take turns in one process; seconds are medians of wall time, with one
thread of torch and as many of ours as there are cores. Shares are of the time summed over threads; "visits" counts
permutations that were solved. --small is for trying it out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.nets import batches_of, resnet20
from probes import coordinate_ascent
from probes.architecture.modules import SmallGPT
from probes.matching import distance_between, weight_matching
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, composed, drawn, identity, permuted
from probes.points import point_of, tensors_of
from probes.specifications import specification

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Two sets of tensors and their specification."""

    a: Tensors
    b: Tensors
    spec: PermutationSpec


@dataclass
class Measured:
    """Of each turn: seconds in all, in assignment and in products; sweeps, visits and the distance at the end."""

    seconds: list[float] = field(default_factory=list)
    assignment: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    sweeps: int = 0
    visits: int = 0
    distance: float = 0.0

    def row(self, case: str, name: str) -> str:
        """Write a row of the table."""
        inside = statistics.median(self.assignment), statistics.median(self.products)
        busy = max(sum(inside), 1e-9)
        shares = " | ".join(f"{each:.2f} s, {100 * each / busy:.0f} %" for each in inside)
        seconds = statistics.median(self.seconds)
        return f"| {case} | {name} | {seconds:.2f} | {self.sweeps} | {self.visits} | {shares} | {self.distance:.4f} |"


def noisy_copy(a: Tensors, spec: PermutationSpec, noise: float) -> Tensors:
    """Permute at random and move every weight by its tensor's own spread times `noise`."""
    generator = torch.Generator().manual_seed(1)
    moved = permuted(a, spec, drawn(spec, 7))
    shake = lambda each: each + noise * float(each.std()) * torch.randn(each.shape, generator=generator)
    return {name: shake(each) if each.numel() > 1 else each for name, each in moved.items()}


def transformer(seed: int, small: bool) -> tuple[Tensors, PermutationSpec]:
    """GPT-2's shape at random, with a vocabulary of 4 096."""
    vocabulary, layers, heads, width = (64, 2, 3, 48) if small else (4096, 12, 12, 768)
    torch.manual_seed(seed)
    net = SmallGPT(vocabulary, 16, layers, heads, width, hidden=4 * width)
    tokens = torch.randint(vocabulary, (2, 8))
    objective = Objective(net, batches_of(tokens, tokens), "causal_lm", device="cpu", micro_batch=1)
    return tensors_of(objective, point_of(objective)), specification(objective)


def cases(small: bool) -> dict[str, Callable[[], Case]]:
    """Name the pairs that are matched."""

    def images(noise: float) -> Case:
        objective = resnet20(examples=8)
        a, spec = tensors_of(objective, point_of(objective)), specification(objective)
        return Case(a, noisy_copy(a, spec, noise), spec)

    def text(noise: float | None) -> Case:
        a, spec = transformer(0, small)
        return Case(a, transformer(1, small)[0] if noise is None else noisy_copy(a, spec, noise), spec)

    return {
        "ResNet-20, noisy copy": lambda: images(0.5),
        "ResNet-20, noise alone": lambda: images(30.0),
        "transformer, noisy copy": lambda: text(0.5),
        "transformer, two initialisations": lambda: text(None),
    }


def ours(case: Case, measured: Measured) -> None:
    """Match by `weight_matching` from the identity."""
    _ours(case, measured, identity(case.spec))


def from_fixed_axes(case: Case, measured: Measured) -> None:
    """Match by `weight_matching` from where it begins by itself."""
    _ours(case, measured, None)


def _ours(case: Case, measured: Measured, start: dict[str, np.ndarray] | None) -> None:
    visits, solve = [0], coordinate_ascent.solved

    def counting(*given: object) -> object:
        visits[0] += 1
        return solve(*given)  # type: ignore[arg-type]

    coordinate_ascent.solved = counting  # type: ignore[assignment]
    began = time.perf_counter()
    found = weight_matching(case.a, case.b, case.spec, restarts=1, start=start, tick=lambda _share, _doing: None)
    measured.seconds.append(time.perf_counter() - began)
    coordinate_ascent.solved = solve
    measured.assignment.append(found.seconds_assignment)
    measured.products.append(found.seconds_products)
    measured.sweeps, measured.visits, measured.distance = found.sweeps, visits[0], found.distance


class Plain:
    """The algorithm as it is usually written."""

    def __init__(self, case: Case) -> None:
        self.case, self.assignment, self.products = case, 0.0, 0.0

    def worth(self, b: Tensors, ours: Permutation, theirs: Permutation) -> np.ndarray:
        """Return the products of every unit of one permutation with every unit of another, corresponding one."""
        began = time.perf_counter()
        total = np.zeros((ours.size, ours.size))
        for one, other in zip(ours.uses, theirs.uses, strict=True):
            if one.counts:
                rows = self._rows(self.case.a[one.tensor], one.axis, one.index)
                total += (rows @ self._rows(b[one.tensor], one.axis, other.index).T).numpy()
        self.products += time.perf_counter() - began
        return total

    def _rows(self, tensor: Tensor, axis: int, index: np.ndarray) -> Tensor:
        flat = tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1).double()
        return flat[torch.as_tensor(index)].reshape(len(index), -1)

    def assign(self, worth: np.ndarray) -> np.ndarray:
        """Solve one assignment."""
        began = time.perf_counter()
        pi = linear_sum_assignment(worth, maximize=True)[1]
        self.assignment += time.perf_counter() - began
        return pi

    def solve(self, b: Tensors, each: Permutation) -> dict[str, np.ndarray]:
        """Return the best assignment of a permutation, and of those within its slots."""
        if not each.inner:
            return {each.name: self.assign(self.worth(b, each, each))}
        spec, size = self.case.spec, each.size
        value, inside = np.zeros((size, size)), {}
        for u, v in np.ndindex(size, size):
            for mine, other in zip(each.inner[u], each.inner[v], strict=True):
                worth = self.worth(b, spec[mine], spec[other])
                inside[u, v, mine] = self.assign(worth)
                value[u, v] += worth[np.arange(len(worth)), inside[u, v, mine]].sum()
        pi = self.assign(value)
        return {each.name: pi} | {name: inside[u, int(pi[u]), name] for u in range(size) for name in each.inner[u]}


def plain(case: Case, measured: Measured) -> None:
    """Match by the plain algorithm."""
    state, spec, generator = Plain(case), case.spec, np.random.default_rng([0, 0, 1])
    outer, still, visits, sweeps = spec.outermost(), identity(spec), 0, 0
    touched = sorted({use.tensor for each in spec for use in each.uses if use.counts})
    product = lambda b: sum(float((case.a[name].double() * b[name].double()).sum()) for name in touched)
    began = time.perf_counter()
    b, found, now, progress = dict(case.b), still, product(case.b), True
    while progress:
        progress, sweeps = False, sweeps + 1
        for place in generator.permutation(len(outer)):
            then = {**still, **state.solve(b, outer[place])}
            moved = permuted(b, spec, then)
            visits += 1
            better = product(moved)
            if better > now + 1e-9:
                b, now, progress, found = moved, better, True, composed(spec, found, then)
    measured.seconds.append(time.perf_counter() - began)
    measured.assignment.append(state.assignment)
    measured.products.append(state.products)
    distance = distance_between(case.a, permuted(case.b, spec, found), spec)
    measured.sweeps, measured.visits, measured.distance = sweeps, visits, distance


METHODS: dict[str, Callable[[Case, Measured], None]] = {
    "plain": plain,
    "ours": ours,
    "ours, from the fixed axes": from_fixed_axes,
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--case", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| pair | method | seconds | sweeps | visits | in assignment | in products | distance |")
    print("|---|---|---|---|---|---|---|---|")
    for name, make in cases(chosen.small).items():
        if chosen.case not in name:
            continue
        case, rows = make(), {method: Measured() for method in METHODS}
        for _ in range(1 if chosen.small else chosen.turns):
            for method, match in METHODS.items():
                match(case, rows[method])
        for method, measured in rows.items():
            print(measured.row(name, method), flush=True)


if __name__ == "__main__":
    main()
