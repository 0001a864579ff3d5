"""Do two rankings agree? Spearman's correlation, with an interval and an exact p-value where the sample is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
FEWEST_FOR_AN_INTERVAL = 5
MOST_FOR_EXACT = 8


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of n pairs. interval: 95 %, by the percentile bootstrap over pairs, or None below five.

    p: two-sided and exact, over all orders, or None above eight pairs.
    """

    value: float
    interval: tuple[float, float] | None
    p: float | None
    n: int

    @property
    def words(self) -> str:
        """Say it, with how it was found."""
        parts = [f"Spearman's rank correlation {self.value:.2f}"]
        if self.interval:
            low, high = self.interval
            parts.append(f"95 % interval {low:.2f} to {high:.2f} (bootstrap over {self.n} runs)")
        else:
            parts.append(f"no interval from {self.n} runs")
        if self.p is not None:
            parts.append(f"p = {self.p:.2g} (all {self.n}! orders)")
        return ", ".join(parts)


def rank_correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> RankCorrelation | None:
    """Return Spearman's correlation of pairs; None below three pairs, or where all values of one side are equal."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    value = float(_spearman(a[None], b[None])[0]) if len(a) >= 3 else np.nan
    if np.isnan(value):
        return None
    interval = _bootstrapped(a, b, seed) if len(a) >= FEWEST_FOR_AN_INTERVAL else None
    return RankCorrelation(value, interval, _exact(a, b, value) if len(a) <= MOST_FOR_EXACT else None, len(a))


def _spearman(a: Floats, b: Floats) -> Floats:
    """Return the correlation of the ranks of each row, (rows,) of (rows, n); NaN where all values are equal."""
    from scipy.stats import rankdata

    u, v = (rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (a, b))
    length = np.sqrt((u * u).sum(1) * (v * v).sum(1))
    with np.errstate(invalid="ignore"):
        return np.asarray((u * v).sum(1) / length)


def _bootstrapped(a: Floats, b: Floats, seed: int) -> tuple[float, float]:
    draws = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    low, high = np.nanpercentile(_spearman(a[draws], b[draws]), [2.5, 97.5])
    return float(low), float(high)


def _exact(a: Floats, b: Floats, value: float) -> float:
    orders = np.array(list(permutations(range(len(a)))))
    found = _spearman(np.broadcast_to(a, orders.shape), b[orders])
    return float(np.mean(np.abs(found) >= abs(value) - 1e-12))
