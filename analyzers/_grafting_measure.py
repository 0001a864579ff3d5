"""Grafts of growing size, judged one by one: the weights that moved most, those that moved least, random ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probes.batch_statistics import renewed
from probes.calibration import Confidences, confidences
from probes.grafting import Mask, Place, Scores, counts_of, grafted, layout, movement, overlap, top
from probes.paths import Readings, read
from probes.points import Point, at, point_of

if TYPE_CHECKING:
    from analyzers._base import Arrays, Tick
    from probes.checkpoint import Checkpoint
    from probes.grafting import Overlap
    from probes.objective import Objective

Statistics = Literal["fresh", "fine_tuned"]
SAVE_SECONDS = 10.0
ENDS = ("base", "fine_tuned")


@dataclass(frozen=True)
class Ask:
    """What to graft. shares: of all weights. masks: random ones of each size. whole: parts of names, see `layout`."""

    shares: tuple[float, ...]
    masks: int
    whole: tuple[str, ...]
    statistics: Statistics
    seed: int


@dataclass(frozen=True, eq=False)
class Seen:
    """What a set of examples says of the two ends, (1, N) each, and of each way to choose weights, (K, N) each."""

    ends: dict[str, Readings]
    ways: dict[str, Readings]
    random: tuple[Readings, ...]


@dataclass(eq=False)
class Grafts:
    """Base and fine-tuned model, what moved between them, and how to judge a graft; masks are made when needed."""

    objective: Objective
    ask: Ask
    base: Point
    tuned: Point
    places: tuple[Place, ...] = field(init=False)
    moved: Scores = field(init=False)
    counts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.places = layout(self.objective, self.ask.whole)
        self.moved = movement(self.objective, self.base, self.tuned, self.places)
        self.counts = tuple(counts_of(self.ask.shares, len(self.moved)))

    def mask(self, way: str, count: int) -> Mask:
        """Choose so many weights; way: "top", "bottom", or "random" and its number."""
        if way == "top":
            return top(self.moved, count)
        if way == "bottom":
            return ~top(self.moved, len(self.moved) - count)
        generator = np.random.default_rng([self.ask.seed, int(way.removeprefix("random"))])
        return top(generator.random(len(self.moved), dtype=np.float32), count)

    def point(self, mask: Mask) -> Point:
        """Return the graft, its running statistics as asked for."""
        return self.fresh(grafted(self.objective, self.base, self.tuned, self.places, mask))

    def end(self, which: str) -> Point:
        """Return the base or the fine-tuned model, its running statistics as asked for."""
        return self.fresh(self.base if which == "base" else self.tuned)

    def fresh(self, point: Point) -> Point:
        """Measure running statistics anew where that was asked for."""
        return renewed(self.objective, point) if self.ask.statistics == "fresh" else point


def grafts(objective: Objective, tuned: Objective, ask: Ask) -> Grafts:
    """Prepare to graft; raise ModelError where the two cannot be compared."""
    return Grafts(objective, ask, point_of(objective), point_of(tuned))


def judged(made: Grafts, tick: Tick, share: float) -> tuple[Seen, Seen | None]:
    """Read all grafts on the data and on the test data, if any; a killed run goes on from what was kept."""
    sets = [each for each in (made.objective, made.objective.on_test()) if each is not None]
    ways = ["top", "bottom", *(f"random{number}" for number in range(made.ask.masks))]
    jobs = [(which, 0) for which in ENDS]
    jobs += [(way, count) for way in ways for count in made.counts if count < len(made.moved)]
    kept = dict(tick.load("grafts") or {})
    saved = time.monotonic()
    for number, (way, count) in enumerate(jobs):
        if f"{way}-{count}-0-losses" not in kept:
            point = made.end(way) if way in ENDS else made.point(made.mask(way, count))
            for place, each in enumerate(sets):
                kept |= _arrays(read(each, point), f"{way}-{count}-{place}")
        if time.monotonic() - saved > SAVE_SECONDS:
            tick.save("grafts", kept)
            saved = time.monotonic()
        tick(share * (number + 1) / len(jobs), _words(way, count, len(made.moved)))
    seen = [_seen(made, kept, ways, place) for place in range(len(sets))]
    return seen[0], seen[1] if len(seen) > 1 else None


def densities(made: Grafts, mask: Mask) -> list[dict[str, Any]]:
    """Return a row for each parameter: how many of its weights are in the mask."""
    return [
        {
            "parameter": each.name,
            "layer": each.layer,
            "kind": each.kind,
            "weights": each.size,
            "grafted": int(mask[each.weights].sum()),
        }
        for each in made.places
    ]


def overlaps(
    made: Grafts, count: int, others: Sequence[Checkpoint], tick: Callable[[float, str], None]
) -> list[list[Overlap]]:
    """Compare the masks of this size of all tasks, this one first: a square of overlaps."""
    masks = [made.mask("top", count)]
    for number, each in enumerate(others):
        other = point_of(made.objective.at(each))
        masks.append(top(movement(made.objective, made.base, other, made.places), count))
        tick((number + 1) / len(others), f"weights that moved in {each.name}")
    return [[overlap(one, other, made.places) for other in masks] for one in masks]


def reliabilities(
    made: Grafts, count: int, bins: int, tick: Callable[[float, str], None]
) -> tuple[dict[str, Confidences], str]:
    """Return confidences of base, graft and fine-tuned model on the test data, else the data, and which."""
    test = made.objective.on_test()
    points = {
        "base": made.end("base"),
        "grafted": made.point(made.mask("top", count)),
        "fine_tuned": made.end("fine_tuned"),
    }
    found = {}
    for number, (name, point) in enumerate(points.items()):
        found[name] = confidences(at(test or made.objective, point), bins)
        tick((number + 1) / len(points), "calibration")
    return found, "data" if test is None else "test data"


def _arrays(found: Readings, key: str) -> Arrays:
    right = {} if found.right is None else {f"{key}-right": found.right[0]}
    return {f"{key}-losses": found.losses[0], f"{key}-counts": found.counts, **right}


def _seen(made: Grafts, kept: Arrays, ways: Sequence[str], place: int) -> Seen:
    """Sort what was kept of one set of examples; all weights together are the fine-tuned model."""
    one = lambda way, count: _reading(kept, f"{way}-{count}-{place}")
    last = len(made.moved)

    def row(way: str) -> Readings:
        parts = [one("fine_tuned", 0) if count == last else one(way, count) for count in made.counts]
        found = parts[0]
        for each in parts[1:]:
            found = found.with_more(each)
        return found

    found = {way: row(way) for way in ways}
    random = tuple(each for way, each in found.items() if way.startswith("random"))
    ways_found = {"top": found["top"], "bottom": found["bottom"], "random": _mean(random)}
    return Seen({each: one(each, 0) for each in ENDS}, ways_found, random)


def _reading(kept: Arrays, key: str) -> Readings:
    right = kept.get(f"{key}-right")
    return Readings(kept[f"{key}-losses"][None], None if right is None else right[None], kept[f"{key}-counts"])


def _mean(many: Sequence[Readings]) -> Readings:
    """Average what every example says over random masks."""
    rights = [each.right for each in many if each.right is not None]
    losses = np.mean([each.losses for each in many], axis=0)
    return Readings(losses, np.mean(rights, axis=0) if rights else None, many[0].counts)


def _words(way: str, count: int, weights: int) -> str:
    if way in ENDS:
        return "judging the base" if way == "base" else "judging the fine-tuned model"
    chosen = {"top": "that moved most", "bottom": "that moved least"}.get(way, "at random")
    return f"grafting {count:,} of {weights:,} weights {chosen}"
