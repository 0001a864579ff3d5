"""Figures of concepts: score, derivative and accuracy by layer, each beside random examples taken for a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzers._base import Arrays
from analyzers._figures import COLOURS, as_plotly, faded, figure
from analyzers._series_figures import as_labels, of_what

CONCEPT, NOT, NULL = COLOURS[0], "#52606D", "#7B8794"
Values = Mapping[str, Any]


def scores_figure(card: Mapping[str, Any], values: Values, arrays: Arrays) -> go.Figure:
    """Draw the share of the class's examples whose logit rises along the concept, by layer."""
    title = f"Does the concept move the model towards class {as_plotly(values['class'])}?"
    drawn = figure(title, _of(card, values), "Layer, in the order given", "Share of examples that rise")
    _add_null(drawn, values, arrays["all_control_scores"])
    _add_concept(drawn, values, "score_means", "score", "%{y:.1%}")
    _say_what_is_not(drawn, values)
    drawn.update_yaxes(range=[-0.04, 1.12], tickformat=".0%", dtick=0.25)
    drawn.add_hline(y=0.5, line={"color": NULL, "width": 1, "dash": "dot"})
    return drawn


def derivatives_figure(card: Mapping[str, Any], values: Values, arrays: Arrays) -> go.Figure:
    """Draw the mean derivative of the class's logit along the concept, which the controls are compared by."""
    title = f"How fast the logit of class {as_plotly(values['class'])} rises along the concept"
    words = "Mean derivative,<br>in spreads of random concepts"
    drawn = figure(title, _of(card, values), "Layer, in the order given", words)
    unit = np.maximum(arrays["all_control_derivatives"].std(1), 1e-300)
    _add_null(drawn, values, arrays["all_control_derivatives"] / unit[:, None])
    scaled = {name: (np.array(values[name]) / unit).tolist() for name in
              ("derivatives", "derivative_low", "derivative_high")}  # fmt: skip
    _add_concept(drawn, {**values, **scaled}, "derivatives", "derivative", "%{y:.3g}")
    return drawn


def accuracy_figure(card: Mapping[str, Any], values: Values, arrays: Arrays) -> go.Figure:
    """Draw how well the concept vectors tell examples held out from random ones."""
    title = "Does the layer know the concept?"
    drawn = figure(title, _of(card, values), "Layer, in the order given", "Accuracy on examples held out")
    _add_null(drawn, values, arrays["all_random_accuracies"], "random against random examples: 95 %")
    every = {**values, "significant": [True] * len(values["layers"])}
    _add_concept(drawn, every, "accuracies", "accuracy", "%{y:.1%}")
    drawn.update_yaxes(range=[-0.04, 1.08], tickformat=".0%", dtick=0.25)
    drawn.add_hline(y=0.5, line={"color": NULL, "width": 1, "dash": "dot"})
    return drawn


def _add_null(
    drawn: go.Figure, values: Values, sample: np.ndarray[Any, Any], name: str = "random concepts: 95 % of them"
) -> None:
    """Draw the middle 95 % of each row of (L, n) as a broad bar, and each value as a point."""
    low, high = np.quantile(sample, (0.025, 0.975), axis=1)
    labels = as_labels(values["layers"])
    drawn.add_bar(
        x=labels, y=high - low, base=low, width=0.42, marker={"color": faded(NULL, 0.22), "line": {"width": 0}},
        name=name, customdata=np.array([low, high]).T,
        hovertemplate="random: %{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>",
    )  # fmt: skip
    drawn.add_scatter(
        x=[label for label, row in zip(labels, sample, strict=True) for _ in row], y=sample.reshape(-1), mode="markers",
        marker={"color": faded(NULL, 0.6), "size": 5, "symbol": "line-ew-open"}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _add_concept(drawn: go.Figure, values: Values, mean: str, end: str, shown: str) -> None:
    """Draw a mean by layer with the middle 95 % of the concept vectors; pale where it is not significant."""
    labels = as_labels(values["layers"])
    for wanted, colour, symbol, name in (
        (True, CONCEPT, "circle", "the concept, and 95 % of its vectors"),
        (False, NOT, "circle-open", "the concept, insignificant"),
    ):
        places = [at for at, each in enumerate(values["significant"]) if bool(each) == wanted]
        if not places:
            continue
        at = _taken(values[mean], places)
        drawn.add_scatter(
            x=[labels[place] for place in places],
            y=at,
            error_y={"type": "data", "symmetric": False, "array": _taken(values[f"{end}_high"], places) - at,
                     "arrayminus": at - _taken(values[f"{end}_low"], places), "thickness": 2, "width": 6},
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": symbol, "line": {"width": 2}},
            name=name,
            customdata=[as_plotly(values["sentences"][place]) for place in places],
            hovertemplate=f"%{{x}}: {shown}<br>%{{customdata}}<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(type="category", categoryorder="array", categoryarray=labels)


def _say_what_is_not(drawn: go.Figure, values: Values) -> None:
    """Write the scores above their layers, and "insignificant" where there is none."""
    scores = values["scores"]
    drawn.add_scatter(
        x=as_labels(values["layers"]),
        y=[1.07] * len(scores),
        text=["insignificant" if score is None else f"{score:.0%}" for score in scores],
        mode="text",
        textfont={"color": [NOT if score is None else CONCEPT for score in scores]},
        hoverinfo="skip",
        showlegend=False,
    )


def _taken(each: Sequence[float], places: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.array([each[place] for place in places])


def _of(card: Mapping[str, Any], values: Values) -> str:
    counts = f"{values['concept_examples']} examples of the concept, {values['class_examples']} of the class, "
    counts += f"{values['random_examples']} random ones; {values['vectors']} concept vectors, "
    return f"{of_what(card)}<br>{counts}{values['controls']} random concepts"
