"""Grids of maps as figures: pictures under heat maps, bars of columns, and tokens in lines."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from analyzers._attribution_panels import AGAINST, DIVERGING, FOR, SHARE, Array, Cell, Grid, flat, scale_of, wrapped
from analyzers._figures import INK, as_plotly, faded, figure, template
from analyzers._series_figures import as_labels

LARGEST = 256  # pixels of a heat map on its longer side
CELL, AROUND = 175, 215  # pixels of a row of maps, and around all of them
LARGE, WIDE = 300, 760  # pixels of a picture where there are few, and of all beside one another
MOST_BARS = 15
LINE = 16  # tokens beside one another
MOST_LINES = 48
LABEL = 20  # signs of a label beside its bar
MUTED = "#52606D"
REFUSED = 0.4  # of the height of a row with maps
OVER_PICTURES = [  # the nearer to zero, the more of the picture is seen
    [0.0, faded(AGAINST, 1.0)], [0.5, faded(AGAINST, 0.0)], [0.5, faded(FOR, 0.0)], [1.0, faded(FOR, 1.0)],
]  # fmt: skip


def drawn(kind: str, grid: Grid, opacity: float = 0.8) -> go.Figure:
    """Draw a grid of maps of images, tables or text."""
    if kind == "image":
        return _pictures(grid, opacity)
    return bars(grid) if kind == "table" else _tokens(grid)


def _pictures(grid: Grid, opacity: float) -> go.Figure:
    count, width = len(grid.rows), len(grid.columns)
    found = _subplots(grid, count, width, horizontal_spacing=0.02, vertical_spacing=min(0.06, 0.4 / count))
    for row, cells in enumerate(grid.cells, 1):
        scale = scale_of((Cell(flat(each.values)) for each in cells if each.values is not None), SHARE)
        for column, cell in enumerate(cells, 1):
            _picture(found, row, column, cell, opacity, grid)
        if any(each.values is not None for each in cells):
            _scale(found, row, count, scale, grid.value)
        found.update_yaxes(title_text=f"{grid.rows[row - 1]}<br>pixel row", row=row, col=1, title_font_size=11)
    found.update_xaxes(showgrid=False, zeroline=False, showticklabels=False, constrain="domain")
    found.update_yaxes(showgrid=False, zeroline=False, showticklabels=False, autorange="reversed", constrain="domain")
    found.update_xaxes(title_text="pixel column", row=count, title_font_size=11)
    side = min(LARGE, max(CELL, WIDE // width))
    return found.update_layout(height=AROUND + int(side * sum(_heights(grid))))


def _picture(found: go.Figure, row: int, column: int, cell: Cell, opacity: float, grid: Grid) -> None:
    axis = _axis(found, row, column)
    if cell.values is None:
        _without(found, row, column, cell)
        return
    values = flat(cell.values)
    height, width = values.shape
    if cell.picture is not None:
        found.add_trace(_image(cell.picture, height, width), row=row, col=column)
    step = math.ceil(max(height, width) / LARGEST)
    found.add_heatmap(
        z=_reduced(values, step), x0=(step - 1) / 2, dx=step, y0=(step - 1) / 2, dy=step,
        coloraxis=f"coloraxis{row}" if row > 1 else "coloraxis",
        opacity=1.0 if cell.picture is None else opacity,
        hovertemplate=f"pixel row %{{y:.0f}}, column %{{x:.0f}}<br>{grid.value} %{{z:.4g}}<extra></extra>",
        row=row, col=column,
    )  # fmt: skip
    found.update_yaxes(scaleanchor=axis, row=row, col=column)
    if cell.note:
        _say(found, axis, as_plotly(cell.note), centre=False)


def _without(found: go.Figure, row: int, column: int, cell: Cell) -> None:
    """Say why there is no map; the empty trace keeps the place, which Plotly would drop."""
    found.add_scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip", row=row, col=column)
    found.update_xaxes(visible=False, row=row, col=column)
    found.update_yaxes(showline=False, ticks="", row=row, col=column)
    _say(found, _axis(found, row, column), wrapped(cell.reason, 30 if cell.labels == () else 90), centre=True)


def _image(picture: Array, height: int, width: int) -> go.Image:
    """Lay a picture over the pixels of a map, whatever its own size."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    dy, dx = height / picture.shape[0], width / picture.shape[1]
    return go.Image(source=source, x0=dx / 2 - 0.5, dx=dx, y0=dy / 2 - 0.5, dy=dy, hoverinfo="skip")


def _reduced(values: Array, step: int) -> Array:
    """Average squares of pixels; those at the edge may be smaller."""
    if step == 1:
        return values
    edges = [np.arange(0, size, step) for size in values.shape]
    sums = np.add.reduceat(np.add.reduceat(values, edges[0], 0), edges[1], 1)
    sizes = [np.diff(np.append(at, size)) for at, size in zip(edges, values.shape, strict=True)]
    return np.asarray(sums / np.outer(*sizes))


