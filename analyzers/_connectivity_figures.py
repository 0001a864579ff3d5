"""How mode connectivity is drawn: lines before and after matching, barriers, restarts, several pairs over one another.

Layers, matrices and curves have files of their own; each draws what the values hold: little, while a run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analyzers._base import Arrays, Result, differences
from analyzers._connectivity_layers import draw as layers
from analyzers._connectivity_matrix import draw as matrices
from analyzers._connectivity_paths import draw as paths
from analyzers._connectivity_style import STAGES, Values, about, add_band, add_line, titled
from analyzers._figures import COLOURS, INK, as_plotly
from analyzers._series_figures import as_labels, of_what
from probes.errors import ProbeError

DEFINITIONS = {"git_rebasin": "above the mean of the ends", "entezari": "above the line", "midpoint": "half-way"}
WRITTEN = 3  # bars side by side, up to which each says its number
LAMBDA = "λ: from the first (0) to the second (1)"


def draw(card: Values, values: Values, arrays: Arrays, layer: str = "") -> dict[str, go.Figure]:
    """Draw what the values hold; layer: whose matched pairs of units "unit_pairs" shows, the first where not named."""
    drawn = {}
    if values.get("loss"):
        drawn["loss"] = _line(card, values, "loss")
        if values.get("accuracy"):
            drawn["accuracy"] = _line(card, values, "accuracy")
        drawn["barriers"] = _barriers(card, values)
    if values.get("restarts"):
        drawn["restarts"] = _restarts(card, values)
    return {**drawn, **layers(card, values, arrays, layer), **paths(card, values, arrays), **matrices(card, values)}


def overlay(results: Sequence[Result]) -> dict[str, go.Figure]:
    """Draw the lines of several pairs over one another; raise ProbeError where they are not of the same thing."""
    for other in results[1:]:
        odd = [each for each in differences(results[0].card, other.card) if not each.startswith("checkpoints:")]
        if odd:
            raise ProbeError(f"These pairs cannot be compared, they are not of the same thing: {'; '.join(odd)}.")
    known = [each for each in results if each.values.get("loss")]
    drawn = {"loss": _compared(known, "loss")}
    if all(each.values.get("accuracy") for each in known):
        drawn["accuracy"] = _compared(known, "accuracy")
    return drawn


def _line(card: Values, values: Values, key: str) -> go.Figure:
    title = {"loss": "Loss on the straight line", "accuracy": "Accuracy on the straight line"}[key]
    result = titled(title, about(card, values), LAMBDA, "Loss" if key == "loss" else "Accuracy")
    lambdas, rows = values["lambda"], values[key]
    for stage, (words, colour) in STAGES.items():
        if stage not in rows:
            continue
        low, high = (values.get(f"{key}_{end}", {}).get(stage) for end in ("low", "high"))
        if low and high:
            add_band(result, lambdas, low, high, colour)
        add_line(result, lambdas, rows[stage], words, colour)
        test = values.get(f"test_{key}", {}).get(stage)
        if test:
            add_line(result, lambdas, test, f"{words}, test data", colour, "dash")
    _add_ends(result, lambdas, rows["naive"])
    if key == "accuracy":
        result.update_yaxes(tickformat=".2~%")
    return result


def _add_ends(result: go.Figure, x: Sequence[float], y: Sequence[Any]) -> None:
    result.add_scatter(
        x=[x[0], x[-1]],
        y=[y[0], y[-1]],
        mode="lines",
        line={"color": INK, "width": 1, "dash": "dot"},
        name="line between the ends",
        hoverinfo="skip",
    )


def _barriers(card: Values, values: Values) -> go.Figure:
    result = titled("Barriers by three definitions", about(card, values), "", "Barrier (loss)")
    groups = [
        (f"{prefix}", stage, f"{name}{words}", colour, pattern)
        for prefix, words, pattern in (("", "", ""), ("test_", ", test data", "/"))
        for stage, (name, colour) in STAGES.items()
        if stage in (values.get(f"{prefix}barrier") or {})
    ]
    width = 0.8 / len(groups)
    for place, (prefix, stage, name, colour, pattern) in enumerate(groups):
        row, low, high = (values[f"{prefix}barrier{end}"][stage] for end in ("", "_low", "_high"))
        left = width * place - 0.4
        marker = {"color": colour, "pattern": {"shape": pattern}}
        _add_bars(result, [row, low, high], left, width, name, marker, written=len(groups) <= WRITTEN)
    result.update_xaxes(ticktext=list(DEFINITIONS.values()), tickvals=list(range(len(DEFINITIONS))), range=[-0.5, 2.5])
    limit = values.get("threshold")
    if limit is not None:
        line = {"color": INK, "width": 1.5, "dash": "dash"}
        result.add_hline(limit, line=line)
        result.add_scatter(x=[None], y=[None], mode="lines", line=line, name=f"counts as none up to {limit:.3g}")
    return result


def _add_bars(
    result: go.Figure,
    rows: Sequence[Values],
    left: float,
    width: float,
    name: str,
    marker: Mapping[str, Any],
    *,
    written: bool,
) -> None:
    """Add the bars of a stage, one for each definition, with their intervals and, above these, the numbers."""
    known = [
        (place, *(row[each] for row in rows)) for place, each in enumerate(DEFINITIONS) if rows[0][each] is not None
    ]
    if not known:
        return
    at, value, low, high = (list(each) for each in zip(*known, strict=True))
    result.add_bar(
        x=at,
        y=value,
        offset=left,
        width=0.92 * width,
        error_y={
            "type": "data",
            "array": [max(0.0, up - each) for up, each in zip(high, value, strict=True)],
            "arrayminus": [max(0.0, each - down) for down, each in zip(low, value, strict=True)],
            "thickness": 1.2,
            "width": 3,
        },
        marker=marker,
        name=name,
        customdata=list(zip(low, high, strict=True)),
        hovertemplate=f"{name}<br>%{{y:.5g}} (%{{customdata[0]:.4g}} to %{{customdata[1]:.4g}})<extra></extra>",
    )
    if written:
        _add_numbers(result, [each + left + width / 2 for each in at], value, high)


def _add_numbers(result: go.Figure, at: Sequence[float], value: Sequence[float], high: Sequence[float]) -> None:
    result.add_scatter(
        x=at,
        y=[max(0.0, *pair) for pair in zip(value, high, strict=True)],
        text=[f"{each:.2g}" for each in value],
        mode="text",
        textposition="top center",
        textfont={"size": 10},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _restarts(card: Values, values: Values) -> go.Figure:
    rows = values["restarts"]
    words = f"{as_plotly(values['matcher'])}; the best of {len(rows)} is kept"
    title = "Restarts of the matching"
    result = titled(title, f"{words}<br>{of_what(card)}", "Restart", "Distance ‖A − PB‖")
    result.add_scatter(
        x=list(range(1, len(rows) + 1)),
        y=[each["distance"] for each in rows],
        mode="markers",
        marker={
            "size": 12,
            "color": [each["agreement"] for each in rows],
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "units placed<br>as the best did"}, "tickformat": ".0%", "thickness": 14},
        },
        customdata=[[each["agreement"], each.get("sweeps")] for each in rows],
        hovertemplate="restart %{x}: ‖A − PB‖ = %{y:.6g}<br>%{customdata[0]:.1%} of the units as the best one; "
        "%{customdata[1]} sweeps<extra></extra>",
        showlegend=False,
    )
    naive = values.get("distance_naive")
    if naive:
        line = {"color": STAGES["naive"][1], "width": 1.5, "dash": "dash"}
        told = {"text": f"without matching {naive:.4g}", "font": {"size": 11}, "xanchor": "right"}
        result.add_hline(naive, line=line, annotation=told)
        result.update_yaxes(range=[0, 1.1 * max(naive, *(each["distance"] for each in rows))])
    result.update_xaxes(dtick=1 if len(rows) <= 20 else None, range=[0.5, len(rows) + 0.5])
    return result


def _compared(results: Sequence[Result], key: str) -> go.Figure:
    names = [" and ".join((each.card.get("checkpoints") or ["?"])[:2]) for each in results]
    labels = as_labels(names)
    title = "Loss on the straight lines" if key == "loss" else "Accuracy on the straight lines"
    first = results[0]
    result = titled(title, about(first.card, first.values), LAMBDA, "Loss" if key == "loss" else "Accuracy")
    for number, (label, each) in enumerate(zip(labels, results, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        for stage, dash in (("naive", "dot"), ("matched", "solid"), ("repaired", "dash")):
            row = each.values[key].get(stage)
            if row:
                add_line(result, each.values["lambda"], row, f"{label}, {STAGES[stage][0]}", colour, dash)
    if key == "accuracy":
        result.update_yaxes(tickformat=".2~%")
    return result
