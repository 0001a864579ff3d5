"""How high the loss rises between two points: the barrier under its three definitions, with bootstrap intervals.

Ainsworth, Hayase, Srinivasa 2023 (Git Re-Basin) measure the highest loss against the mean of the two ends; Entezari et
al. 2022 (The Role of Permutation Invariance in Linear Mode Connectivity) against the straight line between the ends;
others look at the midpoint alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.paths import Floats, Readings, interval, resampled

POINTS = 25
_SAME = 1e-9  # of lambda
Rise = Callable[[Floats, Floats], tuple[Floats, NDArray[np.int64]]]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over examples; None where it is not finite.

    at: the lambda at which the maximum is reached, where there is a maximum.
    """

    value: float | None
    low: float | None
    high: float | None
    at: float | None = None


@dataclass(frozen=True)
class Barrier:
    """The three definitions. word: why values are missing, in a sentence, or ""."""

    git_rebasin: Estimate
    entezari: Estimate
    midpoint: Estimate
    word: str = ""


@dataclass(frozen=True)
class Barriers:
    """Of the loss, and of the accuracy (how many of 1 it falls) where there is one."""

    loss: Barrier
    accuracy: Barrier | None


def lambdas(count: int = POINTS) -> Floats:
    """Return evenly spaced points on [0, 1], both ends with them; 4k + 1 of them hold .25, .5 and .75."""
    return np.linspace(0, 1, count)


def barriers(readings: Readings, lambdas: Sequence[float] | Floats, weights: Floats) -> Barriers:
    """Return the barriers of loss and accuracy from the same resamples; see `barrier`."""
    return Barriers(barrier(readings, lambdas, weights), accuracy_drop(readings, lambdas, weights))


def barrier(readings: Readings, lambdas: Sequence[float] | Floats, weights: Floats) -> Barrier:
    """Measure how far the loss rises between the ends, in the units of the loss.

    readings: of the K points at `lambdas`, which hold 0, .5 and 1. weights: (draws, N) of `probes.paths.resamples`,
    shared by all points. The maximum is taken anew in each resample: it then often lies on another point, so that the
    interval is of the maximum itself; and as the maximum of noisy means is too high on average, in the value and in the
    resamples alike, a barrier of nearly zero shows as slightly positive, never as less than none.
    """
    return _barrier(readings.losses, readings.counts, np.asarray(lambdas, dtype=np.float64), weights, "loss")


def accuracy_drop(readings: Readings, lambdas: Sequence[float] | Floats, weights: Floats) -> Barrier | None:
    """Measure how far the accuracy falls between the ends, as a share of 1, or return None where there is none."""
    if readings.right is None:
        return None
    return _barrier(-readings.right, readings.counts, np.asarray(lambdas, dtype=np.float64), weights, "accuracy")


def rise(readings: Readings, lambdas: Sequence[float] | Floats, weights: Floats) -> Estimate:
    """Measure how far the loss rises at most above that of the first end: max_l L(l) - L(0)."""
    found = np.asarray(lambdas, dtype=np.float64)
    finite = _finite(readings.losses)
    above: Rise = lambda curve, _: _highest(curve - curve[:, [_place(found, 0.0)]])
    return _estimate(above, readings.losses, readings.counts, found, weights) if finite.all() else _nothing()


def _barrier(values: Floats, counts: Floats, lambdas: Floats, weights: Floats, what: str) -> Barrier:
    first, middle, last = (_place(lambdas, each) for each in (0.0, 0.5, 1.0))
    finite = _finite(values)
    kept = np.where(finite[:, None], values, 0.0)  # what is not finite is not asked for below

    def mean_of_ends(curve: Floats) -> Floats:
        return (curve[:, [first]] + curve[:, [last]]) / 2

    above_mean: Rise = lambda curve, _: _highest(curve - mean_of_ends(curve))
    above_line: Rise = lambda curve, at: _highest(curve - curve[:, [first]] * (1 - at) - curve[:, [last]] * at)
    of_middle: Rise = lambda curve, _: ((curve[:, [middle]] - mean_of_ends(curve))[:, 0], np.array([middle]))
    whole, central = bool(finite.all()), bool(finite[[first, middle, last]].all())
    measure = lambda how, known: _estimate(how, kept, counts, lambdas, weights) if known else _nothing()
    word = ""
    if not whole:
        places = ", ".join(f"{each:.3g}" for each in lambdas[~finite][:5])
        word = f"The {what} is not finite at lambda = {places}; the barrier is larger than any number."
    return Barrier(measure(above_mean, whole), measure(above_line, whole), measure(of_middle, central), word)


def _estimate(how: Rise, values: Floats, counts: Floats, lambdas: Floats, weights: Floats) -> Estimate:
    (value,), place = how((values.sum(1) / counts.sum())[None], lambdas)
    drawn = how(resampled(values, counts, weights), lambdas)[0]
    low, high = interval(drawn[np.isfinite(drawn)])  # sequences without a token can make a resample empty
    return Estimate(float(value), float(low), float(high), float(lambdas[place[0]]))


def _finite(values: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(values).all(1))


def _highest(heights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    return heights.max(1), heights.argmax(1)


def _nothing() -> Estimate:
    return Estimate(None, None, None)


def _place(lambdas: Floats, wanted: float) -> int:
    place = int(np.abs(lambdas - wanted).argmin())
    if abs(lambdas[place] - wanted) > _SAME:
        raise ValueError(f"a barrier needs the point at lambda = {wanted}; there are {lambdas.tolist()}")
    return place
