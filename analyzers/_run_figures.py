"""How a whole training run is drawn: one panel below another, all on one time axis, with one hover through all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go

from analyzers._figures import COLOURS, as_plotly, figure
from analyzers._series_figures import time_axis

if TYPE_CHECKING:
    import pandas as pd

MARK = "#52606D"
PANEL = 170  # pixels
AROUND, TOP = 190, 90  # pixels for title, time axis and legend; of these above the panels
GAP = 0.22  # between two panels, as a share of one
SPREAD = 30.0  # positive values that differ by more stand on a log axis
SECOND = 7  # how far the colour of a panel's next curve is away, so that no other panel has it


@dataclass(frozen=True)
class Curve:
    """One quantity over time. values: one for each time, None where it has not been measured; errors: likewise, ±.

    kind: "mark" is a line to compare with, no measurement; "bound" are lower bounds, drawn as arrows.
    """

    name: str
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...] = ()
    kind: Literal["line", "mark", "bound"] = "line"

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing of it has been measured."""
        return all(each is None for each in self.values)


@dataclass(frozen=True)
class Panel:
    """Quantities that share an axis. title: of the axis, with the unit; is_linear: never on a log axis."""

    title: str
    curves: tuple[Curve, ...]
    is_linear: bool = False

    @property
    def measured(self) -> tuple[Curve, ...]:
        """Return the curves with at least one value; none when only marks are left."""
        kept = tuple(each for each in self.curves if not each.is_empty)
        return () if all(each.kind == "mark" for each in kept) else kept


def run_figure(panels: Sequence[Panel], times: Sequence[float], unit: str, run: str) -> go.Figure:
    """Draw the panels of which something has been measured; run: what the run is called, raw text.

    times: of the checkpoints, ascending, in `unit` ("epoch", "step" or "position"). The height in pixels is in the
    layout. Raises ValueError when nothing has been measured, or a curve has not a value for each time.
    """
    shown = [panel for panel in panels if panel.measured]
    if not shown:
        raise ValueError("nothing of this run has been measured")
    result = figure("The training run over time", as_plotly(run), "", "")
    result.update_layout(hovermode="x unified", hoversubplots="axis", height=height_of(panels))
    for number, panel in enumerate(shown):
        _place(result, number, len(shown), panel)
        for place, curve in enumerate(panel.measured):
            if len(curve.values) != len(times):
                raise ValueError(f"{curve.name}: {len(curve.values)} values for {len(times)} times")
            colour = MARK if curve.kind == "mark" else COLOURS[(number + SECOND * place) % len(COLOURS)]
            _draw(result, curve, times, number, colour, len(panel.measured) > 1)
    bottom = "y" if len(shown) == 1 else f"y{len(shown)}"
    result.update_xaxes(
        title_text=time_axis(unit), anchor=bottom, showspikes=True, spikemode="across", spikethickness=1
    )
    result.update_layout(legend={"y": -75 / (PANEL * len(shown))})
    return result


def height_of(panels: Sequence[Panel]) -> int:
    """Return the height of the figure in pixels."""
    return AROUND + PANEL * sum(bool(panel.measured) for panel in panels)


def run_table(panels: Sequence[Panel], times: Sequence[float], unit: str) -> pd.DataFrame:
    """Return the values behind the panels: time, quantity, value, error (±); what is not measured is left out."""
    import pandas as pd

    rows = []
    for curve in (curve for panel in panels for curve in panel.measured):
        errors = curve.errors or (None,) * len(times)
        for time, value, error in zip(times, curve.values, errors, strict=True):
            if value is not None:
                rows.append({time_axis(unit).lower(): time, "quantity": curve.name, "value": value, "error": error})
    return pd.DataFrame(rows, columns=[time_axis(unit).lower(), "quantity", "value", "error"])


def _place(result: go.Figure, number: int, count: int, panel: Panel) -> None:
    """Put the axis of a panel in its place, the first on top."""
    share = 1 / (count + (count - 1) * GAP)
    top = 1 - number * share * (1 + GAP)
    values = [each for curve in panel.measured for each in curve.values if each is not None]
    low, high = min(values), max(values)
    domain = [max(0.0, top - share), min(1.0, top)]
    axis: dict[str, Any] = {"domain": domain, "anchor": "x", "title": {"text": panel.title}}
    if not panel.is_linear and low > 0 and high > SPREAD * low:
        axis |= {"type": "log", "exponentformat": "power", "dtick": 1}
    else:
        axis |= {"nticks": 5}
    result.update_layout({"yaxis" if number == 0 else f"yaxis{number + 1}": axis})


def _draw(result: go.Figure, curve: Curve, times: Sequence[float], number: int, colour: str, with_legend: bool) -> None:
    errors = [each or 0.0 for each in curve.errors]
    spread = [f" ± {each:.2g}" if each else "" for each in curve.errors] or [""] * len(times)
    dash = "dash" if curve.kind == "mark" else "solid"
    error_y = {"type": "data", "array": errors, "thickness": 1.5, "width": 4} if any(errors) else None
    result.add_scatter(
        x=list(times),
        y=list(curve.values),
        xaxis="x",
        yaxis="y" if number == 0 else f"y{number + 1}",
        error_y=error_y,
        customdata=spread,
        mode={"line": "lines+markers", "mark": "lines", "bound": "markers"}[curve.kind],
        line={"color": colour, "width": 1.5 if curve.kind == "mark" else 2, "dash": dash},
        marker={"size": 9, "symbol": "triangle-up-open"} if curve.kind == "bound" else {"size": 7},
        name=as_plotly(curve.name),
        showlegend=with_legend,
        hovertemplate="%{y:.5g}%{customdata}",
    )
