"""The figures of attributions, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from analyzers._attribution_classes import class_grid, classes_of
from analyzers._attribution_compared import beside, difference_grid, run_figure, run_grid
from analyzers._attribution_curves import agreement_figure, curves_figure, sanity_figure, scoreboard_figure
from analyzers._attribution_drawn import bars, drawn
from analyzers._attribution_matrix import matrix_figure
from analyzers._attribution_panels import Grid, View, maps_grid, view_of
from analyzers._base import Result

if TYPE_CHECKING:
    from collections.abc import Callable


def draw(result: Result, given: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw all that the result holds something for."""
    values, kind, view = result.values, result.values["kind"], view_of(given, result.values)
    found: dict[str, go.Figure] = {}
    if values["maps"]:
        found["maps"] = _grid(result, maps_grid, view)
    judged = {
        "token_matrix": matrix_figure(result.card, values, result.arrays, view),
        "curves": curves_figure(result.card, values, result.arrays, view),
        "sanity": sanity_figure(result.card, values, result.arrays, view),
        "agreement": agreement_figure(result.card, values, result.arrays),
        "scoreboard": scoreboard_figure(result.card, values, view),
    }
    found |= {name: each for name, each in judged.items() if each is not None}
    checkpoints = {each["checkpoint_index"] for each in values["cases"]}
    if len(checkpoints) == 2:
        found["difference"] = _grid(result, difference_grid, view)
    if len(checkpoints) > 2:
        found["run"] = run_figure(result.card, values, result.arrays, view)
        found["run_maps"] = drawn(kind, run_grid(result.card, values, result.arrays, view), view.opacity)
    if classes_of(values):
        grid = class_grid(result.card, values, result.arrays, view)
        found["class_summary"] = drawn("image", grid, 1.0) if kind == "image" else bars(grid)
    return found


def overlay(result: Result, others: Sequence[Result], given: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw the difference of two runs of one checkpoint each; raise ProbeError where they are not of the same."""
    values, arrays = beside(result, others)
    view = view_of(given, values)
    return {"difference": drawn(values["kind"], difference_grid(result.card, values, arrays, view), view.opacity)}


def _grid(result: Result, make: Callable[..., Grid], view: View) -> go.Figure:
    return drawn(result.values["kind"], make(result.card, result.values, result.arrays, view), view.opacity)
