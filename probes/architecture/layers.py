"""Tensors by the layer they belong to, and the orders in which those layers may run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import permutations

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Layers = list[tuple[str, dict[str, Shape]]]

_MOST_STEMS = 4


def groups(shapes: Shapes) -> dict[str, dict[str, Shape]]:
    """Gather tensors by the layer they belong to, in the order of the file."""
    found: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        found.setdefault(layer, {})[leaf] = shape
    return found


def orders(layers: Mapping[str, dict[str, Shape]]) -> Iterator[Layers]:
    """Yield the orders in which the layers may run, the likely ones first.

    A torch file keeps the order of definition, a safetensors file sorts names as text ("10" before "2"): the order
    of the file counts only where it does not contradict the numbers in the names.
    """
    listed = list(layers.items())
    stems = list(dict.fromkeys(_stem(name) for name in layers))
    if len(stems) > 1 and all(_rises([_numbers(name) for name in layers if _stem(name) == stem]) for stem in stems):
        yield listed
    if any("running_mean" in parts for parts in layers.values()):  # conv1, bn1, conv2, bn2, …, fc1
        yield sorted(listed, key=lambda item: (_is_matrix(item[1]), _numbers(item[0]), len(item[1])))
    for order in permutations(stems) if len(stems) <= _MOST_STEMS else ():
        yield sorted(listed, key=lambda item, order=order: (order.index(_stem(item[0])), _numbers(item[0])))  # type: ignore[misc]


def _stem(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d{1,9}", name))


def _rises(numbers: list[tuple[int, ...]]) -> bool:
    return numbers == sorted(numbers)


def _is_matrix(parts: Mapping[str, Shape]) -> bool:
    return len(parts.get("weight", ())) == 2
