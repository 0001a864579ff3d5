"""The numbers that stand above the figures of a pair of checkpoints, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ui.cells import Cell
from ui.text import number, percent

Values = Mapping[str, Any]
LEVEL = "In brackets the 95 % interval over examples."
PLATEAU = "Share of the way with a loss above 90 % of the first; between two trained models it means little."


def connectivity(values: Values) -> list[Cell]:
    """Return the numbers of mode connectivity."""
    definition = values["definition"]
    words = f"{values.get('definition_words', definition)}. {LEVEL}"
    stages = (("naive", "as they are"), ("matched", "after matching"), ("repaired", "after REPAIR"))
    cells = [
        Cell(f"Barrier, {title}", number(values["barrier"][stage][definition]), words, _interval(values, stage))
        for stage, title in stages
        if stage in values.get("barrier", {})
    ]
    restarts = values.get("restarts") or []
    agreement = min((each["agreement"] for each in restarts), default=None)
    cells += [
        Cell("Distance, matched", number(values["distance"]), "Of the parameters.",
             f"{number(values['distance_naive'])} as they are"),
        Cell("Restarts that agree", percent(agreement),
             f"The least share of units that one of {len(restarts)} restarts placed as the best one did."),
        Cell("Units displaced", percent(values["displaced"]), "By the permutation that was found."),
        Cell("Outputs changed by", number(values["equivalence_error"], 2),
             "How far permutations change the outputs, as a share of their scale, in float64."),
    ]  # fmt: skip
    if curve := values.get("curve"):
        low, high = curve["barrier_low"][definition], curve["barrier_high"][definition]
        cells.append(Cell("Barrier on the curve", number(curve["barrier"][definition]), words, _between(low, high)))
    return cells


def loss_path(values: Values) -> list[Cell]:
    """Return the numbers of a loss path."""
    rise = "The greatest rise of the loss above what it was before, between the two: 0 when it only falls."
    spread = _between(values.get("delta_low"), values.get("delta_high"))
    return [
        Cell("Greatest rise (Δ)", number(values.get("delta")), f"{rise} {LEVEL}", spread),
        Cell("Plateau", percent(values.get("plateau")), PLATEAU),
        Cell("Gauss length", number(values.get("gauss_length")), "How far the outputs turn on the way, in radians."),
        Cell("Distance", number(values["distance"]), "Of the parameters.",
             f"{number(values['relative_distance'])} × norm of the first"),
    ]  # fmt: skip


def grafting(values: Values) -> list[Cell]:
    """Return the numbers of a skill localisation."""
    found, chosen = values.get("calibration") or {}, values.get("chosen") or {}
    target = f"{100 * values['target']:g} %"
    told = f"The smallest share of the weights that brings {target} of what fine-tuning added. {LEVEL}"
    reached = (values.get("reached") or {}).get("recovery")
    missed = "only with all" if reached is None else percent(reached)
    cells = [
        Cell(f"Weights for {target}", missed, told),
        Cell("Looked at closely", percent(chosen.get("share")), "The share of the weights in the graft drawn below.",
             f"{number(chosen.get('count'))} weights"),
    ]  # fmt: skip
    for name, title in (("fine_tuned", "fine-tuned"), ("grafted", "graft")):
        if each := found.get(name):
            words = f"Expected calibration error: the mean gap of confidence and accuracy, in 15 bins. {LEVEL}"
            cells.append(Cell(f"ECE, {title}", percent(each["error"]), words, _share(each["interval"])))
    return cells


def _interval(values: Values, stage: str) -> str:
    low, high = (values[f"barrier_{end}"][stage][values["definition"]] for end in ("low", "high"))
    return _between(low, high)


def _between(low: Any, high: Any) -> str:
    return f"[{number(low, 3)}, {number(high, 3)}]" if low is not None and high is not None else ""


def _share(interval: Any) -> str:
    return f"[{percent(interval[0])}, {percent(interval[1])}]" if interval else ""
