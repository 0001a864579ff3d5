"""From a case and the user's settings to a game over segments, and from what it gives back to a map."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.baselines import baselines, default_baseline
from probes.attribution.coalitions import Estimate, Floats, Game
from probes.attribution.errors import AttributionError
from probes.attribution.language_parts import By, as_segments, parts_of
from probes.attribution.maps import Map, make_map
from probes.attribution.sampling import Keeps, Plan
from probes.attribution.segments import CELLS, Segments, cells, column_groups, regions, single, spans

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.methods import Settings, Tick

REGIONS = 49


@dataclass(frozen=True, eq=False)
class Players:
    """The segments of one example, and the game among those that differ from the baseline.

    active: (P,) numbers of the segments that play; the others equal the baseline, and their share is 0.
    """

    case: Case
    segments: Segments
    active: NDArray[np.int64]
    game: Game
    baseline: str

    def spread(self, values: Floats) -> Floats:
        """Lay the values of the players out like a map of the example; elements share evenly."""
        every = np.zeros(self.segments.count)
        every[self.active] = values
        channels = self.case.shape[0] if self.case.kind == "image" else 0
        return self.segments.spread(every, channels)

    def map(self, method: str, found: Estimate, *, complete: bool = False, notes: tuple[str, ...] = ()) -> Map:
        """Make the map of what was found for each player."""
        said = {"baseline": self.baseline, "segments": self.segments.unit, "players": self.game.count}
        spread = None if found.stderr is None or not np.isfinite(found.stderr).all() else self.spread(found.stderr)
        return make_map(
            self.case,
            method,
            torch.from_numpy(self.spread(found.values)),
            complete=complete,
            baseline_score=self.game.empty,
            stderr=None if spread is None else torch.from_numpy(spread),
            about={**said, "evaluations": self.game.evaluations, **found.about},
            notes=notes,
        )


def players_of(case: Case, settings: Settings, choose: Callable[[Case, Settings], Segments]) -> Players:
    """Set up the game: which segments there are, and what takes the place of those that are left out."""
    name, baseline = baseline_of(case, settings)
    segments = choose(case, settings)
    active = np.unique(segments.labels[_differing(case, baseline)])
    if not len(active):
        raise AttributionError(
            f"The example equals the baseline {name!r} everywhere, so nothing can be left out; choose another baseline."
        )
    place = np.full(segments.count, -1)
    place[active] = np.arange(len(active))
    labels = laid_out(case, place[segments.labels])
    game = Game(case.in_chunks, case.features, baseline, labels, len(active), case.chunk())
    game.know(case.score, case.score_at(baseline))
    return Players(case, segments, active, game, name)


def baseline_of(case: Case, settings: Settings, auto: str = "") -> tuple[str, Tensor]:
    """Return the name of the baseline and the baseline, (1, ...). auto: what "auto" means, else the model's default."""
    name = (auto or default_baseline(case)) if settings.baseline == "auto" else settings.baseline
    return name, baselines(case, name, count=1, seed=settings.seed).to(case.features)


def plan_of(case: Case, method: str, settings: Settings, tick: Tick, key: tuple[Any, ...] = ()) -> Plan:
    """Return how long to sample. key: what the numbers depend on, beside the case and the seed."""
    if settings.samples < 2:
        raise AttributionError(
            f"samples is {settings.samples}; sampling needs at least 2 rounds to know its standard error."
        )
    about = (method, case.kind, case.row, case.target, case.score, settings.seed, *key)
    digest = hashlib.sha256(repr(about).encode())
    digest.update(case.features.detach().cpu().contiguous().numpy().data)
    kept = cast("Keeps", tick) if hasattr(tick, "load") else _Forgetful(tick)
    return Plan(settings.samples, settings.tolerance, settings.seed, digest.hexdigest()[:40], method, kept)


