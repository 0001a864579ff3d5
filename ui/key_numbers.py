"""The numbers that stand above the figures of a result, each with its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from ui import example_numbers, pair_numbers
from ui.cells import Cell
from ui.text import as_text, number, percent, with_error

Values = Mapping[str, Any]
ROW = 4


def draw(analyzer: str, values: Values) -> None:
    """Draw the numbers of a result; nothing for an analyzer that is not known here."""
    cells = CELLS.get(analyzer, lambda _values: [])(values)
    for start in range(0, len(cells), ROW):
        for cell, column in zip(cells[start : start + ROW], st.columns(ROW), strict=False):
            note = {"delta": as_text(cell.note), "delta_color": "off", "delta_arrow": "off"} if cell.note else {}
            more: dict[str, Any] = {"help": as_text(cell.help) if cell.help else None, **note}
            column.metric(cell.label, cell.text, border=True, height="stretch", **more)


def _alignment(values: Values) -> list[Cell]:
    last = lambda name: values[name][-1] if values.get(name) else None
    both = lambda name: with_error(last(name), last(f"{name}_stderr"))
    gwa = lambda prefix: "undefined" if last(f"{prefix}gwa_undefined") else both(f"{prefix}gwa")
    moved = any(values.get("rounded") or ())
    exact = lambda text: f"exact {text}" if moved else ""
    best, negative = values.get("best"), exact(percent(last("exact_negative_share")))
    told = "Mean alignment / (excess kurtosis + 1.2); undefined near its pole."
    cells = [
        Cell("Mean alignment, last", both("mean"), "± is the standard error.", exact(both("exact_mean"))),
        Cell("Excess kurtosis, last", both("excess_kurtosis"), note=exact(both("exact_excess_kurtosis"))),
        Cell("GWA, last", gwa(""), told, exact(gwa("exact_"))),
        Cell("Negative, last", percent(last("negative_share")), "Gradients that pull against the weights.", negative),
    ]
    if best:
        cells.append(Cell("Highest GWA at", values["labels"][best["index"]], str(values.get("best_note") or "")))
    if values.get("auroc_flipped"):
        told = "How well alignment tells flipped labels from kept ones, at the last checkpoint; 0.5 is chance."
        cells.append(Cell("AUROC of flipped", with_error(last("auroc_flipped"), last("auroc_flipped_stderr")), told))
    return cells


def _opposing(values: Values) -> list[Cell]:
    at = values["pair"] - 1
    times = [f"{each:.9g}" for each in values["times"][at : at + 2]]
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
        Cell(_TIMES.get(values["unit"], "Checkpoints"), " to ".join(times), help=values["pairs"][at]),
        Cell("Examples in a group", number(values["group_size"])),
        Cell("Change of the top 1 %", percent(share), "Their share of all change of loss, in absolute values."),
    ]


def _rotation(values: Values) -> list[Cell]:
    last = {layer: row[-1] for layer, row in values["rotation"].items() if row[-1] is not None}
    turned = sorted(last, key=lambda layer: last[layer])
    least, most = (turned[0], turned[-1]) if turned else ("", "")
    match = values["seed_match"]
    return [
        Cell(
            "Mean rotation, last", number(values["mean_rotation"][-1], 3), f"Over the kernels, since {values['since']}."
        ),
        Cell("Least turned", number(last.get(least), 3), note=least),
        Cell("Most turned", number(last.get(most), 3), note=most),
        Cell("Start is this run's", str(match["verdict"]), match["sentence"]),
    ]


def _statistics(values: Values) -> list[Cell]:
    last = lambda name: values[name][-1] if values.get(name) else None
    both = lambda name: with_error(last(name), last(f"{name}_stderr"))
    bounded = lambda name: (
        f"above {number(least)}" if last(name) is None and (least := last(f"{name}_at_least")) else both(name)
    )
    rate = "" if values["learning_rate"] else " per unit of learning rate"
    told = f"Expected, in one step, with {number(values['training_examples'])} training examples{rate}."
    return [
        Cell("Gradient norm, last", both("gradient_norm"), "Of the mean gradient, less what its noise adds; ± stderr."),
        Cell("Covariance trace, last", both("covariance_trace"), "Of the gradients of single examples."),
        Cell("Noise scale, last", bounded("noise_scale"), "Covariance trace / squared gradient norm, in examples."),
        Cell(
            "Adequate batch, last", bounded("adequate_batch"), f"By the norm test with θ = {number(values['theta'])}."
        ),
        Cell("Growth of the gap, last", both("gap_growth"), told),
    ]


_TIMES = {"epoch": "Epochs", "step": "Steps"}


def _between(low: Any, high: Any) -> str:
    return f"{number(low, 2)} to {number(high, 2)}"


CELLS: Mapping[str, Callable[[Values], list[Cell]]] = {
    "attribution": example_numbers.attribution,
    "caption_misalignment": example_numbers.captions,
    "concepts": example_numbers.concepts,
    "gradient_alignment": _alignment,
    "gradient_statistics": _statistics,
    "grafting": pair_numbers.grafting,
    "influence": example_numbers.influence,
    "layer_rotation": _rotation,
    "loss_path": pair_numbers.loss_path,
    "mode_connectivity": pair_numbers.connectivity,
    "predictions": example_numbers.predictions,
    "opposing_signals": _opposing,
}
