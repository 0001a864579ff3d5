"""Products that sum over an axis: linear, convolution, matmul, attention. An elementwise product, then a sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from probes.tracing.moving import moved
from probes.tracing.values import Value, fixed, joined, reduced, spread, support, without
from probes.tracing.wires import Atom, Wires


def matmul(wires: Wires, one: Value, other: Value) -> Value:
    """Multiply (…, m, k) by (…, k, n); vectors as torch does."""
    left, right = len(one.shape) == 1, len(other.shape) == 1
    one = spread(one, [0]) if left else one
    other = spread(other, [-1]) if right else other
    product = joined(wires, [spread(one, [-1]), spread(other, [-3])])
    found = reduced(wires, product, [-2], keep=False)
    ndim = len(found.shape)
    return without(found, [ndim - 2] * left + [ndim - 1] * right)


def linear(wires: Wires, inputs: Value, weight: Value, bias: Value | None) -> Value:
    """Multiply (…, in) by (out, in)."""
    product = joined(wires, [spread(inputs, [-2]), weight])
    found = reduced(wires, product, [-1], keep=False)
    return found if bias is None else joined(wires, [found, bias])


def embedding(wires: Wires, weight: Value, places: Value) -> Value:
    """Look rows up: which row is which stays, its columns may move."""
    columns = without(fixed(wires, weight, [0]), [0])
    return Value((*places.shape, weight.shape[1]), spread(columns, range(len(places.shape))).components)


def convolution(
    wires: Wires,
    inputs: Value,
    weight: Value,
    bias: Value | None,
    shape: Sequence[int],
    *,
    groups: int = 1,
    transposed: bool = False,
    name: str | None = None,
) -> Value:
    """Convolve (N, C, …) with (out, in / groups, …) or, transposed, (in, out / groups, …).

    name: of the weight, where it is a parameter as it is: its rows then follow group by group.
    """
    seen = _channels(wires, inputs)
    if groups == 1:
        kernel = _kernel(wires, weight)
        kernel = Value(kernel.shape[::-1], tuple(each.T for each in kernel.components)) if transposed else kernel
        found = linear(wires, seen, kernel, bias)
        return _imaged(found, shape)
    parts = moved(wires, seen, lambda each: each.unflatten(1, (groups, -1)), "")[0]
    kernel = _grouped(wires, weight, groups, name, transposed)
    product = joined(wires, [spread(parts, [2]), kernel])  # (N, groups, out, in)
    found = reduced(wires, product, [-1], keep=False)
    found = moved(wires, found, lambda each: each.flatten(1), "")[0]
    return _imaged(found if bias is None else joined(wires, [found, bias]), shape)


def attention(wires: Wires, parts: Sequence[Value], mask: Value | None, where: str, *, shared: bool) -> Value:
    """Attend: softmax(q k^T) v over (…, heads, tokens, width); shared: key-value heads serve several query heads."""
    query, key, value = parts
    if shared:
        key, value = (_repeated(wires, each, query, where) for each in (key, value))
    swapped = moved(wires, key, lambda each: each.mT, where)[0]
    scores = matmul(wires, query, swapped)
    wires.heads.extend(scores.components)
    if mask is not None:
        scores = joined(wires, [scores, mask])
    scores = joined(wires, [scores, reduced(wires, scores, [-1])])
    return matmul(wires, scores, value)


def _repeated(wires: Wires, heads: Value, query: Value, where: str) -> Value:
    times = query.shape[-3] // heads.shape[-3]

    def run(numbers: Tensor) -> Tensor:
        return numbers.repeat_interleave(times, -3)

    return moved(wires, heads, run, where)[0]


def _channels(wires: Wires, inputs: Value) -> Value:
    """Return (N, C) of an image: pixels stay where they are."""
    spatial = range(2, len(inputs.shape))
    still = fixed(wires, inputs, spatial)
    return without(Value(inputs.shape, still.components), list(spatial))


def _kernel(wires: Wires, weight: Value) -> Value:
    spatial = range(2, len(weight.shape))
    return without(Value(weight.shape, fixed(wires, weight, spatial).components), list(spatial))


def _imaged(value: Value, shape: Sequence[int]) -> Value:
    more = spread(value, range(2, len(shape)))
    return Value(tuple(shape), more.components)


def _grouped(wires: Wires, weight: Value, groups: int, name: str | None, transposed: bool) -> Value:
    """Return the kernel of a grouped convolution as (groups, out, in)."""
    if name is None:
        found = moved(wires, _kernel(wires, weight), lambda each: each.unflatten(0, (groups, -1)), "")[0]
    else:
        for each in weight.components:  # the rows follow by groups instead
            if 0 not in support(each):
                wires.pin(each)
        rows, inner = weight.shape[0] // groups, weight.shape[1]
        labels = [wires.atoms(Atom(name, 0), groups * rows).reshape(groups, rows, 1)]
        if inner > 1:
            bounds = [(0, start, start + rows) for start in range(0, groups * rows, rows)]
            within = [wires.atoms(Atom(name, 1, each), inner) for each in bounds]
            labels.append(np.stack(within).reshape(groups, 1, inner))
        found = Value((groups, rows, inner), tuple(labels))
    if transposed:
        groups, rows, inner = found.shape
        return Value((groups, inner, rows), tuple(each.swapaxes(1, 2) for each in found.components))
    return found
