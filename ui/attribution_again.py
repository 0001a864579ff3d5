"""Ask again about an example: for another class, or after a change, to see prediction and map follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as graph
import streamlit as st

from analyzers._base import Analyzer, Result
from ui.runs import go
from ui.state import jobs, key_for, result_of
from ui.text import as_text, percent
from workspace.export import PLOT_CONFIG
from workspace.jobs import Job, JobSpec

MOST_PILLS = 24
SIDE = 420  # pixels of the picture that a region is marked in


def changed(job: Job, result: Result) -> None:
    """Say what a change of the example did to the prediction, where the unchanged one has been looked at."""
    options = job.payload["options"]
    if not options.get("edit"):
        return
    st.info(f"The examples were changed first: {as_text(described(options['edit']))}.", icon=":material/edit:")
    before = result_of(_again(job, edit="").id, "attribution")
    if before is None:
        return
    for one, two in zip(before.values["cases"], result.values["cases"], strict=True):
        st.markdown(f"**{as_text(two['id'])}**: {_said(one)} → {_said(two)}")


def draw(job: Job, result: Result, analyzer: type[Analyzer]) -> None:
    """Draw what may be asked next about one of the examples."""
    cases = [each for each in result.values["cases"] if each["checkpoint_index"] == _last(result)]
    with st.expander("Ask about another class, or change the example", icon=":material/experiment:"):
        place = 0
        if len(cases) > 1:
            place = int(
                st.selectbox("Example", range(len(cases)), format_func=lambda each: str(cases[each]["id"]),
                             key=f"again-case-{job.id[:8]}") or 0
            )  # fmt: skip
        case = cases[place]
        _other_class(job, case, analyzer)
        _other_layer(job, result, analyzer)
        kind = result.values["kind"]
        if kind == "image":
            _region(job, result, case, analyzer)
        elif kind == "table":
            _numbers(job, case, analyzer)
        else:
            _word(job, case, analyzer)


def described(edit: str) -> str:
    """Say in words what an edit changes, as raw text."""
    try:
        given = json.loads(edit)
    except json.JSONDecodeError:
        return edit
    what, value = next(iter(given.items()))
    if what == "mask":
        boxes = [f"rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}" for y0, x0, y1, x1 in value]
        return f"the pixels of {'; of '.join(boxes)} have been replaced by the baseline"
    one = {"words": "word", "tokens": "the id of token", "values": "column"}.get(what, what)
    return ", ".join(f"{one} {name} is now {each}" for name, each in value.items())


def _other_class(job: Job, case: Mapping[str, Any], analyzer: type[Analyzer]) -> None:
    likely = case.get("top") or []
    if not likely:
        return
    names = {each["index"]: f"{each['name']} · {percent(each['probability'])}" for each in likely}
    chosen = st.pills(
        "Why this class?",
        list(names),
        format_func=lambda index: names[index],
        key=f"again-class-{job.id[:8]}-{case['row']}",
        help="The classes that the model holds likeliest; the maps are then of the chosen one's score.",
    )
    if chosen is not None and chosen != case["target"]:
        _ask(_again(job, examples=str(case["row"]), target=str(chosen)), analyzer)


def _other_layer(job: Job, result: Result, analyzer: type[Analyzer]) -> None:
    """Offer the layers of the model, of the methods that look at one."""
    shapes = {each["name"]: " × ".join(map(str, each["shape"])) for each in result.values.get("layers", ())}
    if not shapes:
        return
    used = [each["about"]["layer"] for each in result.values["maps"] if each["about"].get("layer")]
    now = used[-1] if used and used[-1] in shapes else None
    draw: Any = st.pills if len(shapes) <= MOST_PILLS else st.selectbox
    key = f"again-layer-{job.id[:8]}"
    more = {"default": now} if draw is st.pills else {"index": list(shapes).index(now) if now else None}
    chosen = draw(
        "Seen from which layer?", list(shapes), format_func=lambda name: f"{as_text(name)} · {shapes[name]}",
        key=key, help="Early layers show detail, late ones what the model has made of it.", **more,
    )  # fmt: skip
    if chosen is not None and chosen != now:
        _ask(_again(job, layer=chosen), analyzer)


def _region(job: Job, result: Result, case: Mapping[str, Any], analyzer: type[Analyzer]) -> None:
    picture = result.arrays.get(f"picture_{result.values['cases'].index(case)}")
    if picture is None:
        return
    st.caption("Mark a region of the picture: it is replaced by the baseline, and everything is looked at again.")
    key = f"again-region-{job.id[:8]}-{case['row']}"
    event: Any = st.plotly_chart(
        _canvas(picture), theme=None, key=key, on_select="rerun", selection_mode="box",
        config={**PLOT_CONFIG, "scrollZoom": False}, width="content", alt="Picture to mark a region in",
    )  # fmt: skip
    boxes = boxes_of(event["selection"].get("box", ()), *picture.shape[:2])
    before = _before(job).get("mask", [])
    if boxes and st.button("Replace and look again", key=f"{key}-go", type="primary"):
        edit = json.dumps({"mask": [*before, *boxes]})
        _ask(_again(job, examples=str(case["row"]), edit=edit), analyzer)


def boxes_of(marked: Sequence[Mapping[str, Any]], height: int, width: int) -> list[list[int]]:
    """Turn Plotly's boxes (pixel centres are whole numbers) into half-open [y0, x0, y1, x1] within the picture."""
    found = []
    for box in marked:
        (left, right), (top, bottom) = sorted(box["x"][:2]), sorted(box["y"][:2])
        x0, x1 = max(0, int(np.ceil(left))), min(width, int(np.floor(right)) + 1)
        y0, y1 = max(0, int(np.ceil(top))), min(height, int(np.floor(bottom)) + 1)
        if x0 < x1 and y0 < y1:
            found.append([y0, x0, y1, x1])
    return found


