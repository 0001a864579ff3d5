"""A surface over a rectangle from few evaluations: coarse first, then where it is least known; with a stated error.

Between the evaluated points the surface is that of radial basis functions (Wahba 1990; the kernel, and whether the
logarithm is taken, is whatever predicted new points best). Every new point is predicted before it is evaluated, and the
error that is stated is made of those predictions alone. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import distance_transform_edt

from probes.errors import ObjectiveError

Floats = NDArray[np.float64]
Evaluate = Callable[[float, float], Sequence[float]]
KERNELS = {"quintic": 2, "cubic": 1, "thin_plate_spline": 1}  # and the degree of the polynomial beside each
COARSE, COARSER = 9, 5  # points along a side of the first grid
BATCH = 40  # points that are predicted, evaluated and taken in at a time
POOLED = 2  # the stated error rests on so many last batches
SAFETY = 1.25  # times the largest error of their predictions
FLOOR = 1e-4  # of the range: no smaller error is stated, losses themselves are rounded
FEWEST = 12  # finite values, to draw anything
NEAR = 0.05  # of a step: a mark nearer than this to a node is that node


@dataclass(frozen=True)
class Goal:
    """When to stop: at this stated error (a share of the range of the values), or after so many evaluations."""

    error: float = 0.005
    budget: int = 520


@dataclass(frozen=True, eq=False)
class Surface:
    """What is known of a function on a grid.

    x: (n,), y: (m,). values: (m, n), a row for each y: as evaluated at the evaluated nodes, interpolated elsewhere, NaN
    around points where the function is not finite. evaluated: (m, n), which are which. at: (K, 2) all evaluated
    points in their order, marks that are no nodes among them; rows: (K, C) what was found there (the first column is
    the surface). error: stated, a share of the range; None before anything was predicted. held: predictions that it
    rests on. model: what interpolates. complete: nothing more is to come.
    """

    x: Floats
    y: Floats
    values: Floats
    evaluated: NDArray[np.bool_]
    at: Floats
    rows: Floats
    error: float | None
    held: int
    model: str
    complete: bool
    batches: tuple[int, ...] = ()

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest finite value that was evaluated."""
        finite = self.rows[np.isfinite(self.rows[:, 0]), 0]
        return float(finite.min()), float(finite.max())


@dataclass(frozen=True)
class _Model:
    kernel: str
    log: bool

    @property
    def name(self) -> str:
        words = self.kernel.replace("_", " ")
        return f"{words} radial basis functions of the {'logarithm' if self.log else 'values'}"


