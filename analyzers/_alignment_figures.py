"""How gradient-weight alignment is drawn: its moments over time, its distribution, by layer, and the flip test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from analyzers._alignment_statistics import BETA, POLE
from analyzers._base import Result, differences
from analyzers._figures import COLOURS, as_plotly, faded, figure
from analyzers._series_figures import as_labels, depth_colours, time_axis
from probes.errors import ProbeError

Floats = NDArray[np.float64]
GREY = "#9AA5B1"
ALIGNMENT = "Alignment of an example (cosine)"
PANEL = 165  # pixels
GAP = 0.05  # between panels, as a share of the height
RIDGES = 24  # checkpoints in the ridgeline at most
BINS = 480  # of a density
BANDWIDTH = 0.9  # of its Gaussian, in units of the spread times n^(-1/5)
RUG = 400  # wrong examples that are drawn one by one
NAMED = 16  # layers in a legend at most


def figures(result: Result) -> Mapping[str, go.Figure]:
    """Draw "alignment", "alignment_distribution", and "layers" and "flip_test" where they were asked for."""
    found = {"alignment": _alignment(result), "alignment_distribution": _distribution(result)}
    if "layers" in result.values:
        found["layers"] = _layers(result)
    if "auroc_flipped" in result.values:
        found["flip_test"] = _flip_test(result)
    return found


def overlay(results: Sequence[Result], names: Sequence[str] = ()) -> Mapping[str, go.Figure]:
    """Draw mean, kurtosis, GWA and accuracy (or loss) of several runs over one another, on one time axis.

    names: what the runs are called; else they are named by their checkpoints. Raises ProbeError, naming what differs,
    when they are not of the same thing.
    """
    first = results[0]
    for other in results[1:]:
        odd = [*differences(first.card, other.card)]
        pairs = ((key, first.values[key], other.values[key]) for key in ("unit", "scope"))
        odd += [f"{key}: {one} against {two}" for key, one, two in pairs if one != two]
        if odd:
            raise ProbeError(f"These results cannot be compared, they are not of the same thing: {'; '.join(odd)}.")
    drawn = _panels(first, f"Gradient-weight alignment of {len(results)} runs", of_runs=True)
    labels = as_labels(names or [each.card["checkpoint"]["name"] for each in results])
    for number, (each, name) in enumerate(zip(results, labels, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        _add_moments(drawn, each.values, "", name, colour)
        _add_score(drawn, each.values, colour)
    return {"alignment_overlay": drawn}


def _alignment(result: Result) -> go.Figure:
    values = result.values
    drawn = _panels(result, f"Gradient-weight alignment over time, {_scope(values)}")
    curves = [("", f"in {result.card['dtype']}, as published", COLOURS[0])]
    if any(values["rounded"]):
        curves.append(("exact_", "without rounding of the derivative", COLOURS[6]))
    if values["scope"] == "head" and "network_mean" in values:
        curves.append(("network_", "whole network", COLOURS[1]))
    for prefix, name, colour in curves:
        _add_moments(drawn, values, prefix, name if len(curves) > 1 else "", colour)
    _add_score(drawn, values, COLOURS[2])
    kurtoses = [each for each in values["excess_kurtosis"] if each is not None]
    if kurtoses and min(kurtoses) < 0:  # else the band would only stretch the axis
        drawn.add_hrect(-BETA - POLE, -BETA + POLE, yref="y2", fillcolor=GREY, opacity=0.25, line_width=0)
    if values["best"]:
        time = values["best"]["time"]
        place = {"x0": time, "x1": time, "y0": 0, "y1": 1, "yref": "paper"}  # through all panels
        drawn.add_shape(type="line", **place, line={"color": COLOURS[3], "width": 1.5, "dash": "dot"})
        drawn.add_scatter(
            x=[time],
            y=[values["best"]["gwa"]],
            yaxis="y3",
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": COLOURS[3]},
            name="highest GWA after the first 10 %",
            hoverinfo="skip",
        )
    return drawn


def _panels(result: Result, title: str, *, of_runs: bool = False) -> go.Figure:
    """Return a figure with four panels, one below another, on one axis of time."""
    values = result.values
    scored = [each is not None for each in values["accuracy"]]
    titles = ("Mean alignment", "Excess kurtosis", "GWA", "Accuracy (%)" if any(scored) else "Loss")
    drawn = figure(title, _about(result, of_runs=of_runs), time_axis(values["unit"]), "")
    height = (1 - 3 * GAP) / 4
    for number, words in enumerate(titles):
        top = 1 - number * (height + GAP)
        axis = {"domain": [max(top - height, 0), top], "anchor": "x", "title": {"text": words}, "nticks": 5}
        drawn.update_layout({f"yaxis{number + 1 if number else ''}": axis})
    drawn.update_xaxes(anchor="y4", **_ticks(values))
    drawn.update_layout(hovermode="x unified", hoversubplots="axis", height=4 * PANEL + 190, legend={"y": -0.11})
    return drawn


def _add_moments(drawn: go.Figure, values: Mapping[str, Any], prefix: str, name: str, colour: str) -> None:
    """Draw mean, kurtosis and GWA with error bars; GWA in grey where it is undefined."""
    undefined = values[f"{prefix}gwa_undefined"]
    gwa = values[f"{prefix}gwa"]
    kept = [None if off else each for each, off in zip(gwa, undefined, strict=True)]
    lost = [each if off else None for each, off in zip(gwa, undefined, strict=True)]
    panels = (("mean", values[f"{prefix}mean"]), ("excess_kurtosis", values[f"{prefix}excess_kurtosis"]), ("gwa", kept))
    for number, (key, points) in enumerate(panels):
        errors = values[f"{prefix}{key}_stderr"]
        _add_line(drawn, values["times"], points, errors, number, colour, name if number == 0 else "")
    if any(each is not None for each in lost):
        drawn.add_scatter(
            x=values["times"],
            y=lost,
            yaxis="y3",
            mode="markers",
            marker={"color": GREY, "size": 8, "symbol": "circle-open"},
            name=f"GWA undefined: kurtosis near or below −{BETA}" + (f", {name}" if name else ""),
            hovertemplate="%{y:.4g} (undefined)<extra></extra>",
        )


def _add_score(drawn: go.Figure, values: Mapping[str, Any], colour: str) -> None:
    key, factor = ("accuracy", 100.0) if any(each is not None for each in values["accuracy"]) else ("loss", 1.0)
    points, errors = ([None if each is None else factor * each for each in values[k]] for k in (key, f"{key}_stderr"))
    _add_line(drawn, values["times"], points, errors, 3, colour, "")


def _add_line(
    drawn: go.Figure,
    times: Sequence[float],
    points: Sequence[float | None],
    errors: Sequence[float | None],
    number: int,
    colour: str,
    name: str,
) -> None:
    drawn.add_scatter(
        x=times,
        y=points,
        error_y={"type": "data", "array": [each or 0.0 for each in errors], "thickness": 1.5, "width": 4},
        yaxis=f"y{number + 1 if number else ''}",
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 7},
        name=name,
        legendgroup=name,
        showlegend=bool(name),
        customdata=[f" ± {each:.2g}" if each else "" for each in errors],
        hovertemplate="%{y:.4g}%{customdata}" + (f" {name}" if name else "") + "<extra></extra>",
    )


def _distribution(result: Result) -> go.Figure:
    """Draw a ridge for each checkpoint, the first on top; of the last, right and wrong examples apart."""
    values, every = result.values, result.arrays["exact"]
    count = len(every)
    shown = np.unique(np.linspace(0, count - 1, min(count, RIDGES)).round().astype(int))
    drawn = figure(
        f"Alignment of each example, {_scope(values, main=True)}",
        f"{_about(result)}<br>each ridge to its own height; without rounding of the derivative",
        ALIGNMENT,
        time_axis(values["unit"]),
    )
    known = every[np.isfinite(every)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (-1.0, 1.0)
    pad = 0.05 * (high - low or 0.1)
    edges = np.linspace(low - pad, high + pad, BINS + 1)
    for row, index, colour in zip(range(len(shown)), shown, depth_colours(len(shown)), strict=True):
        base, right = float(len(shown) - 1 - row), result.arrays["right"][index]
        known = np.isfinite(every[index])
        two = bool(index == count - 1) and set(right[known]) == {0.0, 1.0}  # not shares of several answers
        groups = [("right", right == 1, colour), ("wrong", right == 0, COLOURS[1])] if two else [("", known, colour)]
        for words, chosen, shade in groups:
            sample = every[index][chosen & known]
            if len(sample):
                _add_ridge(drawn, sample, edges, base, shade, filled=words != "wrong")
                drawn.data[-1].update(name=f"{values['labels'][index]}, {words} ({len(sample)})", showlegend=two)
    drawn.add_vline(0, line={"color": GREY, "width": 1})
    ticks = [f"{values['times'][index]:g}" for index in shown]
    drawn.update_yaxes(tickvals=list(range(len(shown)))[::-1], ticktext=ticks, showgrid=False)
    height = 60 + 55 * len(shown)
    drawn.update_layout(height=height + 205, margin={"t": 105}, legend={"y": -85 / height, "traceorder": "normal"})
    return drawn


def _add_ridge(drawn: go.Figure, sample: Floats, edges: Floats, base: float, colour: str, *, filled: bool) -> None:
    centres, density = (edges[:-1] + edges[1:]) / 2, _density(sample, edges)
    drawn.add_scatter(x=centres[[0, -1]], y=[base, base], mode="lines", line={"color": GREY, "width": 1}, **_SILENT)
    if not filled:
        place = {"x": sample[:RUG], "y": np.full(min(len(sample), RUG), base - 0.04)}
        drawn.add_scatter(**place, mode="markers", marker={"symbol": "line-ns-open", "color": colour}, **_SILENT)
    drawn.add_scatter(
        x=np.round(centres, 6),
        y=np.round(base + 0.88 * density / density.max(), 4),
        mode="lines",
        line={"color": colour, "width": 2, "dash": "solid" if filled else "dash", "simplify": False},
        fill="tonexty" if filled else None,
        fillcolor=faded(colour, 0.35),
        customdata=np.round(density, 3),
        hovertemplate="alignment %{x:.3f}, density %{customdata:.3g}<extra></extra>",
    )


_SILENT: dict[str, Any] = {"showlegend": False, "hoverinfo": "skip"}


def _density(sample: Floats, edges: Floats) -> Floats:
    """Smooth a histogram by a Gaussian; per unit of alignment."""
    counts, _ = np.histogram(sample, edges)
    sigma = max(BANDWIDTH * float(sample.std()) * len(sample) ** -0.2 / (edges[1] - edges[0]), 1.5)  # in bins
    most = min(int(4 * sigma), BINS // 2 - 1)
    reach = np.arange(-most, most + 1)
    bell = np.exp(-0.5 * (reach / sigma) ** 2)
    smooth: Floats = np.convolve(counts, bell / bell.sum(), "same") / len(sample) / (edges[1] - edges[0])
    return smooth


def _layers(result: Result) -> go.Figure:
    """Draw the mean alignment in each kernel over time, coloured by depth; of one checkpoint side by side."""
    values = result.values
    layers, labels, alone = values["layers"], as_labels(values["layers"]), len(values["times"]) == 1
    x = "Layer" if alone else time_axis(values["unit"])
    drawn = figure("Mean alignment in each layer, eval mode", _about(result), x, "Mean alignment (cosine)")
    for key, label, colour in zip(layers, labels, depth_colours(len(layers)), strict=True):
        errors = values["layers_stderr"][key]
        drawn.add_scatter(
            x=[label] if alone else values["times"],
            y=layers[key],
            error_y={"type": "data", "array": [each or 0.0 for each in errors], "thickness": 1.5},
            mode="markers" if alone else "lines+markers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "size": 8},
            name=label,
            hovertemplate=f"{label}: %{{y:.4g}}<extra></extra>",
        )
    drawn.update_layout(showlegend=not alone and len(layers) <= NAMED, height=560)
    return drawn


def _flip_test(result: Result) -> go.Figure:
    """Draw the alignment of flipped and kept labels at the last checkpoint, and the AUROC over time."""
    values, flipped = result.values, result.arrays["flipped_rows"]
    share, last = 100 * values["flipped_share"], as_plotly(values["labels"][-1])
    title = f"Flip test: {share:.3g} % of the labels changed at random, {_scope(values, main=True)}"
    drawn = figure(title, _about(result), f"Alignment at {last} (cosine)", "Share of the examples (%)")
    sample = result.arrays["flipped"][-1]
    edges = np.linspace(sample.min(), sample.max() + 1e-12, 61)
    for words, chosen, colour in (("kept", ~flipped, COLOURS[0]), ("flipped", flipped, COLOURS[1])):
        counts, _ = np.histogram(sample[chosen], edges)
        drawn.add_bar(
            x=np.round((edges[:-1] + edges[1:]) / 2, 6),
            y=100 * counts / chosen.sum(),
            width=edges[1] - edges[0],
            marker={"color": faded(colour, 0.6), "line": {"width": 0}},
            name=f"{words} ({chosen.sum()})",
            hovertemplate="alignment %{x:.3f}: %{y:.2f} %<extra></extra>",
        )
    _add_line(drawn, values["times"], values["auroc_flipped"], values["auroc_flipped_stderr"], 1, COLOURS[3], "")
    drawn.data[-1].update(xaxis="x2")
    drawn.update_layout(
        barmode="overlay",
        xaxis={"domain": [0, 0.55]},
        xaxis2={"domain": [0.68, 1], "anchor": "y2", "title": {"text": time_axis(values["unit"])}, **_ticks(values)},
        yaxis2={"anchor": "x2", "title": {"text": "AUROC of −alignment for the flipped"}},
    )
    return drawn


def _ticks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ticks at whole checkpoints only, where the axis counts them, or there is one."""
    times = values["times"]
    return {"tickvals": times} if len(times) == 1 or (values["unit"] == "position" and len(times) <= RIDGES) else {}


def _scope(values: Mapping[str, Any], *, main: bool = False) -> str:
    """Say what is drawn: all that there is, or what the main figures are of."""
    if values["scope"] == "network":
        return "whole network, eval mode"
    where = "final linear layer" + (" and whole network" if "network_mean" in values and not main else "")
    return f"{where}, eval mode"


def _about(result: Result, *, of_runs: bool = False) -> str:
    card, head = result.card, result.values["head"]
    words = [str(card["loss"]).replace("_", "-"), f"n = {card['examples']} examples", str(card["dtype"])]
    words += [f"layer {head['name'] or head['kind']}"] if head else []
    words += [] if of_runs else [str((card.get("checkpoint") or {}).get("name", ""))[:60]]
    return as_plotly(", ".join(each for each in [*words, str(card["model"])] if each))
