"""The page of a whole training run: its panels on one time axis, what is missing, and one click that measures it."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from analyzers import catalogue
from analyzers._run_figures import run_figure, run_table
from ui import exports, timeline
from ui.bench import Bench
from ui.progress import ended, watch_many
from ui.questions import name_of
from ui.ready import laid, ready
from ui.run_points import READERS, Part, gates, of_series, panels, spectra
from ui.shell import WORKBENCH
from ui.state import answer, jobs
from ui.text import as_list, as_text
from ui.timeline import Timeline
from workspace.export import PLOT_CONFIG, as_filename
from workspace.jobs import JobSpec

NAME = "training_run"


def draw(id: str, bench: Bench) -> None:
    """Draw the run on a bench, or say what is missing."""
    what = laid(bench)
    line = None if isinstance(what, str) else timeline.of(bench, what.checkpoints)
    if line is None or len(line.checkpoints) < 2 or line.problem:
        one = "A training run needs two or more checkpoints of the same tensors on the bench."
        st.info(as_text(what if isinstance(what, str) else (line and line.problem) or one))
        st.page_link(WORKBENCH, label="To the workbench", icon=":material/build:", query_params={"bench": id})
        return
    st.subheader(as_text(_title(line)), anchor=False)
    st.caption(as_text(line.sentence))
    if line.doubts:
        st.warning(as_list(line.doubts))
    measured = ready(bench)
    parts = {"gate": gates(measured, line), "hessian_spectrum": spectra(measured, line)}
    for name in filter(catalogue().__contains__, READERS):
        parts[name] = of_series(name, measured if catalogue()[name].needs_objective else what, line)
    figure(parts, line)
    missing(parts, line)


def figure(parts: Mapping[str, Part], line: Timeline) -> None:
    """Draw what there is."""
    place, _ = st.columns([1, 3])
    rate = place.number_input(
        "Learning rate",
        min_value=0.0,
        value=None,
        format="%g",
        key="learning-rate",
        bind="query-params",
        placeholder="unknown",
        help="Where it is given, 2 / learning rate is drawn beside the largest eigenvalue: plain full-batch gradient "
        "descent is unstable above it. Momentum and adaptive steps have other limits.",
    )
    drawn = panels(parts, line, rate or None)
    if not any(panel.measured for panel in drawn):
        st.info("Nothing of this run has been measured yet.")
        return
    shown = run_figure(drawn, line.times, line.unit, _title(line))
    picture = {"format": exports.camera(NAME), "scale": 2, "filename": as_filename(NAME)}
    config = {**PLOT_CONFIG, "toImageButtonOptions": picture}
    st.plotly_chart(shown, theme=None, config=config, key=f"figure-{NAME}", alt="The training run over time")
    table = run_table(drawn, line.times, line.unit)
    exports.plain(NAME, NAME, shown, table)
    with st.expander("Table", icon=":material/table:"):
        st.dataframe(table, hide_index=True)


def missing(parts: Mapping[str, Part], line: Timeline) -> None:
    """Say what has not been measured, offer to measure it, and show how far that is."""
    st.subheader("What is missing", anchor=False)
    st.dataframe(pd.DataFrame([_row(part, line) for part in parts.values()]), hide_index=True, alt="What is missing")
    asked = [spec for part in parts.values() for spec in part.asked]
    for why in dict.fromkeys(part.why for part in parts.values() if part.why):
        st.info(as_text(why))
    if not asked:
        return
    titles = [part.title for part in parts.values() if part.asked]
    chosen = st.multiselect("Measure", titles, default=titles, key="measure", persist_state="session")
    wanted = [spec for part in parts.values() if part.title in chosen for spec in part.asked]
    if st.button("Measure what is missing", type="primary", icon=":material/play_arrow:", disabled=not wanted):
        for spec in wanted:
            job = jobs().enqueue(spec)
            if job.can_retry:
                jobs().retry(job.id)
        st.rerun()
    _under_way(asked)


def _under_way(asked: list[JobSpec]) -> None:
    known = [job for spec in asked if answer(spec) is None and (job := jobs().status(spec.id))]
    for job in known:
        if job.can_retry:
            ended(job, NAME)
    if going := [job.id for job in known if job.is_open or job.state == "done"]:
        watch_many(going)
        st.caption("This page may be closed: what has been asked for goes on.")


def _row(part: Part, line: Timeline) -> dict[str, str]:
    holes = [label for text, label in zip(line.checkpoints, line.labels, strict=True) if text not in part.found]
    there = len(line.checkpoints) - len(holes)
    return {
        "Analysis": part.title,
        "Measured": f"{there} of {len(line.checkpoints)}",
        "Missing": ", ".join(holes) or "nothing",
    }


def _title(line: Timeline) -> str:
    names = [name_of(each) for each in line.checkpoints]
    return f"{names[0]} … {names[-1]} ({len(names)} checkpoints)"
