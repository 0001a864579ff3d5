"""Where the terms of full gradients lie: in an image, on patches of it, on tokens; and their sum as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from probes.attribution.fullgrad_units import Split, Term

Grids = Sequence[tuple[int, int]]
MOST_PREFIX = 8  # tokens before the patches (class, distillation, registers), at most


def psi(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the absolute values (C, h, w), scaled to [0, 1] over all of them, enlarged to (H, W) and summed over C."""
    sizes = values.abs()
    low, high = sizes.amin(), sizes.amax()
    scaled = (sizes - low) / (high - low) if bool(high > low) else torch.zeros_like(sizes)
    if scaled.shape[1:] != size:
        scaled = functional.interpolate(scaled[None], size=size, mode="bilinear", align_corners=True)[0]
    return scaled.sum(0)


def picture(split: Split) -> Tensor:
    """Return the map of full gradients of an image, (H, W): psi of the input and of every term that has a place."""
    height, width = split.inputs.shape[2:]
    total = psi(split.inputs[0], (height, width))
    for each in split.terms:
        found = on_grid(each, split.grids, (height, width))
        if found is not None:
            total = total + psi(found[0], (height, width))
    return total


def on_grid(term: Term, grids: Grids, size: tuple[int, int]) -> tuple[Tensor, Tensor | None] | None:
    """Return a term as (C, h, w), and its rows of tokens that are no patches (p, C); None where it has no place.

    size: of the image. A single cell is no place: it would add the same to every pixel.
    """
    values = term.values
    if values.ndim == 4 and len(values) == 1:
        last = _channels_last(term, grids)
        found = None if last is None else (values[0].permute(2, 0, 1) if last else values[0], None)
        return found if found is not None and found[0][0].numel() > 1 else None
    if values.ndim == 3 and len(values) == 1:
        return _patches(values[0], grids, size)
    return None


def on_tokens(term: Term, tokens: int) -> Tensor | None:
    """Return a term summed for each token, (T,), or None where it is not laid out by tokens."""
    values = term.values
    fits = values.ndim == 3 and values.shape[:2] == (1, tokens)
    return values[0].double().sum(-1) if fits else None


def _channels_last(term: Term, grids: Grids) -> bool | None:
    """Tell whether channels come last, by the module's type or else by the sizes of the pictures; None: no picture."""
    if term.layout:
        return term.layout == "last"
    one, two, three = term.values.shape[1:]
    if (two, three) in grids:
        return False
    return True if (one, two) in grids else None


def _patches(rows: Tensor, grids: Grids, size: tuple[int, int]) -> tuple[Tensor, Tensor | None] | None:
    count = len(rows)
    known = [(h, w) for h, w in grids if 1 < h * w <= count <= h * w + MOST_PREFIX]
    grid = max(known, key=lambda each: each[0] * each[1]) if known else _by_shape(count, size)
    if grid is None:
        return None
    prefix = count - grid[0] * grid[1]
    return rows[prefix:].T.reshape(-1, *grid), rows[:prefix] if prefix else None


def _by_shape(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid (h, w) with h w = count, or count - 1, that has the proportions of the image."""
    for patches in (count, count - 1):
        height = round((patches * size[0] / size[1]) ** 0.5)
        if height > 0 and patches > 1 and patches % height == 0 and height * size[1] == (patches // height) * size[0]:
            return height, patches // height
    return None
