"""How maps are judged, as figures: curves beside their nulls, the sanity check, agreement, and the scoreboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzers._attribution_panels import (
    AGAINST,
    DIVERGING,
    FOR,
    Array,
    Values,
    View,
    chosen_cases,
    chosen_methods,
    wrapped,
)
from analyzers._figures import COLOURS, as_plotly, figure, template
from analyzers._series_figures import of_what

Arrays = Mapping[str, Array]
EDGE = "#B0A08A"
NULLS = {"random": ("Random orders", "#7B8794", "dot"), "edge": ("Edges of the image", EDGE, "dot")}
GRID = np.linspace(0, 1, 33)
WAYS = ("insertion", "deletion")
METRICS = {
    "insertion_auc": "Insertion area (high is good)",
    "deletion_auc": "Deletion area (low is good)",
    "infidelity": "Infidelity (low is good)",
    "sensitivity_max": "Max-sensitivity (low is good)",
    "completeness_error": "Completeness error (share)",
}


def curves_figure(card: Values, values: Values, arrays: Arrays, view: View) -> go.Figure | None:
    """Draw insertion and deletion with both baselines, means over the cases shown; None where there are none."""
    rows = curve_rows(values, arrays, view)
    if not rows:
        return None
    known = next(each["curves"] for each in values["cases"] if each.get("curves", {}).get("baselines"))
    titles = [f"{way.capitalize()}, baseline {as_plotly(name)}" for name in known["baselines"] for way in WAYS]
    found = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.08)
    every = chosen_methods(values, View())
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(every)}
    for (name, way, baseline), mean in _means(rows).items():
        title, colour, dash = NULLS.get(name) or (every[name], colours[name], "solid")
        found.add_scatter(
            x=GRID, y=mean, name=as_plotly(title), legendgroup=name, showlegend=(way, baseline) == ("insertion", 0),
            line={"color": colour, "dash": dash},
            hovertemplate="share %{x:.2f}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
            row=baseline + 1, col=WAYS.index(way) + 1,
        )  # fmt: skip
    shown = [values["cases"][case] for case in {each["case"] for each in rows}]
    counts = (("example", {each["row"] for each in shown}), ("checkpoint", {each["checkpoint"] for each in shown}))
    said = " and ".join(f"{len(each)} {what}s" for what, each in counts if len(each) > 1)
    more = f": means over {said}" if said else ""
    _head(found, f"What the score does as features go in and out{more}", of_what(card))
    found.update_xaxes(title_text=f"share of the {known['unit']}", title_font_size=11)
    words = "probability of the target" if known["measure"] == "probability" else "score of the target"
    found.update_yaxes(title_text=words, title_font_size=11)
    return found.update_layout(height=760)


def curve_rows(values: Values, arrays: Arrays, view: View) -> list[dict[str, Any]]:
    """Return every curve that is shown: case, method ("random" and "edge" are nulls), way, baseline, shares, values."""
    rows: list[dict[str, Any]] = []
    cases, methods = chosen_cases(values, view), chosen_methods(values, view)
    for case in cases:
        shares = arrays.get(f"curve_shares_{case}")
        if shares is None:
            continue
        own = [(each["method"], number) for number, each in enumerate(values["maps"])
               if each["case"] == case and each["method"] in methods]  # fmt: skip
        keys = [(name, f"{{}}_{number}") for name, number in own] + [(name, f"{name}_{{}}_{case}") for name in NULLS]
        for name, key in keys:
            for way in WAYS:
                for baseline, curve in enumerate(arrays.get(key.format(way), ())):
                    rows.append({"case": case, "method": name, "way": way, "baseline": baseline, "shares": shares,
                                 "curve": curve})  # fmt: skip
    return rows


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, int], Array]:
    grouped: dict[tuple[str, str, int], list[Array]] = {}
    for each in rows:
        key = (each["method"], each["way"], each["baseline"])
        grouped.setdefault(key, []).append(np.interp(GRID, each["shares"], each["curve"]))
    return {key: np.mean(some, 0) for key, some in grouped.items()}


def sanity_figure(card: Values, values: Values, arrays: Arrays, view: View) -> go.Figure | None:
    """Draw how far each method's maps stay as they are while the layers become random; None where nobody asked."""
    layers = values["sanity_layers"]
    found = figure(
        "Do the maps change when the weights become random?", of_what(card),
        "layers made random, from the head downwards", "Rank correlation with the map (Spearman)",
    )  # fmt: skip
    for number, (name, title) in enumerate(chosen_methods(values, view).items()):
        rows = _of_method(values, arrays, view, name, "sanity")
        if not len(rows):
            continue
        mean, errors = _mean_and_error(rows)
        found.add_scatter(
            x=layers_as(layers), y=_nulled(mean),
            name=as_plotly(title), mode="lines+markers", line_color=COLOURS[number % len(COLOURS)],
            error_y={"type": "data", "array": errors, "thickness": 1.2, "width": 3},
            hovertemplate="%{x}<br>%{y:.3f}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    if not found.data:
        return None
    edges = [
        arrays[name] for name in (f"sanity_edge_{number}" for number in range(len(values["maps"]))) if name in arrays
    ]
    if edges:
        found.add_scatter(
            x=layers_as(layers),
            y=_nulled(np.mean(edges, 0)),
            name="Edges of the image, which see no weights",
            line={"color": EDGE, "dash": "dot"},
        )
    return found.update_yaxes(range=[-1.05, 1.05]).update_xaxes(type="category")


def layers_as(layers: Sequence[str]) -> list[str]:
    """Return the names of the stages, apart from one another and fit for plotly."""
    return [f"{number}. {as_plotly(each)}" for number, each in enumerate(layers, 1)]


def agreement_figure(card: Values, values: Values, arrays: Arrays) -> go.Figure | None:
    """Draw how alike methods rank the features, with numbers and intervals; None below two methods."""
    names = values["agreement_methods"]
    if len(names) < 2:
        return None
    every = chosen_methods(values, View())
    titles = [wrapped(every[name], 22) for name in names]
    mean, low, high = (arrays[name] for name in ("agreement", "agreement_low", "agreement_high"))
    told = [[_interval(mean[i, j], low[i, j], high[i, j]) for j in range(len(names))] for i in range(len(names))]
    text = [["" if not np.isfinite(each) else f"{each:.2f}" for each in row] for row in mean]
    last = f"<br>at {as_plotly(values['checkpoints'][-1])}" if len(values["checkpoints"]) > 1 else ""
    found = figure("How alike the methods rank the features", of_what(card) + last, "method", "method")
    found.add_heatmap(
        z=[_nulled(row) for row in mean], x=titles, y=titles, text=text, texttemplate="%{text}", customdata=told,
        colorscale=[list(each) for each in DIVERGING], zmin=-1, zmax=1, xgap=1, ygap=1,
        colorbar={"title": {"text": "Spearman", "side": "right"}},
        hovertemplate="%{y}<br>%{x}<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    found.update_yaxes(autorange="reversed")
    return found.update_layout(height=max(420, 220 + 34 * len(names)))


def scoreboard_figure(card: Values, values: Values, view: View) -> go.Figure | None:
    """Draw the means of every measure with their intervals, a row for each method; None where nothing is judged."""
    board = [each for each in values["scoreboard"] if view.method in (None, each["method"])]
    shown = [name for name in METRICS if any(each[name]["mean"] is not None for each in board)]
    if not shown:
        return None
    found = make_subplots(rows=1, cols=len(shown), shared_yaxes=True, horizontal_spacing=0.03)
    titles = [wrapped(each["title"], 24) for each in board]
    for column, name in enumerate(shown, 1):
        rows = [each[name] for each in board]
        means = [each["mean"] for each in rows]
        ends = [[0.0 if None in (each[end], each["mean"]) else abs(each[end] - each["mean"]) for each in rows]
                for end in ("high", "low")]  # fmt: skip
        found.add_scatter(
            x=means, y=titles, mode="markers", marker={"color": FOR, "size": 8}, showlegend=False,
            error_x={"type": "data", "array": ends[0], "arrayminus": ends[1], "thickness": 1.5, "width": 4},
            customdata=[f"{each['n']} examples" for each in rows],
            hovertemplate="%{y}<br>%{x:.4g}, %{customdata}<extra></extra>", row=1, col=column,
        )  # fmt: skip
        null = _null_of(values, name)
        if null is not None:
            found.add_vline(x=null, line={"color": AGAINST, "dash": "dot"}, row=1, col=column)
        found.update_xaxes(
            title_text=wrapped(METRICS[name], 20),
            title_font_size=11,
            nticks=4,
            tickangle=0,
            rangemode="tozero",
            exponentformat="e",
            row=1,
            col=column,
        )
    found.update_yaxes(autorange="reversed", type="category")
    last = f"<br>at {as_plotly(values['checkpoints'][-1])}" if len(values["checkpoints"]) > 1 else ""
    _head(found, "Which method is faithful on these examples", f"{of_what(card)}; dotted: random orders{last}")
    return found.update_layout(height=220 + 34 * len(board))


def _null_of(values: Values, name: str) -> float | None:
    known = [each[f"random_{name}"] for each in values["maps"] if each.get(f"random_{name}") is not None]
    return float(np.mean(known)) if known else None


def _of_method(values: Values, arrays: Arrays, view: View, name: str, what: str) -> Array:
    cases = set(chosen_cases(values, view))
    found = [arrays[f"{what}_{number}"] for number, each in enumerate(values["maps"])
             if each["method"] == name and each["case"] in cases and f"{what}_{number}" in arrays]  # fmt: skip
    return np.stack(found) if found else np.zeros((0, 0))


def _mean_and_error(rows: Array) -> tuple[Array, Array]:
    """Return the mean of what is finite in each column, NaN where nothing is, and its standard error."""
    known = np.isfinite(rows)
    count = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, rows, 0).sum(0) / count
        spread = np.where(known, (rows - mean) ** 2, 0).sum(0) / (count - 1)
        return mean, np.where(count > 1, np.sqrt(spread / count), 0.0)


def _interval(mean: float, low: float, high: float) -> str:
    if not np.isfinite(mean):
        return "no example has both"
    between = f", 95 % interval {low:.2f} to {high:.2f}" if np.isfinite(low + high) else ", too few for an interval"
    return f"{mean:.3f}{between}"


def _nulled(row: Array) -> list[float | None]:
    return [float(each) if np.isfinite(each) else None for each in row]


def _head(found: go.Figure, title: str, subtitle: str) -> None:
    found.update_layout(template=template(), title=figure(title, subtitle, "", "").layout.title, margin={"t": 110})
    found.for_each_annotation(lambda each: each.update(font_size=12))
