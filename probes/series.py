"""The checkpoints of a training run on a time axis: epochs or steps as typed, as the files say, or as they are named.

No torch here: pages order checkpoints with it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

from probes.errors import DataError

Unit = Literal["epoch", "step", "position"]
_NAMED = (
    (re.compile(r"(?:^|[^a-z])(?:epochs?|ep|e)[-_=. ]?(\d+(?:\.\d+)?)(?![\d])", re.IGNORECASE), "epoch"),
    (
        re.compile(
            r"(?:^|[^a-z])(?:global[-_]?step|steps?|iteration|iters?|it|checkpoint|ckpt)[-_=. ]?(\d+)(?!\d)",
            re.IGNORECASE,
        ),
        "step",
    ),
)
_INITIAL = re.compile(r"(?:^|[^a-z])(?:init|initial|initiali[sz]ation|at[-_]init)(?![a-z])", re.IGNORECASE)
_ENDING = re.compile(r"\.(safetensors|pth?|ckpt|bin|zip|gguf|npz|tar|th)$", re.IGNORECASE)


class Named(Protocol):
    """What is known of a checkpoint; facts may hold "epoch" and "step"."""

    @property
    def name(self) -> str:
        """Return the name of the file."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return what the file says besides its tensors."""


@dataclass(frozen=True)
class Series:
    """Checkpoints in the order of time.

    order: their places in what was given. times: in that order, in `unit`, which is "position" (0, 1, 2, ...) where
    neither files nor names nor the user say more. source: "typed", "file", "name" or "order". starts: whether the first
    is the initialisation, as far as its time says (0). doubts: sentences for the reader.
    """

    order: tuple[int, ...]
    times: tuple[float, ...]
    unit: Unit
    source: str
    starts: bool
    doubts: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Return each time in words: "epoch 50"."""
        words = "checkpoint" if self.unit == "position" else self.unit
        return tuple(f"{words} {time:.12g}" for time in self.times)


def series(checkpoints: Iterable[Named], typed: str = "") -> Series:
    """Order the checkpoints of a training run.

    typed: epochs (or, after the word "step", steps), one for each checkpoint in the order given, separated by commas or
    spaces; "" to read them from the files, else from their names, else to keep the order. Raises DataError when they do
    not fit, or two checkpoints have the same time.
    """
    given = tuple(checkpoints)
    if not given:
        raise DataError("A training run needs at least one checkpoint.")
    times, unit, source, doubts = _typed(typed, len(given)) if typed.strip() else _found(given)
    order = tuple(sorted(range(len(given)), key=lambda index: times[index]))
    for one, two in pairwise(order):
        if times[one] == times[two]:
            raise DataError(
                f"{given[one].name} and {given[two].name} are both of {unit} {times[one]:.12g}. "
                "Type the epoch or step of each checkpoint, or take one of them away."
            )
    ordered = tuple(times[index] for index in order)
    return Series(order, ordered, unit, source, unit != "position" and ordered[0] == 0, doubts)


def _typed(text: str, count: int) -> tuple[tuple[float, ...], Unit, str, tuple[str, ...]]:
    unit: Unit = "step" if re.search(r"step|iter", text, re.IGNORECASE) else "epoch"
    words = re.sub(r"(steps?|epochs?|iter[a-z]*):?", " ", text, flags=re.IGNORECASE)
    try:
        times = tuple(float(each) for each in re.split(r"[,;\s]+", words.strip()) if each)
    except ValueError:
        times = (math.nan,)
    if not all(math.isfinite(each) and each >= 0 for each in times):
        raise DataError(f"The epochs or steps are {text[:80]!r}; give numbers from 0 on, separated by commas.")
    if len(times) != count:
        raise DataError(f"There are {len(times)} epochs or steps for {count} checkpoints; give one for each.")
    return times, unit, "typed", ()


def _found(given: tuple[Named, ...]) -> tuple[tuple[float, ...], Unit, str, tuple[str, ...]]:
    """Take what all of them have: in the files, else in their names; the initialisation may be known by its name."""
    ways = [("file", "epoch"), ("file", "step"), ("name", "epoch"), ("name", "step")]
    for source, unit in ways:
        times = [_said(each, unit) if source == "file" else _in_name(each.name, unit) for each in given]
        known = [each for each in times if each is not None]
        filled = [
            0.0 if each is None and _INITIAL.search(one.name) else each for each, one in zip(times, given, strict=True)
        ]
        if len(known) and all(each is not None for each in filled) and len(set(filled)) == len(filled):
            return tuple(float(each or 0) for each in filled), ("epoch" if unit == "epoch" else "step"), source, ()
    doubt = "Neither the files nor their names tell epochs or steps: the checkpoints stand in the order given."
    return tuple(map(float, range(len(given)))), "position", "order", (doubt,) if len(given) > 1 else ()


def _said(each: Named, unit: str) -> float | None:
    value = each.facts.get(unit)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _in_name(name: str, unit: str) -> float | None:
    bare = _ENDING.sub("", name)
    for pattern, what in _NAMED:
        if what == unit and (found := pattern.findall(bare)):
            return float(found[-1])
    return 0.0 if _INITIAL.search(bare) else None
