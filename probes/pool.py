"""Mean and variance of units, pooled exactly over batches of any size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = 2**26  # of copies of activations


@dataclass(frozen=True)
class Moments:
    """Of each unit over all examples and positions, float64: mean and (biased) variance, both (units,)."""

    mean: Tensor
    variance: Tensor


@dataclass
class Pool:
    """Moments of the units along an axis, pooled over batches (Chan, Golub, LeVeque 1979)."""

    axis: int
    count: float = 0.0
    mean: Tensor | None = None
    scatter: Tensor | None = None  # sum of squared differences from the mean

    def add(self, values: Tensor) -> None:
        """Pool a batch, in pieces that fit into little memory; sums are in float64."""
        unit = self.axis % values.ndim
        axes = [axis for axis in range(values.ndim) if axis != unit]
        wide = [1] * values.ndim
        wide[unit] = values.shape[unit]
        rows = max(1, int(len(values) * CHUNK_BYTES / max(values.nbytes, 1)))
        for piece in values.detach().split(rows):
            count = piece.numel() / piece.shape[unit]
            mean = piece.sum(axes, dtype=torch.float64) / count
            near = mean.to(piece.dtype)
            scatter = (piece - near.view(wide)).square_().sum(axes, dtype=torch.float64)
            self.join(count, mean, scatter - count * (mean - near).square())

    def join(self, count: float, mean: Tensor, scatter: Tensor) -> None:
        """Pool what is known of a batch: float64, scatter the sum of squared differences from its mean."""
        if self.mean is None or self.scatter is None:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total, gap = self.count + count, mean - self.mean
        self.scatter = self.scatter + scatter + gap.square() * self.count * count / total
        self.mean, self.count = self.mean + gap * count / total, total

    def moments(self) -> Moments:
        """Return what was pooled."""
        if self.mean is None or self.scatter is None:
            raise ValueError("nothing was pooled")
        return Moments(self.mean, self.scatter / self.count)

    def unbiased(self) -> Tensor:
        """Return the unbiased variance, as BatchNorm keeps it."""
        return self.moments().variance * self.count / max(self.count - 1, 1)
