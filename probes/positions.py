"""Positions of units along an axis, as short text: `0:512`, `0:1600/25`, `0:64%9`, `0:8,24:32`, `0:64+128:192`.

`a:b` is a position for each unit, `a:b:s` every s-th. `a:b/k` gives each unit k positions in a row (`a:b:s/k`: the
rows begin s apart); `a:b%k` deals k positions to each unit, round by round. A comma goes on with further units; a plus
gives the same units further positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from probes.permutations import Indices

_PIECE = re.compile(r"(\d{1,12})(?::(\d{1,12})(?::(\d{1,12}))?)?(?:([/%])(\d{1,12}))?")
_LARGEST = 1 << 26  # positions in one text


class WrongPositions(ValueError):
    """A text that is no positions; the message says why."""


def written(index: Indices) -> str:
    """Write positions (units, slots) down."""
    parts: list[str] = []
    slot = 0
    while slot < index.shape[1]:
        count, text = _part(index[:, slot:])
        parts.append(text)
        slot += count
    return "+".join(parts)


def read(text: str, largest: int = _LARGEST) -> Indices:
    """Read positions (units, slots); raise WrongPositions, also where there are more than `largest`."""
    parts = [_read_part(part, largest) for part in text.replace(" ", "").split("+")]
    if len({len(each) for each in parts}) > 1:
        found = " and ".join(str(len(each)) for each in parts)
        raise WrongPositions(f"the parts joined by + have {found} units; they must have as many")
    return np.concatenate(parts, axis=1)


def _part(index: Indices) -> tuple[int, str]:
    """Write as many of the first slots as go together; return how many, and the text."""
    units, slots = index.shape
    row = _alike(index, index[:, :1] + np.arange(slots))
    dealt = _alike(index, index[:, :1] + units * np.arange(slots))
    starts = index[:, 0]
    if dealt > row and bool((np.diff(starts) == 1).all()):
        return dealt, f"{starts[0]}:{starts[0] + units * dealt}%{dealt}"
    if row > 1:
        return row, ",".join(_runs(starts, row, f"/{row}"))
    return 1, ",".join(_runs(starts, 1, ""))


def _alike(index: Indices, other: Indices) -> int:
    """Count the leading slots in which two agree."""
    same = (index == other).all(axis=0)
    return int(np.argmin(same)) if not bool(same.all()) else len(same)


def _runs(starts: Indices, width: int, end: str) -> Iterator[str]:
    """Write positions as runs of equal steps; width: positions that each takes."""
    at = 0
    while at < len(starts):
        stop = _run(starts, at)
        step = int(starts[at + 1] - starts[at]) if stop > at + 1 else width
        last = int(starts[stop - 1]) + width
        if stop - at == 1 and width == 1:
            yield f"{starts[at]}"
        else:
            yield f"{starts[at]}:{last}{f':{step}' if step != width else ''}{end}"
        at = stop


def _run(starts: Indices, at: int) -> int:
    """Return where a run of equal, rising steps ends; two positions that are apart are no run."""
    steps = np.diff(starts[at:])
    if not len(steps) or steps[0] < 1:
        return at + 1
    other = np.flatnonzero(steps != steps[0])
    length = int(other[0]) + 1 if len(other) else len(steps) + 1
    return at + (length if length > 2 or steps[0] == 1 or not len(other) else 1)


def _read_part(text: str, largest: int) -> Indices:
    pieces = [_read_piece(piece, largest) for piece in text.split(",")]
    if len({each.shape[1] for each in pieces}) > 1:
        found = " and ".join(str(each.shape[1]) for each in pieces)
        raise WrongPositions(f"the parts joined by a comma give each unit {found} positions; they must give as many")
    return np.concatenate(pieces)


def _read_piece(text: str, largest: int) -> Indices:
    found = _PIECE.fullmatch(text)
    if found is None:
        raise WrongPositions(f"{text!r:.60} are no positions; write them like 0:512, 0:1600/25 or 3")
    start, stop, step, sign, count = found.groups()
    first, width = int(start), int(count or 1)
    last = int(stop) if stop is not None else first + width
    by = int(step) if step is not None else (width if sign == "/" else 1)
    if by < 1 or width < 1 or last <= first:
        raise WrongPositions(f"{text!r:.60} holds no position")
    if last > largest or width > largest:
        raise WrongPositions(f"{text!r:.60} goes beyond the {largest} positions that there are")
    if sign == "%":
        return _dealt(first, last, width, text)
    starts = np.arange(first, last - width + 1, by, dtype=np.int64)
    if not len(starts) or int(starts[-1]) + width != last:
        raise WrongPositions(f"{text!r:.60} does not end with a whole unit")
    return starts[:, None] + np.arange(width, dtype=np.int64)


def _dealt(first: int, last: int, rounds: int, text: str) -> Indices:
    units, rest = divmod(last - first, rounds)
    if rest:
        raise WrongPositions(f"{text!r:.60} does not deal each unit as many positions")
    return np.arange(first, last, dtype=np.int64).reshape(rounds, units).T.copy()
