"""The figures of attributions, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from analyzers._attribution_compared import beside, difference_grid, run_figure, run_grid
from analyzers._attribution_drawn import drawn
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
    checkpoints = {each["checkpoint_index"] for each in values["cases"]}
    if len(checkpoints) == 2:
        found["difference"] = _grid(result, difference_grid, view)
    if len(checkpoints) > 2:
        found["run"] = run_figure(result.card, values, result.arrays, view)
        found["run_maps"] = drawn(kind, run_grid(result.card, values, result.arrays, view), view.opacity)
    return found


def overlay(result: Result, others: Sequence[Result], given: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw the difference of two runs of one checkpoint each; raise ProbeError where they are not of the same."""
    values, arrays = beside(result, others)
    view = view_of(given, values)
    return {"difference": drawn(values["kind"], difference_grid(result.card, values, arrays, view), view.opacity)}


def _grid(result: Result, make: Callable[..., Grid], view: View) -> go.Figure:
    return drawn(result.values["kind"], make(result.card, result.values, result.arrays, view), view.opacity)
