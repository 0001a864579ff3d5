"""How opposing signals are drawn: the cosine in its null band, the changes by rank, the groups' losses over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzers._base import Arrays
from analyzers._figures import COLOURS, as_plotly, faded, figure
from analyzers._series_figures import of_what, time_axis

RISING, FALLING, REST, NULL = COLOURS[1], COLOURS[0], "#52606D", "#7B8794"
DECADES = 9  # of changes that are shown; float32 tells no smaller ones apart
TICKED = 8  # times at most that have a tick each
POINTS = 1200  # of the changes that are in no group, of each sign
NAMES = {1: "rising", 2: "falling"}


def opposition_figure(card: Mapping[str, Any], values: Mapping[str, Any]) -> go.Figure:
    """Draw the cosine of the groups' mean gradients for each pair of checkpoints, beside that of random groups."""
    words = f"two groups of {values['group_size']} examples, beside {values['null_groups']} random pairs of groups"
    title = "Do the examples that change most oppose one another?"
    result = figure(title, f"{of_what(card)}<br>{words}", _time(values), "Cosine of the groups' mean gradients")
    times, pairs = values["times"][:-1], list(values["pairs"])
    _add_null(result, times, values)
    for name, key, dash, colour in (
        ("extreme groups", "cosine", "solid", RISING),
        ("extreme groups, without the direction of the step", "cosine_beside_step", "dot", COLOURS[3]),
    ):
        result.add_scatter(
            x=times,
            y=values[key],
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 9, "symbol": "circle" if dash == "solid" else "diamond"},
            name=name,
            customdata=np.array([pairs, [_p(each) for each in values[f"{key}_p_value"]]], object).T,
            hovertemplate="%{customdata[0]}: %{y:.3f}%{customdata[1]}<extra></extra>",
        )
    _fit_times(result, times, values["unit"])
    result.update_yaxes(range=[-1.08, 1.08], dtick=0.5)
    return result


def change_figure(card: Mapping[str, Any], values: Mapping[str, Any], arrays: Arrays) -> go.Figure:
    """Draw every change of loss by its rank among the rises or among the falls, both on log axes."""
    changes, membership = arrays["changes"], arrays["membership"]
    share = values["share_of_top_1_percent"][values["pair"] - 1]
    words = f"{values['pairs'][values['pair'] - 1]}; the top 1 % of the examples make {100 * share:.3g} % of all change"
    result = figure(
        "How much the loss of each example changed",
        f"{of_what(card)}<br>{words}",
        "Rank among the rises, or among the falls",
        "Size of the change |Δl| (loss)",
    )
    for sign, group, colour in ((1, 1, RISING), (-1, 2, FALLING)):
        size = sign * changes
        order = np.argsort(-size, kind="stable")
        order = order[size[order] > 0]
        ranks = np.arange(1, len(order) + 1)
        inside = membership[order] == group
        verb = "rise" if sign > 0 else "fall"
        rest = np.flatnonzero(~inside)
        rest = rest[_spread_out(len(rest))]
        _add_ranks(result, ranks[rest], size[order][rest], faded(colour, 0.45), 4, f"other losses that {verb}")
        name = f"the {NAMES[group]} group ({int(inside.sum())})"
        _add_ranks(result, ranks[inside], size[order][inside], colour, 8, name)
    result.update_xaxes(type="log", exponentformat="power", dtick=1)
    top = np.log10(np.abs(changes).max() or 1.0)
    low = np.log10(np.abs(changes)[changes != 0].min()) if changes.any() else top - 1
    result.update_yaxes(type="log", exponentformat="power", range=[max(low, top - DECADES) - 0.2, top + 0.3])
    return result


def group_figure(card: Mapping[str, Any], values: Mapping[str, Any]) -> go.Figure:
    """Draw the mean loss of both groups and of all examples over time; the pair that chose the groups is shaded."""
    words = f"chosen from {values['pairs'][values['pair'] - 1]} (shaded){_correlated(values)}"
    unit = "loss per predicted token" if card["loss"] == "causal_lm" else "loss per example"
    title = "Mean loss of the two groups over time"
    result = figure(title, f"{of_what(card)}<br>{as_plotly(words)}", _time(values), f"Mean {unit}")
    times = values["times"]
    start, end = times[values["pair"] - 1], times[values["pair"]]
    result.add_vrect(x0=start, x1=end, fillcolor=faded(COLOURS[4], 0.12), line_width=0, layer="below")
    rows = (("rising", RISING, "circle"), ("falling", FALLING, "diamond"), ("", REST, "square"))
    for group, colour, symbol in rows:
        result.add_scatter(
            x=times,
            y=values[f"loss_{group}" if group else "loss"],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 8, "symbol": symbol},
            name=f"the {group} group" if group else "all examples",
            hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
        )
    everything = [each for name in ("loss", "loss_rising", "loss_falling") for each in values[name]]
    if min(everything) > 0 and max(everything) > 20 * min(everything):
        result.update_yaxes(type="log", exponentformat="power", dtick=1)
    _fit_times(result, times, values["unit"])
    result.update_layout(hovermode="x unified")
    return result


def _time(values: Mapping[str, Any]) -> str:
    return time_axis(values["unit"])


def _fit_times(result: go.Figure, times: Sequence[float], unit: str) -> None:
    """Keep markers off the frame; few times get a tick each, one alone a range of its own."""
    if len(times) == 1:
        result.update_xaxes(range=[times[0] - 1, times[0] + 1], tickvals=list(times))
    elif len(times) <= TICKED:
        result.update_xaxes(tickvals=list(times))
    elif unit == "position":
        result.update_xaxes(dtick=1 if len(times) <= 20 else None)


def _add_null(result: go.Figure, times: Sequence[float], values: Mapping[str, Any]) -> None:
    """Draw mean and 2.5 to 97.5 % of the random groups: a band, error bars where there is one pair alone."""
    mean, low, high = (np.array(values[f"cosine_null_{word}"], float) for word in ("mean", "low", "high"))
    name = "random groups: mean, and 95 % of them"
    if len(times) > 1:
        result.add_scatter(
            x=[*times, *times[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=faded(NULL, 0.25),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        )
    bars = {"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low}
    result.add_scatter(
        x=times,
        y=mean,
        error_y=bars if len(times) == 1 else None,
        mode="lines+markers",
        line={"color": NULL, "width": 2},
        marker={"size": 5},
        name=name,
        customdata=np.array([low, high]).T,
        hovertemplate="random: %{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
    )


def _add_ranks(result: go.Figure, ranks: Any, sizes: Any, colour: str, size: int, name: str) -> None:
    result.add_scatter(
        x=ranks,
        y=sizes,
        mode="markers",
        marker={"color": colour, "size": size},
        name=name,
        hovertemplate="number %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
    )


def _spread_out(count: int) -> Any:
    """Return places spread evenly on a log axis, at most `POINTS`: all of them where there are fewer."""
    if count <= POINTS:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, POINTS).round().astype(int)) - 1


def _p(value: float | None) -> str:
    return "" if value is None else f" (p = {value:.2g})"


def _correlated(values: Mapping[str, Any]) -> str:
    if values["correlation"] is None:
        return ""
    low, high = (values[f"correlation_null_{word}"] for word in ("low", "high"))
    random = "" if low is None else f" (random groups {low:.2f} to {high:.2f})"
    return f"; correlation of their other changes {values['correlation']:.2f}{random}"