def _scale(found: go.Figure, row: int, count: int, scale: float, value: str) -> None:
    low, high = found.layout[f"yaxis{_number(found, row, 1)}"].domain
    bar = {
        "y": (low + high) / 2, "len": (high - low) * (1.0 if count > 1 else 0.8), "thickness": 10, "x": 1.01,
        "tickvals": [-scale, 0, scale], "ticktext": [f"−{scale:.2g}", "0", f"{scale:.2g}"],
        "title": {"text": value if row == 1 else "", "side": "right", "font": {"size": 11}},
    }  # fmt: skip
    name = f"coloraxis{row}" if row > 1 else "coloraxis"
    found.update_layout({name: {"colorscale": OVER_PICTURES, "cmin": -scale, "cmax": scale, "colorbar": bar}})


def bars(grid: Grid) -> go.Figure:
    """Draw maps of named features as bars, the largest of each row; a row has one scale, and one order where it can."""
    count, width = len(grid.rows), len(grid.columns)
    alike = all(len({each.labels for each in cells}) == 1 for cells in grid.cells)
    found = _subplots(
        grid, count, width, horizontal_spacing=0.02 if alike else 0.3 / width, vertical_spacing=min(0.12, 0.5 / count)
    )  # fmt: skip
    tallest = 0
    for row, cells in enumerate(grid.cells, 1):
        spread = [float(np.nanmax(each.stderr, initial=0)) for each in cells if each.stderr is not None]
        reach = 1.08 * (scale_of(cells) + max(spread, default=0.0))
        order = _order(cells) if alike else None
        for column, cell in enumerate(cells, 1):
            tallest = max(tallest, _bars(found, row, column, cell, grid.value, order))
            found.update_yaxes(showticklabels=column == 1 or not alike, row=row, col=column)
        signed = any(each.values is not None and (each.values < 0).any() for each in cells)
        found.update_xaxes(range=[-reach if signed else 0, reach], nticks=6, row=row)
        found.update_yaxes(title_text=grid.rows[row - 1], row=row, col=1, title_font_size=11)
    found.update_xaxes(title_text=grid.value, row=count, title_font_size=11)
    height = max(CELL, 40 + 17 * tallest) * sum(_heights(grid))
    return found.update_layout(height=AROUND + int(height), showlegend=False)


def _order(cells: Sequence[Cell]) -> Array:
    """Return the features of a row from the largest mean size to the smallest."""
    known = [np.abs(np.nan_to_num(each.values)) for each in cells if each.values is not None]
    return np.argsort(-np.mean(known, 0), kind="stable") if known else np.zeros(0, np.int64)


def _bars(found: go.Figure, row: int, column: int, cell: Cell, value: str, order: Array | None) -> int:
    """Draw the bars of a cell; return how many."""
    axis = _axis(found, row, column)
    if cell.values is None:
        _without(found, row, column, cell)
        return 0
    names, labels = as_labels(cell.labels), as_labels(_short(each) for each in cell.labels)
    kept = (_order([cell]) if order is None else order)[:MOST_BARS]
    shown = [float(cell.values[each]) for each in kept]
    spread = None if cell.stderr is None else [float(np.nan_to_num(cell.stderr[each])) for each in kept]
    found.add_bar(
        x=shown, y=[labels[each] for each in kept], orientation="h", customdata=[names[each] for each in kept],
        marker_color=[AGAINST if each < 0 else FOR for each in shown],
        error_x=None if spread is None else {"type": "data", "array": spread, "thickness": 1.2, "width": 3},
        hovertemplate=f"%{{customdata}}<br>{value} %{{x:.4g}}<extra></extra>", row=row, col=column,
    )  # fmt: skip
    found.update_yaxes(autorange="reversed", type="category", row=row, col=column)
    if cell.note:
        _say(found, axis, as_plotly(cell.note), centre=False)
    return len(kept)


def _short(label: str) -> str:
    return label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"


def _tokens(grid: Grid) -> go.Figure:
    """Draw tokens in lines: a line of cells for each method, with its numbers; special tokens without colour."""
    scales = [scale_of(cells) for cells in grid.cells]
    lines = [(column, start) for column in range(len(grid.columns)) for start in _starts(grid, column)]
    shown, count = lines[:MOST_LINES], len(grid.rows)
    titles = [grid.columns[column].replace("<br>", " · ") if not start else "" for column, start in shown]
    found = make_subplots(rows=len(shown), cols=1, subplot_titles=titles, vertical_spacing=0.5 / max(len(shown), 1))
    found.for_each_annotation(lambda each: each.update(font_size=12, x=0, xanchor="left"))
    widest = max((min(LINE, len(row[column].labels)) for row in grid.cells for column, _ in shown), default=1)
    for place, (column, start) in enumerate(shown, 1):
        _line(found, place, grid, column, start, scales)
        found.update_xaxes(range=[start - 0.5, start + widest - 0.5], showgrid=False, row=place, col=1)
    found.update_yaxes(showgrid=False)
    found.update_xaxes(title_text="token (special ones in italics, not coloured)", title_font_size=11, row=len(shown))
    height = AROUND + len(shown) * (95 + 26 * count)
    ends = {"tickvals": [-1, 0, 1], "ticktext": ["−1", "0", "1"], "thickness": 10, "x": 1.01,
            "title": {"text": "share of the row's ±", "side": "right", "font": {"size": 11}}}  # fmt: skip
    found.update_layout(
        coloraxis={"colorscale": [list(each) for each in DIVERGING], "cmin": -1, "cmax": 1, "colorbar": ends}
    )
    left = "" if len(shown) == len(lines) else f"; {len(shown)} of {len(lines)} lines: choose a case"
    _head(found, grid, left)
    return found.update_layout(height=height)