def plan_of_players(players: Players, method: str, settings: Settings, tick: Tick) -> Plan:
    """Return how long to sample among players."""
    labels = hashlib.sha256(players.segments.labels.tobytes()).hexdigest()
    key = (players.baseline, players.game.empty, labels)
    return plan_of(players.case, method, settings, tick, key)


def cells_or_single(case: Case, settings: Settings) -> Segments:
    """Choose cells of an image, columns of a table, tokens of a text, unless the settings ask for others."""
    return _asked(case, settings) or (_cells(case) if case.kind == "image" else _single(case))


def regions_or_single(case: Case, settings: Settings) -> Segments:
    """Choose regions of like colour of an image, columns of a table, tokens of a text, unless others are asked for."""
    return _asked(case, settings) or (_regions(case) if case.kind == "image" else _single(case))


def few(case: Case, settings: Settings, most: int) -> Segments:
    """Choose as many segments as exact values allow: 3 by 3 cells, columns, spans of tokens."""
    if asked := _asked(case, settings):
        return asked
    if case.kind == "image":
        return _cells(case, across=3)
    length = case.shape[0]
    return _single(case) if length <= most or case.kind == "table" else spans(length, -(-length // most))


def laid_out(case: Case, labels: NDArray[Any]) -> NDArray[Any]:
    """Shape labels, or a mask laid out like them, so that they broadcast over one example's features."""
    if case.kind == "image":
        return labels[None]
    return labels[:, None] if case.embedding else labels


def refuse_single(case: Case) -> str | None:
    """Refuse features that are no image, row or sequence, and examples of a single feature."""
    if case.kind == "table" and len(case.shape) != 1:
        return (
            f"An example has the shape {tuple(case.shape)}, neither an image (C, H, W) nor a row of a table, so it is "
            "not known what to leave out together. Choose a gradient method, such as integrated gradients."
        )
    if int(np.prod(case.shape)) == 1:
        return "The example has a single feature, which has the whole score; there is nothing to divide."
    return None


def _asked(case: Case, settings: Settings) -> Segments | None:
    """Return the segments that the settings name (`over`, else `window`); None where they leave the choice."""
    makers: Mapping[tuple[str, str], Callable[[], Segments]] = {
        ("image", "cells"): lambda: _cells(case, settings.window),
        ("image", "regions"): lambda: _regions(case),
        ("table", "columns"): lambda: _single(case),
        ("table", "groups"): lambda: column_groups(case.names),
    }
    kind = "text" if case.embedding else case.kind
    if kind == "text" and settings.over in get_args(By):
        return _parts(case, cast("By", settings.over))
    if (kind, settings.over) in makers:
        return makers[kind, settings.over]()
    if settings.window and kind == "image":
        return _cells(case, settings.window)
    return spans(case.shape[0], settings.window) if settings.window and kind == "text" else None


def _cells(case: Case, window: int = 0, across: int = CELLS) -> Segments:
    return cells(case.shape[-2], case.shape[-1], window, across)


def _single(case: Case) -> Segments:
    return single(case.shape[0], "tokens" if case.embedding else "columns")


def _parts(case: Case, by: By) -> Segments:
    return _single(case) if by == "tokens" else as_segments(parts_of(case, by), "parts" if by == "auto" else by)


def _regions(case: Case) -> Segments:
    return regions(case.features[0].detach().double().cpu().numpy(), REGIONS)


def _differing(case: Case, baseline: Tensor) -> NDArray[np.bool_]:
    """Tell where the example differs from the baseline, laid out like labels."""
    differs = case.features[0] != baseline[0]
    axis = 0 if case.kind == "image" else -1
    return np.asarray((differs.any(axis) if differs.ndim > 1 else differs).cpu().numpy())


@dataclass(frozen=True)
class _Forgetful:
    """A tick that reports, and keeps nothing."""

    tick: Tick

    def __call__(self, share: float, doing: str) -> None:
        self.tick(share, doing)

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep nothing."""

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:  # noqa: ARG002
        """Return None: nothing was kept."""
        return None
