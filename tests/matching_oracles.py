"""Small specifications written by hand, networks for them, and all their permutations: for tests of matching."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.permutations import (
    Permutation,
    PermutationSpec,
    Use,
)

TICK = lambda _share, _doing: None


def rows(count: int, first: int = 0, slots: int = 1) -> np.ndarray:
    return first + np.arange(count * slots).reshape(count, slots)


def units(name: str, size: int, *places: tuple[str, int], **more: Any) -> Permutation:
    return Permutation(name, size, tuple(Use(tensor, axis, rows(size)) for tensor, axis in places), **more)


def mlp_spec(*widths: int, step: int = 1) -> PermutationSpec:
    """Of a Sequential with a linear layer at every `step`-th place."""
    places = lambda k: ((f"{step * k}.weight", 0), (f"{step * k}.bias", 0), (f"{step * (k + 1)}.weight", 1))
    return PermutationSpec(tuple(units(f"p{k}", width, *places(k)) for k, width in enumerate(widths)), "by hand")


def random_mlp(seed: int, *widths: int, inputs: int = 4, outputs: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (inputs, *widths, outputs)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    pairs = [(f"{k}.weight", draw(sizes[k + 1], sizes[k])) for k in range(len(sizes) - 1)]
    return dict(pairs) | {f"{k}.bias": draw(sizes[k + 1]) for k in range(len(sizes) - 1)}


def product_of(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


def everything(spec: PermutationSpec) -> list[dict[str, np.ndarray]]:
    """All permutations of a small specification."""
    each = [[np.array(pi) for pi in permutations(range(one.size))] for one in spec]
    return [dict(zip((one.name for one in spec), chosen, strict=True)) for chosen in product(*each)]


def heads_spec(heads: int, width: int, group: int = 1) -> PermutationSpec:
    """Heads of key and value with `group` query heads each, orders within free; a stream beside them."""
    inner, slots = [], []
    for head in range(heads):
        place = rows(width, head * width)
        query = (head * group * width + np.arange(group * width)).reshape(group, width)
        names = [f"qk{head}", f"vo{head}"]
        inner.append(Permutation(names[0], width, (Use("q", 0, query.T), Use("k", 0, place)), "within a head"))
        inner.append(Permutation(names[1], width, (Use("v", 0, place), Use("o", 1, query.T)), "within a head"))
        if group > 1:
            names.append(f"queries{head}")
            inner.append(Permutation(names[2], group, (Use("q", 0, query), Use("o", 1, query)), "query heads"))
        slots.append(tuple(names))
    queries = rows(heads, slots=group * width)
    places = (Use("q", 0, queries), *(Use(name, 0, rows(heads, slots=width)) for name in "kv"), Use("o", 1, queries))
    outer = Permutation("heads", heads, places, "heads", tuple(slots))
    stream = Permutation(
        "stream", 6, (*(Use(name, 1, rows(6)) for name in "qkv"), Use("o", 0, rows(6)), Use("e", 1, rows(6)))
    )
    return PermutationSpec((stream, outer, *inner), "by hand")


def attention(seed: int, heads: int, width: int, group: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    narrow, wide = heads * width, heads * width * group
    return {"q": draw(wide, 6), "k": draw(narrow, 6), "v": draw(narrow, 6), "o": draw(6, wide), "e": draw(9, 6)}


def grouped_spec() -> PermutationSpec:
    """Three groups of four channels between two grouped layers, free orders within each group; five units behind."""
    within = [
        Permutation(
            f"within{g}", 4, (Use("one", 0, rows(4, 4 * g)), Use("two", 1, rows(4), rows=(0, 2 * g + np.arange(2))))
        )
        for g in range(3)
    ]
    behind = [
        Permutation(f"behind{g}", 2, (Use("two", 0, rows(2, 2 * g)), Use("three", 1, rows(2, 2 * g)))) for g in range(3)
    ]
    uses = (Use("one", 0, rows(3, slots=4)), Use("two", 0, rows(3, slots=2)), Use("three", 1, rows(3, slots=2)))
    inner = tuple((f"within{g}", f"behind{g}") for g in range(3))
    return PermutationSpec((Permutation("groups", 3, uses, "groups", inner), *within, *behind), "by hand")
