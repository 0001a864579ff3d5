"""Which tokens of the prompt drove which token of the answer, as a figure and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzers._attribution_panels import DIVERGING, Array, Values, View
from analyzers._figures import as_plotly, figure
from analyzers._series_figures import as_labels, of_what

LONGEST = 64  # tokens of the prompt that are drawn: those that matter most, in their order


def chosen_matrix(values: Values, arrays: Mapping[str, Array], view: View) -> int | None:
    """Return the number of the first map shown that has a matrix."""
    for number, each in enumerate(values["maps"]):
        fits = view.case in (None, each["case"]) and view.method in (None, each["method"])
        if fits and f"token_matrix_{number}" in arrays:
            return number
    return None


def matrix_figure(card: Values, values: Values, arrays: Mapping[str, Array], view: View) -> go.Figure | None:
    """Draw the matrix of the first map shown, numbers printed; special tokens in italics without colour; else None."""
    number = chosen_matrix(values, arrays, view)
    if number is None:
        return None
    about = values["maps"][number]
    case, matrix = values["cases"][about["case"]], arrays[f"token_matrix_{number}"].astype(float)
    special = np.array(case["special"], bool)
    kept = np.sort(np.argsort(-np.abs(matrix).sum(0), kind="stable")[:LONGEST])
    coloured = np.where(special[None], 0.0, np.abs(matrix) if view.absolute else matrix)[:, kept]
    scale = float(np.abs(coloured).max(initial=0.0)) or 1.0
    found = figure(
        f"Which tokens drove which token of the answer: {as_plotly(about['title'])}",
        f"{of_what(card)}, {as_plotly(case['id'])}"[:200], "token before the answer", "token of the answer",
    )  # fmt: skip
    labels = [as_plotly(case["tokens"][place]) or "␣" for place in kept]
    found.add_heatmap(
        z=coloured, x=list(range(len(kept))), y=as_labels(case["answer"]), coloraxis="coloraxis", xgap=1, ygap=1,
        text=[[f"{each:.2g}" for each in row] for row in matrix[:, kept]], texttemplate="%{text}",
        hovertemplate="%{y}<br>attribution %{text}<extra></extra>",
    )  # fmt: skip
    ticks = [f"<i>{label}</i>" if special[place] else label for place, label in zip(kept, labels, strict=True)]
    found.update_xaxes(tickvals=list(range(len(kept))), ticktext=ticks, tickangle=-35)
    found.update_yaxes(autorange="reversed", type="category")
    bar = {"title": {"text": "attribution", "side": "right"}}
    return found.update_layout(
        height=220 + 26 * len(matrix),
        coloraxis={"colorscale": [list(each) for each in DIVERGING], "cmin": -scale, "cmax": scale, "colorbar": bar},
    )


def matrix_table(values: Values, arrays: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Return a row for each token of an answer and each token before it, of every map."""
    rows = []
    for number, each in enumerate(values["maps"]):
        matrix, case = arrays.get(f"token_matrix_{number}"), values["cases"][each["case"]]
        for place, own in enumerate(() if matrix is None else matrix):
            for before, value in enumerate(own):
                rows.append({"map": number, "method": each["method"], "checkpoint": case["checkpoint"],
                             "row": case["row"], "answer_place": case["answer_start"] + place,
                             "answer_token": case["answer"][place], "place": before, "token": case["tokens"][before],
                             "attribution": float(value)})  # fmt: skip
    return rows
