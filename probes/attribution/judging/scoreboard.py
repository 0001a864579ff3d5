"""On this model and data, which method is faithful? Means over examples, gains over random orders, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from probes.attribution.judging.intervals import RESAMPLES, Interval, mean_interval

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "insertion_auc": True,
    "deletion_auc": False,
    "infidelity": False,
    "sensitivity_max": False,
    "completeness_error": False,
}
AGAINST = {"random": "random_", "edge": "edge_"}  # what each area is compared with, and how its column begins
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """One method. n: examples with a map; refused: without. metrics: means by the names of HIGHER_IS_BETTER.

    gains: by "random" and "edge", then by area: the mean of the paired differences, positive where the method does
    better (of deletion the other's area less its own).
    """

    method: str
    title: str
    n: int
    refused: int
    metrics: Mapping[str, Interval]
    gains: Mapping[str, Mapping[str, Interval]]

    def above(self, area: str, other: str = "random") -> bool | None:
        """Tell whether the method beats random orders (or edges): the interval of its gain lies above zero."""
        low = self.gains[other][area].low
        return None if low is None else low > 0

    def to_json(self) -> dict[str, Any]:
        """Return one flat dict: method, title, n, refused, {mean, low, high, n, left_out} of each metric, gains."""
        metrics = {name: asdict(each) for name, each in self.metrics.items()}
        gains = {name: {area: asdict(each) for area, each in found.items()} for name, found in self.gains.items()}
        above = {name: {area: self.above(area, name) for area in found} for name, found in self.gains.items()}
        return {"method": self.method, "title": self.title, "n": self.n, "refused": self.refused, **metrics,
                "gains": gains, "above": above}  # fmt: skip


@dataclass(frozen=True)
class Scoreboard:
    """All methods, in the order in which they came. words: how the intervals were made."""

    standings: tuple[Standing, ...]
    words: str

    def to_json(self) -> list[dict[str, Any]]:
        """Return one dict a method."""
        return [each.to_json() for each in self.standings]


def scoreboard(rows: Iterable[Row], *, seed: int = 0) -> Scoreboard:
    """Sum up rows, one for each example and method.

    A row has `method`, perhaps `title`, `badge` ("refused" counts as such), the metrics and what the areas are compared
    with (`random_insertion_auc`, `edge_deletion_auc`, …); None where there is none. Every method draws the same
    examples anew where it has as many.
    """
    every = list(rows)
    names = dict.fromkeys(str(each["method"]) for each in every)
    standings = tuple(_standing(name, [each for each in every if each["method"] == name], seed) for name in names)
    return Scoreboard(standings, f"95 % BCa bootstrap intervals over examples, {RESAMPLES} resamples, seed {seed}")


def _standing(name: str, rows: Sequence[Row], seed: int) -> Standing:
    made = [each for each in rows if each.get("badge") != "refused"]
    metrics = {metric: _mean([each.get(metric) for each in made], seed) for metric in HIGHER_IS_BETTER}
    gains = {
        other: {area: _mean([_gain(each, area, begin) for each in made], seed)
                for area in ("insertion_auc", "deletion_auc")}
        for other, begin in AGAINST.items()
    }  # fmt: skip
    title = next((str(each["title"]) for each in rows if each.get("title")), name)
    return Standing(name, title, len(made), len(rows) - len(made), metrics, gains)


def _mean(values: Sequence[float | None], seed: int) -> Interval:
    """Take the mean of what there is; numbers that are missing do not count as left out."""
    return mean_interval([each for each in values if each is not None], seed)


def _gain(row: Row, area: str, begin: str) -> float | None:
    own, other = row.get(area), row.get(begin + area)
    if own is None or other is None:
        return None
    return float(own - other) if HIGHER_IS_BETTER[area] else float(other - own)
