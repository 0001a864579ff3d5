"""Two-dimensional slices of the loss: what may be asked of them, how they are measured, and what is kept of them.

`measure_planes` does the work and `plane_values` turns it into JSON values, arrays and caveats; `_plane_figures` draws
from these. No torch at import time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Tick

if TYPE_CHECKING:
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective
    from probes.planes_curvature import Curvature, Held
    from probes.planes_layout import Laid, Slice, Wish
    from probes.surface import Surface

KINDS = ("random", "hessian", "checkpoints", "trajectory")
LAYING, BENDING = 0.05, 0.15  # of the progress: until the planes are laid, until the curvature is known
WORDS = {
    "measured": "BatchNorm statistics measured anew at each point",
    "running": "BatchNorm with the running statistics of the plane",
    "none": "no BatchNorm",
}


@dataclass(frozen=True)
class PlaneOptions:
    """How planes are laid and drawn.

    planes: how many; random planes of one seed are the same for every model of this shape; Hessian planes take the
    eigenvectors 1 and 2, then 3 and 4; planes through checkpoints the further checkpoints in turn; those of the
    trajectory its components 1 and 2, then 3 and 4. span: Euclidean distance in weight space: from the centre to the
    edge (random, hessian) or beyond the outermost checkpoint (checkpoints, trajectory); 0 chooses: the norm of all
    filters; where the quadratic model along the second eigenvector gains 1 nat (at most the norm of the weights); a
    fifth of the extent of the checkpoints. resolution: of the grid drawn, each way. error: the stated interpolation
    error to reach, a share of the range of the loss. budget: evaluations of each plane at most, 0 for a fifth of the
    grid. batch_norm: "measured" anew at each point, "running" as the checkpoints have them (moved affinely between
    checkpoints), or "auto": measured but for the Hessian, whose curvature is that of the running statistics. centre:
    "first" or "second" of the pair, "auto": the second where there is one; the last in time for a trajectory (planes
    through checkpoints begin at the first). curvature: estimate which share of the curvature a plane holds; some 30
    Hessian-vector products in all. tolerance: relative, of the eigenvalues. times: see `probes.series`.
    """

    planes: int = 1
    span: float = 0.0
    resolution: int = 51
    error: float = 0.005
    budget: int = 0
    batch_norm: str = "auto"
    centre: str = "auto"
    curvature: bool = True
    tolerance: float = 1e-4
    seed: int = 0
    times: str = ""


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes as far as they are known: `surfaces` may be fewer than there are slices, and the last one coarse."""

    kind: str
    laid: Laid
    surfaces: tuple[Surface, ...]
    held: tuple[Held | None, ...]
    about: Mapping[str, Any]
    goal: float
    doubts: tuple[str, ...]


def measure_planes(
    kind: str,
    objective: Objective,
    checkpoints: Sequence[Checkpoint],
    options: PlaneOptions,
    tick: Tick,
    show: Callable[[Planes], None] | None = None,
) -> Planes:
    """Lay planes of a kind (one of KINDS) and evaluate the loss on them, coarse first.

    objective: at the first of the checkpoints. show: is given what is known after the coarse grid and after each
    refinement. A killed run goes on from what the tick kept. Raises DataError (too few checkpoints), ModelError (they
    lie on a line), CurvatureError (Hessian planes only) or ObjectiveError (the loss is hardly anywhere finite).
    """
    from probes.batch_statistics import has_batch_norm
    from probes.planes_curvature import Under
    from probes.planes_layout import laid

    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; give one of {', '.join(KINDS)}")
    anew = options.batch_norm == "measured" or (options.batch_norm == "auto" and kind != "hessian")
    treatment = ("measured" if anew else "running") if has_batch_norm(objective) else "none"
    statistics = objective if treatment == "measured" else None
    store = Under(tick, "planes_")
    there = laid(objective, checkpoints, _wish(kind, options), statistics, store, _part(tick, 0, LAYING))
    held, doubts = _held(objective, there, statistics, options, store, _part(tick, LAYING, BENDING))
    about = _about(objective, there, treatment)
    base = Planes(kind, there, (), held, about, options.error, (*there.doubts, *doubts))
    found = base
    for found in _surveys(base, objective, statistics, options, tick):
        if show is not None:
            show(found)
    return found


