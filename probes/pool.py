"""Mean and variance of units, pooled exactly over batches of any size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

CHUNK_BYTES = 2**26  # of the double-precision copies of activations


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
        """Pool a batch, in pieces that fit into little memory."""
        rows = max(1, int(len(values) * CHUNK_BYTES / max(8 * values.numel(), 1)))
        for piece in values.detach().split(rows):
            flat = piece.movedim(self.axis, 0).flatten(1).double()
            mean = flat.mean(1)
            self._join(float(flat.shape[1]), mean, (flat - mean[:, None]).square().sum(1))

    def _join(self, count: float, mean: Tensor, scatter: Tensor) -> None:
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
