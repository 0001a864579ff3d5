"""How the layers of a pair are drawn: alike before and after matching, variance half-way, barriers, pairs of units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from analyzers._base import Arrays
from analyzers._connectivity_style import GREY, STAGES, Values, titled
from analyzers._figures import COLOURS, as_plotly
from analyzers._series_figures import as_labels, of_what

TICKED = 24  # layers whose names fit below the axis


def draw(card: Values, values: Values, arrays: Arrays, layer: str = "") -> dict[str, go.Figure]:
    """Draw "layers", "variance_ratio", "layer_barriers" and "unit_pairs", whichever the values hold."""
    drawn = {}
    if values.get("tensors"):
        drawn["layers"] = _layers(card, values)
    if values.get("variance_ratio"):
        drawn["variance_ratio"] = _variance(card, values)
    if values.get("layer_barriers"):
        drawn["layer_barriers"] = _barriers(card, values)
    if pairs_of(arrays):
        drawn["unit_pairs"] = _pairs(card, values, arrays, layer)
    return drawn


def pairs_of(arrays: Arrays) -> list[str]:
    """Name the permutations whose pairs of units are known."""
    return [name.removeprefix("pairs_") for name in arrays if name.startswith("pairs_")]


def _layers(card: Values, values: Values) -> go.Figure:
    rows = [each for each in values["tensors"] if each["unit_cosine"] is not None]
    rows = rows or list(values["tensors"])
    key = "unit_cosine" if rows[0]["unit_cosine"] is not None else "cosine"
    words = f"mean cosine of each unit's weights with those of its partner<br>{of_what(card)}"
    result = titled("How alike the layers are", words, "Weight, first to last", "Cosine; share displaced")
    places = list(range(1, len(rows) + 1))
    labels = as_labels(each["tensor"] for each in rows)
    for suffix, stage in (("_naive", "naive"), ("", "matched")):
        name, colour = STAGES[stage]
        result.add_bar(
            x=places,
            y=[each[f"{key}{suffix}"] for each in rows],
            marker={"color": colour},
            name=f"cosine {name}",
            customdata=labels,
            hovertemplate=f"%{{customdata}}<br>cosine {name} %{{y:.4f}}<extra></extra>",
        )
    result.add_scatter(
        x=places,
        y=[each["displaced"] for each in rows],
        mode="markers",
        marker={"symbol": "diamond", "size": 9, "color": "white", "line": {"color": COLOURS[1], "width": 2}},
        name="share of units displaced",
        customdata=labels,
        hovertemplate="%{customdata}<br>%{y:.1%} of its units displaced<extra></extra>",
    )
    _name_places(result, [each["tensor"] for each in rows])
    result.update_layout(barmode="group")
    return result


def _variance(card: Values, values: Values) -> go.Figure:
    looked = f"{values['looked_at']} examples"
    words = f"variance of the pre-activations half-way, over the mean of the ends; {looked}<br>{of_what(card)}"
    result = titled("Variance half-way", words, "Layer, first to last", "Variance ratio (1: as the ends)")
    ratios = values["variance_ratio"]
    names = list(next(iter(ratios.values())))
    labels = as_labels(names)
    for stage, row in ratios.items():
        name, colour = STAGES[stage]
        result.add_scatter(
            x=list(range(1, len(names) + 1)),
            y=[row.get(each) for each in names],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            name=name,
            customdata=labels,
            hovertemplate=f"%{{customdata}}<br>{name} %{{y:.4g}}<extra></extra>",
        )
    result.add_hline(1.0, line={"color": GREY, "width": 1, "dash": "dot"})
    _name_places(result, names)
    result.update_yaxes(rangemode="tozero")
    return result


def _barriers(card: Values, values: Values) -> go.Figure:
    words = f"the loss rises by so much when this layer alone goes to the other's; the rest stays<br>{of_what(card)}"
    result = titled("One layer at a time", words, "Layer, first to last", "Highest rise of the loss")
    found = values["layer_barriers"]
    names = [each["layer"] for each in next(iter(found.values()))]
    labels = as_labels(names)
    for stage, rows in found.items():
        for side, words, pattern in (("first", "the rest of the first", ""), ("second", "the rest of the second", "/")):
            name = f"{STAGES[stage][0]}, in {words}"
            known = [each[side] for each in rows]
            up, down = (
                [abs((each[f"rise_{end}"] or 0) - (each["rise"] or 0)) for each in known] for end in ("high", "low")
            )
            result.add_bar(
                x=list(range(1, len(rows) + 1)),
                y=[each["rise"] for each in known],
                error_y={"type": "data", "array": up, "arrayminus": down, "thickness": 1.2, "width": 3},
                marker={"color": STAGES[stage][1], "pattern": {"shape": pattern}},
                name=name,
                customdata=labels,
                hovertemplate=f"%{{customdata}}<br>{name} %{{y:.4g}}<extra></extra>",
            )
    _name_places(result, names)
    result.update_layout(barmode="group")
    return result


def _pairs(card: Values, values: Values, arrays: Arrays, layer: str) -> go.Figure:
    known = pairs_of(arrays)
    chosen = layer if layer in known else known[0]
    found, pi = np.asarray(arrays[f"pairs_{chosen}"]), np.asarray(arrays[f"permutation_{chosen}"])
    title = f"Pairs of units: {as_plotly(chosen)}"
    seen = f"correlation: of its pre-activations on {values['looked_at']} examples"
    words = f"{_kind(values, chosen)}; cosine: of all weights of a unit, in and out; {seen}"
    axis = "Unit of the first, best pair first"
    result = titled(title, f"{words}<br>{of_what(card)}", axis, "Cosine or correlation with its partner")
    order = np.argsort(-np.nan_to_num(found[1], nan=-2.0), kind="stable")
    shown = (
        ("cosine as they are", GREY),
        ("cosine after matching", COLOURS[0]),
        ("correlation after matching", COLOURS[1]),
    )
    for row, (name, colour) in enumerate(shown):
        if np.isnan(found[row]).all():
            continue
        partners = order if row == 0 else pi[order]
        result.add_scatter(
            x=list(range(1, len(order) + 1)),
            y=[None if np.isnan(each) else float(each) for each in found[row][order]],
            mode="markers",
            marker={"color": colour, "size": 6, "opacity": 0.8},
            name=name,
            customdata=np.stack([order, partners], axis=1),
            hovertemplate=f"unit %{{customdata[0]}} of the first, %{{customdata[1]}} of the second<br>{name} %{{y:.4f}}"
            "<extra></extra>",
        )
    return result


def _kind(values: Values, name: str) -> str:
    row = next((each for each in values.get("permutations", ()) if each["permutation"] == name), None)
    return f"{row['units']} {as_plotly(row['kind'])}" if row else ""


def _name_places(result: go.Figure, names: Sequence[str]) -> None:
    if len(names) > TICKED:
        return
    ticks = [_short(each) for each in names]
    angle = -35 if max(map(len, ticks)) > 6 else 0
    result.update_xaxes(tickvals=list(range(1, len(names) + 1)), ticktext=ticks, tickangle=angle)


def _short(name: str) -> str:
    plain = name.removesuffix(".weight") or name
    return as_plotly(plain if len(plain) <= 28 else f"…{plain[-27:]}")
