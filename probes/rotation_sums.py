"""Norms, products and steps of a kernel at every checkpoint of a run, a stretch of it at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.checkpoint import Checkpoint
from probes.kernels import Kernel

Floats = NDArray[np.float64]
Part = Callable[[int, int], Tensor]

STRETCH = 2**17  # elements: long enough to be read at once, short enough for the caches
BLOCK = 2**15  # elements of a stretch that are multiplied at once: so few, BLAS multiplies in one thread
_CLOSE = 1e-6  # below this share of ||w||^2 a squared step is summed from differences: the products would cancel


@dataclass(frozen=True)
class Stretch:
    """Elements of one kernel of many."""

    kernel: int
    first: int
    count: int


def cut(kernel: Kernel, index: int = 0) -> Iterator[Stretch]:
    """Cut a kernel into stretches: within one of its segments or, where these lie side by side, of whole rows."""
    row = kernel.shape[-1] if kernel.across else 1
    block = kernel.numel if kernel.across else kernel.numel // len(kernel.segments)
    step = max(STRETCH // row, 1) * row
    for start in range(0, kernel.numel, block):
        for at in range(start, start + block, step):
            yield Stretch(index, at, min(step, start + block - at))


def summed(kernel: Kernel, stretch: Stretch, parts: Sequence[Part]) -> Floats:
    """Return ||w_k||^2, <w_k, w_0> and ||w_k - w_(k-1)||^2 over a stretch, (layers, K, 3), for each checkpoint k."""
    layers, width = _blocks(kernel, stretch)
    blocks = torch.empty(len(layers), 4, width, dtype=torch.float64)  # w_0, the one before, two new ones
    found: list[list[tuple[float, float, float]]] = [[] for _ in layers]
    for k in range(0, len(parts), 2):
        new = parts[k : k + 2]
        for row, part in enumerate(new, 2):
            _fill(blocks[:, row], part(stretch.first, stretch.count), kernel)
        if k == 0:
            blocks[:, :2] = blocks[:, 2:3]
        for block, known in zip(blocks, found, strict=True):
            for row, products in enumerate(_products(block[: 2 + len(new)]), 2):
                square, along = products[row], products[row - 1]
                step = square + (known[-1][0] if known else square) - 2 * along
                if step <= _CLOSE * square:
                    step = _distance(block[row], block[row - 1])
                known.append((square, products[0], step))
        blocks[:, 1] = blocks[:, 1 + len(new)]
    sums = np.zeros((len(kernel.labels), len(parts), 3))
    np.add.at(sums, layers, np.array(found))
    return sums


def summed_whole(kernel: Kernel, checkpoints: Sequence[Checkpoint]) -> Floats:
    """Sum over all of a kernel that can only be read whole: w_0 and two neighbours are in memory."""
    sums = np.zeros((len(kernel.labels), len(checkpoints), 3))
    start = before = checkpoints[0].read(kernel.name).flatten()
    for k, checkpoint in enumerate(checkpoints):
        now = checkpoint.read(kernel.name).flatten() if k else start
        three = [_of_tensor(each) for each in (start, before, now)]
        for stretch in cut(kernel):
            sums[:, k] += summed(kernel, stretch, three)[:, -1]
        before = now
    return sums


def _of_tensor(flat: Tensor) -> Part:
    return lambda first, count: flat[first : first + count]


def _blocks(kernel: Kernel, stretch: Stretch) -> tuple[list[int], int]:
    """Return the layers that the blocks of a stretch belong to, and the elements of a block."""
    if kernel.across:
        return list(kernel.segments), stretch.count // len(kernel.segments)
    layer = kernel.segments[stretch.first * len(kernel.segments) // kernel.numel]
    return [layer] * -(-stretch.count // BLOCK), min(stretch.count, BLOCK)


def _fill(rows: Tensor, values: Tensor, kernel: Kernel) -> None:
    """Put a stretch into its blocks (blocks, elements), in float64; zeros fill up the last, and add nothing."""
    blocks, width = rows.shape
    if kernel.across:
        each = kernel.shape[-1] // blocks
        rows.view(blocks, -1, each).copy_(values.view(-1, blocks, each).transpose(0, 1))
        return
    full = len(values) // width
    rows[:full] = values[: full * width].view(full, width)
    if full < blocks:
        rest = len(values) - full * width
        rows[full, :rest], rows[full, rest:] = values[full * width :], 0


def _products(block: Tensor) -> list[list[float]]:
    """Return the products of the rows from the third on with all rows.

    One matrix product takes less than the time of dot products, as every row comes but once from the cache.
    """
    rows = block.numpy()
    with np.errstate(all="ignore"):  # values that are not finite are told by the sums
        found: list[list[float]] = np.dot(rows[2:], rows.T).tolist()
    return found


def _distance(one: Tensor, two: Tensor) -> float:
    difference = one - two
    return float(torch.dot(difference, difference))
