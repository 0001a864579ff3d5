"""Figures of classes: which are confused, which are found again, and where two checkpoints disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from analyzers._base import Arrays, Result
from analyzers._figures import COLOURS, GRID, as_plotly, figure
from analyzers._predictions_curves import change_figure, loss_figure, position_figure, reliability_figure, value_figure
from analyzers._series_figures import as_labels, of_what

MATRIX = 60  # classes above which the pairs that are confused most are drawn instead
WRITTEN = 20  # classes up to which each cell says its number
PAIRS, CLASSES = 40, 40  # bars at most
RIGHT = [[0.0, "#F3F7FA"], [1.0, "#8FB8CF"]]
WRONG = [[0.0, "#FDF3EC"], [0.02, "#FBE3D4"], [0.15, "#F0A878"], [0.5, "#D2652F"], [1.0, "#8A2B06"]]
Values = Mapping[str, Any]


def figures(result: Result, **view: Any) -> dict[str, go.Figure]:
    """Draw all that there is of a result; view as in `PredictionsResult.figures`."""
    card, values, arrays = result.card, result.values, result.arrays
    count = len(values["checkpoints"])
    at = _place(view.get("checkpoint", -1), count)
    found: dict[str, go.Figure] = {}
    if values["classes"]:
        found["confusion"] = confusion_figure(card, values, arrays, at)
        found["classes"] = class_figure(card, values, arrays)
    if "reliability" in values:
        found["reliability"] = reliability_figure(card, values)
    if values["kind"] == "values" and np.isfinite(arrays["label"]).any():
        found["values"] = value_figure(card, values, arrays)
    if values["kind"] == "tokens":
        found["positions"] = position_figure(card, values, arrays)
    found["losses"] = loss_figure(card, values, arrays)
    if count > 1:
        pair = _place(view.get("first", 0), count), _place(view.get("second", -1), count)
        draw = disagreement_figure if values["classes"] else change_figure
        found["disagreement"] = draw(card, values, arrays, *pair)
    return found


def confusion_figure(card: Values, values: Values, arrays: Arrays, at: int) -> go.Figure:
    """Draw which labels are predicted as what by one checkpoint: a matrix, or of many classes the worst pairs."""
    accuracy = f"{_percent(values['accuracy'][at])} right"
    words = f"{as_plotly(values['checkpoints'][at])}: {accuracy}, {values['wrong'][at]:,} wrong<br>{of_what(card)}"
    labels, guesses = arrays["label"], arrays["prediction"][at]
    names = as_labels(values["classes"])
    if len(names) > MATRIX:
        return _pairs(
            ("Classes that are confused most", words), labels, guesses, values["classes"], "label → prediction"
        )
    counts = _matrix(labels, guesses, len(names))
    axes = ("Prediction", "Label")
    return _heat(("Which classes are confused", words), axes, counts, names, ("of the label's examples", "label"))


def disagreement_figure(card: Values, values: Values, arrays: Arrays, first: int, second: int) -> go.Figure:
    """Draw what two checkpoints predict for the same examples, and whether one is right more often."""
    one, two = (arrays["prediction"][place] for place in (first, second))
    names = as_labels(values["classes"])
    left, right = (as_plotly(values["checkpoints"][place]) for place in (first, second))
    words = f"{_tested(values, first, second)}<br>{of_what(card)}"
    if len(names) > MATRIX:
        return _pairs(("Where two checkpoints disagree most", words), one, two, values["classes"], f"{left} → {right}")
    counts = _matrix(one, two, len(names))
    axes = (f"Prediction of {right}", f"Prediction of {left}")
    told = ("of the examples that the first predicts so", "first")
    return _heat(("Where two checkpoints disagree", words), axes, counts, names, told)


def class_figure(card: Values, values: Values, arrays: Arrays) -> go.Figure:
    """Draw the share of each class's examples that is found again, with Wilson's interval; the worst classes on top."""
    recall, support = arrays["recall"], arrays["support"]
    known = np.flatnonzero(support > 0)
    order = known[np.argsort(recall[-1, known, 0], kind="stable")][:CLASSES]
    names = as_labels(values["classes"])
    shown = [names[each] for each in order]
    few = "" if len(known) <= CLASSES else f"the {CLASSES} lowest of {len(known):,} classes<br>"
    words = f"{few}bars are 95 % intervals (Wilson), diamonds precision at the last<br>{of_what(card)}"
    result = figure("How well each class is recognised", words, "Share (%)", "")
    labels, places = as_labels(values["checkpoints"]), np.arange(len(order))
    for place, name in enumerate(labels):
        middle, low, high = (100 * recall[place, order, part] for part in range(3))
        aside = 0.5 * ((place + 0.5) / len(labels) - 0.5)
        result.add_scatter(
            x=middle, y=places + aside, mode="markers", name=f"Recall, {name}",
            marker={"size": 8, "color": COLOURS[place % len(COLOURS)]},
            error_x={"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low,
                     "thickness": 1.5, "width": 3},
            customdata=[f"{one}: recall {share:.4g} % of {support[each]:,}<br>95 % interval {a:.4g} to {b:.4g} %"
                        for one, share, each, a, b in zip(shown, middle, order, low, high, strict=True)],
            hovertemplate="%{customdata}<extra>" + name + "</extra>",
        )  # fmt: skip
    precision = 100 * arrays["precision"][-1, order, 0]
    result.add_scatter(
        x=precision, y=places, mode="markers", name="Precision, last",
        marker={"symbol": "diamond-open", "size": 8, "color": "#52606D"},
        customdata=[f"{one}: precision {share:.4g} %" for one, share in zip(shown, precision, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    result.update_yaxes(tickvals=places, ticktext=shown, range=[len(order) - 0.4, -0.6], zeroline=False)
    height = max(420, 230 + 20 * len(shown))
    legend = {"y": -70 / (height - 150)}
    return result.update_layout(height=height, legend=legend)


def _heat(
    title: tuple[str, str], axes: tuple[str, str], counts: NDArray[Any], names: list[str], told: tuple[str, str]
) -> go.Figure:
    """Draw a matrix of counts, coloured by their share of the row: the diagonal in one colour, the rest in another."""
    result = figure(*title, *axes)
    rows = counts.sum(1, keepdims=True)
    share = np.divide(counts, rows, out=np.full(counts.shape, np.nan), where=rows > 0)
    diagonal = np.eye(len(names), dtype=bool)
    few, highest = len(names) <= WRITTEN, float(np.nanmax(np.where(diagonal, 0, share), initial=0.0))
    hover = _hover(counts, share, names, told)
    for mask, scale, top in ((diagonal, RIGHT, 1.0), (~diagonal & (counts > 0), WRONG, highest or 1.0)):
        text = np.where(mask & (counts > 0), counts.astype(str), "")
        result.add_heatmap(
            z=_hidden(100 * share, mask), x=names, y=names, zmin=0, zmax=100 * top, colorscale=scale,
            showscale=mask is not diagonal, colorbar={"title": {"text": f"% {told[0]}", "side": "right"},
                                                      "thickness": 12, "len": 0.9},
            customdata=hover, hovertemplate="%{customdata}<extra></extra>", hoverongaps=False,
            text=text if few else None, texttemplate="%{text}" if few else None, xgap=1, ygap=1,
        )  # fmt: skip
    ticks = {"type": "category", "showgrid": False, "tickmode": "array", "tickvals": names}
    result.update_xaxes(**ticks, tickangle=0 if max(map(len, names)) < 4 else -40, constrain="domain")
    result.update_yaxes(**ticks, autorange="reversed", scaleanchor="x", constrain="domain")
    side = min(820, max(500, 300 + 26 * len(names)))
    return result.update_layout(height=side, plot_bgcolor="#FAFBFC" if few else GRID, margin={"t": 125})


def _pairs(
    title: tuple[str, str], first: NDArray[Any], second: NDArray[Any], names: Sequence[str], axis: str
) -> go.Figure:
    """Draw the pairs of different classes that occur most often as bars."""
    result = figure(*title, "Examples", axis)
    differ = first != second
    pairs, counts = np.unique(np.array([first[differ], second[differ]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PAIRS]
    of_all = np.bincount(first, minlength=len(names))
    shown = as_labels(f"{names[pairs[0, each]]} → {names[pairs[1, each]]}" for each in order)
    shares = [counts[each] / of_all[pairs[0, each]] for each in order]
    result.add_bar(
        x=counts[order], y=shown, orientation="h", marker_color=COLOURS[1],
        customdata=[f"{_percent(share)} of the {of_all[pairs[0, each]]:,} of the first"
                    for each, share in zip(order, shares, strict=True)],
        hovertemplate="%{y}: %{x} examples<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    result.update_yaxes(type="category", categoryorder="array", categoryarray=shown[::-1])
    return result.update_layout(height=max(420, 200 + 20 * len(shown)))


def _tested(values: Values, first: int, second: int) -> str:
    """Say how often two checkpoints differ, and what McNemar's test says of their accuracies."""
    low, high = sorted((first, second))
    found = next((each for each in values["disagreement"] if (each["first"], each["second"]) == (low, high)), None)
    if found is None:
        return "the same checkpoint twice"
    count = values["examples_seen"]
    names = [as_plotly(values["checkpoints"][place]) for place in (low, high)]
    chance = f"p = {found['p_value']:.3g}" if found["p_value"] > 0 else "p < 1e-300"
    return (
        f"{found['only_first']:,} are right in {names[0]} only, {found['only_second']:,} in {names[1]} only<br>"
        f"{found['differ']:,} of {count:,} predictions differ ({_percent(found['low'])} to {_percent(found['high'])}); "
        f"equal accuracy: {chance} (McNemar, exact)"
    )


def _matrix(first: NDArray[Any], second: NDArray[Any], width: int) -> NDArray[np.int64]:
    return np.bincount(first * width + second, minlength=width**2).reshape(width, width)


def _hover(counts: NDArray[Any], share: NDArray[Any], names: list[str], told: tuple[str, str]) -> list[list[str]]:
    what = ("label", "predicted") if told[1] == "label" else ("first", "second")
    return [
        [
            f"{what[0]} {one}, {what[1]} {two}<br>{count:,} examples, {_percent(part)} {told[0]}"
            for two, count, part in zip(names, counts[row], share[row], strict=True)
        ]
        for row, one in enumerate(names)
    ]


def _hidden(values: NDArray[Any], mask: NDArray[np.bool_]) -> list[list[float | None]]:
    kept = np.where(mask, values, np.nan)
    return [[None if each != each else float(each) for each in row] for row in kept]


def _place(place: Any, count: int) -> int:
    number = int(place)
    return number % count if -count <= number < count else count - 1


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.3g} %" if share < 0.9 else f"{100 * share:.2f} %"
