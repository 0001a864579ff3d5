"""Coordinate ascent: one permutation after the other is set to its best while the others stay.

Those for which nothing has changed since are not asked again; those that share no tensor are solved side by side, which
gives what one after the other would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from probes.assignment import family, solved
from probes.permutations import Found, Indices, Permutation, PermutationSpec, composed, identity, permuted
from probes.unit_products import GAIN, Clock, Tensors, counted, inner_product

Tick = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class Problem:
    """What stays the same in all restarts. touched: the tensors that count, of each permutation and those within it."""

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    spec: PermutationSpec
    touched: dict[str, frozenset[str]]
    twice: frozenset[str]  # the permutations that move two axes of a tensor
    least: float  # a gain below it is rounding

    @classmethod
    def of(cls, a: Tensors, b: Tensors, spec: PermutationSpec) -> Problem:
        """Keep the tensors and the uses that the cost is made of."""
        slim = [replace(each, uses=tuple(counted(each, a))) for each in spec]
        spec = PermutationSpec(tuple(slim), spec.source, spec.notes)
        touched = {
            each.name: frozenset(use.tensor for one in family(spec, each) for use in one.uses)
            for each in spec.outermost()
        }
        twice = {name for name in touched if any(_two_axes(each) for each in family(spec, spec[name]))}
        names = sorted(frozenset().union(*touched.values()))
        ours, theirs = {name: a[name].detach() for name in names}, {name: b[name].detach() for name in names}
        least = GAIN * (inner_product(ours, ours) * inner_product(theirs, theirs)) ** 0.5
        return cls(ours, theirs, spec, touched, frozenset(twice), least)

    def near(self, name: str) -> set[str]:
        """Name the permutations whose best answer may change when this one moves."""
        others = {other for other, touched in self.touched.items() if touched & self.touched[name]}
        return others if name in self.twice else others - {name}


def _two_axes(permutation: Permutation) -> bool:
    axes = {(use.tensor, use.axis) for use in permutation.uses}
    return len({tensor for tensor, _ in axes}) < len(axes)


@dataclass
class State:
    """Where a restart stands: b as permuted, by which permutations, and the time spent."""

    b: dict[str, Tensor]
    found: dict[str, Indices]
    clock: Clock = field(default_factory=Clock)

    def move(self, spec: PermutationSpec, then: Found, moved: Tensors) -> None:
        """Go on by `then`."""
        self.b.update(moved)
        self.found = composed(spec, self.found, {**identity(spec), **then})


def climb(
    problem: Problem, state: State, generator: np.random.Generator, sweeps: int, tick: Tick, pool: ThreadPoolExecutor
) -> int:
    """Visit the permutations in random order until a sweep gains nothing; return the number of sweeps."""
    names = list(problem.touched)
    near = {name: problem.near(name) for name in names}
    waiting = set(names)  # those for which something has changed since they were asked
    for sweep in range(sweeps):
        gained = False
        for wave in _waves([names[place] for place in generator.permutation(len(names))], near):
            asked = [name for name in wave if name in waiting]
            waiting -= set(asked)
            for name, step in zip(asked, pool.map(lambda name: _step(problem, state, name), asked), strict=True):
                state.clock.add(step.clock)
                if step.moved is not None:
                    state.move(problem.spec, step.then, step.moved)
                    waiting |= near[name]
                    gained = True
        tick((sweep + 1) / sweeps, f"sweep {sweep + 1}")
        if not gained or not waiting:
            return sweep + 1
    return sweeps


def _waves(order: Sequence[str], near: Mapping[str, set[str]]) -> list[list[str]]:
    """Cut an order into groups that share no tensor: visiting group after group is visiting in that order."""
    wave: dict[str, int] = {}
    for name in order:
        wave[name] = 1 + max((wave[other] for other in near[name] if other in wave and other != name), default=-1)
    return [[name for name in order if wave[name] == number] for number in range(max(wave.values(), default=-1) + 1)]


@dataclass(frozen=True, eq=False)
class _Step:
    """What one permutation would move; None where that gains nothing."""

    then: dict[str, Indices]
    moved: dict[str, Tensor] | None
    clock: Clock


def _step(problem: Problem, state: State, name: str) -> _Step:
    """Solve one permutation; the state is read, not written to."""
    clock, spec, twice = Clock(), problem.spec, name in problem.twice
    best = solved(problem.a, state.b, spec, spec[name], clock)
    if best.gain <= problem.least and not twice:
        return _Step(best.then, None, clock)
    with clock.multiplying():
        before = {each: state.b[each] for each in problem.touched[name]}
        moved = permuted(before, spec, best.then)
        gain = inner_product(problem.a, moved) - inner_product(problem.a, before) if twice else best.gain
    return _Step(best.then, moved if gain > problem.least else None, clock)


def outwards(problem: Problem, state: State) -> None:
    """Begin with the units whose weights reach axes that no permutation moves, and go on from unit to unit.

    Each permutation is set by the tensors whose other axes are settled; a permuted copy is found so in one pass.
    """
    owners: dict[str, set[str]] = {}
    for name, touched in problem.touched.items():
        for tensor in touched:
            owners.setdefault(tensor, set()).add(name)
    left = dict.fromkeys(problem.touched)
    while left:
        known = {
            name: [t for t in sorted(problem.touched[name]) if not (owners[t] - {name}) & set(left)] for name in left
        }
        weights = {name: sum(problem.a[t].numel() for t in known[name]) / problem.spec[name].size for name in left}
        name = max(left, key=lambda each: weights[each])
        del left[name]
        ours = {tensor: problem.a[tensor] for tensor in known[name]}
        then = solved(ours, state.b, problem.spec, problem.spec[name], state.clock).then
        before = {each: state.b[each] for each in problem.touched[name]}
        state.move(problem.spec, then, permuted(before, problem.spec, then))
