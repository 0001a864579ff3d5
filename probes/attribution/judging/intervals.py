"""Means over examples with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from probes.paths import resamples

Floats = NDArray[np.float64]
RESAMPLES = 10_000
FEWEST = 3  # examples that an interval needs


@dataclass(frozen=True)
class Interval:
    """A mean over n examples with its 95 % interval; None where there are too few (fewer than three for the interval).

    left_out: examples without a finite number.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    left_out: int = 0


def mean_interval(values: Iterable[float | None], seed: int = 0) -> Interval:
    """Return the mean and its 95 % BCa bootstrap interval over examples (Efron 1987, B = 10 000, seeded)."""
    given = [np.nan if each is None else float(each) for each in values]
    array = np.array(given, dtype=np.float64)
    kept = array[np.isfinite(array)]
    left_out = len(array) - len(kept)
    if len(kept) < FEWEST:
        return Interval(float(kept.mean()) if len(kept) else None, None, None, len(kept), left_out)
    low, high = bca(kept, seed)
    return Interval(float(kept.mean()), low, high, len(kept), left_out)


def bca(values: Floats, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the bias-corrected and accelerated interval of a mean, of n >= 2 finite values."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    n, mean = len(values), values.mean()
    means = _weights(n, seed) @ values / n
    below = (np.count_nonzero(means < mean) + np.count_nonzero(means == mean) / 2) / RESAMPLES
    bias = norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    away = values - mean  # the jackknife's deviations of a mean are these over n - 1
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    z = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _weights(count: int, seed: int) -> Floats:
    """Return how often each resample has each example, (B, count): the same for all numbers of these examples."""
    return resamples(count, seed, RESAMPLES)
