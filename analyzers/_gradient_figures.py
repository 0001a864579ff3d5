"""How gradient statistics are drawn: panels over time, layers side by side, the growth of the gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analyzers._figures import COLOURS, as_plotly, faded, figure
from analyzers._series_figures import as_labels, of_what, time_axis

NORM, TRACE, SCALE = COLOURS[0], COLOURS[1], COLOURS[2]
PANELS = ((0.70, 1.0), (0.36, 0.64), (0.0, 0.30))
PANEL_HEIGHT, ROW_HEIGHT = 190, 26  # pixels
RESOLVED = 2.0  # standard errors by which ||g||^2 must stand out before shares of it are drawn
FLOOR = 0.2  # an error bar on a log axis goes down to this share of its value at least


def noise_figure(card: Mapping[str, Any], values: Mapping[str, Any]) -> go.Figure:
    """Draw norm, covariance and noise scale of the whole network over time, one panel each, on log axes."""
    words = f"{of_what(card)}<br>{_method(values)}; bars: one standard error"
    result = figure("Gradient, its noise, and their ratio over time", words, "", "")
    times = values["times"]
    _add(result, 1, times, values, "gradient_norm", NORM, "mean gradient, noise taken out")
    _add(result, 1, times, values, "gradient_norm_raw", NORM, "mean gradient as it is", dash="dot")
    _add(result, 2, times, values, "covariance_trace", TRACE, "trace of the covariance")
    _add(result, 3, times, values, "noise_scale", SCALE, "noise scale")
    _add_least(result, times, _least(values["noise_scale"], values["noise_scale_at_least"]), {"yaxis": "y3"})
    titles = ("‖g‖<br>(loss / parameter)", "tr C<br>(loss² / parameter²)", "tr C / ‖g‖²<br>(examples)")
    for number, (domain, title) in enumerate(zip(PANELS, titles, strict=True), start=1):
        axis = _log_axis(result, "y", number) | {"domain": domain, "anchor": "x", "title": {"text": title}}
        result.update_layout({f"yaxis{number}" if number > 1 else "yaxis": axis})
    result.update_xaxes(title_text=time_axis(values["unit"]), anchor="y3", showspikes=True, spikemode="across")
    result.update_layout(height=190 + 3 * PANEL_HEIGHT, hovermode="x unified", legend={"y": -0.11})
    _fit_times(result, times, values["unit"])
    return result


def layer_figure(card: Mapping[str, Any], values: Mapping[str, Any]) -> go.Figure:
    """Draw, for the last checkpoint, each layer's share of noise and gradient (bars) and its noise scale (log axis)."""
    layers = values["layers"]
    names, last = as_labels(layers), [_last(each) for each in layers.values()]
    words = f"{of_what(card)}<br>at {as_plotly(values['checkpoints'][-1])}; {_method(values)}; bars: one standard error"
    result = figure("Noise and gradient by layer", words, "Share of the whole network (%)", "Layer")
    for key, colour, name in (
        ("covariance_trace", TRACE, "of tr C"),
        ("gradient_squared", NORM, "of ‖g‖² (noise taken out)"),
    ):
        whole = values[key][-1]
        lost = key == "gradient_squared" and whole <= RESOLVED * values[f"{key}_stderr"][-1]
        if lost or whole <= 0:  # no share of what does not stand out of its noise
            continue
        result.add_bar(
            y=names,
            x=[100 * each[key] / whole for each in last],
            error_x=_bars([100 * each[f"{key}_stderr"] / whole for each in last]),
            orientation="h",
            marker={"color": colour},
            name=name,
            hovertemplate="%{y}: %{x:.3g} %<extra>%{fullData.name}</extra>",
        )
    scales = [each["noise_scale"] for each in last]
    result.add_scatter(
        y=names,
        x=scales,
        error_x=_bars([each["noise_scale_stderr"] for each in last], scales),
        xaxis="x2",
        mode="markers",
        marker={"color": SCALE, "size": 10},
        name="noise scale",
        hovertemplate="%{y}: %{x:.4g} examples<extra></extra>",
    )
    _add_least(result, _least(scales, [each["noise_scale_at_least"] for each in last]), names, {"xaxis": "x2"})
    return _side_by_side(result, len(names))


def gap_figure(card: Mapping[str, Any], values: Mapping[str, Any]) -> go.Figure:
    """Draw the predicted growth of the generalisation gap per step over time."""
    rate = values["learning_rate"]
    per = f"at learning rate {rate:g}" if rate else "per unit of learning rate"
    words = f"η tr C / N {per}, N = {values['training_examples']} training examples; bars: one standard error"
    title = "Predicted growth of the generalisation gap per step"
    y = "Growth per step (loss)" if rate else "Growth per step and learning rate (loss)"
    result = figure(title, f"{of_what(card)}<br>{words}", time_axis(values["unit"]), y)
    _add(result, 1, values["times"], values, "gap_growth", COLOURS[3], "growth of the gap")
    numbers = [each for each in values["gap_growth"] if each is not None]
    if min(numbers) > 0 and max(numbers) > 20 * min(numbers):
        result.update_yaxes(**_log_axis(result, "y", 1))
    else:
        result.update_yaxes(rangemode="tozero", exponentformat="power")
    result.update_layout(showlegend=False)
    _fit_times(result, values["times"], values["unit"])
    return result


