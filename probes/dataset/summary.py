"""What there is to see in examples before they are used: balance, ranges, copies, and ten of them in plain text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.dataset.examples import Examples
from probes.dataset.files import Array, shown

MOST_CHANNELS = 32
MOST_IDS = 200_000
LISTED = 20


def balance(targets: Array, classes: Sequence[str]) -> list[list[Any]]:
    """Return [class, count] for each class; nothing where there are none."""
    if not classes:
        return []
    counts = np.bincount(targets, minlength=len(classes))
    return [[name, int(count)] for name, count in zip(classes, counts, strict=True)]


def missing_doubts(counts: list[list[Any]]) -> tuple[str, ...]:
    """Name the classes that do not occur among the examples."""
    missing = [name for name, count in counts if not count]
    if not missing:
        return ()
    some = ", ".join(repr(each) for each in missing[:6]) + (", ..." if len(missing) > 6 else "")
    return (f"{len(missing)} of {len(counts)} classes do not occur among the chosen examples: {some}.",)


def channels(inputs: Array, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return name, mean, std, min and max of each channel (axis 1) of floats; of the first 32 at most."""
    if inputs.dtype.kind != "f" or inputs.ndim < 2:
        return []
    found = []
    for place in range(min(inputs.shape[1], MOST_CHANNELS)):
        values = inputs[:, place].astype(np.float64)
        about = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        name = names[place] if place < len(names) else str(place)
        found.append({"name": name, **{key: float(value) for key, value in about.items()}})
    return found


def copies(found: Examples, chosen: Array, inputs: Array, labels: Sequence[Any] | None) -> dict[str, Any]:
    """Count exact copies among the inputs of `chosen`, and those whose labels differ; name the first pair of each.

    labels: one for each input, or None where there are none to differ.
    """
    first: dict[bytes, int] = {}
    same: list[tuple[int, int]] = []
    for row, each in enumerate(inputs):
        before = first.setdefault(hashlib.blake2b(np.ascontiguousarray(each).data, digest_size=16).digest(), row)
        if before != row:
            same.append((before, row))
    apart = [(one, other) for one, other in same if labels is not None and labels[one] != labels[other]]

    def pair(rows: tuple[int, int]) -> list[Any]:
        ids = [found.name_of(int(chosen[row])) for row in rows]
        return [*ids, *(labels[row] for row in rows)] if labels is not None else ids

    return {
        "seen": len(inputs),
        "contents": len(same),
        "first": pair(same[0]) if same else [],
        "contradictions": len(apart),
        "first_contradiction": pair(apart[0]) if apart else [],
    }


def repeated_ids(ids: Sequence[str]) -> dict[str, Any]:
    """Count the ids that occur before, and name the first with the numbers (from 1) of its two examples."""
    first: dict[str, int] = {}
    again = [(each, first[each], row) for row, each in enumerate(ids) if first.setdefault(each, row) != row]
    return {"ids": len(again), "first_id": [again[0][0], again[0][1] + 1, again[0][2] + 1] if again else []}


def id_doubts(ids: Sequence[str]) -> tuple[str, ...]:
    """Say that ids are repeated."""
    found = repeated_ids(ids)
    if not found["ids"]:
        return ()
    name, one, other = found["first_id"]
    what = "examples have the id" if found["ids"] > 1 else "example has the id"
    return (f"{found['ids']} {what} of another (first: {name!r}, examples {one} and {other}).",)


def copy_doubts(about: dict[str, Any]) -> tuple[str, ...]:
    """Say that contents are repeated, and louder where their labels contradict."""
    doubts = []
    if about["contradictions"]:
        one, other, this, that = about["first_contradiction"]
        count = about["contradictions"]
        what = "exact copies have another label than their twins" if count > 1 else "exact copy has another label"
        doubts.append(
            f"CONTRADICTION: {count} {what} among the first {about['seen']} examples (first: {one} is {this!r}, "
            f"{other} is {that!r})."
        )
    if about["contents"]:
        one, other = about["first"][:2]
        what = "are exact copies of others" if about["contents"] > 1 else "is an exact copy of another"
        doubts.append(f"{about['contents']} of the first {about['seen']} examples {what} (first: {one} and {other}).")
    return tuple(doubts)


def samples(
    found: Examples, chosen: Array, raw: Array, labels: Sequence[Any], texts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return id, label and plain text of each example; images have none but that of their captions (`texts`)."""
    rows = []
    for place, index in enumerate(chosen):
        label = labels[place] if place < len(labels) else None
        rows.append(
            {
                "id": found.name_of(int(index)),
                "label": label,
                "text": texts[place] if texts else _text(found, raw[place]),
            }
        )
    return rows


def _text(found: Examples, example: Array) -> str:
    if found.show is not None:
        return shown(found.show(example))
    if found.kind == "images":
        return ""
    numbers = ", ".join(f"{each:.4g}" for each in example.reshape(-1)[:8])
    return numbers + (", ..." if example.size > 8 else "")
