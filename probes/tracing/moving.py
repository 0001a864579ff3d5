"""Operations that only move elements (view, permute, slice, pad): run on the elements' own numbers, they tell all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.tracing.values import NoRule, Shape, Value, joined, pinned, settled, squeezed, support
from probes.tracing.wires import HOLE, Birth, Labels, Wires

LARGEST = 1 << 26  # elements of a tensor that is followed one by one


def moved(wires: Wires, value: Value, run: Callable[[Tensor], Any], where: str) -> list[Value]:
    """Follow the elements of a tensor through an operation that only moves them; holes are what it fills in."""
    if int(np.prod(value.shape)) > LARGEST:
        raise NoRule
    numbers = torch.arange(int(np.prod(value.shape))).view(value.shape)
    for axis in value.equal:
        numbers = numbers.narrow(axis, 0, 1)
    outputs = run(numbers.expand(value.shape).contiguous())
    tensors = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [_landed(wires, value, each.numpy(), where) for each in tensors]


def joined_along(wires: Wires, values: Sequence[Value], axis: int, where: str) -> Value:
    """Concatenate tensors along an axis."""
    values = [each for each in values if 0 not in each.shape]
    axis %= len(values[0].shape)
    sizes = values[0].shape
    shape = (*sizes[:axis], sum(each.shape[axis] for each in values), *sizes[axis + 1 :])
    if not _side_by_side(values, axis):
        pinned(wires, *values)
        return Value(shape)
    across = joined(wires, [_thin(each, axis) for each in values])
    equal = frozenset(place for place in range(len(shape)) if all(each.uniform(place) for each in values)) - {axis}
    return settled(wires, shape, [*across.components, *_along(wires, values, axis, where)], equal)


def _landed(wires: Wires, value: Value, source: Labels, where: str) -> Value:
    shape = tuple(source.shape)
    if not value.components:
        return Value(shape, (), _equal(source))
    found = []
    for labels in value.components:
        landed = _labels(wires, value.shape, value.equal, labels, source)
        if landed is None:
            wires.pin(labels)
        else:
            landed[landed == HOLE] = wires.fresh((int((landed == HOLE).sum()),), Birth(where))
            found.append(landed)
    return settled(wires, shape, found, _equal(source))


def _labels(wires: Wires, shape: Shape, equal: frozenset[int], labels: Labels, source: Labels) -> Labels | None:
    """Return the wires of the elements that have landed; None where slots do not correspond."""
    mine = np.broadcast_to(labels, shape).reshape(-1)
    landed = squeezed(np.where(source >= 0, mine[np.maximum(source, 0)], HOLE))
    keys = np.zeros([1] * landed.ndim, dtype=np.int64)
    slotted = False
    for axis in range(len(shape)):
        if labels.shape[axis] > 1 or shape[axis] == 1 or axis in equal:
            continue
        place = squeezed(_coordinates(source, shape, axis))
        if not support(place) & support(landed):
            continue
        if support(place) - support(landed):
            return None
        keys, slotted = keys * shape[axis] + np.maximum(place, 0), True
    landed = wires.slot(landed, keys) if slotted else landed
    return _copied(wires, landed)


def _copied(wires: Wires, labels: Labels) -> Labels:
    """Give copies of an element wires of their own: they are equal, so they may change places among themselves."""
    real = labels[labels >= 0]
    if len(np.unique(real)) == len(real):
        return labels.copy()
    copies = wires.fresh(labels.shape)
    wires.gather(np.where(labels >= 0, copies, HOLE), labels)
    return np.where(labels >= 0, copies, HOLE)


def _coordinates(source: Labels, shape: Shape, axis: int) -> Labels:
    stride = int(np.prod(shape[axis + 1 :]))
    return np.where(source >= 0, source // stride % shape[axis], HOLE)


def _equal(source: Labels) -> frozenset[int]:
    return frozenset(axis for axis in range(source.ndim) if bool((source == source.take([0], axis)).all()))


def _thin(value: Value, axis: int) -> Value:
    """Return what is known of a tensor apart from one axis: its size is 1 there."""
    found = tuple(each for each in value.components if axis not in support(each))
    shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
    loose = {place for each in value.components if axis in support(each) for place in support(each)}
    return Value(shape, found, value.equal | loose)


def _side_by_side(values: Sequence[Value], axis: int) -> bool:
    """Tell whether the wires along an axis lie alike in all tensors, or are missing where that can be filled."""
    own = [[support(each) for each in value.components if axis in support(each)] for value in values]
    kinds = {each for found in own for each in found}
    if not kinds:
        return True
    kind = next(iter(kinds))
    bare = [value for value, found in zip(values, own, strict=True) if not found]
    fits = kind == {axis} or all(value.uniform(each) for value in bare for each in kind)
    return len(kinds) == 1 and all(len(found) <= 1 for found in own) and fits


def _along(wires: Wires, values: Sequence[Value], axis: int, where: str) -> list[Labels]:
    """Return the component along the axis of concatenation, if any."""
    own = [next((each for each in value.components if axis in support(each)), None) for value in values]
    sizes = next((each.shape for each in own if each is not None), None)
    if sizes is None:
        return []
    pieces = []
    for place, (value, found) in enumerate(zip(values, own, strict=True)):
        shape = (*sizes[:axis], value.shape[axis], *sizes[axis + 1 :])
        pieces.append(_filled(wires, value, axis, shape, f"{where} {place}") if found is None else found)
    return [_apart(wires, pieces, axis)]


def _filled(wires: Wires, value: Value, axis: int, shape: Shape, where: str) -> Labels:
    """Make wires for the part without any: free where all is equal, else pinned."""
    labels = wires.fresh(shape, Birth(where))
    if not value.uniform(axis):
        wires.pin(labels)
    return labels


def _apart(wires: Wires, pieces: Sequence[Labels], axis: int) -> Labels:
    """Put pieces one behind the other; a wire that is in several gets a slot in each."""
    together = np.concatenate(pieces, axis)
    real = together[together >= 0]
    if len(np.unique(real)) == len(real):
        return together
    bounds = pairwise(np.cumsum([0, *(each.shape[axis] for each in pieces)]))
    keys = [np.full(stop - start, wires.key(("piece", place))) for place, (start, stop) in enumerate(bounds)]
    along = np.concatenate(keys).reshape([-1 if each == axis else 1 for each in range(together.ndim)])
    return wires.slot(together, along)
