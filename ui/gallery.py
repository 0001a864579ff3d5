"""Choose examples by looking at them: by what the model predicts, by what other analyses found, or by their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from analyzers import catalogue
from analyzers._base import Result
from analyzers._gallery import FILTERS, Chosen, choose, shown_place
from probes.errors import DataError
from ui.examples import HELP, png_url
from ui.progress import show
from ui.ready import Ready
from ui.state import jobs, key_for, result_of
from ui.text import as_text
from workspace.jobs import Job
from workspace.requests import analysis

BY_ROW = "By their rows"
PAGE = 48
ROW = 56  # pixels
HISTORY = 300
NUMBERS = {"probability": "Probability", "loss": "Loss", "gap": "Gap"}


def pick(what: Ready, checkpoints: Sequence[str], given: str, place: str) -> str:
    """Draw the choice of examples; return it as the option `examples` has it: rows, separated by commas; "" for none.

    given: what was chosen before. checkpoints: those asked about; what the last predicts is what counts.
    """
    ways = [BY_ROW, *(each for each in FILTERS if each not in ("all", "disagreement") or len(checkpoints) > 1)]
    usual = BY_ROW if given else "surely wrong"
    way = st.selectbox(
        "Examples",
        ways,
        index=ways.index(usual),
        format_func=lambda each: FILTERS.get(each, BY_ROW),
        key=f"{place}-gallery-way",
        persist_state="session",
    )
    if way == BY_ROW:
        return _by_row(given, place)
    result = _predictions(what, checkpoints, both=way == "disagreement")
    chosen = None if result is None else _chosen(result, way, what, place)
    if result is None or chosen is None:
        return ""
    picked = _table(result, chosen, f"{place}-{way}")
    rows = picked or list(chosen.rows[:1])
    if not rows:
        st.info("No example matches. Choose examples in another way.")
        return ""
    words = ", ".join(map(str, rows))
    told = "the first, as none is ticked" if not picked else "as ticked"
    count = "1 example matches" if chosen.total == 1 else f"{chosen.total:,} examples match"
    st.caption(f"{count}. Asked about: row {words} ({told}).")
    return words


def _by_row(given: str, place: str) -> str:
    told = "Row numbers from 0, as in 0, 3, 7-9; or wrong:8, uncertain:8, random:20, class 3:20, pair 4 9:8."
    return st.text_input("Rows", given or "0", key=key_for(f"{place}-gallery-rows", given), help=told)


def _predictions(what: Ready, checkpoints: Sequence[str], *, both: bool) -> Result | None:
    """Return what the last checkpoint (or the first and the last) predicts; ask for it where it is not known."""
    asked = [checkpoints[0], checkpoints[-1]] if both else [checkpoints[-1]]
    analyzer = catalogue()["predictions"]()
    spec = analysis(analyzer, asked, what.model, what.data, what.loss, f"{analyzer.title}: for the gallery")
    found = result_of(spec.id, analyzer.name)
    if found is None:
        show(jobs().status(spec.id) or jobs().enqueue(spec), "gallery")
    return found


def _chosen(result: Result, way: str, what: Ready, place: str) -> Chosen | None:
    more: dict[str, Any] = {}
    try:
        if way in ("class", "pair"):
            more = _classes(result, way, place)
        if way == "random":
            more = {"seed": int(st.number_input("Seed", 0, 2**31 - 1, 0, key=f"{place}-gallery-seed"))}
        if way == "found":
            rows = _found(result, what, place)
            if rows is None:
                return None
            more = {"found": rows}
        whole = choose(result.arrays, way, **more)
        pages = max(1, -(-whole.total // PAGE))
        page = 0
        if pages > 1:
            page = int(st.number_input("Page", 1, pages, 1, key=f"{place}-{way}-page", help=f"Of {pages}.")) - 1
        return choose(result.arrays, way, **more, page=page, count=PAGE)
    except DataError as error:
        st.error(as_text(error))
        return None


def _classes(result: Result, way: str, place: str) -> dict[str, int]:
    names = [str(each) for each in result.values.get("classes") or ()]
    if not names:
        raise DataError("These data have no classes; choose examples in another way.")
    left, right = st.columns(2)
    written = lambda number: names[number]
    label = left.selectbox("Label", range(len(names)), format_func=written, key=f"{place}-gallery-label")
    if way == "class":
        return {"label": int(label)}
    guess = right.selectbox("Predicted", range(len(names)), format_func=written, key=f"{place}-gallery-predicted")
    return {"label": int(label), "predicted": int(guess)}


def _found(result: Result, what: Ready, place: str) -> list[int] | None:
    """Choose a finished run of another analysis that named examples of these data; return their rows."""
    others = {job.id: job for job in jobs().list(HISTORY) if _names_examples(job, what)}
    if not others:
        st.info(
            "No other analysis has named examples of these data yet: gradient-weight alignment, opposing signals, "
            "influence and concepts do."
        )
        return None
    chosen = st.selectbox(
        "Found by", list(others), format_func=lambda id: f"{others[id].title} · {id[:6]}", key=f"{place}-gallery-run"
    )
    named = result_of(chosen, str(others[chosen].payload["analyzer"]))
    rows = {str(id): row for row, id in enumerate(result.arrays["ids"])}
    listed = named.values["examples"] if named else []
    found = [each.get("row", rows.get(str(each.get("id")))) for each in listed]
    return list(dict.fromkeys(int(row) for row in found if row is not None))


def _names_examples(job: Job, what: Ready) -> bool:
    if job.task != "analysis" or job.state != "done" or job.payload.get("analyzer") == "predictions":
        return False
    if job.payload.get("data") != what.data.to_json():
        return False
    found = result_of(job.id, str(job.payload["analyzer"]))
    listed = found.values.get("examples") if found else None
    return isinstance(listed, list) and bool(listed) and isinstance(listed[0], Mapping)


def _table(result: Result, chosen: Chosen, key: str) -> list[int]:
    """Draw the examples on the page with their pictures; return the rows that are ticked."""
    if not chosen.rows:
        return []
    table, pictures = table_of(result, chosen.rows)
    columns: dict[str, Any] = {
        name: st.column_config.NumberColumn(name, format="%.3g", help=HELP.get(each))
        for each, name in NUMBERS.items()
        if name in table
    }
    if pictures:
        columns["Picture"] = st.column_config.ImageColumn("Picture", width="small")
    look: dict[str, Any] = {"row_height": ROW} if pictures else {}
    event = st.dataframe(
        table,
        key=key_for(key, chosen.rows),
        column_config=columns,
        hide_index=True,
        height=min(430, 40 + (ROW if pictures else 35) * len(chosen.rows)),
        on_select="rerun",
        selection_mode="multi-row",
        alt="Examples to choose from",
        **look,
    )
    return [chosen.rows[place] for place in event["selection"]["rows"] if place < len(chosen.rows)]


def table_of(result: Result, rows: Sequence[int]) -> tuple[pd.DataFrame, bool]:
    """Return some examples of a result of `predictions` as a table, and whether it has pictures."""
    arrays, values = result.arrays, result.values
    places = [shown_place(arrays, row) for row in rows]
    classes = [str(each) for each in values.get("classes") or ()]
    table = pd.DataFrame({"Row": list(rows), "Example": [str(arrays["ids"][row]) for row in rows]})
    table["Label"] = [_name(arrays["label"][row], classes) for row in rows]
    table["Predicted"] = [_name(arrays["prediction"][-1][row], classes) for row in rows]
    for key, name in NUMBERS.items():
        if key in arrays:
            table[name] = arrays[key][-1][list(rows)].astype(float)
    texts, thumbnails = values.get("texts"), arrays.get("thumbnails")
    if texts:
        table["Text"] = [texts[place] if place is not None else "" for place in places]
    if thumbnails is None:
        return table, False
    table.insert(0, "Picture", [None if place is None else png_url(thumbnails[place]) for place in places])
    return table, True


def _name(value: Any, classes: Sequence[str]) -> str:
    if float(value) != float(value) or (classes and value < 0):
        return "–"
    whole = float(value) == int(value)
    return classes[int(value)] if whole and 0 <= value < len(classes) else f"{float(value):.4g}"
