"""What is known of an intermediate tensor: by which wires its elements move, along which axes.

A tensor has components: arrays of wires that broadcast to its shape, each along axes of its own (channels; tokens;
heads and their dimensions together). Along an axis without a component every position stays where it is, unless all
positions are equal there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from torch import Tensor

from probes.tracing.wires import HOLE, Labels, Wires

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the model; equal: the axes along which all positions hold the same; known: its numbers, if fixed."""

    shape: Shape
    components: tuple[Labels, ...] = ()
    equal: frozenset[int] = frozenset()
    known: Tensor | None = None

    def uniform(self, axis: int) -> bool:
        """Tell whether all positions along an axis hold the same."""
        return self.shape[axis] == 1 or axis in self.equal

    def covered(self) -> set[int]:
        """Return the axes that have a component."""
        return {axis for each in self.components for axis in support(each)}


class NoRule(Exception):
    """There is no rule for an operation with these arguments: what enters it has to stay in its place."""


def support(labels: Labels) -> frozenset[int]:
    """Return the axes along which wires differ."""
    return frozenset(axis for axis, size in enumerate(labels.shape) if size > 1)


def squeezed(labels: Labels) -> Labels:
    """Reduce to size 1 the axes along which all labels agree (holes agree with everything)."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            most = labels.max(axis=axis, keepdims=True)
            if bool(((labels == most) | (labels < 0)).all()):
                labels = most
    return labels


def settled(wires: Wires, shape: Shape, found: Sequence[Labels], equal: frozenset[int] = frozenset()) -> Value:
    """Make a value of labels: what has lost its axes is pinned, what lies wholly within others is named by these."""
    components = []
    for labels in found:
        plain = _unslotted(wires, labels)
        if support(plain):
            components.append(plain)
        else:
            wires.pin(plain)
    return Value(shape, tuple(components), equal)


def joined(wires: Wires, values: Sequence[Value]) -> Value:
    """Combine tensors elementwise, broadcast against one another: what meets moves together."""
    shape = tuple(np.broadcast_shapes(*(each.shape for each in values)))
    wide = [_widened(each, len(shape)) for each in values]
    labels = [each for value in wide for each in _bound(wires, value, wide)]
    kept: dict[frozenset[int], Labels] = {}
    for each in labels:
        first = kept.setdefault(support(each), each)
        if first is not each:
            wires.tie(first, each)
    equal = frozenset(axis for axis in range(len(shape)) if all(each.uniform(axis) for each in wide))
    return settled(wires, shape, _related(wires, list(kept.values())), equal)


def reduced(wires: Wires, value: Value, axes: Sequence[int], keep: bool = True) -> Value:
    """Sum, or the like, over axes: what lies along them may be in any order."""
    over = {axis % len(value.shape) for axis in axes}
    found = []
    for labels in value.components:
        rest = support(labels) - over
        if rest and rest != support(labels):
            groups = wires.fresh(tuple(size if axis in rest else 1 for axis, size in enumerate(labels.shape)))
            wires.gather(labels, groups)
            found.append(groups)
        elif rest:
            found.append(labels)
    shape = tuple(1 if axis in over else size for axis, size in enumerate(value.shape))
    full = settled(wires, shape, _related(wires, found), value.equal - over)
    return full if keep else without(full, sorted(over))


def without(value: Value, axes: Sequence[int]) -> Value:
    """Leave out axes of size 1 (or such that no component lies along them)."""
    left = [axis for axis in range(len(value.shape)) if axis not in axes]
    found = tuple(each.reshape([each.shape[axis] for axis in left]) for each in value.components)
    equal = frozenset(place for place, axis in enumerate(left) if axis in value.equal)
    return Value(tuple(value.shape[axis] for axis in left), found, equal)


def spread(value: Value, axes: Sequence[int]) -> Value:
    """Put in axes of size 1 at these places of the result."""
    total = len(value.shape) + len(axes)
    places = [axis for axis in range(total) if axis not in {each % total for each in axes}]
    insert = lambda sizes: tuple(sizes[places.index(axis)] if axis in places else 1 for axis in range(total))
    found = tuple(each.reshape(insert(each.shape)) for each in value.components)
    return Value(insert(value.shape), found, frozenset(places[axis] for axis in value.equal))


def fixed(wires: Wires, value: Value, axes: Sequence[int]) -> Value:
    """Let every position along axes stay where it is; the other axes keep what they have."""
    at = {axis % len(value.shape) for axis in axes}
    found = [_fixed(wires, each, support(each) & at) for each in value.components]
    return settled(wires, value.shape, found, value.equal)


def pinned(wires: Wires, *values: Value) -> bool:
    """Let everything in tensors stay where it is; tell whether there was anything."""
    for value in values:
        for each in value.components:
            wires.pin(each)
    return any(each.components for each in values)


def _widened(value: Value, ndim: int) -> Value:
    return spread(value, range(ndim - len(value.shape)))


def _bound(wires: Wires, value: Value, others: Sequence[Value]) -> list[Labels]:
    """Bind a tensor's wires along the axes where another tensor cannot follow: they move only along the rest."""
    found = []
    for labels in value.components:
        bound = {
            axis
            for axis in support(labels)
            if any(not other.uniform(axis) and axis not in other.covered() for other in others)
        }
        if bound == support(labels):
            wires.pin(labels)
            continue
        if bound:
            places = wires.fresh(tuple(size if axis in bound else 1 for axis, size in enumerate(labels.shape)))
            wires.pin(places)
            wires.gather(labels, places)
        found.append(labels)
    return found


def _fixed(wires: Wires, labels: Labels, axes: frozenset[int] | set[int]) -> Labels:
    """Fix the order along some axes of a component: along the others its slices still move as wholes."""
    rest = support(labels) - axes
    if not axes:
        return labels
    if not rest:
        wires.pin(labels)
        return labels.reshape(-1)[:1].reshape([1] * labels.ndim)
    whole = wires.fresh(tuple(size if axis in rest else 1 for axis, size in enumerate(labels.shape)))
    sizes = tuple(size if axis in axes else 1 for axis, size in enumerate(labels.shape))
    within = wires.slot(whole, np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes))
    wires.tie(within, labels)
    return whole


def _related(wires: Wires, found: list[Labels]) -> list[Labels]:
    """Let components that share axes move as one along these; return the finest, which tell what the others do."""
    for one, other in combinations(found, 2):
        if support(one) & support(other):
            _relate(wires, one, other)
    return [each for each in found if not any(support(each) < support(other) for other in found)]


def _relate(wires: Wires, one: Labels, other: Labels) -> None:
    """Let components move as one along the axes that they share."""
    shared = support(one) & support(other)
    if shared == support(one):
        wires.gather(other, one)
    elif shared == support(other):
        wires.gather(one, other)
    else:
        groups = wires.fresh(tuple(size if axis in shared else 1 for axis, size in enumerate(one.shape)))
        wires.gather(one, groups)
        wires.gather(other, groups)


def _unslotted(wires: Wires, labels: Labels) -> Labels:
    """Name slots by what they lie within, where these are whole axes of their own."""
    outer, keys = wires.outer(labels)
    if not bool((outer >= 0).all()):
        return labels
    outer, keys = squeezed(outer), squeezed(keys)
    if support(outer) & support(keys) or not support(outer) or bool((outer == HOLE).any()):
        return labels
    return _unslotted(wires, outer)
