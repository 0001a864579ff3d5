"""Averages of all checkpoints, and of those that help, as they are and after matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyzers._connectivity_run import Reports, Run, part_of
from analyzers._connectivity_values import band, number
from probes.matching_many import matched_many
from probes.paths import Floats, Readings
from probes.permutations import Found
from probes.points import Point, tensors_of
from probes.soups import greedy, uniform

MATCHED = 0.4  # of the work
SOUPS = {
    "soup": ("naive", "average of all, as they are"),
    "greedy_soup": ("naive", "greedy average, as they are"),
    "matched_soup": ("matched", "average of all, after matching"),
    "matched_greedy_soup": ("matched", "greedy average, after matching"),
}


def soups(run: Run, tick: Reports) -> None:
    """Average all checkpoints, and greedily those that raise the accuracy (or lower the loss) of the average."""
    points = [run.at(place) for place in range(len(run.checkpoints))]
    found = _found(run, points, part_of(tick, 0, MATCHED))
    moved = [points[0], *(run.permuted(point, each) for point, each in zip(points[1:], found, strict=True))]
    statistics = run.objective if run.anew else None
    rows: list[dict[str, Any]] = []
    for place, (stage, group) in enumerate((("naive", points), ("matched", moved))):
        part = part_of(tick, MATCHED + 0.25 * place, MATCHED + 0.25 * (place + 1))
        chosen = greedy(run.objective, group, part_of(part, 0, 0.8), statistics)
        made = (uniform(group, statistics), chosen.point)
        both = run.read(made, 2, part_of(part, 0.8, 1), "averages", anew=False)
        names = [name for name, (kind, _) in SOUPS.items() if kind == stage]
        for at, (name, places) in enumerate(zip(names, ([*range(len(group))], [*chosen.chosen]), strict=True)):
            rows.append({"soup": name, "what": SOUPS[name][1], "chosen": places, **_row(run, both.data, both.test, at)})
    singles = run.read(points, len(points), part_of(tick, MATCHED + 0.5, 1), "checkpoints alone")
    alone = [
        {"checkpoint": each.name, **_row(run, singles.data, singles.test, place)}
        for place, each in enumerate(run.checkpoints)
    ]
    run.values["soups"] = {"rows": rows, "alone": alone}
    if run.test is None:
        run.doubt("The greedy averages were chosen on the data that they are shown for; test data would judge them.")


def permutations_of(spec: Any, arrays: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the permutations of each checkpoint but the first, as a result's arrays hold them."""
    return [{each.name: arrays[f"soup_{place}_{each.name}"] for each in spec} for place in range(1, count)]


def _found(run: Run, points: Sequence[Point], tick: Reports) -> list[Found]:
    """Match all checkpoints to their mean, in the order of the first; a pair as it was matched."""
    if len(points) == 2:
        found: list[Found] = [run.found]
    else:
        tensors = [tensors_of(run.objective, each) for each in points]
        found = list(matched_many(tensors, run.spec, seed=run.options.seed, tick=tick))[1:]
    for place, each in enumerate(found, 1):
        run.arrays |= {f"soup_{place}_{name}": np.asarray(pi, dtype=np.int64) for name, pi in each.items()}
    return found


def _row(run: Run, data: Readings, test: Readings | None, place: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for of, found, weights in (("", data, run.weights), ("test_", test, run.test_weights)):
        if found is not None:
            told |= {f"{of}{key}": each for key, each in _numbers(found.taken([place]), weights).items()}
    return told


def _numbers(found: Readings, weights: Floats) -> dict[str, float | None]:
    low, high = band(found.losses, found.counts, weights)
    told = {"loss": number(found.loss[0]), "loss_low": number(low[0]), "loss_high": number(high[0])}
    return told if found.accuracy is None else {**told, "accuracy": number(found.accuracy[0])}
