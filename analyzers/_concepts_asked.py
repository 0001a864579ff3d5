"""Which examples show the concept, which class is meant, and which examples the concept is compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.errors import DataError

if TYPE_CHECKING:
    from probes.objective import Objective

RANGE = re.compile(r"([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?")
RANDOM = 6  # times as many random examples as are taken of the concept


@dataclass(frozen=True)
class Rows:
    """Rows of the data. shown, random: of the concept, and drawn from the rest; own: of the class. each: found at all.

    each: how many examples of concept, rest and class there are, before some were drawn. shared: how many of `shown`
    are of the class.
    """

    shown: tuple[int, ...]
    random: tuple[int, ...]
    own: tuple[int, ...]
    each: tuple[int, int, int]
    shared: int


def rows_of(text: str, labels: Sequence[float], classes: Sequence[str]) -> list[int]:
    """Return the rows that a text names: "3, 5, 8-20", or all of a label: "label 4", "label cat". Raises DataError."""
    words = text.strip()
    if words.lower().startswith("label"):
        known = [int(each) for each in labels if math.isfinite(each)]
        wanted = class_named(words[len("label") :], max(known, default=-1) + 1, classes)
        found = np.flatnonzero(np.asarray(labels) == wanted).tolist()
        if not found:
            raise DataError(f"No example has the label {_short(words[len('label') :].strip())}.")
        return found
    parts = [each.strip() for each in words.split(",") if each.strip()]
    matches = [RANGE.fullmatch(each) for each in parts]
    if not parts or not all(matches):
        raise DataError(
            f"The examples of the concept are given as {_short(text)}; give row numbers, as 3, 5, 8-20, or a label, as "
            "label 4."
        )
    ends = [(int(each[1]), int(each[2] or each[1])) for each in matches if each]
    beyond = next((end for pair in ends for end in pair if end >= len(labels)), None)
    if beyond is not None:
        raise DataError(f"There is no example {beyond}; the data has {len(labels)}, from 0 to {len(labels) - 1}.")
    return sorted({row for first, last in ends for row in range(min(first, last), max(first, last) + 1)})


def class_named(text: str, count: int, classes: Sequence[str]) -> int:
    """Return the number of a class that is named or numbered; raise DataError where there is none."""
    word = text.strip()
    if word in classes:
        return list(classes).index(word)
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < count:
        return int(word)
    known = ", ".join(_short(each) for each in list(classes)[:8])
    raise DataError(
        f"There is no class {_short(word)}; give a number from 0 to {count - 1}{f' or a name: {known}' * bool(known)}."
    )


def labels_of(objective: Objective) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the class of each example; raise DataError where the data has none."""
    from probes.head_alignment import class_of

    if objective.loss != "cross_entropy":
        raise DataError(f"Concepts are tested on classes, and the loss {objective.loss} has none; use cross-entropy.")
    return np.asarray(class_of(objective.batches.targets).numpy())


def drawn(objective: Objective, shown: Sequence[int], own: Sequence[int], most: int, seed: int) -> Rows:
    """Draw at most so many examples of the concept and of the class, and of the rest six times as many."""
    rest = np.setdiff1d(np.arange(len(objective.inputs)), shown)
    draw = np.random.default_rng([seed, 2])
    few = lambda rows, count: tuple(np.sort(draw.permutation(rows)[:count]).tolist())
    kept, each = few(shown, most), (len(shown), len(rest), len(own))
    return Rows(kept, few(rest, RANDOM * most), few(own, most), each, len(set(kept) & set(own)))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
