"""Figures of influence: the listed examples beside their usual influence, all examples, and the way over the run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzers._base import Arrays
from analyzers._figures import COLOURS, as_plotly, faded, figure
from analyzers._series_figures import as_labels, of_what, time_axis

HELPED, HURT, NULL = COLOURS[0], COLOURS[1], "#7B8794"
MOST = 20  # bars of each kind
BINS = 80
Values = Mapping[str, Any]


def ranking_figure(card: Mapping[str, Any], values: Values) -> go.Figure:
    """Draw the listed examples as bars, and the mean influence of each on random examples."""
    groups = {
        name: [each for each in values["examples"] if each["group"] == name][:MOST] for name in ("helped", "hurt")
    }
    shown = [*groups["helped"], *reversed(groups["hurt"])]
    labels = as_labels(each["id"] for each in shown)
    drawn = figure(f"Influence on {_example(values)}", of_what(card), _axis(values), "")
    for name, colour in (("helped", HELPED), ("hurt", HURT)):
        places = [place for place, each in enumerate(shown) if each["group"] == name]
        drawn.add_bar(
            y=[labels[place] for place in places],
            x=[shown[place]["influence"] for place in places],
            orientation="h",
            name=name.capitalize(),
            marker_color=colour,
            customdata=[_told(shown[place]) for place in places],
            hovertemplate="%{y}<br>%{customdata}<br>influence %{x:.4g}<extra></extra>",
        )
    drawn.add_scatter(
        y=labels,
        x=[each["typical_influence"] for each in shown],
        mode="markers",
        name=f"Mean on {values['null_examples']} random examples",
        marker={"color": NULL, "symbol": "diamond", "size": 8},
        hovertemplate="%{y}<br>on random examples %{x:.4g}<extra></extra>",
    )
    drawn.update_yaxes(categoryorder="array", categoryarray=labels[::-1], type="category", dtick=1)
    return drawn.update_layout(height=max(420, 150 + 20 * len(shown)), barmode="overlay")


def distribution_figure(card: Mapping[str, Any], values: Values, arrays: Arrays) -> go.Figure:
    """Draw how the influences of all training examples are spread, beside those on random examples."""
    influence, null = arrays["influence"], arrays["null"][np.isfinite(arrays["null"])]
    if values["self_influence"] is not None:
        influence = np.delete(influence, values["example"]["row"])
    edges = np.linspace(*_range(np.concatenate([influence, null])), BINS + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    drawn = figure(
        f"Influence of all examples on {_example(values)}", of_what(card), _axis(values), "Share of examples"
    )
    for name, sample, colour in (
        (f"On {values['null_examples']} random examples", null, NULL), ("On this example", influence, HELPED),
    ):  # fmt: skip
        share = np.histogram(np.clip(sample, edges[0], edges[-1]), edges)[0] / max(len(sample), 1)
        drawn.add_bar(
            x=middle, y=share, width=width, name=name, marker_color=faded(colour, 0.55), marker_line_width=0,
            hovertemplate="influence about %{x:.3g}<br>share %{y:.2%}<extra></extra>",
        )  # fmt: skip
    below = 0.5 / max(len(influence), len(null), 1)
    for name, colour in (("helped", HELPED), ("hurt", HURT)):
        each = [one["influence"] for one in values["examples"] if one["group"] == name]
        drawn.add_scatter(
            x=each, y=[below] * len(each), mode="markers", name=f"Listed: {name}", hoverinfo="x",
            marker={"symbol": "line-ns-open", "size": 14, "color": colour},
        )  # fmt: skip
    drawn.update_yaxes(type="log", tickformat="~%")
    return drawn.update_layout(barmode="overlay")


def time_figure(card: Mapping[str, Any], values: Values) -> go.Figure:
    """Draw the influence summed up over the checkpoints, of the examples that helped at each and of those that hurt."""
    drawn = figure(
        f"Where in the run {_example(values)} was influenced", of_what(card), time_axis(values["unit"]),
        "Influence up to there",
    )  # fmt: skip
    rows = (("helped", HELPED, values["contributions_helped"]), ("hurt", HURT, values["contributions_hurt"]))
    for name, colour, each in rows:
        drawn.add_scatter(
            x=values["times"], y=list(accumulate(each)), mode="lines+markers", name=name.capitalize(),
            line_color=colour, text=as_labels(values["checkpoints"]),
            hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        )  # fmt: skip
    both = [one + two for one, two in zip(rows[0][2], rows[1][2], strict=True)]
    drawn.add_scatter(
        x=values["times"], y=list(accumulate(both)), mode="lines+markers", name="Together",
        line={"color": NULL, "dash": "dot"},
    )  # fmt: skip
    return drawn


def _range(sample: np.ndarray[Any, Any]) -> tuple[float, float]:
    sample = sample[np.isfinite(sample)]
    low, high = (float(sample.min()), float(sample.max())) if len(sample) else (0.0, 0.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _example(values: Values) -> str:
    return as_plotly(values["example"]["id"])


def _axis(values: Values) -> str:
    words = "TracIn" if values["method"] == "tracin" else "Rise of the loss without the example"
    return f"{words}{', relative' if values['relative'] else ''} (above 0: helped)"


def _told(example: Mapping[str, Any]) -> str:
    return as_plotly(f"label {example['label']}, predicted {example['prediction']}")
