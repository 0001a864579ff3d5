"""What every example says along a line, read place by place and refined where the losses bend."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.batch_statistics import has_batch_norm, renewed
from probes.lines import Line, refined
from probes.losses import IGNORED, Tally, joined, tally
from probes.objective import Objective
from probes.paths import Readings, read
from probes.points import Point, at
from probes.strict import strict

Floats = NDArray[np.float64]
Row = dict[str, NDArray[Any]]  # what is read at one place
TOLERANCE = 0.0025  # of the range: how far straight lines between the places may be from the curve
WATCHED = 1000  # predictions, at most, whose outputs are followed
HELD = 2**25  # numbers, at most, that these outputs are in all
SECONDS_BETWEEN_SAVES = 15.0
ONCE = ("counts", "test_counts")  # the same at every place


class Keeps(Protocol):
    """What reports, and keeps arrays for a later attempt; `analyzers._base.Tick` is one."""

    def __call__(self, share: float, doing: str) -> None:
        """Report the share that is done, and what is being done."""

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays."""

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return what was kept."""


@dataclass(frozen=True, eq=False)
class LineReadings:
    """What was read at K places of a line.

    alpha: (K,), rising. uncorrected: loss, accuracy, test loss, test accuracy (NaN where there is none) with
    BatchNorm's statistics as interpolated, (K, 4), or None. outputs: of n predictions, (K, n, C), or None. error:
    estimated, of straight lines between the places, as a share of the range.
    """

    alpha: Floats
    data: Readings
    test: Readings | None
    uncorrected: Floats | None
    outputs: NDArray[Any] | None
    error: float


class Reader:
    """Reads data and test data at points.

    renew: measure BatchNorm's statistics anew on the objective's examples at each point; nothing without BatchNorm.
    beside: read each point with the statistics that it has, too. follow: for how many points the outputs of some
    predictions are kept; 0 for none. tests: read the test data, too.
    """

    def __init__(
        self, objective: Objective, *, renew: bool, beside: bool = False, follow: int = 0, tests: bool = True
    ) -> None:
        self.objective, self.test = objective, objective.on_test() if tests else None
        self.renews = renew and has_batch_norm(objective)
        self._beside = self.renews and beside
        self._watched = _watched(objective, follow) if follow and objective.own is None else None
        self._counts: dict[str, NDArray[Any]] = {}

    def row(self, point: Point) -> Row:
        """Read a point; raise ObjectiveError (memory)."""
        here = renewed(self.objective, point) if self.renews else point
        found = self._data(here)
        if self.test is not None:
            found |= self._named("test_", read(self.test, here))
        if self._beside:
            found["uncorrected"] = np.array(self._as_they_are(point))
        return found

    def _data(self, point: Point) -> Row:
        if self._watched is None:
            return self._named("", read(self.objective, point))
        found, outputs = _with_outputs(at(self.objective, point), self._watched)
        right = None if found.right is None else found.right.double().cpu().numpy()[None]
        losses, counts = (each.double().cpu().numpy() for each in (found.losses, found.counts))
        return self._named("", Readings(losses[None], right, counts)) | {"outputs": outputs.numpy()}

    def _named(self, prefix: str, found: Readings) -> Row:
        counts = self._counts.setdefault(f"{prefix}counts", found.counts)
        right = {} if found.right is None else {f"{prefix}right": found.right[0]}
        return {f"{prefix}losses": found.losses[0], f"{prefix}counts": counts, **right}

    def _as_they_are(self, point: Point) -> list[float]:
        means: list[float] = []
        for objective in (self.objective, self.test):
            found = None if objective is None else read(objective, point)
            means.append(math.nan if found is None else float(found.loss[0]))
            means.append(math.nan if found is None or found.accuracy is None else float(found.accuracy[0]))
        return means


def walked(
    reader: Reader, line: Line, places: Sequence[float], budget: int, key: str, tick: Keeps, share: tuple[float, float]
) -> LineReadings:
    """Read a line at these places and, within the budget, at more of them where the losses bend.

    key: what an earlier attempt kept under it is not read again. share: from where to where this moves the progress.
    Raises ObjectiveError (memory).
    """
    rows = _rows(tick.load(key))
    most, saved = len(places) + budget, time.monotonic()

    def curves_at(alpha: float) -> list[float]:
        nonlocal saved
        if alpha not in rows:
            rows[alpha] = reader.row(line.at(alpha))
            done = min(1.0, len(rows) / most)
            tick(share[0] + (share[1] - share[0]) * done, f"losses at alpha = {alpha:.4g}")
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                tick.save(key, _table(rows))
                saved = time.monotonic()
        return [float(rows[alpha][name].mean()) for name in ("losses", "test_losses") if name in rows[alpha]]

    found = refined(curves_at, places, budget, TOLERANCE)
    return readings_of({alpha: rows[alpha] for alpha in found.alpha}, found.error)


def readings_of(rows: Mapping[float, Row], error: float = 0.0) -> LineReadings:
    """Put the rows of K places together."""
    table = _table(rows)
    pick = lambda prefix: Readings(table[f"{prefix}losses"], table.get(f"{prefix}right"), table[f"{prefix}counts"])
    test = pick("test_") if "test_losses" in table else None
    return LineReadings(table["alpha"], pick(""), test, table.get("uncorrected"), table.get("outputs"), error)


def _table(rows: Mapping[float, Row]) -> dict[str, NDArray[Any]]:
    places = sorted(rows)
    first = rows[places[0]]
    table = {name: first[name] if name in ONCE else np.stack([rows[each][name] for each in places]) for name in first}
    return {"alpha": np.array(places), **table}


def _rows(table: Mapping[str, NDArray[Any]] | None) -> dict[float, Row]:
    if table is None:
        return {}
    names = [name for name in table if name != "alpha"]
    pick = lambda number: {name: table[name] if name in ONCE else table[name][number] for name in names}
    return {alpha: pick(number) for number, alpha in enumerate(table["alpha"].tolist())}


def _watched(objective: Objective, points: int) -> Tensor | None:
    """Choose predictions, spread evenly over all that count, whose outputs at so many points are not too much."""
    with torch.no_grad(), strict(objective.module):
        width = _by_prediction(objective, objective.outputs(objective.theta, slice(0, 1))).shape[1]
    rows = torch.arange(len(objective.inputs))
    if objective.loss == "causal_lm":
        rows = (objective.targets.flatten() != IGNORED).nonzero().flatten().cpu()
    count = min(len(rows), WATCHED, HELD // (width * points))
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()] if count else None


def _by_prediction(objective: Objective, outputs: Tensor) -> Tensor:
    return outputs.flatten(0, 1) if objective.loss == "causal_lm" else outputs.flatten(1)


def _with_outputs(objective: Objective, watched: Tensor) -> tuple[Tally, Tensor]:
    """Read the objective's point as `Objective.tallied` does; return the outputs of these predictions (n, C), too."""

    def work() -> tuple[list[Tally], list[Tensor]]:
        tallies, kept, seen = [], [], 0
        for part in objective.parts():
            with torch.no_grad(), strict(objective.module):
                outputs = objective.outputs(objective.theta, part)
                tallies.append(tally(objective.loss, outputs, objective.targets[part].to(objective.device)))
            flat = _by_prediction(objective, outputs)
            mine = watched[(watched >= seen) & (watched < seen + len(flat))] - seen
            kept.append(flat[mine.to(flat.device)].cpu())
            seen += len(flat)
        return tallies, kept

    tallies, kept = objective.in_memory(work)
    return joined(tallies), torch.cat(kept)
