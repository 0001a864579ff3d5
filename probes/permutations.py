"""Permutations of units that leave a network's function as it is: what they move, applied, composed, inverted.

A permutation pi is an array (units,): unit u of the result is unit pi[u] of what it is applied to. Outer permutations
(attention heads, groups of channels) come before the inner ones that act within a slot of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Found = Mapping[str, Indices]  # the name of a permutation -> pi


@dataclass(frozen=True, eq=False)
class Use:
    """One axis of a tensor along which a permutation moves positions.

    index: (units, slots), the positions that belong to each unit, in corresponding order (a flattened feature map has
    a slot per pixel, a fused projection one per part). rows: (axis, positions), where only these positions of another
    axis are moved (grouped convolutions). counts: whether the tensor counts in the cost of matching; running statistics
    follow without counting.
    """

    tensor: str
    axis: int
    index: Indices
    rows: tuple[int, Indices] | None = None
    counts: bool = True


@dataclass(frozen=True, eq=False)
class Permutation:
    """The units that may be exchanged among themselves, and every tensor that must follow.

    kind: "units", "channels", "stream", "heads", "key-value heads", "query heads", "within a head", "groups" or
    "within a group". inner: for each unit the names of the permutations within its slot, corresponding ones in the same
    order; empty when there are none.
    """

    name: str
    size: int
    uses: tuple[Use, ...]
    kind: str = "units"
    inner: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class PermutationSpec:
    """All permutations of a model, outer before inner; tensors are named as `Objective.names` and its buffers are.

    source: "traced", the family ("BERT"), or "edited". notes: what was left as it is, and why, in sentences.
    """

    permutations: tuple[Permutation, ...]
    source: str
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Permutation:
        """Return the permutation of this name."""
        return next(each for each in self.permutations if each.name == name)

    def __iter__(self) -> Iterator[Permutation]:
        """Go through the permutations, outer before inner."""
        return iter(self.permutations)

    def outermost(self) -> tuple[Permutation, ...]:
        """Return those that do not lie within another."""
        within = {name for each in self for slot in each.inner for name in slot}
        return tuple(each for each in self if each.name not in within)


def identity(spec: PermutationSpec) -> dict[str, Indices]:
    """Return the permutations that change nothing."""
    return {each.name: np.arange(each.size) for each in spec}


def drawn(spec: PermutationSpec, seed: int) -> dict[str, Indices]:
    """Draw every permutation uniformly at random."""
    generator = np.random.default_rng(seed)
    return {each.name: generator.permutation(each.size) for each in spec}


def permuted(tensors: Mapping[str, Tensor], spec: PermutationSpec, found: Found) -> dict[str, Tensor]:
    """Apply permutations to named tensors; those not named in `found` are the identity. Nothing is written to."""
    moved = dict(tensors)
    for each in spec:
        pi = found.get(each.name)
        if pi is None or np.array_equal(pi, np.arange(each.size)):
            continue
        for use in each.uses:
            moved[use.tensor] = _moved(moved[use.tensor], use, pi)
    return moved


def composed(spec: PermutationSpec, first: Found, then: Found) -> dict[str, Indices]:
    """Return what does `first`, then `then`: where an outer permutation moves a slot, its inner ones go along."""
    origin = _origins(spec, then)
    return {each.name: first[origin[each.name]][then[each.name]] for each in spec}


def inverse(spec: PermutationSpec, found: Found) -> dict[str, Indices]:
    """Return what undoes permutations: `composed(spec, found, inverse(spec, found))` is the identity."""
    undone: dict[str, Indices] = {}
    origin = {each.name: each.name for each in spec}
    for each in spec:
        undone[each.name] = np.argsort(found[origin[each.name]])
        _follow(spec, each, undone[each.name], origin)
    return undone


def displaced(found: Found) -> float:
    """Return the share of all units that are not in their own place."""
    moved = sum(int((pi != np.arange(len(pi))).sum()) for pi in found.values())
    return moved / max(sum(len(pi) for pi in found.values()), 1)


def rows_of(spec: PermutationSpec) -> list[dict[str, Any]]:
    """Return a row for each use, for a table: permutation, kind, units, tensor, axis, slots, counts."""
    return [
        {
            "permutation": each.name, "kind": each.kind, "units": each.size, "tensor": use.tensor, "axis": use.axis,
            "slots": int(use.index.shape[1]), "counts": use.counts,
        }
        for each in spec for use in each.uses
    ]  # fmt: skip


def _moved(tensor: Tensor, use: Use, pi: Indices) -> Tensor:
    take = np.arange(tensor.shape[use.axis])
    take[use.index] = use.index[pi]
    places = torch.as_tensor(take, device=tensor.device)
    moved = tensor.index_select(use.axis, places)
    if use.rows is None:
        return moved
    axis, positions = use.rows
    rows = torch.as_tensor(positions, device=tensor.device)
    return tensor.index_copy(axis, rows, moved.index_select(axis, rows))


def _origins(spec: PermutationSpec, then: Found) -> dict[str, str]:
    """Map each permutation to the one that acts, before the outer ones of `then`, where it acts after them."""
    origin = {each.name: each.name for each in spec}
    for each in spec:
        _follow(spec, each, then[each.name], origin)
    return origin


def _follow(spec: PermutationSpec, outer: Permutation, pi: Indices, origin: dict[str, str]) -> None:
    """Let the inner permutations of each slot stand for those of the slot that an outer one put there."""
    before = spec[origin[outer.name]].inner
    for slot, names in enumerate(outer.inner):
        for name, other in zip(names, before[int(pi[slot])], strict=True):
            origin[name] = other
