"""Which planes to look at: laid through the checkpoints of a run, with window, labels and what is marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import DataError
from probes.extremes import Store
from probes.objective import Objective
from probes.paths import read
from probes.planes import Place, Plane, Tick, inner, principal, projected, random_plane, through
from probes.planes_curvature import Curvature, curvature, eigenplane
from probes.points import Point, point_of
from probes.series import series
from probes.surface import axis

if TYPE_CHECKING:
    from probes.checkpoint import Checkpoint

Floats = NDArray[np.float64]
KINDS = ("random", "hessian", "checkpoints", "trajectory")
MARGIN = 0.2  # of the extent of what is marked, on each side
SLIMMEST = 1 / 3  # the shorter side of a window in units of the longer
NATS = (
    1.0  # the window of a Hessian plane reaches where the second eigenvalue alone would raise a cross-entropy by this
)
ENTROPIES = ("cross_entropy", "bce_with_logits", "causal_lm")


@dataclass(frozen=True)
class Wish:
    """Which planes are wanted; see analyzers._planes.PlaneOptions."""

    kind: str
    count: int
    span: float
    resolution: int
    centre: str
    seed: int
    tolerance: float
    times: str


@dataclass(frozen=True)
class Mark:
    """A checkpoint as a plane sees it; loss: its own, not its projection's. role: centre, corner or checkpoint."""

    place: Place
    label: str
    role: str
    loss: float


