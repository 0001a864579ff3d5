"""The best assignment of the units of one network to those of another, by what each pair of units is worth.

The worth of a pair is the inner product of everything that belongs to the two units, everything else staying where it
is. A permutation with others within its slots (attention heads) is solved at two levels: each pair of slots is worth
what the best assignment within them gives (Ainsworth et al. 2023, Git Re-Basin; linear assignment by SciPy).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from probes.errors import ModelError
from probes.permutations import Indices, Permutation, PermutationSpec, Use, composed, identity, permuted
from probes.unit_products import GAIN, Clock, Tensors, counted, inner_product, product_of, unfolded


def best_assignment(worth: NDArray[np.float64]) -> Indices:
    """Return the pi with the largest sum of worth[u, pi[u]]; worth: (n, n). Raises ModelError where not finite."""
    if not np.isfinite(worth).all():
        raise ModelError("A checkpoint has weights that are not finite; units cannot be matched by them.")
    here = np.arange(len(worth))
    for choice, undo in ((worth.argmax(1), False), (worth.argmax(0), True)):
        if len(np.unique(choice)) == len(here):  # everyone's own best: nothing can be better
            return np.argsort(choice) if undo else choice.astype(np.int64)
    return np.asarray(linear_sum_assignment(worth, maximize=True)[1], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Solution:
    """Permutations to go on by, and by how much they raise the inner product (to first order in them)."""

    then: dict[str, Indices]
    gain: float


def solved(a: Tensors, b: Tensors, spec: PermutationSpec, permutation: Permutation, clock: Clock) -> Solution:
    """Return the best permutation of b's units towards a's, and of those within its slots, all else staying in place.

    Uses that do not count, or whose tensors are not among `a`, are passed over. Exact where each tensor is moved along
    one axis and the permutations within a slot share no tensor; otherwise these are solved in turn, and where a
    permutation moves two axes of a tensor the gain is that of moving either alone.
    """
    if permutation.inner:
        return _two_levels(a, b, spec, permutation, clock)
    worth = worth_of(a, b, permutation, clock)
    with clock.assigning():
        pi = best_assignment(worth)
    return Solution({permutation.name: pi}, _gain(worth, pi))


def _gain(worth: NDArray[np.float64], pi: Indices) -> float:
    here = np.arange(len(pi))
    return float((worth[here, pi] - worth[here, here]).sum())


def worth_of(a: Tensors, b: Tensors, permutation: Permutation, clock: Clock) -> NDArray[np.float64]:
    """Return what each pair of units is worth, (n, n) in float64: inner products summed over uses and slots."""
    worth = np.zeros((permutation.size, permutation.size))
    with clock.multiplying():
        for use in counted(permutation, a):
            worth += product_of(unfolded(a[use.tensor], use), unfolded(b[use.tensor], use)).cpu().numpy()
    return worth


def family(spec: PermutationSpec, permutation: Permutation) -> list[Permutation]:
    """List a permutation and all that lie within its slots, outer before inner."""
    found = [permutation]
    for slot in permutation.inner:
        for name in slot:
            found += family(spec, spec[name])
    return found


@dataclass(frozen=True, eq=False)
class _Block:
    """What an outer permutation moves of one tensor along one axis; index: (units, positions of a unit's slot)."""

    tensor: str
    axis: int
    index: Indices
    rows: tuple[int, Indices] | None

    @property
    def key(self) -> str:
        """The name of the part that one slot is, among those of the slot."""
        return f"{self.tensor} along {self.axis}"

    def part(self, tensor: Tensor, slot: int) -> Tensor:
        """Cut a slot out of the tensor."""
        if self.rows is not None:
            tensor = tensor.index_select(self.rows[0], torch.as_tensor(self.rows[1], device=tensor.device))
        return tensor.index_select(self.axis, torch.as_tensor(self.index[slot], device=tensor.device)).double()

    def local(self, use: Use, slot: int) -> Use | None:
        """Say where an inner permutation's use lies in the part of a slot; None where it does not lie in it."""
        if use.tensor != self.tensor:
            return None
        index = self._places(use.axis, use.index, slot)
        rows = None if use.rows is None else self._places(use.rows[0], use.rows[1], slot)
        bound = use.axis == self.axis or (use.rows is not None and use.rows[0] == self.axis)
        if not bound or index is None or (use.rows is not None and rows is None):
            return None
        kept = None if use.rows is None or rows is None else (use.rows[0], rows)
        return Use(self.key, use.axis, index, kept)

    def _places(self, axis: int, positions: Indices, slot: int) -> Indices | None:
        """Translate positions of an axis of the tensor to those of the part; None where some are not in it."""
        if axis == self.axis:
            held = self.index[slot]
        elif self.rows is not None and axis == self.rows[0]:
            held = self.rows[1]
        else:
            return positions
        where = {int(place): number for number, place in enumerate(held)}
        if not all(int(each) in where for each in positions.reshape(-1)):
            return None
        return np.array([where[int(each)] for each in positions.reshape(-1)]).reshape(positions.shape)


def _two_levels(a: Tensors, b: Tensors, spec: PermutationSpec, outer: Permutation, clock: Clock) -> Solution:
    slots = range(outer.size)
    with clock.multiplying():
        blocks = _blocks(outer, a)
        ours = [{block.key: block.part(a[block.tensor], slot) for block in blocks} for slot in slots]
        theirs = [{block.key: block.part(b[block.tensor], slot) for block in blocks} for slot in slots]
        now = sum(inner_product(one, other) for one, other in zip(ours, theirs, strict=True))
    within = [_within(spec, outer, blocks, slot, a) for slot in slots]
    if _corresponding(within):
        pairs = _all_pairs(ours, theirs, within, clock)
    else:
        pairs = [[best_together(ours[u], theirs[v], within[u], clock) for v in slots] for u in slots]
    with clock.assigning():
        worth = np.array([[value for value, _ in row] for row in pairs])
        pi = best_assignment(worth)
    then = {outer.name: pi}
    for slot in slots:
        then |= pairs[slot][int(pi[slot])][1]
    return Solution(then, float(worth[np.arange(outer.size), pi].sum()) - now)


def _blocks(outer: Permutation, tensors: Tensors) -> list[_Block]:
    """Join the uses of a tensor along an axis."""
    found: dict[tuple[str, int], _Block] = {}
    for use in counted(outer, tensors):
        key = (use.tensor, use.axis)
        if key not in found:
            found[key] = _Block(use.tensor, use.axis, use.index, use.rows)
        else:
            found[key] = replace(found[key], index=np.concatenate([found[key].index, use.index], axis=1))
    return list(found.values())


def _within(
    spec: PermutationSpec, outer: Permutation, blocks: list[_Block], slot: int, tensors: Tensors
) -> PermutationSpec:
    """Return the permutations within a slot, in the places of its parts."""
    inner = [each for name in outer.inner[slot] for each in family(spec, spec[name])]
    found = []
    for each in inner:
        uses = []
        for use in counted(each, tensors):
            local = next((place for block in blocks if (place := block.local(use, slot)) is not None), None)
            if local is None:
                raise ModelError(
                    f"The specification says that {each.name} lies within {outer.name}, but it moves parts of "
                    f"{use.tensor} that {outer.name} does not move; mend the specification."
                )
            uses.append(local)
        found.append(replace(each, uses=tuple(uses)))
    return PermutationSpec(tuple(found), spec.source)


def best_together(a: Tensors, b: Tensors, spec: PermutationSpec, clock: Clock) -> tuple[float, dict[str, Indices]]:
    """Return the inner product under the best permutations of a specification (of a pair of slots), and these.

    Permutations that share a tensor take turns until none gains, each of them being the first once: a rise in every
    step, though not always to the summit.
    """
    turns = spec.outermost()
    if not _share_nothing(spec, turns):
        orders = [turns[first:] + turns[:first] for first in range(len(turns))]
        return max((_in_turn(a, b, spec, order, clock) for order in orders), key=lambda each: each[0])
    with clock.multiplying():
        worth = inner_product(a, b)
    best = [solved(a, b, spec, each, clock) for each in turns]
    found = {name: pi for each in best for name, pi in each.then.items()}
    return worth + sum(each.gain for each in best), found


def _in_turn(
    a: Tensors, b: Tensors, spec: PermutationSpec, turns: tuple[Permutation, ...], clock: Clock
) -> tuple[float, dict[str, Indices]]:
    worth, still = inner_product(a, b), identity(spec)
    least = GAIN * (inner_product(a, a) * inner_product(b, b)) ** 0.5
    found, gained = still, True
    while gained:
        gained = False
        for each in turns:
            then = solved(a, b, spec, each, clock).then
            with clock.multiplying():
                moved = permuted(b, spec, then)
                better = inner_product(a, moved)
            if better > worth + least:
                worth, b, gained = better, moved, True
                found = composed(spec, found, {**still, **then})
    return worth, found


def _share_nothing(spec: PermutationSpec, turns: tuple[Permutation, ...]) -> bool:
    """Tell whether no turn changes the best answer of another: places on the same axis that do not overlap."""
    held = [(turn.name, use) for turn in turns for each in family(spec, turn) for use in each.uses]
    axes: dict[str, int] = {}
    places: dict[tuple[str, int], str] = {}
    for name, use in held:
        if axes.setdefault(use.tensor, use.axis) != use.axis:
            return False
        if any(places.setdefault((use.tensor, int(place)), name) != name for place in use.index.reshape(-1)):
            return False
    return True


def _corresponding(within: list[PermutationSpec]) -> bool:
    """Tell whether the slots hold plain permutations of the same places, none of which bears on another."""
    first = within[0]
    if any(each.inner or not each.uses for each in first) or not _share_nothing(first, first.permutations):
        return False
    shape = lambda spec: [[(use.tensor, use.axis) for use in each.uses] for each in spec]
    if any(shape(spec) != shape(first) for spec in within):
        return False
    uses = [[use for each in spec for use in each.uses] for spec in within]
    pairs = [pair for other in uses for pair in zip(uses[0], other, strict=True)]
    return all(np.array_equal(one.index, other.index) and _same_rows(one, other) for one, other in pairs)


def _same_rows(one: Use, other: Use) -> bool:
    if one.rows is None or other.rows is None:
        return one.rows is other.rows
    return one.rows[0] == other.rows[0] and np.array_equal(one.rows[1], other.rows[1])


def _all_pairs(
    ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]], within: list[PermutationSpec], clock: Clock
) -> list[list[tuple[float, dict[str, Indices]]]]:
    """Solve all pairs of slots, the products of all of them at once."""
    slots = range(len(ours))
    with clock.multiplying():
        whole = [[torch.stack([part[key] for part in side]).flatten(1) for key in ours[0]] for side in (ours, theirs)]
        worth = torch.stack([product_of(one, other) for one, other in zip(*whole, strict=True)]).sum(0)
    pairs = [[(float(worth[u, v]), dict[str, Indices]()) for v in slots] for u in slots]
    for number, each in enumerate(within[0]):
        with clock.multiplying():
            joined = [
                [torch.cat([unfolded(part[use.tensor], use) for part in side]) for use in each.uses]
                for side in (ours, theirs)
            ]
            total = torch.stack([product_of(one, other) for one, other in zip(*joined, strict=True)]).sum(0)
            table = total.reshape(len(ours), each.size, len(ours), each.size).cpu().numpy()
        with clock.assigning():
            for u, v in np.ndindex(len(ours), len(ours)):
                pi = best_assignment(table[u, :, v])
                value, found = pairs[u][v]
                found[within[u].permutations[number].name] = pi
                pairs[u][v] = (value + _gain(table[u, :, v], pi), found)
    return pairs
