"""The training examples that helped and hurt a prediction most, and whether they would for any other example too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.errors import ObjectiveError
from probes.influence.products import Floats
from probes.losses import counted
from probes.objective import Objective


@dataclass(frozen=True)
class Ranking:
    """Rows of the training examples of influence above zero, the largest first, and below zero, the least first."""

    helped: tuple[int, ...]
    hurt: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Return both lists."""
        return (*self.helped, *self.hurt)


@dataclass(frozen=True)
class Beside:
    """The lists of one example beside those of random ones.

    shared: the mean share of both lists that is in either of a random example's; shared_helped, shared_hurt: of each
    list in its like; None where a list is empty. chance: what a list drawn at random shares with its like. correlation:
    mean rank correlation of the influences; None where there is none. typical: (N,) the mean influence of each training
    example on the random ones.
    """

    shared: float | None
    shared_helped: float | None
    shared_hurt: float | None
    chance: float
    correlation: float | None
    typical: Floats


@dataclass(frozen=True)
class Losses:
    """Of each example its mean loss over its units, (N,), NaN where it has none."""

    values: Floats

    @property
    def known(self) -> NDArray[np.intp]:
        """Return the rows of examples that have a loss."""
        return np.flatnonzero(np.isfinite(self.values))


def ranking(influence: Floats, top: int, without: Sequence[int] = ()) -> Ranking:
    """Return up to `top` examples of each kind of influence (N,); without: rows that are not listed."""
    order = np.argsort(-influence, kind="stable")
    order = order[~np.isin(order, list(without))]
    above, below = order[influence[order] > 0], order[::-1][influence[order[::-1]] < 0]
    return Ranking(tuple(above[:top].tolist()), tuple(below[:top].tolist()))


def beside(influence: Floats, others: Floats, top: int, without: Sequence[int] = ()) -> Beside:
    """Compare an influence (N,) with those on K random examples (N, K), NaN where one is not compared.

    without: rows that are not listed.
    """
    mine, shared, correlations = ranking(influence, top, without), [], []
    listed = ~np.isin(np.arange(len(influence)), list(without))
    for column in others.T:
        theirs, kept = ranking(column, top, without), listed & np.isfinite(column)
        correlations.append(_correlation(influence[kept], column[kept]))
        pairs = ((mine.all, theirs.all), (mine.helped, theirs.helped), (mine.hurt, theirs.hurt))
        shared.append([_share(*pair) for pair in pairs])
    counts = np.isfinite(others).sum(1)
    typical = np.divide(np.nansum(others, 1), counts, out=np.full(len(influence), np.nan), where=counts > 0)
    both, helped, hurt = (_mean([each[place] for each in shared]) for place in range(3))
    return Beside(both, helped, hurt, min(top / max(int(listed.sum()), 1), 1.0), _mean(correlations), typical)


def losses_of(objective: Objective) -> Losses:
    """Return the loss of each example, averaged over its units."""
    counts = counted(objective.loss, objective.targets).cpu().numpy().astype(float)
    counts[counts == 0] = np.nan
    return Losses(objective.example_losses() / counts)


def row_of(wanted: str, ids: Sequence[str], losses: Losses) -> int:
    """Return the row of an example: "worst" the one of the highest loss, else the one of this id, else of this number.

    Raises ObjectiveError.
    """
    word = wanted.strip()
    if not len(losses.known):
        raise ObjectiveError("No example has a loss: no token of any sequence is predicted.")
    if word.lower() in ("worst", ""):
        return int(losses.known[np.argmax(losses.values[losses.known])])
    row = ids.index(word) if word in ids else int(word) if word.isascii() and word.isdigit() else -1
    if not 0 <= row < len(ids):
        raise ObjectiveError(
            f"No example is called {word[:80]!r}; the first is {ids[0][:80]!r}. Give an id, a number from 0 to "
            f"{len(ids) - 1}, or the word worst."
        )
    if row not in losses.known:
        raise ObjectiveError(f"Example {ids[row][:80]!r} has no loss: none of its tokens is predicted. Choose another.")
    return row


def _share(mine: Sequence[int], theirs: Sequence[int]) -> float | None:
    return len(set(mine) & set(theirs)) / len(mine) if mine else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return float(np.mean(known)) if known else None


def _correlation(one: Floats, other: Floats) -> float | None:
    from scipy.stats import rankdata

    a, b = (rankdata(each) - (len(each) + 1) / 2 for each in (one, other))
    sizes = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / sizes if sizes > 0 else None
