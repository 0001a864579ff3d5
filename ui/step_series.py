"""In step 1 of the workbench: the checkpoints as a training run, with the epoch or step of each, read or typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from probes.errors import DataError
from ui import bench as benches
from ui import timeline
from ui.bench import Bench
from ui.ready import alike
from ui.state import key_for
from ui.text import as_list, as_text
from ui.timeline import Timeline

Found = Mapping[str, Any]


def draw(id: str, bench: Bench, found: Mapping[str, Found]) -> None:
    """Draw the run; nothing where fewer than two checkpoints have the same tensors as the first."""
    first = found.get(bench.checkpoints[0]) if bench.checkpoints else None
    same = alike(bench, first) if first else ()
    if len(same) < 2:
        return
    line = timeline.of(bench, same)
    wrong = bool(line.problem or line.doubts)
    with st.expander(f"Training run: {as_text(line.sentence)}", expanded=wrong, icon=":material/timeline:"):
        if line.problem:
            st.error(as_text(line.problem))
        if line.doubts:
            st.warning(as_list(line.doubts))
        rows = [_row(line, place, found[text]) for place, text in enumerate(line.checkpoints)]
        st.dataframe(pd.DataFrame(rows), hide_index=True, alt="The checkpoints in the order of time")
        _form(id, line, found)


def _row(line: Timeline, place: int, found: Found) -> dict[str, str]:
    time = "–" if line.unit == "position" else timeline.written(line.times[place])
    heading = "Step" if line.unit == "step" else "Epoch"
    return {heading: time, "File": found["name"], "From": timeline.SOURCES[line.source]}


def _form(id: str, line: Timeline, found: Mapping[str, Found]) -> None:
    known = line.unit != "position"
    now = line.typed or (timeline.as_option(line.times, line.unit) if known else "")
    with st.form("run-times", border=False):
        text = st.text_input(
            "Epochs or steps, one for each checkpoint in the order of this table",
            now,
            key=key_for("run-times-text", [now, line.checkpoints]),
            placeholder="0, 1, 5, 20    or    step 0, 500, 1000",
            help="What is typed goes before what files and names say. Empty: read them from the files or their names.",
        )
        if not st.form_submit_button("Use these times"):
            return
        names = {each: found[each]["name"] for each in line.checkpoints}
        try:
            times, unit = timeline.typed_times(text, names) if text.strip() else ({}, "epoch")
        except DataError as error:
            st.error(as_text(error))
            return
        benches.put(id, times=times, unit=unit)
        st.rerun()
