"""How sure the figures about predictions are: intervals of shares, of the calibration error, and of a disagreement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Z = 1.959963984540054  # of the middle 95 % of a normal distribution
BLOCKS = 20_000  # examples, or groups of them, that a bootstrap draws from
DRAWS = 1000


def wilson(right: Any, count: Any) -> tuple[Floats, Floats]:
    """Return the 95 % interval of shares right/count; NaN where the count is 0.

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference". Of units that are not
    independent `effective` gives the count.
    """
    right, count = np.asarray(right, np.float64), np.asarray(count, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = right / count
        scale = 1 + Z**2 / count
        middle = (share + Z**2 / (2 * count)) / scale
        half = Z / scale * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return np.where(count > 0, np.clip(middle - half, 0, 1), np.nan), np.where(
        count > 0, np.clip(middle + half, 0, 1), np.nan
    )


def effective(share: float, stderr: float, clusters: int) -> float:
    """Return how many independent answers would give this standard error of a share; the clusters where it is 0."""
    return share * (1 - share) / stderr**2 if stderr > 0 and 0 < share < 1 else float(clusters)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Calibration of one checkpoint.

    counts, confidence, accuracy, low, high: (M,) by bin, NaN in empty ones, low and high Wilson's of the accuracy.
    error: the expected calibration error, from `low_error` to `high_error` (percentiles of a bootstrap over examples).
    debiased: less most of what chance adds to it, and its interval: the bootstrap's reflected at the estimate, from 0
    on where a model as often right as it is sure would show as large an error in one of 40 samples.
    if_calibrated: what that model would show on average. overconfidence: mean confidence less accuracy.
    """

    counts: Floats
    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    error: float
    low_error: float
    high_error: float
    debiased: float
    debiased_low: float
    debiased_high: float
    if_calibrated: float
    overconfidence: float


def reliability(counts: Floats, confidence: Floats, right: Floats, seed: int) -> Reliability | None:
    """Sum up predictions that are binned by confidence; each (N, M), summed by example. None where there are none.

    The bias of the error comes from its bins being taken in absolute value: each bin's gap is normal about the true
    one, so that E|gap| has a closed form (Kumar, Liang, Ma 2019, "Verified Uncertainty Calibration").
    """
    n, sure, hits = (each.sum(0) for each in (counts, confidence, right))
    if not n.sum():
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sure / n, hits / n
    gaps = right - confidence
    error = float(np.abs(hits - sure).sum() / n.sum())
    drawn, null = _drawn_errors(counts, gaps, seed)
    low, high = (float(each) for each in np.percentile(drawn, [2.5, 97.5]))
    bias = float((n * _folded(counts, gaps)).sum() / n.sum()) - error
    clustered = counts.sum(1).max() > 1
    null = null if clustered else _calibrated_errors(n, means[0], seed)
    worth = _effective_bins(counts, right, n, hits) if clustered else n
    return Reliability(
        n, *means, *wilson(np.nan_to_num(means[1]) * worth, worth), error, low, high, max(0.0, error - bias),
        max(0.0, 2 * error - high) if error > np.percentile(null, 97.5) else 0.0, max(0.0, 2 * error - low),
        float(null.mean()), float((sure.sum() - hits.sum()) / n.sum()),
    )  # fmt: skip


@dataclass(frozen=True)
class Disagreement:
    """Two checkpoints on the same examples.

    both_right, only_first, only_second, both_wrong: examples. differ: how many get different predictions, whether right
    or wrong; low, high: of their share. difference: accuracy of the second less that of the first, with its standard
    error for paired answers. p_value: McNemar's exact test of equal accuracy, two-sided.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    differ: int
    low: float
    high: float
    difference: float
    difference_stderr: float
    p_value: float


def disagreement(first: Floats, second: Floats, labels: Floats) -> Disagreement:
    """Compare the predictions of two checkpoints, (N,) each."""
    one, two, count = first == labels, second == labels, len(labels)
    left, right = int((one & ~two).sum()), int((two & ~one).sum())
    differ = int((first != second).sum())
    low, high = wilson(differ, count)
    spread = math.sqrt(max(0.0, left + right - (right - left) ** 2 / count)) / count
    return Disagreement(
        int((one & two).sum()), left, right, int((~one & ~two).sum()), differ, float(low), float(high),
        (right - left) / count, spread, mcnemar(left, right),
    )  # fmt: skip


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: both kinds of difference equally likely."""
    from scipy.stats import binomtest

    count = only_first + only_second
    return float(binomtest(only_first, count, 0.5).pvalue) if count else 1.0


