"""Losses of every example at many points of weight space, and what resampling the examples says of them.

The examples are on the device once; every point sees the same ones, and the same resamples of them, so that
differences between points have the error of a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.batch_statistics import renewed
from probes.objective import Objective
from probes.points import Point, at

Floats = NDArray[np.float64]
Tick = Callable[[float, str], None]
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Readings:
    """What every example says at each of K points.

    losses: (K, N), summed over the units of an example (not finite where the network overflows). right: (K, N), or None
    where there is no accuracy. counts: (N,), the units of each example.
    """

    losses: Floats
    right: Floats | None
    counts: Floats

    @property
    def loss(self) -> Floats:
        """The mean loss at each point, (K,)."""
        return self.losses.sum(1) / self.counts.sum()  # type: ignore[no-any-return]

    @property
    def accuracy(self) -> Floats | None:
        """The share of right answers at each point, (K,)."""
        return None if self.right is None else self.right.sum(1) / self.counts.sum()

    def taken(self, places: Sequence[int]) -> Readings:
        """Return some of the points, in this order."""
        rows = list(places)
        return Readings(self.losses[rows], None if self.right is None else self.right[rows], self.counts)

    def with_more(self, other: Readings) -> Readings:
        """Return these points and after them those of other readings of the same examples."""
        right = None if self.right is None or other.right is None else np.concatenate([self.right, other.right])
        return Readings(np.concatenate([self.losses, other.losses]), right, self.counts)


def read(objective: Objective, point: Point, statistics: Objective | None = None) -> Readings:
    """Read one point: every example's loss and right answers, (1, N).

    statistics: the objective on whose examples the running statistics of BatchNorm are measured anew at this point;
    None leaves them as the point has them.
    """
    point = point if statistics is None else renewed(statistics, point)
    tally = at(objective, point).tallied(finite=False)
    right = None if tally.right is None else tally.right.double().cpu().numpy()[None]
    return Readings(tally.losses.double().cpu().numpy()[None], right, tally.counts.double().cpu().numpy())


def readings(
    objective: Objective, points: Iterable[Point], count: int, tick: Tick, statistics: Objective | None = None
) -> Readings:
    """Read many points (made one by one, so that they need not be in memory together); see `read`."""
    parts: list[Readings] = []
    for number, point in enumerate(points):
        parts.append(read(objective, point, statistics))
        tick((number + 1) / count, f"point {number + 1} of {count}")
    losses = np.concatenate([each.losses for each in parts])
    rights = [each.right for each in parts if each.right is not None]
    return Readings(losses, np.concatenate(rights) if rights else None, parts[0].counts)


def resamples(count: int, seed: int, draws: int = RESAMPLES) -> Floats:
    """Draw bootstrap weights, (draws, count): how often each example is drawn, `count` draws each."""
    generator = np.random.default_rng(seed)
    weights = np.empty((draws, count), dtype=np.float64)
    for row in weights:
        row[:] = np.bincount(generator.integers(count, size=count), minlength=count)
    return weights


def resampled(values: Floats, counts: Floats, weights: Floats) -> Floats:
    """Return the mean of each point under each resample, (draws, K); values: (K, N), summed over an example's units."""
    return (weights @ values.T) / (weights @ counts)[:, None]  # type: ignore[no-any-return]


def interval(draws: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the percentile interval along the first axis (of the draws)."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high