@dataclass(frozen=True, eq=False)
class Slice:
    """A plane with its window. facts: JSON numbers that belong to its kind."""

    plane: Plane
    x: Floats
    y: Floats
    title: str
    labels: tuple[str, str]
    marks: tuple[Mark, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Laid:
    """All planes through one centre; curvature: where it was needed to lay them."""

    slices: tuple[Slice, ...]
    centre: Point
    centre_label: str
    is_path: bool  # the marks stand in the order of a run's time
    curvature: Curvature | None
    doubts: tuple[str, ...]


class Scene:
    """The checkpoints in the order of time, read when they are needed."""

    def __init__(self, objective: Objective, checkpoints: Sequence[Checkpoint], wish: Wish) -> None:
        self.objective, self.given = objective, tuple(checkpoints)
        self.order, self.labels = tuple(range(len(self.given))), _told_apart([each.name for each in self.given])
        self.doubts: list[str] = []
        self.is_path = False
        try:
            times = series(self.given, wish.times)
        except DataError as error:
            if wish.times or wish.kind == "trajectory":
                raise
            self.doubts = [f"The checkpoints are not taken for a run in time: {error}"]
        else:
            self.order, self.is_path = times.order, times.unit != "position"
            self.doubts += times.doubts if wish.kind == "trajectory" else ()
            if self.is_path and wish.kind == "trajectory":
                self.labels = [times.labels[times.order.index(place)] for place in range(len(self.given))]
        self.centre = self._centre(wish)

    def point(self, place: int) -> Point:
        """Return the weights of one checkpoint, by its place in what was given."""
        return point_of(self.objective if place == 0 else self.objective.at(self.given[place]))

    def label(self, letters: Mapping[int, str]) -> None:
        """Put letters before the names of checkpoints that have none yet."""
        for place, letter in letters.items():
            if not self.labels[place].startswith(f"{letter}: "):
                self.labels[place] = f"{letter}: {self.labels[place]}"

    def _centre(self, wish: Wish) -> int:
        if wish.kind == "checkpoints" or wish.centre == "first" or len(self.given) == 1:
            return 0
        last = wish.kind == "trajectory" and wish.centre == "auto" and self.is_path
        return self.order[-1] if last else 1


def laid(
    objective: Objective,
    checkpoints: Sequence[Checkpoint],
    wish: Wish,
    statistics: Objective | None,
    store: Store,
    tick: Tick,
) -> Laid:
    """Lay the planes and mark the checkpoints on them.

    Raises DataError (too few checkpoints), ModelError (they lie on a line) or CurvatureError.
    """
    scene = Scene(objective, checkpoints, wish)
    tick(0.0, "laying the planes")
    centre = scene.point(scene.centre)
    found, doubts = None, list(scene.doubts)
    if wish.kind == "random":
        slices = _random(scene, centre, wish)
    elif wish.kind == "hessian":
        there = objective.moved(centre.theta, centre.buffers)
        found = curvature(there, wish.seed, store, tick, top=2 * wish.count, tolerance=wish.tolerance)
        doubts += found.doubts
        slices = _hessian(there, found, wish, doubts)
    elif wish.kind == "checkpoints":
        slices = _triangles(scene, centre, wish)
    elif wish.kind == "trajectory":
        slices = _trajectory(scene, centre, wish)
    else:
        raise ValueError(f"kind is {wish.kind!r}; give one of {', '.join(KINDS)}")
    marked = _marked(scene, slices, statistics)
    return Laid(tuple(marked), centre, scene.labels[scene.centre], scene.is_path, found, tuple(doubts))


def _random(scene: Scene, centre: Point, wish: Wish) -> list[Slice]:
    slices = []
    for number in range(wish.count):
        drawn = random_plane(scene.objective, centre, wish.seed, number)
        side = _even(wish.span or drawn.length, wish.resolution)
        labels = tuple(f"Distance along random direction {2 * number + i}" for i in (1, 2))
        facts = {"filter_norm": drawn.length, "cosine": drawn.cosine, "still": len(drawn.still)}
        title = f"Random plane {number + 1}, filter-normalised"
        slices.append(Slice(drawn.plane, side, side, title, (labels[0], labels[1]), facts=facts))
    return slices


def _hessian(there: Objective, found: Curvature, wish: Wish, doubts: list[str]) -> list[Slice]:
    slices = []
    loss = float(read(there, point_of(there)).loss[0])
    rise = NATS if there.loss in ENTROPIES else 10 * loss or 1.0
    centre = point_of(there).theta
    longest = math.sqrt(inner(centre, centre))
    for number in range(wish.count):
        plane, pairs, missing = eigenplane(found, there, number, wish.tolerance)
        doubts += missing
        steep = abs(pairs[1].value)
        reach = wish.span or min(math.sqrt(2 * rise / steep) if steep > 0 else longest, longest)
        side = _even(reach, wish.resolution)
        ranks = (2 * number + 1, 2 * number + 2)
        labels = [
            f"Distance along eigenvector {rank} (λ = {each.value:.4g})" for rank, each in zip(ranks, pairs, strict=True)
        ]
        known = [{"rank": rank, **each.__dict__} for rank, each in zip(ranks, pairs, strict=True)]
        title = f"Plane of the Hessian's eigenvectors {ranks[0]} and {ranks[1]}"
        slices.append(Slice(plane, side, side, title, (labels[0], labels[1]), facts={"eigenvalues": known}))
    return slices


def _triangles(scene: Scene, centre: Point, wish: Wish) -> list[Slice]:
    if len(scene.given) < 3:
        raise DataError(
            f"A plane through checkpoints needs three of them, there are {len(scene.given)}: add a further one, or "
            "choose a random plane."
        )
    second, slices = scene.point(1), []
    for third in range(2, min(len(scene.given), 2 + wish.count)):
        plane = through(centre, second, scene.point(third))
        letters = ("A", "B", chr(ord("C") + (third - 2) % 24))
        scene.label(dict(zip((0, 1, third), letters, strict=True)))
        corners = [projected(plane, each) for each in (second, scene.point(third))]
        x, y = _around([Place(0, 0, 0), *corners], wish)
        labels = ("Distance from A towards B", f"Distance at a right angle, towards {letters[2]}")
        facts = {"corners": [0, 1, third]}
        title = f"Plane through the checkpoints A, B and {letters[2]}"
        slices.append(Slice(plane, x, y, title, labels, facts=facts))
    return slices


def _trajectory(scene: Scene, centre: Point, wish: Wish) -> list[Slice]:
    others = [place for place in scene.order if place != scene.centre]
    if len(others) < 2:
        raise DataError(
            f"The plane of a trajectory needs at least three checkpoints, there are {len(scene.given)}: add "
            "checkpoints of the run, or choose a random plane."
        )
    points, slices = [scene.point(place) for place in others], []
    for number in range(wish.count):
        found = principal(centre, points, number)
        shares = found.shares[2 * number : 2 * number + 2]
        x, y = _around([Place(0, 0, 0), *(projected(found.plane, each) for each in points)], wish)
        labels = tuple(
            f"Distance along component {2 * number + i} ({100 * share:.3g} %)" for i, share in enumerate(shares, 1)
        )
        title = f"Plane of the trajectory's principal components {2 * number + 1} and {2 * number + 2}"
        facts = {"explained": list(shares), "spectrum": list(found.shares)}
        slices.append(Slice(found.plane, x, y, title, (labels[0], labels[1]), facts=facts))
    return slices


def _marked(scene: Scene, slices: Sequence[Slice], statistics: Objective | None) -> list[Slice]:
    """Project every checkpoint onto every plane, in the order of time; each is read once."""
    marks: list[list[Mark]] = [[] for _ in slices]
    for place in scene.order:
        point = scene.point(place)
        loss = float(read(scene.objective, point, statistics).loss[0])
        for each, found in zip(slices, marks, strict=True):
            role = "corner" if place in each.facts.get("corners", ()) else "checkpoint"
            role = "centre" if place == scene.centre else role
            at = Place(0.0, 0.0, 0.0) if role == "centre" else projected(each.plane, point)
            found.append(Mark(at, scene.labels[place], role, loss))
    return [
        Slice(each.plane, each.x, each.y, each.title, each.labels, tuple(found), each.facts)
        for each, found in zip(slices, marks, strict=True)
    ]


def _told_apart(names: list[str]) -> list[str]:
    """Number names that occur more than once."""
    counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [f"{name} ({count})" if names.count(name) > 1 else name for name, count in zip(names, counts, strict=True)]


def _even(reach: float, count: int) -> Floats:
    return axis(-reach, reach, count)


def _around(places: Sequence[Place], wish: Wish) -> tuple[Floats, Floats]:
    """Return a window around places: a margin (or the span asked for) on each side, and not too slim."""
    ends = []
    for pick in (_x, _y):
        found = [pick(each) for each in places]
        margin = wish.span or MARGIN * (max(found) - min(found))
        ends.append([min(found) - margin, max(found) + margin])
    widths = [high - low for low, high in ends]
    for index, (low, high) in enumerate(ends):
        more = max(0.0, SLIMMEST * max(widths) - widths[index]) / 2
        ends[index] = [low - more, high + more]
    return axis(ends[0][0], ends[0][1], wish.resolution), axis(ends[1][0], ends[1][1], wish.resolution)


_x: Callable[[Place], float] = lambda place: place.x
_y: Callable[[Place], float] = lambda place: place.y