def plane_values(planes: Planes) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return {"planes": [...]} of JSON values, arrays named after the planes, and caveats.

    Arrays of plane N: "plane_N_loss" (m, n), a row for each y, NaN where it is not known; "plane_N_evaluated" (m, n);
    "plane_N_at" (K, 2) the evaluated points and "plane_N_values" (K,) their losses; where there is an accuracy
    "plane_N_accuracy" (m, n) and "plane_N_right" (K,).
    """
    from analyzers._plane_values import arrays_of, caveats_of, values_of

    rows = [values_of(planes, index) for index in range(len(planes.surfaces))]
    arrays: dict[str, Any] = {}
    for index in range(len(planes.surfaces)):
        arrays |= arrays_of(planes, index)
    return {"planes": rows}, arrays, caveats_of(planes, rows)


def _wish(kind: str, options: PlaneOptions) -> Wish:
    from probes.planes_layout import Wish

    return Wish(
        kind, options.planes, options.span, options.resolution, options.centre, options.seed, options.tolerance,
        options.times,
    )  # fmt: skip


def _held(
    objective: Objective,
    there: Laid,
    statistics: Objective | None,
    options: PlaneOptions,
    store: Any,
    tick: Callable[[float, str], None],
) -> tuple[tuple[Held | None, ...], list[str]]:
    """Measure what the planes hold of the curvature at their centre; say why where that cannot be."""
    from probes.batch_statistics import renewed
    from probes.errors import CurvatureError
    from probes.planes_curvature import at_centre, curvature, held

    nothing: tuple[Held | None, ...] = (None,) * len(there.slices)
    if not options.curvature:
        return nothing, []
    centre = there.centre if statistics is None else renewed(statistics, there.centre)
    try:
        found: Curvature = there.curvature or curvature(at_centre(objective, centre), options.seed, store, tick)
        doubts = [] if there.curvature else list(found.doubts)
        return tuple(held(found, each.plane) for each in there.slices), doubts
    except CurvatureError as error:
        return nothing, [f"Which share of the curvature the planes hold is not known: {error}"]


def _surveys(
    base: Planes, objective: Objective, statistics: Objective | None, options: PlaneOptions, tick: Tick
) -> Iterator[Planes]:
    from probes.surface import Goal, surveyed

    budget = options.budget or options.resolution**2 // 5
    done: list[Surface] = []
    for index, slice in enumerate(base.laid.slices):
        share = (1 - BENDING) / len(base.laid.slices)
        start = BENDING + index * share
        evaluate = _Reader(index, slice, objective, statistics, budget, tick, _part(tick, start, start + share))
        marks = [(each.place.x, each.place.y) for each in slice.marks if each.role == "corner"]
        for surface in surveyed(evaluate, slice.x, slice.y, Goal(options.error, budget), marks):
            evaluate.keep()
            yield replace(base, surfaces=(*done, surface))
        done.append(surface)


class _Reader:
    """Evaluate points of one plane, each once in the life of a run: what was read is kept."""

    def __init__(
        self,
        index: int,
        slice: Slice,
        objective: Objective,
        statistics: Objective | None,
        budget: int,
        store: Tick,
        tick: Callable[[float, str], None],
    ) -> None:
        self._key, self._slice, self._objective, self._statistics = f"planes_{index}", slice, objective, statistics
        self._budget, self._store, self._tick, self._asked = budget, store, tick, 0
        self._words = f"plane {index + 1}: evaluation"
        kept = store.load(self._key)
        pairs = zip(kept["at"].tolist(), kept["rows"].tolist(), strict=True) if kept else ()
        self._known: dict[tuple[float, float], list[float]] = {(x, y): row for (x, y), row in pairs}
        self._kept = len(self._known)

    def __call__(self, x: float, y: float) -> list[float]:
        """Return the mean loss and, where there is one, the accuracy."""
        from probes.paths import read

        self._asked += 1
        if (x, y) not in self._known:
            found = read(self._objective, self._slice.plane.at(x, y), self._statistics)
            right = [] if found.accuracy is None else [float(found.accuracy[0])]
            self._known[x, y] = [float(found.loss[0]), *right]
            if len(self._known) - self._kept >= 20:
                self.keep()
        self._tick(min(1.0, self._asked / self._budget), f"{self._words} {self._asked} of {self._budget} at most")
        return self._known[x, y]

    def keep(self) -> None:
        """Keep what is new."""
        if len(self._known) > self._kept:
            at, rows = (np.array(list(each), dtype=np.float64) for each in (self._known, self._known.values()))
            self._store.save(self._key, {"at": at, "rows": rows})
            self._kept = len(self._known)


def _about(objective: Objective, there: Laid, treatment: str) -> dict[str, Any]:
    card = objective.card()
    return {
        "model": str(card["model"]),
        "examples": int(card["examples"]),
        "loss_name": str(card["loss"]),
        "mode": str(card["mode"]).split(":", maxsplit=1)[0],
        "dtype": str(card["dtype"]),
        "batch_norm": treatment,
        "batch_norm_words": WORDS[treatment],
        "centre": there.centre_label,
        "is_path": there.is_path,
        "loss_as_stored": _stored(objective, there),
    }


def _stored(objective: Objective, there: Laid) -> float | None:
    """Return the loss of the centre as it was saved, with its own running statistics."""
    from probes.paths import read

    loss = float(read(objective, there.centre).loss[0])
    return loss if np.isfinite(loss) else None


def _part(tick: Tick, start: float, stop: float) -> Callable[[float, str], None]:
    return lambda share, doing: tick(start + (stop - start) * share, doing)
