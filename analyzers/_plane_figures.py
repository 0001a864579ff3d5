"""How two-dimensional slices of the loss are drawn: as contours with all that is marked, and in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from analyzers._base import Arrays
from analyzers._figures import COLOURS, INK, figure
from analyzers._plane_words import about, axis, cell_words, seen, short, short_axis, step, ticks, title, told

Floats = NDArray[np.float64]
Values = Mapping[str, Any]
SCALE = "Viridis"
DECADES = 30  # a range of this factor or more is drawn in logarithmic levels
LEVELS = 18
PATH = "#FF7A59"  # stands out on dark and on bright cells
ABOVE, BELOW, WIDEST, TALLEST, HEIGHT_3D = 140, 110, 820, 510, 760  # pixels
CAMERA = {"eye": {"x": 1.3, "y": -1.55, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.12}}
NAMED = 14  # marks that can have their names beside them


def draw(values: Values, arrays: Arrays) -> dict[str, go.Figure]:
    """Draw "plane_N_contour", "plane_N_surface" and, where there is an accuracy, "plane_N_accuracy" of every plane."""
    found: dict[str, go.Figure] = {}
    for index, plane in enumerate(values["planes"]):
        name = f"plane_{index}"
        loss = _levels(plane, arrays[f"{name}_loss"])
        found[f"{name}_contour"] = _contour(plane, arrays, index, loss)
        found[f"{name}_surface"] = _surface(plane, arrays, index, loss)
        if f"{name}_accuracy" in arrays:
            found[f"{name}_accuracy"] = _contour(plane, arrays, index, _accuracy(arrays, name))
    return found


def tables(values: Values, arrays: Arrays) -> dict[str, pd.DataFrame]:
    """Return the cells behind every figure, "plane_N_points" (what was evaluated) and "plane_N_marks" (checkpoints)."""
    found: dict[str, pd.DataFrame] = {}
    for index, plane in enumerate(values["planes"]):
        name = f"plane_{index}"
        cells = pd.DataFrame(
            {
                "x": np.tile(plane["x"], len(plane["y"])),
                "y": np.repeat(plane["y"], len(plane["x"])),
                "loss": arrays[f"{name}_loss"].ravel(),
                "evaluated": arrays[f"{name}_evaluated"].ravel(),
            }
        )
        points = {"x": arrays[f"{name}_at"][:, 0], "y": arrays[f"{name}_at"][:, 1], "loss": arrays[f"{name}_values"]}
        found |= {f"{name}_contour": cells, f"{name}_surface": cells}
        if f"{name}_accuracy" in arrays:
            found[f"{name}_accuracy"] = cells.assign(accuracy=arrays[f"{name}_accuracy"].ravel())
            points["accuracy"] = arrays[f"{name}_right"]
        found[f"{name}_points"] = pd.DataFrame(points)
        found[f"{name}_marks"] = pd.DataFrame(plane["points"])
    return found


class _Drawn:
    """What is drawn over the plane: cells, the height in the figure, and how its colours are numbered."""

    def __init__(
        self, cells: Floats, title: str, ends: tuple[float, float], *, log: bool, form: str, error: str
    ) -> None:
        self.cells, self.title, self.log, self.form, self.error = cells, title, log, form, error
        self.low, self.high = ends
        if self.log:
            self.low, self.high = math.log10(self.low), math.log10(self.high)

    @property
    def heights(self) -> Floats:
        """The cells as they are coloured: within the ends, their logarithm where levels are logarithmic."""
        if not self.log:
            return self.cells
        return np.log10(np.clip(self.cells, 10**self.low, None))

    @property
    def bar(self) -> dict[str, Any]:
        """The colour bar."""
        bar: dict[str, Any] = {"title": {"text": self.title, "side": "right"}, "len": 0.9, "thickness": 18}
        if self.log:
            numbers = ticks(10**self.low, 10**self.high)
            bar |= {"tickvals": [math.log10(each) for each in numbers], "ticktext": [f"{each:g}" for each in numbers]}
        elif self.form.endswith("%"):
            bar["tickformat"] = ".2~%"
        return bar


def _levels(plane: Values, cells: Floats) -> _Drawn:
    """Choose linear or logarithmic levels: none finer than the error that is stated."""
    low, high = plane["range"]
    error = plane["stated_error"]
    floor = max(low, (error if error is not None else 0.01) * (high - low))
    log = floor > 0 and high / floor >= DECADES
    words = "not known yet" if error is None else f"{100 * error:.2g} % of the range"
    return _Drawn(cells, "Loss", (floor if log else low, high), log=log, form=".4g", error=words)


def _accuracy(arrays: Arrays, name: str) -> _Drawn:
    found, error = arrays[f"{name}_right"], float(arrays[f"{name}_accuracy_error"])
    words = "not known yet" if math.isnan(error) else f"{100 * error:.2g} percentage points"
    ends = float(np.nanmin(found)), float(np.nanmax(found))
    return _Drawn(arrays[f"{name}_accuracy"], "Accuracy", ends, log=False, form=".2%", error=words)


def _contour(plane: Values, arrays: Arrays, index: int, drawn: _Drawn) -> go.Figure:
    result = figure(
        title(plane, drawn.title), about(plane, drawn.error), axis(plane["x_label"]), axis(plane["y_label"])
    )
    size = step(drawn.low, drawn.high, LEVELS)
    first = (math.floor(drawn.low / size + 1e-9) + 1) * size
    result.add_contour(
        x=plane["x"],
        y=plane["y"],
        z=drawn.heights,
        customdata=drawn.cells,
        text=cell_words(arrays[f"plane_{index}_evaluated"]),
        colorscale=SCALE,
        zmin=drawn.low,
        zmax=drawn.high if drawn.high > drawn.low else drawn.low + 1,
        contours={"start": first, "end": max(drawn.high - 1e-9 * size, first), "size": size},
        line={"width": 0.6, "color": "rgba(255,255,255,0.55)"},
        colorbar=drawn.bar,
        connectgaps=False,
        hovertemplate=f"x %{{x:.4g}}, y %{{y:.4g}}<br>{drawn.title.lower()} %{{customdata:{drawn.form}}}"
        "<br>%{text}<extra></extra>",
    )
    _add_points(result, arrays[f"plane_{index}_at"], plane)
    _add_marks(result, plane)
    ends = [[plane[side][0], plane[side][-1]] for side in ("x", "y")]
    result.update_xaxes(range=ends[0], constrain="domain", showgrid=False, zeroline=False)
    result.update_yaxes(range=ends[1], constrain="domain", showgrid=False, zeroline=False)
    result.update_yaxes(scaleanchor="x", scaleratio=1)
    below = {"y": 0, "yref": "container", "yanchor": "bottom", "x": 0, "itemsizing": "constant"}
    tall = WIDEST * (ends[1][1] - ends[1][0]) / (ends[0][1] - ends[0][0])
    height = ABOVE + BELOW + min(max(tall, TALLEST / 2), TALLEST)
    return result.update_layout(height=height, margin={"t": ABOVE, "b": BELOW}, legend=below)


def _add_points(result: go.Figure, at: Floats, plane: Values) -> None:
    result.add_scatter(
        x=at[:, 0],
        y=at[:, 1],
        mode="markers",
        marker={"size": 3, "color": "white", "line": {"color": INK, "width": 0.5}},
        name=f"evaluated points ({plane['evaluations']})",
        hoverinfo="skip",
    )


def _add_marks(result: go.Figure, plane: Values) -> None:
    marks = plane["points"]
    others = seen(plane)
    if others:
        if plane["is_path"]:
            _add_path(result, [each for each in marks if each in others or each["role"] == "centre"])
        _add_checkpoints(result, others, plane)
    centre = [each for each in marks if each["role"] == "centre"]
    result.add_scatter(
        x=[0.0],
        y=[0.0],
        mode="markers+text" if plane["kind"] in ("checkpoints", "trajectory") else "markers",
        text=[short(plane["centre"])],
        textposition="bottom center",
        textfont={"color": "white", "size": 12, "shadow": "1px 1px 2px black, 0 0 3px black"},
        marker={"symbol": "x", "size": 11, "color": "white", "line": {"color": INK, "width": 1.5}},
        name=f"centre: {short(plane['centre'])}",
        customdata=[told(each) for each in centre],
        hovertemplate="%{customdata}<extra>centre</extra>",
    )


def _add_checkpoints(result: go.Figure, marks: Sequence[Values], plane: Values) -> None:
    corner = [each["role"] == "corner" for each in marks]
    named = len(marks) <= NAMED
    result.add_scatter(
        x=[each["x"] for each in marks],
        y=[each["y"] for each in marks],
        mode="markers+text" if named else "markers",
        text=[short(each["label"]) for each in marks],
        textposition=[_beside(plane, each, place) for place, each in enumerate(marks)],
        textfont={"color": "white", "size": 12, "shadow": "1px 1px 2px black, 0 0 3px black"},
        marker={
            "size": 11,
            "symbol": ["diamond" if each else "circle" for each in corner],
            "color": COLOURS[1],
            "line": {"color": "white", "width": 1.5},
        },
        name="checkpoints in the plane" if all(corner) else "checkpoints, projected onto the plane",
        customdata=[told(each) for each in marks],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _beside(plane: Values, mark: Values, place: int) -> str:
    """Choose where the name of a mark stands: not on the centre's, and away from its neighbours'."""
    width = plane["x"][-1] - plane["x"][0]
    if math.hypot(mark["x"], mark["y"]) < 0.12 * width:
        return "middle right" if place % 2 else "middle left"
    return "bottom center" if place % 2 else "top center"


def _add_path(result: go.Figure, marks: Sequence[Values]) -> None:
    result.add_scatter(
        x=[each["x"] for each in marks],
        y=[each["y"] for each in marks],
        mode="lines+markers",
        line={"color": PATH, "width": 2.5},
        marker={"symbol": "arrow", "angleref": "previous", "size": 14, "color": PATH, "standoff": 6},
        name="path in the order of time",
        hoverinfo="skip",
    )


def _surface(plane: Values, arrays: Arrays, index: int, drawn: _Drawn) -> go.Figure:
    result = figure(title(plane, drawn.title), about(plane, drawn.error), "", "")
    heights = np.clip(drawn.cells, 10**drawn.low, None) if drawn.log else drawn.cells
    result.add_surface(
        x=plane["x"],
        y=plane["y"],
        z=heights,
        surfacecolor=drawn.heights,
        cmin=drawn.low,
        cmax=drawn.high if drawn.high > drawn.low else drawn.low + 1,
        colorscale=SCALE,
        colorbar=drawn.bar,
        text=cell_words(arrays[f"plane_{index}_evaluated"]),
        hovertemplate="x %{x:.4g}, y %{y:.4g}<br>loss %{z:.4g}<br>%{text}<extra></extra>",
    )
    at, found = arrays[f"plane_{index}_at"], arrays[f"plane_{index}_values"]
    floor = 10**drawn.low if drawn.log else -np.inf
    small = {"size": 1.8, "color": INK}
    lifted = np.maximum(found, floor)
    name = f"evaluated points ({plane['evaluations']})"
    result.add_scatter3d(x=at[:, 0], y=at[:, 1], z=lifted, mode="markers", marker=small, name=name, hoverinfo="skip")
    middle = {"size": 6, "color": COLOURS[1], "symbol": "diamond"}
    height = [max(plane["loss_at_centre"], floor) if plane["loss_at_centre"] is not None else None]
    result.add_scatter3d(
        x=[0.0], y=[0.0], z=height, mode="markers", marker=middle, name=f"centre: {short(plane['centre'])}"
    )
    widths = [plane[side][-1] - plane[side][0] for side in ("x", "y")]
    ratio = {"x": widths[0] / max(widths), "y": widths[1] / max(widths), "z": 0.6}
    axes = {"xaxis_title_text": short_axis(plane["x_label"]), "yaxis_title_text": short_axis(plane["y_label"])}
    height_axis: dict[str, Any] = {"title": {"text": "Loss"}, "type": "log" if drawn.log else "linear"}
    height_axis |= {"tickvals": ticks(10**drawn.low, 10**drawn.high)} if drawn.log else {}
    scene = {"aspectmode": "manual", "aspectratio": ratio, "camera": CAMERA}
    result.update_scenes(**scene, **axes, zaxis=height_axis)
    below = {"y": 0.0, "yanchor": "top", "x": 0, "itemsizing": "constant"}
    return result.update_layout(height=HEIGHT_3D, margin={"t": 140, "b": 40, "l": 20}, legend=below)
