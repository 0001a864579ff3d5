"""The straight line between two points of weight space, and what a curve of losses along it says.

alpha is 0 at the start and 1 at the end; below 0 and above 1 lies beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.errors import DataError
from probes.points import Point, distance

Floats = NDArray[np.float64]
PLATEAU = 0.9  # of the loss at the start: above it the curve has not come down
NARROWEST = 2.0**-12  # no interval of alpha is halved below this


@dataclass(frozen=True)
class Projection:
    """The foot of a point's perpendicular on a line: where it is, and how long, absolute and by the line's length."""

    alpha: float
    distance: float
    relative: float


class Line:
    """The straight line between two points.

    Raises ModelError (not the same tensors) or DataError (the same weights at both ends).
    """

    def __init__(self, start: Point, end: Point) -> None:
        self.start, self.end = start, end
        self.length = distance(start, end)
        if self.length == 0:
            raise DataError("The two checkpoints have the same weights, so that there is no line between them.")
        theta = tuple(torch.empty_like(each) for each in start.theta)
        self._made = Point(theta, {name: torch.empty_like(each) for name, each in start.buffers.items()})

    def at(self, alpha: float) -> Point:
        """Return (1 - alpha) start + alpha end, exact at both ends; its tensors are written over by the next call."""
        for out, one, other in zip(self._made.theta, self.start.theta, self.end.theta, strict=True):
            torch.lerp(one, other, alpha, out=out)
        for name, out in self._made.buffers.items():
            torch.lerp(self.start.buffers[name], self.end.buffers[name], alpha, out=out)
        return self._made

    def projected(self, point: Point) -> Projection:
        """Return where a point lies along the line and how far from it, summed in float64; buffers do not count."""
        pairs = zip(point.theta, self.start.theta, self.end.theta, strict=True)
        along = sum(_dot(there, one, other, one) for there, one, other in pairs)
        alpha = along / self.length**2
        foot = self.at(alpha)
        away = distance(point, foot)
        return Projection(alpha, away, away / self.length)


@dataclass(frozen=True)
class Refined:
    """Places on a line, rising, and the estimated error of straight lines between them, as a share of the range."""

    alpha: tuple[float, ...]
    error: float


def grid(start: float, stop: float, points: int) -> tuple[float, ...]:
    """Return so many places from start (at most 0) to stop (at least 1), as even as may be with 0 and 1 among them."""
    ends = [(low, high) for low, high in ((start, 0.0), (0.0, 1.0), (1.0, stop)) if high > low]
    if start > 0 or stop < 1 or points <= len(ends):
        raise ValueError(f"{points} points from {start} to {stop} cannot have 0 and 1 among them")
    share = (points - 1) / (stop - start)
    counts = {pair: max(1, round((pair[1] - pair[0]) * share)) for pair in ends}
    counts[0.0, 1.0] = 1
    while sum(counts.values()) > points - 1:
        counts[max(counts, key=lambda pair: counts[pair])] -= 1
    counts[0.0, 1.0] += points - 1 - sum(counts.values())
    places = [low + (high - low) * step / counts[low, high] for low, high in ends for step in range(counts[low, high])]
    return (*(float(each) for each in places), float(stop))


def refined(
    curves_at: Callable[[float], Sequence[float]], places: Sequence[float], budget: int, tolerance: float
) -> Refined:
    """Halve the interval in which the curves bend most, again and again, until no error is estimated above a tolerance.

    curves_at: the value of each curve at a place, called once for each. budget: places added at most. tolerance: a
    share of the range, see `bends`. The same curves give the same places.
    """
    found = {alpha: tuple(curves_at(alpha)) for alpha in places}
    for added in range(budget + 1):
        alpha = np.array(sorted(found))
        curves = np.array([found[each] for each in alpha.tolist()]).T
        errors = np.max([bends(alpha, curve) for curve in curves], axis=0)
        worst = np.where(np.diff(alpha) >= 2 * NARROWEST, errors, 0.0)
        place = int(worst.argmax())
        if added == budget or worst[place] <= tolerance:
            break
        middle = float((alpha[place] + alpha[place + 1]) / 2)
        found[middle] = tuple(curves_at(middle))
    return Refined(tuple(alpha.tolist()), float(errors.max()))


def bends(alpha: Floats, curve: Floats) -> Floats:
    """Estimate the error of straight lines between K places, (K - 1,), as a share of the curve's range.

    By h^2 / 8 times the greater second derivative at the two ends, these from second divided differences. In [0, 1]
    the range is that of [0, 1], elsewhere that of the whole. What is not finite counts as no error.
    """
    width = np.diff(alpha)
    with np.errstate(all="ignore"):
        slopes = np.diff(curve) / width
        second = np.abs(np.diff(slopes)) / (alpha[2:] - alpha[:-2])
        second = np.where(np.isfinite(second), second, 0.0)
    padded = np.concatenate([[0.0], second, [0.0]])
    errors = width**2 / 4 * np.maximum(padded[:-1], padded[1:])
    errors = np.where(np.isfinite(slopes), errors, 0.0)
    inside = (alpha >= 0) & (alpha <= 1)
    scale = np.where(inside[:-1] & inside[1:], _range(curve[inside]), _range(curve))
    return np.divide(errors, scale, out=np.zeros_like(errors), where=scale > 0)


def monotonicity(losses: Floats) -> Floats:
    """Return Delta, the greatest rise L(later) - L(earlier) along the last axis: 0 for a curve that never rises.

    It is the greatest difference from the running minimum (Lucas et al. 2021).
    """
    return (losses - np.minimum.accumulate(losses, axis=-1)).max(axis=-1)  # type: ignore[no-any-return]


def greatest_rise(losses: Floats) -> tuple[int, int]:
    """Return between which two places of a curve (K,) Delta is; the same place twice where nothing rises."""
    high = int((losses - np.minimum.accumulate(losses)).argmax())
    return int(losses[: high + 1].argmin()), high


def plateau(alpha: Floats, losses: Floats) -> float:
    """Return the share of the places where the curve, straight between them, is above 0.9 of its first value."""
    level = PLATEAU * losses[0]
    above = 0.0
    for left, right, one, other in zip(alpha[:-1], alpha[1:], losses[:-1], losses[1:], strict=True):
        high, low = max(one, other) - level, min(one, other) - level
        part = 1.0 if low > 0 else 0.0 if high <= 0 else high / (high - low)
        above += part * (right - left)
    return float(above / (alpha[-1] - alpha[0]))


def area(alpha: Floats, losses: Floats) -> float | None:
    """Return the area under (L - L(end)) / (L(start) - L(end)): 0.5 for a straight fall; None where both are equal."""
    drop = losses[0] - losses[-1]
    if drop == 0:
        return None
    return float(np.trapezoid((losses - losses[-1]) / drop, alpha) / (alpha[-1] - alpha[0]))


def gauss_lengths(outputs: NDArray[Any]) -> Floats:
    """Return by how much the path of each prediction's outputs turns, in radians, (n,); outputs: (K, n, C).

    The path is the polygon through K places of the line. The sum of its angles is at most the length of the curve's
    Gauss map, the integral of |d/d alpha (v / |v|)| with v = dz/d alpha, and tends to it as the places get denser
    (Lucas et al. 2021). A step of length 0 has no direction and is passed over.
    """
    total = np.zeros(outputs.shape[1])
    before = np.zeros(outputs.shape[1:])
    for one, other in pairwise(outputs):
        step = other.astype(np.float64) - one
        norm = np.linalg.norm(step, axis=-1, keepdims=True)
        ahead = np.divide(step, norm, out=before.copy(), where=norm > 0)
        apart, together = (np.linalg.norm(each, axis=-1) for each in (ahead - before, ahead + before))
        known = np.linalg.norm(before, axis=-1) > 0
        total += np.where(known, 2 * np.arctan2(apart, together), 0.0)
        before = ahead
    return total


def noise(point: Point, seed: int) -> Point:
    """Return Gaussian noise with the mean and the standard deviation of each parameter tensor; buffers as they are."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for each in point.theta:
        normal = torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.device)
        wide = each.double()
        drawn.append((wide.mean() + wide.std(correction=0) * normal).to(each.dtype))
    return Point(tuple(drawn), point.buffers)


def zeros(point: Point) -> Point:
    """Return the point with all parameters zero; buffers as they are."""
    return Point(tuple(torch.zeros_like(each) for each in point.theta), point.buffers)


def norm(point: Point) -> float:
    """Return the Euclidean length of the parameters, summed in float64."""
    return distance(point, zeros(point))


def _dot(there: Tensor, here: Tensor, end: Tensor, start: Tensor) -> float:
    return float(((there.double() - here.double()) * (end.double() - start.double())).sum())


def _range(curve: Floats) -> float:
    known = curve[np.isfinite(curve)]
    spread = float(np.ptp(known)) if len(known) else 0.0
    return spread if len(known) and spread > 1e-9 * float(np.abs(known).max()) else math.nan
