"""Barriers between all pairs of several checkpoints: heat-maps before and after matching, and a tree of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from analyzers._connectivity_style import GREY, Values, about, titled
from analyzers._figures import COLOURS, GRID, INK
from analyzers._series_figures import as_labels

Floats = NDArray[np.float64]
NAMED = {
    "git_rebasin": "highest loss above the mean of the ends",
    "entezari": "highest rise above the line between the ends",
    "midpoint": "loss half-way above the mean of the ends",
}
WRITTEN = 12  # checkpoints up to which each cell says its number
SHOWN = {"naive": ("matrix_before", "as they are"), "matched": ("matrix_after", "after matching each pair")}


def tree(matrix: Sequence[Sequence[float | None]]) -> Floats | None:
    """Join checkpoints by the average barrier between them: scipy's linkage, (K - 1, 4); None where one is not known.

    A barrier below nothing counts as none.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3 or any(each is None for row in matrix for each in row):
        return None
    barriers = np.maximum(np.asarray(matrix, dtype=np.float64), 0.0)
    return np.asarray(linkage(squareform(barriers, checks=False), method="average"))


def draw(card: Values, values: Values) -> dict[str, go.Figure]:
    """Draw "matrix_before", "matrix_after" and "dendrogram", where there are more than two checkpoints."""
    found = values.get("matrix")
    if not found:
        return {}
    words = f"{NAMED[found['definition']]}; {found['points']} points on each line<br>{about(card, values)}"
    drawn = {name: _heat(found, stage, words) for stage, (name, _) in SHOWN.items() if stage in found}
    trees = {stage: tree(found[stage]) for stage in SHOWN if stage in found}
    known = {stage: each for stage, each in trees.items() if each is not None}
    if known:
        drawn["dendrogram"] = _dendrogram(found, known, words, values.get("threshold"))
    return drawn


def _heat(found: Values, stage: str, words: str) -> go.Figure:
    labels = as_labels(found["checkpoints"])
    title = f"Barriers between all pairs, {SHOWN[stage][1]}"
    result = titled(title, words, "", "")
    rows = [[None if i == j else each for j, each in enumerate(row)] for i, row in enumerate(found[stage])]
    finite = [each for key in SHOWN for row in found.get(key, []) for each in row if each is not None]
    cells = [[_cell(found, stage, i, j) for j in range(len(labels))] for i in range(len(labels))]
    text = [[("" if each is None else f"{each:.2g}") for each in row] for row in rows]
    result.add_heatmap(
        z=rows,
        x=list(range(len(labels))),
        y=list(range(len(labels))),
        zmin=0,
        zmax=max([*finite, 1e-12]),
        colorscale="Blues",
        customdata=cells,
        hovertemplate="%{customdata}<extra></extra>",
        text=text if len(labels) <= WRITTEN else None,
        texttemplate="%{text}" if len(labels) <= WRITTEN else None,
        colorbar={"title": {"text": "barrier"}, "thickness": 14},
        xgap=1,
        ygap=1,
    )
    ticks = {"tickvals": list(range(len(labels))), "ticktext": _ticks(found["checkpoints"]), "showgrid": False}
    result.update_layout(plot_bgcolor=GRID)
    result.update_xaxes(**ticks, tickangle=-35, constrain="domain")
    result.update_yaxes(**ticks, autorange="reversed", scaleanchor="x")
    result.update_layout(height=max(480, 300 + 34 * len(labels)))
    return result


def _cell(found: Values, stage: str, i: int, j: int) -> str:
    labels = as_labels(found["checkpoints"])
    if i == j:
        return labels[i]
    value, low, high = found[stage][i][j], found[f"{stage}_low"][i][j], found[f"{stage}_high"][i][j]
    told = "not finite" if value is None else f"{value:.4g} ({low:.4g} to {high:.4g})"
    return f"{labels[i]}<br>{labels[j]}<br>barrier {told}"


def _dendrogram(found: Values, trees: Mapping[str, Floats], words: str, limit: float | None) -> go.Figure:
    """Draw the trees side by side, lying: the leaves on the left axis, the barrier at which they join to the right."""
    titles = [f"{SHOWN[stage][1]}" for stage in trees]
    result = make_subplots(1, len(trees), subplot_titles=titles, horizontal_spacing=0.22)
    empty = titled("Who is joined to whom below which barrier", words, "", "")
    result.update_layout(template=empty.layout.template, title=empty.layout.title, showlegend=False)
    labels = _ticks(found["checkpoints"])
    for column, (stage, each) in enumerate(trees.items(), 1):
        order, lines = branches(each)
        for x, y in lines:
            result.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": COLOURS[0] if stage == "matched" else GREY, "width": 2},
                hovertemplate="joined at a barrier of %{x:.4g}<extra></extra>",
                row=1,
                col=column,
            )
        ticks = [labels[leaf] for leaf in order]
        result.update_yaxes(tickvals=list(range(len(order))), ticktext=ticks, showgrid=False, row=1, col=column)
        result.update_xaxes(title_text="Average barrier", rangemode="tozero", row=1, col=column)
        if limit is not None:
            result.add_vline(limit, line={"color": INK, "width": 1, "dash": "dash"}, row=1, col=column)
    result.update_layout(height=max(420, 260 + 30 * len(labels)), margin={"t": 160})
    return result


def branches(links: Floats) -> tuple[list[int], list[tuple[list[float], list[float]]]]:
    """Lay a linkage out: the leaves in order, and for each joint the four corners (x: height, y: place)."""
    count = len(links) + 1
    members: dict[int, list[int]] = {leaf: [leaf] for leaf in range(count)}
    for number, (left, right, _height, _size) in enumerate(links):
        members[count + number] = members[int(left)] + members[int(right)]
    order = members[count + len(links) - 1]
    places = {leaf: float(order.index(leaf)) for leaf in range(count)}
    heights = dict.fromkeys(range(count), 0.0)
    lines = []
    for number, (left, right, height, _size) in enumerate(links):
        one, two = int(left), int(right)
        lines.append(
            ([heights[one], height, height, heights[two]], [places[one], places[one], places[two], places[two]])
        )
        places[count + number], heights[count + number] = (places[one] + places[two]) / 2, float(height)
    return order, lines


def _ticks(names: Sequence[object]) -> list[str]:
    """Return the names shortened: the end of a name tells most."""
    plain = [" ".join(str(each).split()) for each in names]
    return as_labels(each if len(each) <= 24 else f"…{each[-23:]}" for each in plain)
