"""Figures that need no classes: reliability, losses, values, positions of a sequence, losses of two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from analyzers._base import Arrays
from analyzers._figures import COLOURS, as_plotly, faded, figure
from analyzers._series_figures import as_labels, of_what

BARS = 60
POINTS = 4000  # in a scatter; of more every so many are drawn
LINE = "#7B8794"
SPREAD = 30.0  # losses that differ by more stand on a logarithmic axis
DECADES = 9  # of losses that are told apart
Values = Mapping[str, Any]


def reliability_figure(card: Values, values: Values) -> go.Figure:
    """Draw how often predictions of a given confidence are right, and below how many there are."""
    errors = [
        f"{as_plotly(name)}: ECE {100 * error:.3g} %, {100 * low:.3g} to {100 * high:.3g} % without what chance adds"
        for name, error, low, high in zip(
            values["checkpoints"], values["ece"], values["ece_debiased_low"], values["ece_debiased_high"], strict=True
        )
    ]
    words = "<br>".join([*errors[-2:], of_what(card)])
    result = figure("Is it as often right as it is sure?", words, "Confidence (%)", "Right (%)")
    result.add_scatter(
        x=[0, 100], y=[0, 100], mode="lines", line={"color": LINE, "dash": "dot"}, name="As sure as right",
        hoverinfo="skip",
    )  # fmt: skip
    for place, (name, found) in enumerate(zip(as_labels(values["checkpoints"]), values["reliability"], strict=True)):
        _add_reliability(result, name, found, COLOURS[place % len(COLOURS)])
    result.update_layout(
        height=620, margin={"t": 130}, barmode="group",
        yaxis={"domain": [0.3, 1], "range": [-4, 104]},
        yaxis2={"domain": [0, 0.2], "title": {"text": "Predictions (%)"}, "anchor": "x", "type": "log",
                "exponentformat": "none", "nticks": 4},
        xaxis={"anchor": "y2", "range": [-1, 101]},
    )  # fmt: skip
    return result.update_layout(legend={"y": -0.16})


def loss_figure(card: Values, values: Values, arrays: Arrays) -> go.Figure:
    """Draw how the losses of the examples are spread, at each checkpoint; at one alone right and wrong ones apart."""
    losses = arrays["loss"]
    known = losses[np.isfinite(losses)]
    high = float(known.max(initial=0.0))
    low = max(float(known[known > 0].min(initial=high or 1.0)), high * 10.0**-DECADES)
    log = high > SPREAD * low > 0
    edges = np.geomspace(low, high, BARS + 1) if log else np.linspace(0, high or 1.0, BARS + 1)
    words = f"losses below {low:.1g} are counted at the left end<br>{of_what(card)}" if log else of_what(card)
    title = "Loss of an example" + (" (mean over its tokens)" if values["kind"] == "tokens" else "")
    result = figure("How the losses are spread", words, title, "Examples")
    for name, colour, sample in _samples(values, arrays):
        counts = np.histogram(np.clip(sample, edges[0], edges[-1]), edges)[0]
        result.add_bar(
            x=np.sqrt(edges[1:] * edges[:-1]) if log else (edges[1:] + edges[:-1]) / 2, y=counts, name=name,
            width=np.diff(edges), marker={"color": faded(colour, 0.6), "line": {"width": 0}},
            hovertemplate="loss about %{x:.3g}: %{y} examples<extra>" + name + "</extra>",
        )  # fmt: skip
    if log:
        result.update_xaxes(type="log", exponentformat="power", dtick=1)
    if at := values.get("chance_loss"):
        line = {"color": LINE, "dash": "dot"}
        result.add_shape(type="line", x0=at, x1=at, y0=0, y1=1, yref="paper", line=line)
        result.add_annotation(
            x=np.log10(at) if log else at, y=1, yref="paper", yanchor="top", xanchor="left", showarrow=False,
            text="chance",
        )  # fmt: skip
    stacked = len(values["checkpoints"]) == 1 and "accuracy" in values
    result.update_layout(barmode="stack" if stacked else "overlay", bargap=0, showlegend=True)
    return result


def value_figure(card: Values, values: Values, arrays: Arrays) -> go.Figure:
    """Draw each predicted value over the true one."""
    result = figure("Predicted and true values", of_what(card), "Target", "Prediction")
    label = arrays["label"]
    ends = [float(np.nanmin(label)), float(np.nanmax(label))]
    result.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": LINE, "dash": "dot"}, name="Equal", hoverinfo="skip"
    )
    rows = _few(len(label))
    for place, name in enumerate(as_labels(values["checkpoints"])):
        result.add_scatter(
            x=label[rows], y=arrays["prediction"][place][rows], mode="markers", name=name,
            marker={"size": 5, "color": faded(COLOURS[place % len(COLOURS)], 0.6)},
            text=[as_plotly(each) for each in arrays["ids"][rows]],
            hovertemplate="%{text}<br>target %{x:.4g}, predicted %{y:.4g}<extra></extra>",
        )  # fmt: skip
    return result


def position_figure(card: Values, values: Values, arrays: Arrays) -> go.Figure:
    """Draw the mean loss of the tokens at each place in the context, with its standard error over sequences."""
    perplexity = values["perplexity"][-1]
    told = "" if perplexity is None else f"perplexity {perplexity:.4g} at the last checkpoint<br>"
    words = f"{told}bars are standard errors over sequences<br>{of_what(card)}"
    result = figure("Loss by place in the context", words, "Place (tokens before it)", "Loss of a token")
    for place, name in enumerate(as_labels(values["checkpoints"])):
        found = arrays["position_loss"][place]
        kept = np.flatnonzero(found[:, 2] > 0)
        mean, error, count = found[kept].T
        result.add_scatter(
            x=kept + 1, y=mean, mode="lines+markers" if len(kept) <= 100 else "lines", name=name,
            line={"color": COLOURS[place % len(COLOURS)], "width": 2}, marker={"size": 5},
            error_y={"type": "data", "array": np.nan_to_num(error), "thickness": 1, "width": 0},
            customdata=[f"{each:,.0f} sequences" for each in count],
            hovertemplate="place %{x}: %{y:.4g}<br>%{customdata}<extra>" + name + "</extra>",
        )  # fmt: skip
    return result


def change_figure(card: Values, values: Values, arrays: Arrays, first: int, second: int) -> go.Figure:
    """Draw the loss of each example at one checkpoint over that at another."""
    one, two = arrays["loss"][first], arrays["loss"][second]
    left, right = (as_plotly(values["checkpoints"][place]) for place in (first, second))
    words = of_what(card)
    for each in values["disagreement"]:
        if (each["first"], each["second"]) == (first, second):
            mean, error = each["loss_difference"], each["loss_difference_stderr"]
            words = f"mean loss {mean:+.4g} ± {error:.2g} from the first to the second<br>{words}"
    result = figure("Losses of two checkpoints", words, f"Loss at {left}", f"Loss at {right}")
    known = np.flatnonzero(np.isfinite(one) & np.isfinite(two))
    ends = [float(min(one[known].min(), two[known].min())), float(max(one[known].max(), two[known].max()))]
    result.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": LINE, "dash": "dot"}, name="Equal", hoverinfo="skip"
    )
    rows = known[_few(len(known))]
    result.add_scatter(
        x=one[rows], y=two[rows], mode="markers", name="Examples",
        marker={"size": 6, "color": faded(COLOURS[0], 0.6)},
        text=[as_plotly(each) for each in arrays["ids"][rows]],
        hovertemplate="%{text}<br>%{x:.4g}, then %{y:.4g}<extra></extra>",
    )  # fmt: skip
    return result


def _add_reliability(result: go.Figure, name: str, found: Values, colour: str) -> None:
    """Draw the bins of one checkpoint that hold anything."""
    columns = {key: np.array([np.nan if each is None else each for each in row]) for key, row in found.items()}
    kept = columns["counts"] > 0
    count, sure, right, low, high = (
        columns[key][kept] for key in ("counts", "confidence", "accuracy", "low", "high")
    )  # fmt: skip
    told = [f"{n:,.0f} predictions<br>95 % interval {100 * a:.4g} to {100 * b:.4g} %"
            for n, a, b in zip(count, low, high, strict=True)]  # fmt: skip
    result.add_scatter(
        x=100 * sure, y=100 * right, mode="lines+markers", name=name, line={"color": colour, "width": 1.5},
        marker={"size": 8},
        error_y={"type": "data", "symmetric": False, "array": 100 * (high - right), "arrayminus": 100 * (right - low),
                 "thickness": 1.5, "width": 4},
        customdata=told, hovertemplate="%{x:.4g} % sure, %{y:.4g} % right<br>%{customdata}<extra>" + name + "</extra>",
    )  # fmt: skip
    bins = len(columns["counts"])
    result.add_bar(
        x=100 * (np.arange(bins) + 0.5) / bins, y=100 * columns["counts"] / count.sum(), yaxis="y2", name=name,
        marker={"color": faded(colour, 0.5)}, showlegend=False,
        hovertemplate="about %{x:.3g} % sure: %{y:.3g} % of the predictions<extra>" + name + "</extra>",
    )  # fmt: skip


def _samples(values: Values, arrays: Arrays) -> list[tuple[str, str, NDArray[Any]]]:
    """Return name, colour and losses of what is drawn."""
    losses = arrays["loss"]
    if len(losses) == 1 and "accuracy" in values:
        wrong = arrays["right"][0] < 1
        some = "Not all right" if values["kind"] in ("outputs", "tokens") else "Wrong"
        pairs = [("Right", COLOURS[0], losses[0][~wrong]), (some, COLOURS[1], losses[0][wrong])]
        return [(name, colour, each[np.isfinite(each)]) for name, colour, each in pairs if len(each)]
    names = as_labels(values["checkpoints"])
    return [(name, COLOURS[place % len(COLOURS)], losses[place][np.isfinite(losses[place])])
            for place, name in enumerate(names)]  # fmt: skip


def _few(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(np.int64))
