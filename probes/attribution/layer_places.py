"""Where the outputs of a layer lie on the input: pixels of a picture, patches of an image, tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Grid = tuple[int, ...]
MOST_PREFIX = 8  # tokens before the patches (class, distillation, registers), at most
_LARGER = 4  # outputs may have so many times more places than the image has pixels


@dataclass(frozen=True)
class Layout:
    """How an output is laid out. grid: (h, w) of images, (T,) of text. prefix: rows of tokens that have no place."""

    kind: Literal["channels first", "channels last", "tokens"]
    grid: Grid
    prefix: int = 0

    def laid(self, values: Tensor) -> Tensor:
        """Bring an output (B, ...) to (B, K, h, w) or (B, K, T), without the prefix."""
        if self.kind == "channels first":
            return values
        if self.kind == "channels last":
            return values.movedim(-1, 1)
        rows = values[:, self.prefix :].movedim(-1, 1)
        return rows.reshape(*rows.shape[:2], *self.grid)

    def units(self, values: Tensor) -> Tensor:
        """Sum an output (B, ...) over all its rows and places, the prefix among them; (B, K)."""
        axes = tuple(range(2, values.ndim)) if self.kind == "channels first" else tuple(range(1, values.ndim - 1))
        return values.sum(axes)

    def reached(self, slopes: Tensor) -> float:
        """Return the share of the places at which slopes (1, ...) are not zero."""
        return float((self.laid(slopes) != 0).any(1).double().mean())


def picture_layout(
    shape: Sequence[int], image: tuple[int, int], grids: Sequence[Grid], *, last: bool = False
) -> Layout | None:
    """Find the layout of an output (1, ...) of a model of images (H, W); None where it has no places.

    grids: the pictures (h, w) that the model is known to make. last: channels come last where the sizes do not tell.
    """
    if len(shape) == 4 and shape[0] == 1:
        fits = {
            "channels first": _fits(shape[2], shape[3], image) and shape[1] > 1,
            "channels last": _fits(shape[1], shape[2], image) and shape[3] > 1,
        }
        if fits["channels last"] and (last or not fits["channels first"]):
            return Layout("channels last", (shape[1], shape[2]))
        return Layout("channels first", (shape[2], shape[3])) if fits["channels first"] else None
    if len(shape) == 3 and shape[0] == 1 and shape[2] > 1:
        return patch_layout(shape[1], image, grids)
    return None


def patch_layout(tokens: int, image: tuple[int, int], grids: Sequence[Grid]) -> Layout | None:
    """Find the patch grid of so many tokens: of a known picture, or else of the image's proportions."""
    known = [each for each in grids if 1 < each[0] * each[1] <= tokens <= each[0] * each[1] + MOST_PREFIX]
    grid = max(known, key=lambda each: each[0] * each[1]) if known else _by_shape(tokens, image)
    return Layout("tokens", grid, tokens - grid[0] * grid[1]) if grid else None


def enlarged(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge intensities (h, w) to (1, H, W), bilinearly between the centres of their cells."""
    return functional.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0]


def spread(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Spread amounts (h, w) smoothly over (1, H, W) pixels; each keeps its sum."""
    down, across = (_shares(n, to).to(values) for n, to in zip(values.shape, size, strict=True))
    return (down.T @ values @ across)[None]


def _shares(count: int, size: int) -> Tensor:
    """Return what each of `size` pixels in a line gets of each of `count` cells, (count, size); rows add up to one."""
    if size < count:
        ends = torch.arange(count + 1, dtype=torch.float64) / count
        edges = torch.arange(size + 1, dtype=torch.float64) / size
        overlap = torch.minimum(ends[1:, None], edges[None, 1:]) - torch.maximum(ends[:-1, None], edges[None, :-1])
        return overlap.clamp(min=0) * count
    rows = functional.interpolate(torch.eye(count, dtype=torch.float64)[None], size=size, mode="linear")[0]
    return rows / rows.sum(1, keepdim=True)


def _fits(height: int, width: int, image: tuple[int, int]) -> bool:
    """Tell whether (h, w) has the image's proportions, up to borders, and more than one place."""
    if not 1 < height * width <= _LARGER * image[0] * image[1]:
        return False
    return height == width if image[0] == image[1] else abs(height * image[1] - width * image[0]) <= max(image)


def _by_shape(tokens: int, image: tuple[int, int]) -> tuple[int, int] | None:
    for patches in range(tokens, max(tokens - MOST_PREFIX, 2) - 1, -1):
        height = round((patches * image[0] / image[1]) ** 0.5)
        width = patches // max(height, 1)
        if height * width == patches and height * image[1] == width * image[0] and image[0] % height == 0:
            return height, width
    return None