def _canvas(picture: np.ndarray[Any, Any]) -> graph.Figure:
    """Draw a picture with a point at each pixel's centre: Plotly gives boxes back only where there are points."""
    height, width = picture.shape[:2]
    step = max(1, max(height, width) // 64)
    y, x = np.mgrid[0:height:step, 0:width:step]
    dots = graph.Scatter(x=x.ravel(), y=y.ravel(), mode="markers", marker={"opacity": 0.0, "size": 4}, hoverinfo="none")
    figure = graph.Figure([graph.Image(z=picture, hoverinfo="skip"), dots])
    scale = SIDE / max(height, width)
    figure.update_layout(
        width=int(width * scale) + 20, height=int(height * scale) + 20, margin={"l": 10, "r": 10, "t": 10, "b": 10},
        dragmode="select", showlegend=False, xaxis={"visible": False, "range": [-0.5, width - 0.5]},
        yaxis={"visible": False, "range": [height - 0.5, -0.5]},
    )  # fmt: skip
    return figure


def _numbers(job: Job, case: Mapping[str, Any], analyzer: type[Analyzer]) -> None:
    left, right = st.columns(2)
    names = case["columns"]
    column = int(left.selectbox("Column", range(len(names)), format_func=lambda each: str(names[each]),
                                key=f"again-column-{job.id[:8]}") or 0)  # fmt: skip
    key = key_for(f"again-value-{job.id[:8]}", [column, case["row"]])
    value = right.number_input("Its value", value=float(case["raw"][column]), format="%g", key=key)
    if st.button("Change and look again", key=f"{key}-go", type="primary"):
        edit = json.dumps({"values": {**_before(job).get("values", {}), str(column): value}})
        _ask(_again(job, examples=str(case["row"]), edit=edit), analyzer)


def _word(job: Job, case: Mapping[str, Any], analyzer: type[Analyzer]) -> None:
    words = case["words"]
    units = [each["text"] for each in words] or list(case["tokens"])
    left, right = st.columns(2)
    label = "Word" if words else "Token"
    places = [each["first"] for each in words] or range(len(units))
    first = next((number for number, place in enumerate(places) if not case["special"][place]), 0)
    chosen = int(left.selectbox(label, range(len(units)), first, format_func=lambda each: f"{each}: {units[each]}",
                                key=f"again-word-{job.id[:8]}-{case['row']}") or 0)  # fmt: skip
    key = key_for(f"again-text-{job.id[:8]}", [chosen, case["row"]])
    if words:
        given = right.text_input("In its place", units[chosen].strip(), key=key)
        edit = {"words": {**_before(job).get("words", {}), str(chosen): given}}
    else:
        number = right.number_input("Id of the token in its place", 0, step=1, key=key)
        edit = {"tokens": {**_before(job).get("tokens", {}), str(chosen): int(number)}}
    if st.button("Change and look again", key=f"{key}-go", type="primary"):
        _ask(_again(job, examples=str(case["row"]), edit=json.dumps(edit)), analyzer)


def _before(job: Job) -> Mapping[str, Any]:
    """Return the edit that this run was asked with: a further one comes on top of it."""
    text = job.payload["options"].get("edit")
    return dict(json.loads(text)) if text else {}


def _again(job: Job, **options: str) -> JobSpec:
    """Ask the same with other options."""
    return JobSpec("analysis", {**job.payload, "options": {**job.payload["options"], **options}}, job.title)


def _ask(spec: JobSpec, analyzer: type[Analyzer]) -> None:
    go(analyzer, jobs().enqueue(spec).id)
    st.rerun()


def _said(case: Mapping[str, Any]) -> str:
    known = "" if case["probability"] is None else f" ({percent(case['probability'])})"
    return f"predicted {as_text(case['prediction_name'])}{as_text(known)}"


def _last(result: Result) -> int:
    return max(int(each["checkpoint_index"]) for each in result.values["cases"])
