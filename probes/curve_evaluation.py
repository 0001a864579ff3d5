"""What a curve between two solutions is worth: loss and accuracy along it, length and barrier, with intervals.

The places are even in t, not in arclength.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probes.batch_statistics import renewed
from probes.curves import Curve, Floats, arclength, plane_coordinates, straight_length
from probes.objective import Objective
from probes.paths import Readings, Tick, interval, read, resampled

POINTS = 61  # as in the authors' code


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over the examples; not finite where a loss is not."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class CurveReadings:
    """A curve read at K places.

    t, arclength: (K,), evenly spaced in t. straight: the distance of the ends. places: (K, 2), in the plane through the
    ends and the widest bend; aside: (K,), the distance from that plane. data, test: what the examples say there.
    """

    t: Floats
    arclength: Floats
    straight: float
    places: Floats
    aside: Floats
    data: Readings
    test: Readings | None

    @property
    def length(self) -> float:
        """Return the length of the curve, as a chain through the places."""
        return float(self.arclength[-1])


@dataclass(frozen=True)
class CurveSummary:
    """What a curve comes to. highest_at, lowest_at: the t of highest and lowest.

    mean: over the places. integral: of the trapezoid rule over arclength, divided by the length. barrier: highest less
    that of the worse end, 0 or more.
    """

    highest: Estimate
    highest_at: float
    lowest: Estimate
    lowest_at: float
    mean: Estimate
    integral: Estimate
    barrier: Estimate


def evaluated(
    objective: Objective, curve: Curve, tick: Tick, *, points: int = POINTS, fresh_statistics: bool = True
) -> CurveReadings:
    """Read the curve at evenly spaced t on the data, and on the test data where the objective has some.

    fresh_statistics: measure the running statistics of BatchNorm anew at each place, on the objective's own examples;
    else they are combined like the weights. Losses that are not finite are kept. Raises ObjectiveError (memory).
    """
    t, test = np.linspace(0.0, 1.0, points), objective.on_test()
    data, tested = list[Readings](), list[Readings]()
    for number, each in enumerate(t):
        point = curve.at(float(each))
        point = renewed(objective, point) if fresh_statistics else point
        data.append(read(objective, point))
        if test is not None:
            tested.append(read(test, point))
        tick((number + 1) / points, f"point {number + 1} of {points} on the curve")
    places, aside = plane_coordinates(curve, t)
    lengths, width = arclength(curve, t), straight_length(curve)
    return CurveReadings(t, lengths, width, places, aside, _joined(data), _joined(tested) if tested else None)


def summarised(values: Floats, counts: Floats, t: Floats, lengths: Floats, weights: Floats) -> CurveSummary:
    """Sum up what was read along a curve.

    values: (K, N), summed over the units of an example: losses, or `counts - right` for the error rate. counts: (N,).
    t, lengths: (K,), as in CurveReadings. weights: of the resamples, `probes.paths.resamples`.
    """
    whole = (values.sum(1) / counts.sum())[None]
    with np.errstate(invalid="ignore", over="ignore"):
        rows = np.concatenate([whole, resampled(values, counts, weights)])
        return CurveSummary(
            highest=_estimate(rows.max(1)),
            highest_at=float(t[whole[0].argmax()]),
            lowest=_estimate(rows.min(1)),
            lowest_at=float(t[whole[0].argmin()]),
            mean=_estimate(rows.mean(1)),
            integral=_estimate(_integral(rows, lengths)),
            barrier=_estimate(rows.max(1) - np.maximum(rows[:, 0], rows[:, -1])),
        )


def _estimate(rows: Floats) -> Estimate:
    """Split what was found into the number itself, which comes first, and the interval of the resamples."""
    low, high = interval(rows[1:])
    return Estimate(float(rows[0]), float(low), float(high))


def _integral(rows: Floats, lengths: Floats) -> Floats:
    """Return the mean over arclength by the trapezoid rule; rows: (draws, K). Over t where the curve has no length."""
    steps = np.diff(lengths) if lengths[-1] > 0 else np.ones(len(lengths) - 1)
    return (0.5 * (rows[:, 1:] + rows[:, :-1]) @ steps) / steps.sum()  # type: ignore[no-any-return]


def _joined(parts: list[Readings]) -> Readings:
    """Put readings of single points below one another."""
    rights = [each.right for each in parts if each.right is not None]
    return Readings(
        np.concatenate([each.losses for each in parts]), np.concatenate(rights) if rights else None, parts[0].counts
    )
