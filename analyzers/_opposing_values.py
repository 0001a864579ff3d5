"""What is kept of opposing groups: lists over pairs and checkpoints, the examples themselves, and doubts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.series import Series

if TYPE_CHECKING:
    from probes.data import Batches
    from probes.objective import Objective
    from probes.opposing import Groups

Array = np.ndarray[Any, Any]


def beside(name: str, value: float, null: Array) -> dict[str, float | None]:
    """Return a value beside its null: mean, 2.5 and 97.5 %, and how often the null is as low, (r + 1) / (n + 1)."""
    from probes.opposing import p_value

    null = null[np.isfinite(null)]
    row: dict[str, float | None] = {name: value if math.isfinite(value) else None}
    row[f"{name}_p_value"] = p_value(value, null) if math.isfinite(value) and len(null) else None
    return row | _spread(name, null)


def pair_values(found: Sequence[Mapping[str, Array]], changes: Array, size: int) -> dict[str, Any]:
    """Return for each quantity a list over the pairs; found: the fields of each `Opposition`; changes: (T - 1, N)."""
    from probes.opposing import groups_of, share_of_top

    rows = []
    for each, d in zip(found, changes, strict=True):
        groups, whole = groups_of(d, size), float(each["whole"])
        row = beside("cosine", float(each["cosine"]), each["null_cosines"])
        row |= beside("cosine_beside_step", float(each["beside_step"]), each["null_beside"])
        row |= {"gradient_norm": whole}
        row |= {f"ratio_{name}": float(each[name]) / whole if whole else None for name in ("rising", "falling")}
        row |= _spread("ratio", each["null_norms"] / whole if whole else each["null_norms"][:0])
        row |= {"rose": int((d[groups.rising] > 0).sum()), "fell": int((d[groups.falling] < 0).sum())}
        rows.append(row | {"share_of_top_1_percent": share_of_top(d)})
    return {name: [row[name] for row in rows] for name in rows[0]}


def losses_of_groups(objective: Objective, losses: Array, groups: Groups) -> dict[str, list[float]]:
    """Return the mean loss over time (per predicted token of a language model) of all examples and of both groups."""
    from probes.losses import counted

    counts = counted(objective.loss, objective.targets).cpu().numpy()
    mean = lambda rows: (losses[:, rows].sum(1) / max(counts[rows].sum(), 1)).tolist()
    everything = np.arange(losses.shape[1])
    return {"loss": mean(everything), "loss_rising": mean(groups.rising), "loss_falling": mean(groups.falling)}


def membership(groups: Groups, count: int) -> Array:
    """Return for each example the group that it is in: 0 the rest, 1 rising, 2 falling; (N,) int8."""
    found = np.zeros(count, np.int8)
    found[groups.rising], found[groups.falling] = 1, 2
    return found


def listed(
    at: Callable[[int], Objective], batches: Batches, pair: int, groups: Groups, losses: Array, most: int
) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Describe the first `most` examples of each group, and show them where they are images.

    at: the objective at a time; pair: the time before, the next is the one after. losses: (T, N).
    """
    from probes.opposing import answers
    from probes.pictures import pictures_of, texts_of

    rows = [*groups.rising[:most].tolist(), *groups.falling[:most].tolist()]
    before, after = (answers(at(time), rows) for time in (pair, pair + 1))
    texts: Sequence[str | None] = texts_of(batches, rows) or [None] * len(rows)
    found = [
        {
            "group": "rising" if place < len(rows) // 2 else "falling",
            "id": batches.ids[row],
            "label": _label(batches, row),
            "prediction": _named(batches, before[place][0]),
            "prediction_after": _named(batches, after[place][0]),
            "loss": float(losses[pair, row]),
            "loss_after": float(losses[pair + 1, row]),
            "margin": before[place][1],
            "rise": float(losses[pair + 1, row] - losses[pair, row]),
            "text": texts[place],
        }
        for place, row in enumerate(rows)
    ]
    pictures = pictures_of(batches, rows)
    return found, {} if pictures is None else {"pictures": pictures}


def doubts(over: Series, values: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Say what these numbers cannot tell; count: of all examples."""
    found = [
        "The groups are chosen by the change of their losses: along the step this opposes them by choice, and where "
        "the gradients of all add up to nearly nothing, extremes oppose anyway. Read the cosine beside that of random "
        "groups, and beside the one without the direction of the step."
    ]
    if over.unit != "step" or any(other - one > 1 for one, other in pairwise(over.times)):
        found.append(
            "These checkpoints are not single steps apart: signals that swing from step to step cannot be seen, only "
            "groups that last."
        )
    size, place = values["group_size"], values["pair"] - 1
    for group, key, word in (("rising", "rose", "rose"), ("falling", "fell", "fell")):
        if values[key][place] < size:
            found.append(f"Only {values[key][place]} of the {size} examples of the {group} group {word} in loss.")
    if 4 * size >= count:
        found.append("The two groups together are half of all examples and more: take smaller ones to see outliers.")
    return tuple(found)


def _spread(name: str, null: Array) -> dict[str, float | None]:
    words = ("mean", "low", "high")
    numbers = [float(null.mean()), *np.quantile(null, [0.025, 0.975]).tolist()] if len(null) else [None] * 3
    return {f"{name}_null_{word}": number for word, number in zip(words, numbers, strict=True)}


def _label(batches: Batches, row: int) -> Any:
    target = batches.targets[row]
    return _named(batches, target.item()) if target.numel() == 1 else None


def _named(batches: Batches, value: Any) -> Any:
    known = isinstance(value, int) and 0 <= value < len(batches.classes)
    return batches.classes[value] if known else value
