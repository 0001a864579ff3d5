"""Which units of a model may be exchanged: derived from it, shown as a table, changed by hand and checked again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from ui.progress import ask
from ui.questions import permutations
from ui.ready import Ready
from ui.state import answer, key_for
from ui.text import as_list, as_text, number
from workspace.jobs import JobSpec

HELP = {
    "permutation": "Units that share this name change places together.",
    "kind": "What the units are.",
    "units": "How many they are.",
    "tensor": "A parameter or buffer that must follow.",
    "axis": "The axis along which it does.",
    "positions": "Which positions belong to the units: 0:64 one each, 0:1600/25 blocks of 25, + joins parts.",
    "rows": "Where only part of the tensor follows: the other axis, and its positions.",
    "counts": "Whether the tensor counts in the cost of matching; running statistics do not.",
    "within": "The unit of another permutation inside which this one acts.",
}


def form(what: Ready, checkpoint: str, given: str, place: str) -> str:
    """Draw the permutations of the model of a checkpoint; return the text of edited ones, "" for the derived.

    given: the text that the run looked at was asked with.
    """
    with st.expander("Permutations: which units may change places", icon=":material/shuffle:"):
        kept = f"{place}-specification"
        text = str(st.session_state.get(kept, given))
        st.caption(
            "Derived from the model, and checked with random permutations in float64 before any barrier is shown. Rows "
            "may be changed, deleted and added."
        )
        spec = permutations(checkpoint, what.model, what.data, what.loss)
        if answer(spec) is None and not st.toggle("Look at them before the run", key=f"{place}-look"):
            return _said(text, kept)
        if found := ask(spec, "specification"):
            _about(found)
            _edited(what, checkpoint, found, kept, place)
        return _said(str(st.session_state.get(kept, text)), kept)


def _about(found: Mapping[str, Any]) -> None:
    names = {row["permutation"] for row in found["rows"]}
    st.markdown(
        f"{as_text(str(found['source']).capitalize())}: **{len(names)} permutations**; random ones change outputs by "
        f"{number(found['error'])} of their scale at most."
    )
    if found["notes"]:
        st.info(as_list(found["notes"]))


def _edited(what: Ready, checkpoint: str, found: Mapping[str, Any], kept: str, place: str) -> None:
    """Draw the table; check what was changed in it, and keep the text of what passed."""
    table = pd.DataFrame(found["rows"])
    columns: dict[str, Any] = {name: st.column_config.Column(help=HELP.get(name)) for name in table.columns}
    shown = st.data_editor(
        table, key=key_for(f"{place}-rows", [checkpoint]), num_rows="dynamic", hide_index=True, column_config=columns
    )
    rows = [_clean(row) for row in shown.to_dict("records")]
    if rows == [dict(row) for row in found["rows"]]:
        return
    asked = permutations(checkpoint, what.model, what.data, what.loss, rows)
    if answer(asked) is None and not _wanted(asked, place):
        return
    if passed := ask(asked, "edited"):
        st.success(f"The edited permutations leave the function as it is (by {number(passed['error'])}).")
        st.session_state[kept] = str(passed["text"])


def _wanted(asked: JobSpec, place: str) -> bool:
    """Tell whether the check of these rows was asked for."""
    key = f"{place}-check-{asked.id}"
    if st.button("Check the edited permutations", key=f"{place}-check"):
        st.session_state[key] = True
    return bool(st.session_state.get(key))


def _said(text: str, kept: str) -> str:
    if text:
        left, right = st.columns([4, 1], vertical_alignment="center")
        left.caption("The run is asked with edited permutations.")
        if right.button("Take the derived ones", key=f"{kept}-derived"):
            st.session_state[kept] = ""
            st.rerun()
    return text


def _clean(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row as JSON knows it; cells that were never filled are empty."""
    empty = {"units": "", "axis": "", "counts": True}
    return {str(key): empty.get(str(key), "") if _missing(each) else _plain(each) for key, each in row.items()}


def _missing(value: Any) -> bool:
    return value is None or value != value


def _plain(value: Any) -> Any:
    if isinstance(value, bool | str):
        return value
    return int(value) if float(value).is_integer() else float(value)
