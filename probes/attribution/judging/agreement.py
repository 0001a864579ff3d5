"""Do methods agree on the same examples? Rank correlations, top features, signs, with intervals over examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.attribution.errors import AttributionError
from probes.attribution.judging.ranks import rank_scores
from probes.paths import interval, resamples

Floats = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]
TOP = 0.1
FEWEST = 3  # examples that an interval needs
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Table:
    """Means over examples for each pair of M methods, (M, M) each; NaN where no example has both.

    low, high: their 95 % percentile bootstrap intervals over examples, NaN below three examples. n: examples.
    """

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Agreement:
    """How methods agree. spearman: of the values as they are. overlap: share of the top features that two maps share
    (`chance` of random ones). signs: share of features with the same sign among those that both have one; NaN for maps
    without negative values, whose sign says nothing.
    """

    methods: tuple[str, ...]
    spearman: Table
    overlap: Table
    signs: Table
    top: float
    chance: float


def agreement(
    maps: Sequence[Mapping[str, Numbers | None]],
    *,
    special: Sequence[Sequence[bool]] = (),
    top: float = TOP,
    seed: int = 0,
) -> Agreement:
    """Compare methods over examples. maps: for each example the `Map.values` by method, None where there is none.

    special: for each example the tokens to leave out. top: the share of the features that counts as the top. Channels
    of images are added. Raises AttributionError where maps of one example do not fit one another.
    """
    if not 0 < top <= 1:
        raise AttributionError(f"top is {top:g}; give a share of the features above 0, 1 at most.")
    names = tuple(dict.fromkeys(name for each in maps for name in each))
    if not names:
        raise AttributionError("There are no maps to compare.")
    left_out = list(special) or [()] * len(maps)
    flat = [_flat(each, names, gone) for each, gone in zip(maps, left_out, strict=True)]
    works = (_spearman, lambda rows: _overlap(rows, top), _signs)
    spearman, overlap, signs = (_table(np.stack([work(each) for each in flat]), seed) for work in works)
    chances = [_count(each.shape[1], top) / each.shape[1] for each in flat]
    return Agreement(names, spearman, overlap, signs, top, float(np.mean(chances)))


def _flat(maps: Mapping[str, Numbers | None], names: tuple[str, ...], gone: Sequence[bool]) -> Floats:
    """Return one row for each method, (M, N); NaN where there is no map."""
    found = {name: _plane(each) for name, each in maps.items() if each is not None}
    sizes = {len(each) for each in found.values()}
    if len(sizes) > 1:
        raise AttributionError(f"The maps of one example have {sorted(sizes)} features; only maps of one size agree.")
    rows = np.full((len(names), sizes.pop() if sizes else 1), np.nan)
    for name, each in found.items():
        rows[names.index(name)] = each if np.isfinite(each).all() else np.nan
    return rows[:, ~np.array(gone, dtype=bool)] if len(gone) == rows.shape[1] else rows


def _plane(values: Numbers) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    return np.asarray(values.sum(0) if values.ndim == 3 else values).reshape(-1)


def _spearman(rows: Floats) -> Floats:
    ranks = np.stack([rank_scores(row) for row in rows])
    return np.asarray(ranks @ ranks.T)


def _count(size: int, top: float) -> int:
    return max(1, math.ceil(top * size - 1e-9))


def _overlap(rows: Floats, top: float) -> Floats:
    """Return the shares of common top features; equal values go in the order of the features."""
    count = _count(rows.shape[1], top)
    chosen = np.zeros(rows.shape)
    np.put_along_axis(chosen, np.argsort(-rows, axis=1, kind="stable")[:, :count], 1.0, axis=1)
    chosen[np.isnan(rows).any(1)] = np.nan
    return chosen @ chosen.T / count


def _signs(rows: Floats) -> Floats:
    signs = np.sign(rows)
    signs[~(rows < 0).any(1)] = np.nan
    both = np.abs(signs) @ np.abs(signs).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((signs @ signs.T + both) / (2 * both))


def _table(each: Floats, seed: int) -> Table:
    """Return means over examples (E, M, M) and their intervals; the same examples are drawn for every pair."""
    known = np.isfinite(each)
    n = known.sum(0)
    flat, present = np.where(known, each, 0).reshape(len(each), -1), known.reshape(len(each), -1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (flat.sum(0) / present.sum(0)).reshape(n.shape)
        low, high = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
        if len(each) >= FEWEST:
            weights = resamples(len(each), seed, RESAMPLES)
            draws = (weights @ flat) / (weights @ present)
            enough = n.reshape(-1) >= FEWEST
            ends = interval(np.where(np.isnan(draws), mean.reshape(-1), draws)[:, enough])
            low.reshape(-1)[enough], high.reshape(-1)[enough] = ends
    return Table(mean, low, high, n)
