"""Which rows of a result of `predictions` a gallery shows: by a filter, sorted, a page at a time. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzers._base import Arrays
from probes.errors import DataError

Rows = NDArray[np.int64]
FILTERS = {
    "all": "Every example, in the order of the data",
    "wrong": "Wrong",
    "uncertain": "Least sure",
    "surely wrong": "Wrong, highest loss first",
    "class": "Of one class",
    "pair": "Of one class, predicted as another",
    "disagreement": "Two checkpoints disagree",
    "found": "Found by another analysis",
    "random": "At random",
}
SORTS = {  # by -> whether high values come first
    "row": False,
    "loss": True,
    "entropy": True,
    "gap": False,
    "margin": False,
    "probability": False,
    "label_probability": False,
}
_USUAL = {"uncertain": "gap", "surely wrong": "loss", "class": "loss", "pair": "loss"}


@dataclass(frozen=True)
class Chosen:
    """Rows on a page, in order; total: rows that the filter leaves; pages: how many pages there are, 1 at least."""

    rows: tuple[int, ...]
    total: int
    pages: int


def choose(
    arrays: Arrays,
    filter: str = "all",
    *,
    checkpoint: int = -1,
    other: int = 0,
    label: int | None = None,
    predicted: int | None = None,
    found: Sequence[int] = (),
    seed: int = 0,
    sort: str = "",
    ascending: bool | None = None,
    page: int = 0,
    count: int = 0,
) -> Chosen:
    """Choose rows of the data.

    arrays: those of a result of `predictions`: label (N,), prediction, loss, gap and so on (K, N). filter: a key of
    FILTERS; "class" and "pair" need `label`, "pair" also `predicted`, "disagreement" compares `checkpoint` with
    `other`, "found" takes the rows in `found` and keeps their order. sort: a key of SORTS, "" the filter's own order;
    NaN come last, equal ones in the order of the data. count: rows on a page, 0 for all; a page past the end is the
    last one. Raises DataError (unknown filter, sort, class, checkpoint).
    """
    checkpoint, other = (_checkpoint(arrays, each) for each in (checkpoint, other))
    if filter not in FILTERS:
        raise DataError(f"There is no filter {filter!r}; choose {', '.join(FILTERS)}.")
    if sort and sort not in SORTS:
        raise DataError(f"Examples cannot be sorted by {sort!r}; choose {', '.join(SORTS)}.")
    rows = _filtered(arrays, filter, checkpoint, other, label, predicted, found)
    if sort or filter in _USUAL:
        by = sort or _USUAL[filter]
        rows = _sorted(rows, _key(arrays, by, checkpoint), ascending, SORTS[by])
    elif filter == "disagreement":
        rows = _sorted(rows, np.abs(_change(arrays, checkpoint, other)), ascending, high_first=True)
    elif filter == "random":
        rows = np.random.default_rng(seed).permutation(rows)
    elif ascending is False:
        rows = rows[::-1]
    return _paged(rows, page, count)


def is_wrong(arrays: Arrays, checkpoint: int = -1) -> NDArray[np.bool_]:
    """Tell which examples a checkpoint gets wrong, (N,): another class than the label; False where there is no class.

    Of several yes-or-no answers one wrong answer is enough.
    """
    label, prediction, right = arrays["label"], arrays["prediction"][checkpoint], arrays["right"][checkpoint]
    if label.dtype.kind != "i":
        return np.zeros(len(label), dtype=bool)
    wrong: NDArray[np.bool_] = np.where(label >= 0, prediction != label, right < 1)
    return wrong


def page_of(chosen: Sequence[int], row: int, count: int) -> int:
    """Return the page on which a row is, of all chosen rows; 0 where it is on none."""
    return list(chosen).index(row) // count if count > 0 and row in chosen else 0


def shown_place(arrays: Arrays, row: int) -> int | None:
    """Return the place of a row in `thumbnails`, `raw` or "texts"; None where it is not among them."""
    rows = arrays.get("shown_rows")
    if rows is None:
        return None
    place = int(np.searchsorted(rows, row))
    return place if place < len(rows) and rows[place] == row else None


def _filtered(
    arrays: Arrays,
    filter: str,
    checkpoint: int,
    other: int,
    label: int | None,
    predicted: int | None,
    found: Sequence[int],
) -> Rows:
    everything = np.arange(arrays["loss"].shape[1], dtype=np.int64)
    if filter == "found":
        asked = np.asarray(list(dict.fromkeys(found)), dtype=np.int64)
        return _where(asked, (asked >= 0) & (asked < len(everything)))
    guesses = arrays["prediction"]
    if filter == "wrong" or (filter == "surely wrong" and _is_judged(arrays, checkpoint)):
        return _where(everything, is_wrong(arrays, checkpoint))
    if filter == "uncertain":
        return _where(everything, np.isfinite(arrays["gap"][checkpoint]))
    if filter == "disagreement":
        one, two = guesses[checkpoint], guesses[other]
        return _where(everything, (one != two) & (one == one) & (two == two))  # none where one is not a number
    if filter in ("class", "pair"):
        return _where(everything, _of_pair(arrays["label"], guesses[checkpoint], label, predicted, filter))
    return everything


def _where(rows: Rows, kept: NDArray[np.bool_]) -> Rows:
    return np.asarray(rows[kept], dtype=np.int64)


def _is_judged(arrays: Arrays, checkpoint: int) -> bool:
    return arrays["label"].dtype.kind == "i" and bool(np.isfinite(arrays["right"][checkpoint]).any())


def _of_pair(labels: Any, guesses: Any, label: int | None, predicted: int | None, filter: str) -> NDArray[np.bool_]:
    if label is None or (filter == "pair" and predicted is None):
        needed = "a label" if filter == "class" else "a label and a predicted class"
        raise DataError(f"The filter {filter!r} needs {needed}; give their numbers.")
    found: NDArray[np.bool_] = labels == label
    return found & (guesses == predicted) if filter == "pair" else found


def _key(arrays: Arrays, by: str, checkpoint: int) -> NDArray[Any]:
    return np.arange(arrays["loss"].shape[1]) if by == "row" else arrays[by][checkpoint]


def _change(arrays: Arrays, checkpoint: int, other: int) -> NDArray[Any]:
    probable = arrays["label_probability"]
    kind = probable if np.isfinite(probable[[checkpoint, other]]).any() else arrays["loss"]
    change: NDArray[Any] = kind[checkpoint] - kind[other]
    return change


def _sorted(rows: Rows, key: NDArray[Any], ascending: bool | None, high_first: bool) -> Rows:
    values = np.asarray(key, np.float64)[rows]
    down = high_first if ascending is None else not ascending
    return rows[np.argsort(-values if down else values, kind="stable")]  # NaN last either way


def _paged(rows: Rows, page: int, count: int) -> Chosen:
    if count <= 0:
        return Chosen(tuple(rows.tolist()), len(rows), 1)
    pages = max(1, -(-len(rows) // count))
    page = min(max(page, 0), pages - 1)
    return Chosen(tuple(rows[page * count : (page + 1) * count].tolist()), len(rows), pages)


def _checkpoint(arrays: Arrays, number: int) -> int:
    count = len(arrays["loss"])
    if not -count <= number < count:
        raise DataError(f"There is no checkpoint {number}; the result has {count} (0 to {count - 1}).")
    return number % count
