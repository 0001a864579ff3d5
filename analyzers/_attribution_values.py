"""What a result of attributions holds: the promised values, the maps and cases, the scoreboard, and caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from analyzers._attribution_measure import Found

Array = np.ndarray[Any, Any]
PROMISED = ("completeness_error", "insertion_auc", "deletion_auc", "infidelity", "sensitivity_max")


def values_of(found: Found) -> tuple[dict[str, Any], dict[str, Array], tuple[str, ...]]:
    """Return the values, arrays and caveats of a result."""
    maps, cases = found.maps, found.cases
    columns = {name: [each[name] for each in maps] for name in ("method", *PROMISED)}
    columns |= {name: [cases[each["case"]][name] for each in maps] for name in ("target", "prediction")}
    order = ("method", "target", "prediction", *PROMISED)
    promised = {name: columns[name][0] if len(maps) == 1 else columns[name] for name in order}
    values = {
        **promised,
        "kind": found.kind,
        "checkpoints": [each.name for each in found.checkpoints],
        "edit": found.options.edit,
        "cases": list(cases),
        "maps": list(maps),
    }
    return values, dict(found.arrays), tuple(dict.fromkeys((*found.doubts, *caveats_of(found))))


def caveats_of(found: Found) -> list[str]:
    """Return what a reader must bear in mind."""
    badges = [each["badge"] for each in found.maps]
    said = []
    for badge, words in (
        ("refused", "could not be made: the method refused, and says why in its place"),
        ("invalid", "are not what their method promises; do not read them"),
        ("doubtful", "are doubtful; each says why"),
    ):
        count = badges.count(badge)
        if count:
            said.append(f"{count} of {len(badges)} maps {words}.")
    if len(found.checkpoints) > 1 and found.options.target.strip() == "predicted":
        said.append(
            "The target of each example is what the last checkpoint predicts, at all checkpoints, so that their maps "
            "are of one score."
        )
    return said


def titles(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the methods of a result in their order, with their titles."""
    return {each["method"]: each["title"] for each in values["maps"]}


def maps_of(values: Mapping[str, Any], *, method: str | None = None, case: int | None = None) -> Sequence[Any]:
    """Return the maps of a method, of a case, or of both."""
    fits = lambda each: method in (None, each["method"]) and case in (None, each["case"])
    return [each for each in values["maps"] if fits(each)]
