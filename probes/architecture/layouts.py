"""Which image size, padding and pooling lead from convolutions to a linear layer of a given width?

Padding, stride and pooling leave no tensors behind, but together they must give the number of inputs of the first
linear layer. Layouts are tried from the common to the rare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

_GREY = (28, 32, 8, 64, 16, 96, 224)
_MOST_OPEN = 8
_COLOUR = (32, 28, 64, 96, 224, 16, 8)


@dataclass(frozen=True)
class Layout:
    """One way through: the image's side (0: any, a global average follows), and what is at each convolution."""

    image: int
    paddings: tuple[int, ...]
    pools: tuple[bool, ...]

    def words(self) -> str:
        """Say it for people."""
        if not self.image:
            return "images of any size with a global average before the linear layer"
        padded = f"padding {list(self.paddings)}" if any(self.paddings) else "no padding"
        after = [str(count + 1) for count, pool in enumerate(self.pools) if pool]
        pooled = f"a pool of 2 after convolution {', '.join(after)}" if after else "no pooling"
        return f"{self.image} x {self.image} images, {padded}, {pooled}"


def layouts(
    kernels: Sequence[int], channels_in: int, channels_out: int, inputs: int, pooled: Sequence[bool | None]
) -> Iterator[Layout]:
    """Yield the layouts that give the linear layer its `inputs`; pooled: what is known of each pool (None: open)."""
    if not kernels or inputs % channels_out:
        return
    sizes = _COLOUR if channels_in == 3 else _GREY
    for pools, size, paddings in product(_pools(pooled), sizes, _paddings(kernels)):
        side = _side(size, kernels, paddings, pools)
        if side * side * channels_out == inputs:
            yield Layout(size, paddings, pools)


def _pools(pooled: Sequence[bool | None]) -> list[tuple[bool, ...]]:
    """List the pools that are possible: all, only the last, then the others where few are open."""
    few = sum(known is None for known in pooled) <= _MOST_OPEN
    last = tuple(place == len(pooled) - 1 if known is None else known for place, known in enumerate(pooled))
    every, none = (tuple(default if known is None else known for known in pooled) for default in (True, False))
    others = product(*[(True, False) if known is None else (known,) for known in pooled]) if few else [none]
    return list(dict.fromkeys((every, last, *others)))


def _paddings(kernels: Sequence[int]) -> list[tuple[int, ...]]:
    none, same = tuple(0 for _ in kernels), tuple(kernel // 2 for kernel in kernels)
    first = (same[0], *none[1:])
    return list(dict.fromkeys((none, same, first)))


def _side(size: int, kernels: Sequence[int], paddings: Sequence[int], pools: Sequence[bool]) -> int:
    """Follow the side of a square image; 0 when it vanishes on the way."""
    for kernel, padding, pool in zip(kernels, paddings, pools, strict=True):
        size = size + 2 * padding - kernel + 1
        size = size // 2 if pool else size
        if size < 1:
            return 0
    return size
