"""The numbers that stand above the figures of a series' result, each with its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ui.text import number, percent, with_error

Values = Mapping[str, Any]
ROW = 4


@dataclass(frozen=True)
class Cell:
    """One number, as raw text."""

    label: str
    text: str
    help: str = ""


def draw(analyzer: str, values: Values) -> None:
    """Draw the numbers of a result; nothing for an analyzer that is not known here."""
    cells = CELLS.get(analyzer, lambda _values: [])(values)
    for start in range(0, len(cells), ROW):
        for cell, column in zip(cells[start : start + ROW], st.columns(ROW), strict=False):
            column.metric(cell.label, cell.text, border=True, help=cell.help or None)


def _alignment(values: Values) -> list[Cell]:
    last = lambda name: values[name][-1] if values.get(name) else None
    gwa = "undefined" if last("gwa_undefined") else with_error(last("gwa"), last("gwa_stderr"))
    best = values.get("best")
    cells = [
        Cell("Mean alignment, last", with_error(last("mean"), last("mean_stderr")), "± is the standard error."),
        Cell("Excess kurtosis, last", with_error(last("excess_kurtosis"), last("excess_kurtosis_stderr"))),
        Cell("GWA, last", gwa, "Mean alignment / (excess kurtosis + 1.2); undefined near its pole."),
        Cell("Negative, last", percent(last("negative_share")), "Examples whose gradient pulls against the weights."),
    ]
    if best:
        cells.append(Cell("Highest GWA at", values["labels"][best["index"]], str(values.get("best_note") or "")))
    if values.get("auroc_flipped"):
        told = "How well alignment tells flipped labels from kept ones, at the last checkpoint; 0.5 is chance."
        cells.append(Cell("AUROC of flipped", with_error(last("auroc_flipped"), last("auroc_flipped_stderr")), told))
    return cells


def _opposing(values: Values) -> list[Cell]:
    at = values["pair"] - 1
    null = _between(values["cosine_null_low"][at], values["cosine_null_high"][at])
    norms = _between(values["ratio_null_low"][at], values["ratio_null_high"][at])
    told = f"Of {values['pairs'][at]}. Random groups of the same size: {null} (95 %)."
    ratio = f"Norm of the group's mean gradient over that of all examples. Random groups: {norms} (95 %)."
    share = values["share_of_top_1_percent"][at]
    return [
        Cell("Cosine of the groups", number(values["cosine"][at], 3), told),
        Cell("Random groups", null, "The middle 95 % of the cosines of random groups of the same size."),
        Cell("Cancellation, rising", number(values["ratio_rising"][at], 3), ratio),
        Cell("Cancellation, falling", number(values["ratio_falling"][at], 3), ratio),
        Cell("Pair", str(values["pairs"][at])),
        Cell("Examples in a group", number(values["group_size"])),
        Cell("Change of the top 1 %", percent(share), "Their share of all change of loss, in absolute values."),
    ]


def _between(low: Any, high: Any) -> str:
    return f"{number(low, 2)} to {number(high, 2)}"


CELLS: Mapping[str, Callable[[Values], list[Cell]]] = {
    "gradient_alignment": _alignment,
    "opposing_signals": _opposing,
}
