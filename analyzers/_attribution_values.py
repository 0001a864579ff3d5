"""What a result of attributions holds: the promised values, the maps and cases, the scoreboard, and caveats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._attribution_records import plain
from probes.errors import DataError

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
        "layers": found.layers,
        "sanity_layers": found.sanity_layers,
        **scores_of(found),
        **times_of(found),
    }
    names, arrays = agreement_of(found)
    caveats = tuple(dict.fromkeys((*found.doubts, *caveats_of(found))))
    return values | {"agreement_methods": names}, {**found.arrays, **_shares(found), **arrays}, caveats


def _last(found: Found) -> list[int]:
    """Return the cases of the last checkpoint that there is something of."""
    last = max((each["checkpoint_index"] for each in found.cases), default=0)
    return [number for number, each in enumerate(found.cases) if each["checkpoint_index"] == last]


def scores_of(found: Found) -> dict[str, Any]:
    """Return the scoreboard of the methods at the last checkpoint, and how its intervals were made.

    The same example at other checkpoints is no further example: intervals over both would be too narrow.
    """
    from probes.attribution.judging import scoreboard

    last = _last(found)
    board = scoreboard([each for each in found.maps if each["case"] in last], seed=found.options.seed)
    return {"scoreboard": plain(board.to_json()), "scoreboard_words": board.words}


def agreement_of(found: Found) -> tuple[list[str], dict[str, Array]]:
    """Return the methods that made maps, and how they rank features alike at the last checkpoint.

    Means and intervals, (M, M) each.
    """
    from probes.attribution.judging import agreement

    made: dict[int, dict[str, Array | None]] = {case: {} for case in _last(found)}
    for each in found.maps:
        if each["array"] and each["case"] in made:
            made[each["case"]][each["method"]] = found.arrays[each["array"]]
    names = [name for name in found.methods if any(name in each for each in made.values())]
    if len(names) < 2:
        return [], {}
    rows = [{name: each.get(name) for name in names} for each in made.values() if each]
    special = [found.cases[case]["special"] for case, each in made.items() if each]
    table = agreement(rows, special=special, seed=found.options.seed).spearman
    return names, {"agreement": table.mean, "agreement_low": table.low, "agreement_high": table.high}


def times_of(found: Found) -> dict[str, Any]:
    """Return the times of the checkpoints in the order given, where their files or names tell them in this order."""
    from probes.series import series

    try:
        over = series(found.checkpoints)
    except DataError:
        return {}
    return {"times": list(over.times), "unit": over.unit} if list(over.order) == sorted(over.order) else {}


def _shares(found: Found) -> dict[str, Array]:
    """Return the shares of the features at the points of the curves, where all cases have the same."""
    each = [found.arrays[name] for name in (f"curve_shares_{case}" for case in range(len(found.cases)))
            if name in found.arrays]  # fmt: skip
    same = bool(each) and all(np.array_equal(one, each[0]) for one in each)
    return {"curve_shares": each[0]} if same else {}


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