def _side_by_side(result: go.Figure, layers: int) -> go.Figure:
    """Put bars and dots beside one another, first layer on top, with the legend below both."""
    title = {"text": "Noise scale tr C / ‖g‖² (examples)"}
    second = _log_axis(result, "x", 2) | {"domain": [0.62, 1.0], "anchor": "y"}
    result.update_layout(
        xaxis={"domain": [0.0, 0.56], "rangemode": "tozero"},
        xaxis2=second | {"title": title},
        yaxis={"autorange": "reversed", "type": "category"},
        height=260 + ROW_HEIGHT * 2 * max(layers, 2),
        legend={"yref": "container", "y": 0.02, "yanchor": "bottom"},
        margin={"b": 110},
        barmode="group",
    )
    return result


def _method(values: Mapping[str, Any]) -> str:
    if values["method"] == "ghost":
        return "from the gradient norm of each example"
    return f"from {values['blocks']} batches against all examples"


def _last(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each[-1] for name, each in layer.items() if isinstance(each, list)}


def _add(
    result: go.Figure,
    panel: int,
    times: Sequence[float],
    values: Mapping[str, Any],
    key: str,
    colour: str,
    name: str,
    dash: str = "solid",
) -> None:
    """Draw a quantity with its error bars in a panel."""
    numbers, errors = values[key], values.get(f"{key}_stderr")
    spread = [""] * len(times) if errors is None else [f" ± {each:.2g}" if each else "" for each in errors]
    result.add_scatter(
        x=times,
        y=numbers,
        yaxis="y" if panel == 1 else f"y{panel}",
        error_y=_bars(errors, numbers),
        mode="lines+markers",
        line={"color": faded(colour, 0.6) if dash == "dot" else colour, "width": 2, "dash": dash},
        marker={"size": 5 if dash == "dot" else 8},
        name=name,
        customdata=spread,
        hovertemplate="%{y:.4g}%{customdata}<extra>%{fullData.name}</extra>",
    )


def _bars(errors: Sequence[float | None] | None, values: Sequence[float | None] = ()) -> dict[str, Any] | None:
    """Return error bars; beside values on a log axis they stop above zero."""
    if errors is None:
        return None
    up = [each or 0.0 for each in errors]
    bars: dict[str, Any] = {"type": "data", "array": up, "thickness": 1.5, "width": 4}
    if not values:
        return bars
    down = [min(each, (1 - FLOOR) * (value or 0.0)) for each, value in zip(up, values, strict=True)]
    return bars | {"symmetric": False, "arrayminus": down}


def _least(known: Sequence[float | None], least: Sequence[float | None]) -> list[float | None]:
    """Return the lower bounds where nothing better is known."""
    return [None if here is not None else low for here, low in zip(known, least, strict=True)]


def _add_least(result: go.Figure, x: Sequence[Any], y: Sequence[Any], axis: Mapping[str, str]) -> None:
    """Mark lower bounds of the noise scale, where there are any."""
    least, pointer = (y, "triangle-up-open") if "yaxis" in axis else (x, "triangle-right-open")
    if any(each is not None for each in least):
        result.add_scatter(
            x=x,
            y=y,
            **axis,
            mode="markers",
            marker={"color": SCALE, "size": 11, "symbol": pointer},
            name="noise scale at least",
            hovertemplate=f"at least %{{{'y' if 'yaxis' in axis else 'x'}:.4g}} examples<extra></extra>",
        )


def _log_axis(result: go.Figure, letter: str, number: int) -> dict[str, Any]:
    """Describe a log axis of a decade at least, ticks at 1, 2, 5, 10 ... where few are shown, else at powers of ten."""
    name = letter if number == 1 else f"{letter}{number}"
    low, high = _reach([each for each in result.data if (each[f"{letter}axis"] or letter) == name], letter)
    middle, half = (low + high) / 2, max((high - low) / 2 + 0.1, 0.5)
    first, last = math.floor(middle - half), math.ceil(middle + half)
    steps, every = ((1, 2, 5) if half < 2 else (1,)), max(1, (last - first) // 6)
    ticks = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
    texts = [f"{each:g}" if 1e-3 <= each < 1e5 else f"{each:.0e}" for each in ticks]
    span = [middle - half, middle + half]
    return {"type": "log", "range": span, "tickmode": "array", "tickvals": ticks, "ticktext": texts}


def _reach(traces: Sequence[Any], letter: str) -> tuple[float, float]:
    """Return the logarithms (base 10) of the smallest and largest positive value drawn, error bars counted in."""
    values = []
    for each in traces:
        numbers, bars = each[letter], each[f"error_{letter}"]
        down, up = bars.arrayminus or [0.0] * len(numbers), bars.array or [0.0] * len(numbers)
        rows = zip(numbers, down, up, strict=True)
        values += [edge for value, minus, plus in rows if value for edge in (value - minus, value + plus)]
    found = [math.log10(each) for each in values if each > 0] or [0.0]
    return min(found), max(found)


def _fit_times(result: go.Figure, times: Sequence[float], unit: str) -> None:
    """Give one time alone a tick of its own instead of a range of fractions; number checkpoints one by one."""
    if len(times) == 1:
        result.update_xaxes(range=[times[0] - 1, times[0] + 1], tickvals=list(times))
    elif unit == "position" and len(times) <= 20:
        result.update_xaxes(dtick=1)
