"""The template of all figures, and the one way in which text from files enters them."""

from __future__ import annotations

import plotly.graph_objects as go

COLOURS = (
    "#0B6FA4", "#C8501E", "#2E8B57", "#8E44AD", "#B8860B", "#C2185B",
    "#00838F", "#5D4037", "#546E7A", "#7CB342", "#3949AB", "#D81B60",
)  # fmt: skip
FONT = "Inter, 'Segoe UI', 'DejaVu Sans', sans-serif"
INK, GRID = "#1F2933", "#E4E7EB"


def template() -> go.layout.Template:
    """Return the template "theodolite": set it on every figure, so that no default shows through."""
    axis = {
        "gridcolor": GRID, "linecolor": INK, "zerolinecolor": "#CBD2D9", "ticks": "outside", "showline": True,
        "tickcolor": INK, "title": {"standoff": 10}, "automargin": True,
    }  # fmt: skip
    layout = {
        "colorway": list(COLOURS),
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "title": {"x": 0.0, "xref": "paper", "font": {"size": 16}},
        "xaxis": axis,
        "yaxis": axis,
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        "margin": {"l": 70, "r": 20, "t": 90, "b": 60},
        "hoverlabel": {"align": "left"},
    }
    return go.layout.Template(layout=layout)


def as_plotly(text: object) -> str:
    """Make text from files harmless in titles, legends and hovers: no tags, no entities, no MathJax; one line."""
    line = " ".join(str(text).split())
    line = line if len(line) <= 120 else line[:119] + "…"
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;"), ("%{", "%&#123;")):
        line = line.replace(raw, safe)
    return line


def figure(title: str, subtitle: str, x: str, y: str) -> go.Figure:
    """Return an empty figure with template, title and axis titles; the texts must have gone through as_plotly."""
    words = {"text": title, "subtitle": {"text": subtitle, "font": {"size": 12, "color": "#52606D"}}}
    result = go.Figure(layout={"template": template()})
    result.update_layout(title=words, xaxis_title_text=x, yaxis_title_text=y)
    return result


def faded(colour: str, alpha: float) -> str:
    """Return a #RRGGBB colour as rgba(...)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
