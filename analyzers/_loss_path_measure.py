"""How a loss path is measured: the line, the checkpoints on the way, the controls, and what to say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Tick
from analyzers._loss_path_values import (
    bare_values,
    curve_values,
    gauss_values,
    not_finite,
    number,
    numbers,
    single_values,
    uncorrected_values,
)

if TYPE_CHECKING:
    from probes.checkpoint import Checkpoint
    from probes.lines import Line
    from probes.objective import Objective

Share = tuple[float, float]
LEVEL = 1e-3  # of the range: a rise below it is none


@dataclass(frozen=True)
class Asked:
    """What of a path is asked for, and where the rest of the work lies.

    places: of alpha, that are always read. budget: places added where the loss bends. anew: BatchNorm's statistics are
    measured at each place. share: of the progress, from where to where.
    """

    places: tuple[float, ...]
    budget: int
    anew: bool
    controls: bool
    seed: int
    share: Share


def measured(
    asked: Asked, objective: Objective, line: Line, others: Sequence[Checkpoint], tick: Tick
) -> dict[str, Any]:
    """Return the values of a path; others: the checkpoints that are projected on it."""
    inside = [alpha for alpha in asked.places if 0 <= alpha <= 1]
    costs = (len(asked.places) + asked.budget, len(others), 2 * len(inside) if asked.controls else 0)
    ends = asked.share[0] + (asked.share[1] - asked.share[0]) * np.cumsum([0, *costs]) / sum(costs)
    parts = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    values = _line(asked, objective, line, tick, parts[0])
    values["on_the_way"] = _on_the_way(asked, objective, line, others, tick, parts[1])
    values["controls"] = _controls(asked, objective, line, inside, tick, parts[2]) if asked.controls else {}
    return values


def caveats(objective: Objective, values: Mapping[str, Any], *, anew: bool) -> Iterator[str]:
    """Say every doubt about a path."""
    from probes.batch_statistics import has_batch_norm
    from probes.line_readings import TOLERANCE

    yield from objective.caveats
    test = objective.on_test()
    yield from (f"Test data: {each}" for each in (test.caveats if test else []))
    yield from not_finite(values, {"loss": "The loss", "test_loss": "The loss on the test data"})
    for name, each in values["controls"].items():
        yield from not_finite(each, {"loss": f"The loss on the path from {name}"})
    if values["uncorrected"]:
        words = (
            "The loss with BatchNorm's statistics as interpolated (beyond a checkpoint these can be negative variances)"
        )
        yield from not_finite(values["uncorrected"], {"loss": words})
    if values["interpolation_error"] > TOLERANCE:
        yield (
            f"Between the places the curve may be off by {values['interpolation_error']:.1%} of its range: the further "
            "places were used up. Allow more of them."
        )
    if has_batch_norm(objective) and not anew:
        yield (
            "BatchNorm's statistics are interpolated with the weights. They do not fit the network between the two "
            "checkpoints, and that alone can raise the loss there: measure them anew."
        )
    alike = [name for name, each in values["controls"].items() if _falls(each)]
    if _falls(values) and alike:
        yield (
            f"The loss falls all the way, but so it does on the path from {' and from '.join(alike)}, where no "
            "training went: the straight path says little about how the network was trained."
        )


def _line(asked: Asked, objective: Objective, line: Line, tick: Tick, share: Share) -> dict[str, Any]:
    from probes.line_readings import Reader, walked
    from probes.lines import norm

    follow = len(asked.places) + asked.budget
    reader = Reader(objective, renew=asked.anew, beside=True, follow=follow)
    found = walked(reader, line, asked.places, asked.budget, "line", tick, share)
    start, test = norm(line.start), found.test
    return {
        "alpha": numbers(found.alpha),
        **curve_values(found.alpha, found.data, asked.seed),
        **(curve_values(found.alpha, test, asked.seed, "test_") if test else {}),
        **gauss_values(found),
        "distance": number(line.length),
        "relative_distance": number(line.length / start) if start > 0 else None,
        "uncorrected": uncorrected_values(found),
        "added": [alpha for alpha in found.alpha.tolist() if alpha not in asked.places],
        "interpolation_error": found.error,
    }


def _on_the_way(
    asked: Asked, objective: Objective, line: Line, others: Sequence[Checkpoint], tick: Tick, share: Share
) -> list[dict[str, Any]]:
    """Project checkpoints on the line, and read each where it is, in the way in which the line is read."""
    from probes.line_readings import Reader, readings_of
    from probes.points import point_of

    reader = Reader(objective, renew=asked.anew)
    rows = []
    for place, checkpoint in enumerate(others):
        point = point_of(objective.at(checkpoint))
        found = readings_of({0.0: reader.row(point)})
        seen = single_values(found.data) | (single_values(found.test, "test_") if found.test else {})
        where = {name: number(each) for name, each in vars(line.projected(point)).items()}
        rows.append({"checkpoint": checkpoint.name, **where, **seen})
        tick(share[0] + (share[1] - share[0]) * (place + 1) / len(others), f"projecting {checkpoint.name}")
    return rows


def _controls(
    asked: Asked, objective: Objective, line: Line, places: Sequence[float], tick: Tick, share: Share
) -> dict[str, Any]:
    """Walk to the same end from noise and from zeros, on the data alone."""
    from probes.line_readings import Reader, walked
    from probes.lines import Line, noise, zeros

    reader, middle, found = Reader(objective, renew=asked.anew, tests=False), sum(share) / 2, {}
    for name, begin, part in (
        ("noise", lambda: noise(line.start, asked.seed), (share[0], middle)),
        ("zeros", lambda: zeros(line.start), (middle, share[1])),
    ):
        each = walked(reader, Line(begin(), line.end), places, 0, name, tick, part)
        found[name] = {"alpha": numbers(each.alpha), **bare_values(each.alpha, each.data.loss, each.data.accuracy)}
    return found


def _falls(values: Mapping[str, Any]) -> bool:
    """Tell whether a curve falls from 0 to 1, a rise within a thousandth of its range aside."""
    delta = values["delta"]
    losses = [each for a, each in zip(values["alpha"], values["loss"], strict=True) if 0 <= a <= 1]
    return delta is not None and losses[-1] < losses[0] and delta <= LEVEL * (max(losses) - min(losses))
