"""Examples that a result names, to be checked by people: a table with pictures or text, one looked at closely, CSV."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st
from PIL import Image

from analyzers._base import Arrays, Result
from ui import exports
from ui.text import as_text, number
from workspace.export import csv_of
from workspace.jobs import Job

HEADINGS = {  # in the order of the columns
    "id": "Example",
    "group": "Group",
    "alignment": "Alignment",
    "network_alignment": "In the whole network",
    "rise": "Rise of the loss",
    "influence": "Influence",
    "typical_influence": "On random examples",
    "along": "Along",
    "label": "Label",
    "prediction": "Prediction",
    "prediction_after": "Prediction after",
    "loss": "Loss",
    "loss_after": "Loss after",
    "probability": "Probability",
    "gap": "Gap",
    "entropy": "Entropy",
    "margin": "Margin",
    "checkpoint": "Checkpoint",
    "text": "Text",
}
HELP = {
    "probability": "Of the class that is predicted.",
    "gap": "Probability of the likeliest class less that of the next: a small one is unsure.",
    "entropy": "Of the predicted probabilities, in nats.",
    "margin": "Logit of the label less the largest other logit: below zero the prediction is another class.",
    "alignment": "Cosine of minus its gradient and the weights: a negative one pulls against them.",
    "rise": "Loss after less loss before.",
    "influence": "Above zero it helped the prediction that is explained, below zero it hurt it.",
    "typical_influence": "Its mean influence on random examples: where it is as large, it matters to any prediction.",
    "along": "Its activation along the concept's direction, in standard deviations of random examples from their mean.",
}
ROW, LARGE = 44, 240  # pixels: of a row with a picture, and of the picture looked at
Example = Mapping[str, Any]


def draw(job: Job, result: Result) -> None:
    """Draw the examples to check; nothing where the result names none."""
    given = result.values.get("examples")
    found: Sequence[Example] = given if isinstance(given, list) else ()
    if not found or not isinstance(found[0], Mapping):  # of a pair it is their number
        return
    st.subheader(as_text(result.values.get("examples_title") or "Examples to check"), anchor=False)
    at = " and ".join(dict.fromkeys(str(each["checkpoint"]) for each in found if each.get("checkpoint")))
    st.caption(f"At {as_text(at)}. Choose a row to look at the example.")
    explained = result.values.get("example")
    if isinstance(explained, Mapping):
        beside, lists = st.columns([1, 4])
        with beside:
            _explained(explained, result.arrays)
        with lists:
            _lists(job, found, result.arrays, stacked=True)
    else:
        _lists(job, found, result.arrays)
    stem = exports.stem_of(job, "examples-to-check")
    content = lambda: csv_of(table_of(found))
    row = st.container(horizontal=True)
    exports.save(row, "Examples to check as CSV", "csv", "examples", stem, content, "One row for each example.")


def _lists(job: Job, found: Sequence[Example], arrays: Arrays, *, stacked: bool = False) -> None:
    """Draw the examples of each group, the groups beside one another or stacked."""
    groups = list(dict.fromkeys(str(each.get("group", "")) for each in found))
    places: Sequence[Any] = [st.container() for _ in groups] if stacked else st.columns(len(groups))
    for group, place in zip(groups, places, strict=True):
        with place:
            if group:
                st.markdown(f"**{as_text(group.capitalize())}**")
            rows = [at for at, each in enumerate(found) if str(each.get("group", "")) == group]
            chosen = _table(f"examples-{job.id[:8]}-{group}", found, rows, arrays)
            if chosen is not None:
                _closely(found[chosen], _picture(arrays, chosen))


def _explained(example: Example, arrays: Arrays) -> None:
    """Draw the example that the listed ones are about."""
    with st.container(border=True, key="example-explained"):
        st.markdown(f"**{as_text(HEADINGS['id'])} {as_text(example.get('id', ''))}**")
        if "example_picture" in arrays:
            url = png_url(arrays["example_picture"][0], LARGE)
            st.image(url, width="stretch", alt=as_text(example.get("id", "")))
        st.markdown(_numbers(example))
        if example.get("of"):
            st.caption(f"Of {as_text(example['of'])}.")
        if example.get("text"):
            st.code(str(example["text"]), language=None, wrap_lines=True)


def table_of(found: Sequence[Example]) -> pd.DataFrame:
    """Return the examples as a table, the columns in the usual order; what none of them has is left out."""
    known = [name for name in HEADINGS if any(each.get(name) is not None for each in found)]
    return pd.DataFrame([{name: _cell(name, each.get(name)) for name in known} for each in found], columns=known)


def png_url(picture: Any, side: int = 0) -> str:
    """Return a picture (H, W, 3) uint8 as a data URL of a PNG; side: enlarged by whole pixels to about so many."""
    image = Image.fromarray(picture)
    times = max(1, side // max(image.size))
    buffer = io.BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _table(key: str, found: Sequence[Example], rows: Sequence[int], arrays: Arrays) -> int | None:
    """Draw some of the examples; return the place of the chosen one."""
    table = table_of([found[place] for place in rows]).drop(columns=["group", "checkpoint"], errors="ignore")
    numbers = st.column_config.NumberColumn
    columns: dict[str, Any] = {
        name: numbers(HEADINGS[name], format="%.4g", help=HELP.get(name))
        if pd.api.types.is_float_dtype(table[name])
        else st.column_config.TextColumn(HEADINGS[name], help=HELP.get(name))
        for name in table.columns
    }
    height: dict[str, Any] = {}
    if "pictures" in arrays:
        table.insert(0, "picture", [png_url(arrays["pictures"][place]) for place in rows])
        columns["picture"] = st.column_config.ImageColumn("Picture", width="small")
        height = {"row_height": ROW}
    event = st.dataframe(
        table,
        key=key,
        column_config=columns,
        hide_index=True,
        height=min(420, 40 + (ROW if height else 35) * len(rows)),
        on_select="rerun",
        selection_mode="single-row",
        alt="Examples to check",
        **height,
    )
    chosen = [row for row in event["selection"]["rows"] if row < len(rows)]
    return rows[chosen[0]] if chosen else None


def _closely(example: Example, picture: Any) -> None:
    """Draw one example large, with its numbers."""
    with st.container(border=True, key=f"example-{example.get('group', 'one')}"):
        st.markdown(f"**{as_text(HEADINGS['id'])} {as_text(example.get('id', ''))}**")
        row = st.container(horizontal=True, gap="medium")
        if picture is not None:
            row.image(png_url(picture, LARGE), width=LARGE, alt=as_text(example.get("id", "")))
        row.markdown(_numbers(example))
        if example.get("text"):
            st.code(str(example["text"]), language=None, wrap_lines=True)


def _numbers(example: Example) -> str:
    """Return what is known of an example as lines of Markdown."""
    rows = [
        f"{HEADINGS[name]}: **{as_text(number(value) if isinstance(value, float) else value)}**"
        for name in HEADINGS
        if name not in ("id", "text", "group") and (value := example.get(name)) is not None
    ]
    return "  \n".join(rows)


def _picture(arrays: Arrays, place: int) -> Any:
    return arrays["pictures"][place] if "pictures" in arrays else None


def _cell(name: str, value: Any) -> Any:
    """Keep numbers where a column has numbers; ids and classes are names."""
    return str(value) if name in ("id", "label", "prediction", "prediction_after") and value is not None else value
