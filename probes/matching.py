"""Weight matching: the permutation of one network's units that brings its weights closest to another's.

Coordinate ascent of the inner product of A and the permuted B (which is descent of their distance): each permutation in
turn is set to the best one while the others stay (Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin, Algorithm 1).
Beyond it: products in float64, several starts, and heads solved together with what lies within them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from probes.coordinate_ascent import Problem, State, Tick, climb, outwards
from probes.errors import ModelError
from probes.permutations import Found, Indices, PermutationSpec, drawn, identity, permuted
from probes.unit_products import GAIN, Clock, Tensors

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Restart:
    """One start of the matcher: the distance it came to, the share of units assigned as in the best, sweeps, whence.

    start: "given", "identity", "fixed axes" (the units next to inputs, outputs and vocabulary first, then outwards) or
    "random".
    """

    distance: float
    agreement: float
    sweeps: int
    start: str


@dataclass(frozen=True, eq=False)
class Matching:
    """The permutations that were found, to be applied to B, and how sure they are.

    distance: ||A - P B|| over the parameters. agreement: the mean share of units that the other restarts assign as the
    best does, None where there was but one; agreements: the same for each permutation. seconds: wall time in linear
    assignment and in products, summed over threads and restarts.
    """

    found: Found
    distance: float
    restarts: tuple[Restart, ...] = ()
    agreement: float | None = None
    agreements: Mapping[str, float] = field(default_factory=dict)
    sweeps: int = 0
    seconds_assignment: float = 0.0
    seconds_products: float = 0.0
    notes: tuple[str, ...] = ()


def weight_matching(
    a: Tensors,
    b: Tensors,
    spec: PermutationSpec,
    *,
    restarts: int = 5,
    seed: int = 0,
    tick: Tick,
    start: Found | None = None,
    sweeps: int = 100,
) -> Matching:
    """Match the units of b to those of a by their weights; the best of several restarts is kept.

    a, b: tensors by name, as `tensors_of` gives them (running statistics follow without counting). The first restart
    begins at `start` or, without one, at what the fixed axes give; the second at the identity or, with a start, at the
    fixed axes; the others at random permutations. Orders are random in all, drawn from the seed; the number of threads
    changes nothing. A restart ends at the first sweep that gains nothing, or after so many `sweeps`. Raises ModelError
    where tensors are missing, differ in shape, or are not finite.
    """
    check(a, b, spec)
    problem = Problem.of(a, b, spec)
    ends: list[_End] = []
    with ThreadPoolExecutor(_threads()) as pool:
        for number in range(restarts):
            report = lambda share, doing, number=number: tick(
                (number + share) / restarts, f"restart {number + 1} of {restarts}, {doing}"
            )
            ends.append(_restart(problem, number, seed, start, sweeps, report, pool))
    return _best(problem, a, b, spec, ends)


def distance_between(a: Tensors, b: Tensors, spec: PermutationSpec) -> float:
    """Return the Euclidean distance of the parameters in float64; running statistics do not count."""
    silent = {use.tensor for each in spec for use in each.uses if not use.counts}
    names = [name for name in a if name not in silent and not name.endswith(_STATISTICS) and name in b]
    squares = ((a[name].double() - b[name].double()).square().sum() for name in names if a[name].is_floating_point())
    return float(sum(map(float, squares)) ** 0.5)


def check(a: Tensors, b: Tensors, spec: PermutationSpec) -> None:
    """Raise ModelError where a tensor of the specification is missing or the two differ in shape."""
    for use in (use for each in spec for use in each.uses if use.counts):
        if use.tensor not in a or use.tensor not in b:
            raise ModelError(f"The specification names {use.tensor}, which the checkpoints do not have; mend it.")
        if a[use.tensor].shape != b[use.tensor].shape:
            shapes = f"{tuple(a[use.tensor].shape)} and {tuple(b[use.tensor].shape)}"
            raise ModelError(f"{use.tensor} has the shapes {shapes}; match two checkpoints of the same model.")


@dataclass(frozen=True)
class _End:
    found: dict[str, Indices]
    sweeps: int
    clock: Clock
    start: str


def _restart(
    problem: Problem,
    number: int,
    seed: int,
    start: Found | None,
    sweeps: int,
    tick: Tick,
    pool: ThreadPoolExecutor,
) -> _End:
    kinds = ("fixed axes", "identity", "random") if start is None else ("given", "fixed axes", "random")
    spec, kind = problem.spec, kinds[min(number, 2)]
    found = identity(spec)
    if kind == "given":
        found |= dict(start or {})
    if kind == "random":
        found = drawn(spec, int(np.random.default_rng([seed, number]).integers(2**31)))
    state = State(permuted(problem.b, spec, found), found)
    if kind == "fixed axes":
        outwards(problem, state)
    taken = climb(problem, state, np.random.default_rng([seed, number, 1]), sweeps, tick, pool)
    return _End(state.found, taken, state.clock, kind)


def _best(problem: Problem, a: Tensors, b: Tensors, spec: PermutationSpec, ends: Sequence[_End]) -> Matching:
    distances = [distance_between(a, permuted(b, problem.spec, end.found), spec) for end in ends]
    first = next(number for number, each in enumerate(distances) if each <= min(distances) * (1 + GAIN))
    best = ends[first]
    alike = [assigned_alike(spec, best.found, end.found) for end in ends]
    others = [each for number, each in enumerate(alike) if number != first]
    rows = zip(distances, alike, ends, strict=True)
    return Matching(
        found=best.found,
        distance=distances[first],
        restarts=tuple(Restart(distance, overall(same), end.sweeps, end.start) for distance, same, end in rows),
        agreement=float(np.mean([overall(each) for each in others])) if others else None,
        agreements={name: float(np.mean([each[name] for each in others])) for name in best.found if others},
        sweeps=best.sweeps,
        seconds_assignment=sum(end.clock.assignment for end in ends),
        seconds_products=sum(end.clock.products for end in ends),
        notes=spec.notes,
    )


def assigned_alike(spec: PermutationSpec, one: Found, other: Found) -> dict[str, NDArray[np.bool_]]:
    """Tell of each unit whether both assign the same unit to it; within a slot only where the slots are the same."""
    alike = {each.name: one[each.name] == other[each.name] for each in spec}
    for each in spec:
        for slot, names in enumerate(each.inner):
            for name in names:
                alike[name] = alike[name] & alike[each.name][slot]
    return alike


def overall(alike: Mapping[str, NDArray[np.bool_]]) -> float:
    """Return the share over all permutations; 1 where there are none."""
    total = sum(len(each) for each in alike.values())
    return sum(int(each.sum()) for each in alike.values()) / total if total else 1.0


def _threads() -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