@dataclass(eq=False)
class _Known:
    """The points so far, in steps of the grid, and how well their predecessors predicted them."""

    shape: tuple[int, int]
    places: list[tuple[float, float]] = field(default_factory=list)  # (column, row); whole numbers at nodes
    rows: list[Sequence[float]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    misses: list[float] = field(default_factory=list)  # the largest error of each batch's predictions, of the range
    scores: dict[_Model, float] = field(default_factory=dict)

    @property
    def taken(self) -> NDArray[np.bool_]:
        """Which nodes are evaluated, (m, n)."""
        found = np.zeros(self.shape, dtype=bool)
        for column, row in self.places:
            if column == int(column) and row == int(row):
                found[int(row), int(column)] = True
        return found

    @property
    def values(self) -> Floats:
        """The first column of what was found."""
        return np.array([row[0] for row in self.rows], dtype=np.float64)


def axis(low: float, high: float, count: int) -> Floats:
    """Return evenly spaced coordinates of which one is exactly 0; the ends move by half a step at most."""
    step = (high - low) / (count - 1)
    found: Floats = (step * (np.arange(count) - round(-low / step))).astype(np.float64)
    return found


def surveyed(
    evaluate: Evaluate, x: Floats, y: Floats, goal: Goal, marks: Sequence[tuple[float, float]] = ()
) -> Iterator[Surface]:
    """Evaluate a function on a grid, coarse first; yield the surface so far after every refinement, the last complete.

    evaluate(x, y) gives a row of numbers, the first of which is drawn; they may be infinite or NaN. marks: points that
    are evaluated, too. Raises ObjectiveError where too few values are finite.
    """
    known = _Known((len(y), len(x)))
    budget = min(goal.budget, x.size * y.size)
    _evaluate(known, evaluate, x, y, _first(x, y, budget, marks))
    while True:
        models = _fitted(known)
        best = min(models, key=lambda each: known.scores.get(each, 0.0 if each == _Model("quintic", False) else np.inf))
        stated = _stated(known)
        room = budget - len(known.places)
        complete = room < 1 or bool(known.taken.all()) or (stated is not None and stated <= goal.error)
        yield _surface(known, x, y, models[best], best, stated, complete=complete)
        if complete:
            return
        chosen = _chosen(known, models, best, min(BATCH, room))
        _evaluate(known, evaluate, x, y, chosen)
        _judge(known, models, best, chosen)


def column(surface: Surface, index: int) -> tuple[Floats, float | None]:
    """Interpolate another column of the rows; return it, (m, n), and the largest error of its held-out predictions.

    The error is in the column's own units, SAFETY times the largest miss at the points of the last batches when they
    are predicted from all the others.
    """
    places = np.stack([_steps(surface.x, surface.at[:, 0]), _steps(surface.y, surface.at[:, 1])], axis=1)
    values = surface.rows[:, index]
    fit = np.isfinite(values) & _apart(places)
    model = _Model("thin_plate_spline", False)
    shape = surface.evaluated.shape
    low, high = values[fit].min(), values[fit].max()
    drawn = np.clip(_interpolated(places[fit], values[fit], model, _nodes(shape), shape), low, high)
    held = np.zeros(len(values), dtype=bool)
    held[len(values) - sum(surface.batches[-POOLED:]) :] = bool(surface.batches)
    error = None
    if (held & fit).any() and (~held & fit).sum() >= FEWEST:
        guess = _interpolated(places[~held & fit], values[~held & fit], model, places[held & fit], shape)
        error = float(SAFETY * np.abs(np.clip(guess, low, high) - values[held & fit]).max())
    whole = surface.evaluated[tuple(np.round(places[:, ::-1]).astype(int).T)] & _whole(places)
    drawn = drawn.reshape(shape)
    drawn[tuple(np.round(places[whole][:, ::-1]).astype(int).T)] = values[whole]
    drawn[np.isnan(surface.values)] = np.nan
    return drawn, error


def _first(x: Floats, y: Floats, budget: int, marks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Choose the coarse grid, the node at the origin, and the marks."""
    count = COARSE if budget >= 2 * COARSE**2 else COARSER
    sides = [np.unique(np.round(np.linspace(0, each.size - 1, count))) for each in (x, y)]
    places = {(float(column), float(row)): None for row in sides[1] for column in sides[0]}
    for mark in ((0.0, 0.0), *marks):
        place = float(_steps(x, mark[0])), float(_steps(y, mark[1]))
        node = float(round(place[0])), float(round(place[1]))
        near = max(abs(place[0] - node[0]), abs(place[1] - node[1])) < NEAR
        inside = 0 <= node[0] < x.size and 0 <= node[1] < y.size
        places[node if near and inside else place] = None
    return list(places)


def _evaluate(known: _Known, evaluate: Evaluate, x: Floats, y: Floats, places: Sequence[tuple[float, float]]) -> None:
    for place in places:
        known.rows.append(evaluate(_coordinate(x, place[0]), _coordinate(y, place[1])))
        known.places.append(place)


def _fitted(known: _Known) -> dict[_Model, Floats]:
    """Interpolate to all nodes by every model that may be used, each (m, n)."""
    values, places = known.values, np.array(known.places)
    fit = np.isfinite(values) & _apart(places)
    if fit.sum() < FEWEST:
        raise ObjectiveError(
            f"The loss is finite at {int(np.isfinite(values).sum())} of {len(values)} points of the plane; choose a "
            "smaller span."
        )
    logs = (False, True) if values[fit].min() > 0 else (False,)
    nodes, found = _nodes(known.shape), {}
    for model in (_Model(kernel, log) for log in logs for kernel in KERNELS):
        with suppress(np.linalg.LinAlgError):  # points on a curve do not settle a polynomial
            drawn = _interpolated(places[fit], values[fit], model, nodes, known.shape)
            found[model] = drawn.reshape(known.shape)
    if not found:
        raise ObjectiveError("The points of the plane where the loss is finite lie on a line; choose a smaller span.")
    return found


def _interpolated(places: Floats, values: Floats, model: _Model, at: Floats, shape: tuple[int, int]) -> Floats:
    scale = lambda each: 2 * each / (np.array([shape[1], shape[0]]) - 1) - 1
    values = np.log(values) if model.log else values
    middle, spread = values.mean(), values.std() or 1.0
    fit = RBFInterpolator(scale(places), (values - middle) / spread, kernel=model.kernel, degree=KERNELS[model.kernel])
    found: Floats = fit(scale(at)) * spread + middle
    return np.exp(np.minimum(found, 700.0)) if model.log else found


def _chosen(known: _Known, models: dict[_Model, Floats], best: _Model, count: int) -> list[tuple[float, float]]:
    """Choose nodes: by turns the one farthest from all known, and the one where the models differ most."""
    like = [each for each in models if each.kernel == best.kernel or each.log == best.log]
    doubt = np.max([np.abs(models[each] - models[best]) for each in like], axis=0)
    doubt = np.nan_to_num(doubt, posinf=1e300) / (_spread(known) or 1.0) + 1e-9
    taken, chosen = known.taken, []
    usual = np.sqrt(taken.size / taken.sum())
    for turn in range(min(count, int((~taken).sum()))):
        far = distance_transform_edt(~taken)
        merit = far + 1e-6 * np.minimum(doubt, 1) if turn % 2 else doubt * np.minimum(far / usual, 1) ** 2
        row, column = np.unravel_index(int(np.where(taken, -1.0, merit).argmax()), taken.shape)
        taken[row, column] = True
        chosen.append((float(column), float(row)))
    return chosen


def _judge(known: _Known, models: dict[_Model, Floats], best: _Model, chosen: list[tuple[float, float]]) -> None:
    """Compare what was found at the chosen nodes with what every model had predicted there."""
    found = known.values[len(known.places) - len(chosen) :]
    nodes = tuple(np.array(chosen).astype(int)[:, ::-1].T)
    finite, spread = np.isfinite(found), _spread(known)
    misses = {each: np.abs(values[nodes] - found)[finite] for each, values in models.items()}
    known.scores = {each: float(miss.max(initial=0.0)) / (spread or 1.0) for each, miss in misses.items()}
    known.misses.append(known.scores[best])
    known.batches.append(len(chosen))


def _stated(known: _Known) -> float | None:
    if not known.misses:
        return None
    if known.taken.all():
        return 0.0
    sure = len(known.misses) >= POOLED or not _spread(known)
    return max(SAFETY * max(known.misses[-POOLED:]), FLOOR) if sure else None


def _surface(
    known: _Known, x: Floats, y: Floats, values: Floats, model: _Model, stated: float | None, *, complete: bool
) -> Surface:
    found, places, values = known.values, np.array(known.places), values.copy()
    nodes = _whole(places)
    at = tuple(places[nodes][:, ::-1].astype(int).T)
    values[at] = found[nodes]
    odd = nodes & ~np.isfinite(found)
    if odd.any():  # what lies nearest to a value that is not finite is not known
        finite = np.zeros(known.shape)
        finite[tuple(places[odd][:, ::-1].astype(int).T)] = 1
        _, nearest = distance_transform_edt(~known.taken, return_indices=True)
        values[finite[tuple(nearest)] == 1] = np.nan
    points = np.array([[_coordinate(x, column), _coordinate(y, row)] for column, row in known.places])
    rows = np.array(known.rows, dtype=np.float64)
    held = sum(known.batches[-POOLED:])
    return Surface(x, y, values, known.taken, points, rows, stated, held, model.name, complete, tuple(known.batches))


def _spread(known: _Known) -> float:
    return float(np.ptp(known.values[np.isfinite(known.values)]))


def _nodes(shape: tuple[int, int]) -> Floats:
    rows, columns = np.indices(shape)
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)


def _whole(places: Floats) -> NDArray[np.bool_]:
    return (places == np.round(places)).all(axis=1)  # type: ignore[no-any-return]


def _apart(places: Floats) -> NDArray[np.bool_]:
    """Leave out a point that lies almost on an earlier one: the equations would be singular."""
    keep = np.ones(len(places), dtype=bool)
    for index in np.flatnonzero(~_whole(places)):
        gaps = np.abs(places - places[index]).max(axis=1)
        keep[index] = not (gaps[keep & (np.arange(len(places)) != index)] < NEAR).any()
    return keep


def _steps(side: Floats, coordinate: float | Floats) -> Floats:
    found = (np.asarray(coordinate) - side[0]) / (side[-1] - side[0]) * (side.size - 1)
    near = np.abs(found - np.round(found)) < 1e-9
    snapped: Floats = np.where(near, np.round(found), found)
    return snapped


def _coordinate(side: Floats, place: float) -> float:
    return float(side[int(place)]) if place == int(place) else float(side[0] + place * (side[1] - side[0]))
