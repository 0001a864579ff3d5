"""What is replaced together: cells or regions of an image, columns of a table, tokens, words or spans of a text.

Labels run from 0 and are laid out like one example without its channels or embedding: (H, W), (F,) or (T,). The score
of a segment is divided evenly among its elements, so that the sum over elements is the sum over segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CELLS = 7  # a side, unless a window is asked for
COMPACT = 0.5  # of a region: how much place counts beside colour
ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Segments:
    """Number what is replaced together.

    labels: whole numbers from 0 to count - 1, laid out like the example without channels. unit: what a segment is, in
    words, as in "cells of 4 x 4 pixels".
    """

    labels: NDArray[np.int64]
    count: int
    unit: str

    def spread(self, values: Floats, channels: int = 0) -> Floats:
        """Divide the value of each segment, (P,), evenly among its elements: laid out like labels, or (C, H, W)."""
        each = (values / (self.sizes() * max(1, channels)))[self.labels]
        return np.broadcast_to(each, (channels, *each.shape)).copy() if channels else each

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of elements of each segment, (P,)."""
        return np.bincount(self.labels.reshape(-1), minlength=self.count)


def single(count: int, unit: str) -> Segments:
    """Replace each of `count` features for itself."""
    return Segments(np.arange(count), count, unit)


def cells(height: int, width: int, window: int = 0, across: int = CELLS) -> Segments:
    """Cut an image into square cells of `window` pixels, or into about `across` a side; the last may be cut off."""
    side = window or max(1, -(-max(height, width) // across))
    columns = -(-width // side)
    labels = (np.arange(height) // side)[:, None] * columns + np.arange(width) // side
    return Segments(labels, int(labels.max()) + 1, f"cells of {side} x {side} pixels")


def regions(image: Floats, count: int) -> Segments:
    """Group the pixels of an image (C, H, W) into at most `count` regions of like colour.

    k-means on colour and place, from a grid of centres (as SLIC, Achanta et al. 2012, but every pixel is compared with
    every centre). Deterministic.
    """
    _, height, width = image.shape
    side = max(1.0, float(np.sqrt(height * width / max(1, count))))
    points = _points(image, side)
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    at = ((np.arange(rows) + 0.5) * height / rows).astype(int)[:, None] * width
    centres = points[(at + ((np.arange(columns) + 0.5) * width / columns).astype(int)).reshape(-1)]
    labels = np.zeros(len(points), np.int64)
    for _ in range(ROUNDS):
        labels = _nearest(points, centres)
        centres = _means(points, labels, centres)
    found, labels = np.unique(labels, return_inverse=True)
    return Segments(labels.reshape(height, width), len(found), f"{len(found)} regions of like colour")


def spans(length: int, window: int) -> Segments:
    """Cut a row of tokens into spans of `window`; the last may be shorter."""
    labels = np.arange(length) // window
    return Segments(labels, int(labels[-1]) + 1, f"spans of {window} tokens")


def column_groups(names: Sequence[str]) -> Segments:
    """Group the columns of one coded category: all that share what stands before "=", as in colour=red, colour=blue."""
    heads = [name.split("=", 1)[0] if "=" in name else f"{i}={name}" for i, name in enumerate(names)]
    order = {head: i for i, head in enumerate(dict.fromkeys(heads))}
    return Segments(np.array([order[head] for head in heads]), len(order), "groups of columns")


def _points(image: Floats, side: float) -> NDArray[Any]:
    """Return colour, in its standard deviations, and place, in sides of a region: (H W, C + 2)."""
    channels, height, width = image.shape
    colour = image.reshape(channels, -1).T
    colour = (colour - colour.mean(0)) / max(float(colour.std()), 1e-12)
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2)
    return np.concatenate([colour / np.sqrt(channels), place * (COMPACT / side)], 1).astype(np.float32)


def _nearest(points: NDArray[Any], centres: NDArray[Any]) -> NDArray[np.int64]:
    far = (centres**2).sum(1) - 2 * points @ centres.T
    return np.asarray(far.argmin(1), np.int64)


def _means(points: NDArray[Any], labels: NDArray[np.int64], centres: NDArray[Any]) -> NDArray[Any]:
    """Return the means of the points of each centre; a centre without points stays."""
    sizes = np.bincount(labels, minlength=len(centres))
    sums = np.stack([np.bincount(labels, each, len(centres)) for each in points.T], 1)
    return np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres).astype(np.float32)
