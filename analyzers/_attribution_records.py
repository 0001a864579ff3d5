"""One map as it is kept: what there is to say of it as JSON, and its arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Arrays

if TYPE_CHECKING:
    from probes.attribution import Case, Map, Method

Array = np.ndarray[Any, Any]
JUDGED = (
    "insertion_auc", "deletion_auc", "insertion_auc_second", "deletion_auc_second", "random_insertion_auc",
    "random_insertion_auc_stderr", "random_deletion_auc", "random_deletion_auc_stderr", "edge_insertion_auc",
    "edge_deletion_auc", "infidelity", "infidelity_stderr", "infidelity_unexplained", "sensitivity_max", "sanity",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A map of one method. about: JSON; arrays: "map", "stderr", "insertion", "deletion", "sanity", as far as known."""

    about: Mapping[str, Any]
    arrays: Mapping[str, Array]


def made(method: Method, found: Map) -> Record:
    """Keep a map that was made."""
    about = {
        **head_of(method, found.signed),
        "badge": found.badge.verdict,
        "reasons": list(found.badge.reasons),
        "notes": list(found.notes),
        "baseline": plain(found.about.get("baseline")),
        "score": number(found.score),
        "baseline_score": number(found.baseline_score),
        "completeness_error": number(found.completeness_error),
        "evaluations": plain(found.about.get("evaluations")),
        "about": plain(dict(found.about)),
    }
    arrays = {"map": found.values} | ({} if found.stderr is None else {"stderr": found.stderr})
    return Record(about, {name: _shaped(each) for name, each in arrays.items()})


def refused(method: Method, case: Case, reason: str) -> Record:
    """Keep the reason why there is no map."""
    about = {
        **head_of(method, method.signed),
        "badge": "refused",
        "reasons": [reason],
        "notes": [],
        "score": number(case.score),
        "about": {},
        **dict.fromkeys(("baseline", "baseline_score", "completeness_error", "evaluations")),
    }
    return Record(about, {})


def with_arrays(record: Record) -> Arrays:
    """Return what is saved of a record."""
    return {"about": np.array(json.dumps(record.about)), **record.arrays}


def from_arrays(saved: Arrays) -> Record:
    """Undo `with_arrays`."""
    return Record(json.loads(str(saved["about"])), {name: each for name, each in saved.items() if name != "about"})


def number(value: Any) -> float | None:
    """Return a finite number as a float, None for others: JSON has none."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def plain(value: Any) -> Any:
    """Return a value as JSON: arrays as lists, numbers that are not finite as None, what is unknown as its text."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, int | np.integer):
        return int(value)
    return number(value) if isinstance(value, float | np.floating) else str(value)


def head_of(method: Method, signed: bool) -> dict[str, Any]:
    """Say which method it is; what nobody has judged is None."""
    known = {"method": method.name, "title": method.title, "family": method.family}
    return {**known, "signed": bool(signed), "sampled": method.sampled, **dict.fromkeys(JUDGED)}


def _shaped(values: Array) -> Array:
    """Give a map of an image its channel where it has none."""
    values = np.asarray(values, np.float32)
    return values[None] if values.ndim == 2 else values