def paired(first: Floats, second: Floats, counts: Floats) -> tuple[float, float]:
    """Return mean and standard error of second - first, means over an example's `counts` units; (N,) each."""
    weight = counts / counts.sum()
    gaps = np.where(counts > 0, second - first, 0.0)
    mean = float(weight @ gaps)
    n = int((counts > 0).sum())
    spread = math.sqrt(float((weight**2 * (gaps - mean) ** 2).sum()) * n / (n - 1)) if n > 1 else 0.0
    return mean, spread


def _drawn_errors(counts: Floats, gaps: Floats, seed: int) -> tuple[Floats, Floats]:
    """Return the error of bootstrap resamples of the examples, and that of the same were each bin without a gap.

    Of many examples, blocks are resampled.
    """
    generator = np.random.default_rng(seed)
    if len(counts) > BLOCKS:
        order = generator.permutation(len(counts))
        starts = np.linspace(0, len(counts), BLOCKS, endpoint=False).astype(np.int64)
        counts, gaps = (np.add.reduceat(each[order], starts) for each in (counts, gaps))
    n = counts.sum(0)
    centred = gaps - np.divide(gaps.sum(0), n, out=np.zeros_like(n), where=n > 0) * counts
    both = np.concatenate([gaps, centred], axis=1)
    total, errors = counts.sum(1), np.empty((2, DRAWS))
    for number in range(DRAWS):
        weight = np.bincount(generator.integers(len(total), size=len(total)), minlength=len(total))
        errors[:, number] = np.abs(weight @ both).reshape(2, -1).sum(1) / max(float(weight @ total), 1.0)
    return errors[0], errors[1]


def _folded(counts: Floats, gaps: Floats) -> Floats:
    """Return E|N(gap, its variance)| of the mean gap in each bin, 0 in empty ones; (M,)."""
    from scipy.special import ndtr

    n, size = counts.sum(0), len(counts)
    mean = np.divide(gaps.sum(0), n, out=np.zeros_like(n), where=n > 0)
    spread = np.sqrt(np.square(gaps - mean * counts).sum(0) * size / max(size - 1, 1))
    spread = np.divide(spread, n, out=np.zeros_like(n), where=n > 0)
    ratio = np.divide(mean, spread, out=np.zeros_like(n), where=spread > 0)
    folded = spread * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + mean * (1 - 2 * ndtr(-ratio))
    expected: Floats = np.where(spread > 0, folded, np.abs(mean))
    return expected


def _effective_bins(counts: Floats, right: Floats, n: Floats, hits: Floats) -> Floats:
    """Return how many independent answers each bin is worth: fewer than its predictions where examples have several."""
    share = np.divide(hits, n, out=np.zeros_like(n), where=n > 0)
    variance = np.square(right - share * counts).sum(0) * len(counts) / max(len(counts) - 1, 1)
    worth = np.divide(n**2 * share * (1 - share), variance, out=n.copy(), where=variance > 0)
    fewer: Floats = np.minimum(worth, n)
    return fewer


def _calibrated_errors(counts: Floats, confidence: Floats, seed: int) -> Floats:
    """Return the errors of independent answers that are drawn with the mean confidence of their bin."""
    generator = np.random.default_rng([seed, 1])
    kept = counts > 0
    many, sure = counts[kept].astype(np.int64), np.clip(confidence[kept], 0.0, 1.0)
    drawn = generator.binomial(many, sure, size=(DRAWS, len(many)))
    errors: Floats = np.abs(drawn - many * sure).sum(1) / many.sum()
    return errors