def _starts(grid: Grid, column: int) -> range:
    return range(0, max((len(row[column].labels) for row in grid.cells), default=1) or 1, LINE)


def _line(found: go.Figure, place: int, grid: Grid, column: int, start: int, scales: list[float]) -> None:
    cells = [row[column] for row in grid.cells]
    part = slice(start, start + LINE)
    labels, special = cells[0].labels[part], cells[0].special[part]
    colours, texts, hovers = [], [], []
    for cell, scale in zip(cells, scales, strict=True):
        values = np.full(len(labels), np.nan) if cell.values is None else cell.values[part]
        apart = np.array(special or (False,) * len(labels), bool)
        colours.append(
            [
                None if not np.isfinite(each) else float(each)
                for each in np.where(apart & np.isfinite(values), 0, values) / scale
            ]
        )
        texts.append(["" if not np.isfinite(each) else f"{each:.2g}" for each in values])
        hovers.append([wrapped(cell.reason or cell.note, 60)] * len(labels))
    names = [f"{name} (±{scale:.2g}){_noted(cell)}" for name, scale, cell in
             zip(grid.rows, scales, cells, strict=True)]  # fmt: skip
    found.add_heatmap(
        z=colours, x=list(range(start, start + len(labels))), y=as_rows(names), text=texts, texttemplate="%{text}",
        customdata=hovers, coloraxis="coloraxis", xgap=1, ygap=1, row=place, col=1,
        hovertemplate=f"token %{{x}}<br>{grid.value} %{{text}}<br>%{{customdata}}<extra></extra>",
    )  # fmt: skip
    ticks = [f"<i>{as_plotly(each)}</i>" if apart else as_plotly(each) or "␣" for each, apart in
             zip(labels, special or (False,) * len(labels), strict=True)]  # fmt: skip
    found.update_xaxes(
        tickvals=list(range(start, start + len(labels))), ticktext=ticks, tickangle=-35, row=place, col=1,
    )  # fmt: skip
    found.update_yaxes(autorange="reversed", row=place, col=1)


def as_rows(names: list[str]) -> list[str]:
    """Keep rows apart whose names are the same."""
    return [name if names.index(name) == place else f"{name} [{place + 1}]" for place, name in enumerate(names)]


def _noted(cell: Cell) -> str:
    words = "refused" if cell.values is None else cell.note
    return f", {as_plotly(words)}" if words else ""


def _subplots(grid: Grid, rows: int, columns: int, **spacing: Any) -> go.Figure:
    found = make_subplots(
        rows=rows, cols=columns, column_titles=list(grid.columns), row_heights=_heights(grid), **spacing
    )
    _head(found, grid, "")
    found.for_each_annotation(lambda each: each.update(font_size=11))
    return found


def _heights(grid: Grid) -> list[float]:
    """Return the shares of the rows in the height: low where there is no map."""
    return [1.0 if any(each.values is not None for each in cells) else REFUSED for cells in grid.cells]


def _head(found: go.Figure, grid: Grid, more: str) -> None:
    head = figure(grid.title, grid.told + more, "", "").layout
    lines = max((each.count("<br>") for each in grid.columns), default=0)
    found.update_layout(template=template(), title=head.title, margin={"t": 130 + 15 * lines, "r": 90})


def _number(found: go.Figure, row: int, column: int) -> str:
    name: str = found.get_subplot(row, column).yaxis.plotly_name
    return name.removeprefix("yaxis")


def _axis(found: go.Figure, row: int, column: int) -> str:
    return f"x{_number(found, row, column)}"


def _say(found: go.Figure, axis: str, text: str, *, centre: bool) -> None:
    y = axis.replace("x", "y")
    at: dict[str, Any] = {"x": 0.5, "y": 0.5} if centre else {"x": 0.0, "y": 1.0, "xanchor": "left", "yanchor": "top"}
    found.add_annotation(
        text=text, xref=f"{axis} domain", yref=f"{y} domain", showarrow=False, bgcolor="rgba(255,255,255,0.85)",
        font={"size": 10, "color": MUTED if centre else INK}, **at,
    )  # fmt: skip
