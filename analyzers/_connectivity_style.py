"""What the figures of mode connectivity share: colours of the ways of joining, subtitles, lines and bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analyzers._figures import COLOURS, faded, figure
from analyzers._series_figures import of_what

Values = Mapping[str, Any]
GREY = "#7B8794"
STAGES = {
    "naive": ("as they are", GREY),
    "matched": ("after matching", COLOURS[0]),
    "repaired": ("after matching and REPAIR", COLOURS[2]),
}
TREATMENTS = {
    "none": "no BatchNorm",
    "measured anew": "BatchNorm statistics measured anew",
    "as interpolated": "BatchNorm statistics as interpolated",
}


def about(card: Values, values: Values) -> str:
    """Say of what a figure is: loss, examples, mode, dtype, model and what is done about BatchNorm."""
    tested = f", {values['test_examples']} test examples" if values.get("test_examples") else ""
    return f"{of_what(card)}{tested}<br>{TREATMENTS[values['batch_norm']]}"


def titled(title: str, words: str, x: str, y: str) -> go.Figure:
    """Return an empty figure with room for all lines of its subtitle; the texts must have gone through as_plotly."""
    result = figure(title, words, x, y)
    result.update_layout(margin={"t": 78 + 17 * (1 + words.count("<br>"))})
    return result


def add_band(result: go.Figure, x: Sequence[float], low: Sequence[Any], high: Sequence[Any], colour: str) -> None:
    """Shade between two lines, where both are known."""
    known = [place for place, pair in enumerate(zip(low, high, strict=True)) if None not in pair]
    places = [x[each] for each in known]
    result.add_scatter(
        x=[*places, *places[::-1]],
        y=[*(high[each] for each in known), *(low[each] for each in known[::-1])],
        fill="toself",
        fillcolor=faded(colour, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def add_line(
    result: go.Figure, x: Sequence[float], y: Sequence[Any], name: str, colour: str, dash: str = "solid", **more: Any
) -> None:
    """Add a line with its hover; the name must have gone through as_plotly."""
    result.add_scatter(
        x=list(x),
        y=list(y),
        name=name,
        mode="lines",
        line={"color": colour, "dash": dash, "width": more.pop("width", 2)},
        hovertemplate=f"{name}<br>%{{x:.3g}}: %{{y:.5g}}<extra></extra>",
        **more,
    )
