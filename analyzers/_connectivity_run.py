"""The state of a run of mode connectivity while its steps go on: the pair, what was found, how points are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Tick
from analyzers._connectivity_values import as_arrays, from_arrays
from probes.batch_statistics import has_batch_norm, renewed
from probes.objective import Objective
from probes.paths import Floats, Readings, read, resamples
from probes.permutations import Found, PermutationSpec, permuted
from probes.points import Point, between, point_from, point_of, tensors_of

if TYPE_CHECKING:
    from analyzers.mode_connectivity import ModeConnectivity
    from probes.checkpoint import Checkpoint

Reports = Callable[[float, str], None]
LOOKED = 2000  # examples for what is said of layers and units


@dataclass(frozen=True)
class Both:
    """Readings of the same points on the data and, where there are some, on the test data."""

    data: Readings
    test: Readings | None


def part_of(tick: Reports, start: float, end: float) -> Reports:
    """Return what reports a part of some work, from one share of it to another."""
    return lambda share, doing: tick(start + (end - start) * share, doing)


@dataclass
class Run:
    """What the steps share. a, b: the pair; found: the permutations to be applied to b, once it is matched."""

    options: ModeConnectivity
    objective: Objective
    checkpoints: tuple[Checkpoint, ...]
    spec: PermutationSpec
    a: Point
    b: Point
    tick: Tick
    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    caveats: list[str] = field(default_factory=list)
    found: Found = field(default_factory=dict)
    lines: dict[str, Both] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.test = self.objective.on_test()
        self.normalises = has_batch_norm(self.objective)
        self.anew = self.normalises and self.options.batch_norm == "measured anew"
        self.weights = resamples(len(self.objective.inputs), self.options.seed)
        self.test_weights = resamples(len(self.test.inputs), self.options.seed) if self.test else np.zeros((0, 0))
        self.middle: Point | None = None  # half-way with REPAIR, where it was made
        self.lambdas: Floats = np.linspace(0, 1, self.options.points | 1)

    @property
    def matched(self) -> Point:
        """The second, its units in the order of the first."""
        return self.permuted(self.b, self.found)

    def permuted(self, point: Point, found: Found) -> Point:
        """Return a point with its units in another order."""
        return point_from(self.objective, permuted(tensors_of(self.objective, point), self.spec, found))

    @cached_property
    def few(self) -> Objective:
        """The objective of some examples, evenly spread: what layers and units are looked at with."""
        return self.objective.subset(LOOKED, self.options.dtype)

    def renewed(self, point: Point) -> Point:
        """Return a point with its BatchNorm statistics measured anew, where the options ask for it."""
        return renewed(self.objective, point) if self.anew else point

    def at(self, place: int) -> Point:
        """Return the point of one of the checkpoints."""
        if place < 2:
            return self.b if place else self.a
        return point_of(self.objective.at(self.checkpoints[place]))

    def read(
        self,
        points: Iterable[Point],
        count: int,
        tick: Reports,
        words: str,
        *,
        anew: bool | None = None,
        tested: bool = True,
    ) -> Both:
        """Read points on the data and the test data; anew: measure BatchNorm's statistics, None as the options say."""
        data: Readings | None = None
        test: Readings | None = None
        for number, point in enumerate(points, 1):
            if self.anew if anew is None else anew:
                point = renewed(self.objective, point)
            found = read(self.objective, point)
            data = found if data is None else data.with_more(found)
            if self.test is not None and tested:
                found = read(self.test, point)
                test = found if test is None else test.with_more(found)
            tick(number / count, f"{words}, point {number} of {count}")
        if data is None:
            raise ValueError("no points were given")
        return Both(data, test)

    def line(
        self,
        key: str,
        ends: tuple[Point, Point],
        lambdas: Floats,
        tick: Reports,
        words: str,
        *,
        anew: bool | None = None,
        tested: bool = True,
    ) -> Both:
        """Read the straight line between two points, or take what was kept of it."""
        points = (between(*ends, float(each)) for each in lambdas)
        return self.kept(key, lambda: self.read(points, len(lambdas), tick, words, anew=anew, tested=tested))

    def kept(self, key: str, work: Callable[[], Both]) -> Both:
        """Return readings that an earlier attempt of this run kept, or make and keep them."""
        kept = self.tick.load(key)
        data = from_arrays(kept) if kept is not None else None
        if kept is not None and data is not None:
            return Both(data, from_arrays(kept, "test_"))
        both = work()
        self.tick.save(key, {**as_arrays(both.data), **as_arrays(both.test, "test_")})
        return both

    def doubt(self, *sentences: str) -> None:
        """Add caveats that are not there yet."""
        self.caveats += [each for each in dict.fromkeys(sentences) if each and each not in self.caveats]
