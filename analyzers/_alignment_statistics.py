"""What gradient-weight alignment comes down to: moments of a sample with their errors, and how well it tells two apart.

GWA = mean / (excess kurtosis + 1.2) (Hölzl et al. 2025): 1.2 is what a uniform distribution lacks. Excess kurtosis can
be as low as -2, so that the denominator may vanish; near that GWA says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BETA = 1.2
POLE = 0.5  # GWA is undefined where the denominator is nearer to zero, or below it
SKIPPED = 0.1  # of a run's steps: too early for the best GWA
_WORK = 4_000_000  # draws for one bootstrap, roughly
_MOST, _LEAST = 400, 100  # resamples
_ROUNDING = 1e-13  # a spread below this, relative to the values, is none


@dataclass(frozen=True)
class Moments:
    """Mean, excess kurtosis and GWA of a sample of n, each with its standard error and, where skew, interval (95 %).

    kurtosis is Fisher's, biased: M4 / M2^2 - 3. None is what does not exist: kurtosis and GWA without any spread, the
    errors of GWA where resamples of the sample reach its pole. undefined: whether GWA is at its pole or beyond, where
    its sign is turned round. negative: share of the sample. resampled: GWA in bootstrap resamples (B,), NaN likewise.
    """

    n: int = 0
    mean: float | None = None
    mean_stderr: float | None = None
    negative: float | None = None
    kurtosis: float | None = None
    kurtosis_stderr: float | None = None
    kurtosis_interval: list[float] | None = None
    gwa: float | None = None
    gwa_stderr: float | None = None
    gwa_interval: list[float] | None = None
    undefined: bool = True
    resampled: Floats = field(default_factory=lambda: np.full(1, np.nan), compare=False)


def moments(sample: Floats, seed: int) -> Moments:
    """Take the moments of a sample (N,), NaN left out; samples of one size are resampled in the same way."""
    x = sample[np.isfinite(sample)]
    if not len(x):
        return Moments()
    mean, spread, n = float(x.mean()), float(x.std()), len(x)
    plain = Moments(n, mean, spread / math.sqrt(n - 1) if n > 1 else None, float((x < 0).mean()))
    if spread <= _ROUNDING * np.abs(x).max():
        return plain
    standard = (x - mean) / spread
    kurtosis = float((standard**4).mean()) - 3
    means, kurtoses = _resampled(standard, seed)
    gwas = (mean + spread * means) / (kurtoses + BETA)
    sound = bool((kurtoses + BETA > 0).all())
    return replace(
        plain,
        kurtosis=kurtosis,
        kurtosis_stderr=float(kurtoses.std(ddof=1)),
        kurtosis_interval=_interval(kurtoses),
        gwa=mean / (kurtosis + BETA) if kurtosis != -BETA else None,
        gwa_stderr=float(gwas.std(ddof=1)) if sound else None,
        gwa_interval=_interval(gwas) if sound else None,
        undefined=kurtosis + BETA < POLE,
        resampled=np.where(kurtoses + BETA < POLE, np.nan, gwas),
    )


def best_of(
    found: Sequence[Moments], times: Sequence[float], labels: Sequence[str]
) -> tuple[dict[str, Any] | None, str]:
    """Return where GWA is highest once a tenth of the run is over, and how sure that is; or None, and why.

    share: of the bootstrap resamples of the examples, how many agree.
    """
    if len(found) < 2:
        return None, "One checkpoint has no best."
    late = [index for index, time in enumerate(times) if time >= SKIPPED * times[-1]]
    left = [index for index in late if not found[index].undefined and found[index].gwa is not None]
    if not left:
        return None, f"GWA is undefined at every checkpoint from {labels[late[0]]} on."
    best = max(left, key=lambda index: found[index].gwa or 0.0)
    length = min(len(found[index].resampled) for index in left)
    drawn = np.array([np.nan_to_num(found[index].resampled[:length], nan=-np.inf) for index in left])
    share = float((np.array(left)[drawn.argmax(0)] == best).mean())
    said = f"GWA is highest at {labels[best]}, and so it is in {100 * share:.0f} % of the resamples of the examples."
    skipped = len(found) - len(left)
    said += f" {skipped} of {len(found)} checkpoints, early or undefined, do not count." if skipped else ""
    return {"index": best, "time": times[best], "gwa": found[best].gwa, "share": share}, said


def auroc(scores: Floats, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of (positive, negative) pairs in which the positive scores higher, ties half; and its stderr.

    The standard error is DeLong's (DeLong, DeLong, Clarke-Pearson 1988). Both classes must be there.
    """
    above, below = scores[positive], scores[~positive]
    of_positive = _share_below(above, below)
    of_negative = 1 - _share_below(below, above)
    parts = [each.var(ddof=1) / len(each) if len(each) > 1 else 0.0 for each in (of_positive, of_negative)]
    return float(of_positive.mean()), float(np.sqrt(sum(parts)))


def _share_below(values: Floats, others: Floats) -> Floats:
    """Return for each value how many of the others are below it, as a share, ties half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    share: Floats = (left + right) / 2 / len(others)
    return share


def _resampled(standard: Floats, seed: int) -> tuple[Floats, Floats]:
    """Return mean and excess kurtosis of bootstrap resamples of a standardised sample that have any spread."""
    n, rng = len(standard), np.random.default_rng([seed, 2])
    powers = np.stack([standard, standard**2, standard**3, standard**4], 1)
    draws = int(np.clip(_WORK // n, _LEAST, _MOST))
    raw = np.array([np.bincount(rng.integers(n, size=n), minlength=n) @ powers for _ in range(draws)]) / n
    m, r2, r3, r4 = raw.T
    second = r2 - m**2
    fourth = r4 - 4 * m * r3 + 6 * m**2 * r2 - 3 * m**4
    spread = second > _ROUNDING
    return m[spread], fourth[spread] / second[spread] ** 2 - 3


def _interval(values: Floats) -> list[float]:
    return [float(each) for each in np.quantile(values, (0.025, 0.975))]
