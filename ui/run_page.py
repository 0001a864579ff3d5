"""The page of a whole training run: its panels on one time axis, what is missing, and one click that measures it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pandas as pd
import streamlit as st

from analyzers import catalogue
from analyzers._run_figures import run_figure, run_table
from ui import exports, timeline
from ui.bench import Bench
from ui.progress import ended, watch_many
from ui.questions import inspection, name_of
from ui.ready import laid, ready
from ui.run_points import READERS, Part, gates, of_series, panels, spectra
from ui.shell import WORKBENCH
from ui.state import answer, jobs
from ui.text import as_list, as_text
from ui.timeline import Timeline
from workspace.export import PLOT_CONFIG, as_filename
from workspace.jobs import JobSpec

NAME = "training_run"
RATE = re.compile(r"learning rate (\d[\d.]*(?:e[+-]?\d+)?)")


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
    for name in READERS:
        parts[name] = of_series(name, measured if catalogue()[name].needs_objective else what, line)
    figure(parts, line)
    missing(parts, line)


def figure(parts: Mapping[str, Part], line: Timeline) -> None:
    """Draw what there is."""
    drawn = panels(parts, line, _rates(line))
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


def _rates(line: Timeline) -> tuple[float, ...]:
    """Draw the field for the learning rate; return it at each checkpoint, () where it is not given."""
    field, said = st.columns([2, 3], vertical_alignment="bottom")
    text = field.text_input(
        "Learning rate",
        key="learning-rate",
        bind="query-params",
        placeholder="unknown; one number, or one for each checkpoint",
        help="Where it is given, 2 / learning rate is drawn beside the largest eigenvalue: plain full-batch gradient "
        "descent is unstable above it. Momentum and adaptive steps have other limits.",
    )
    with said:
        _said_in_files(line)
    try:
        rates = learning_rates(text or "", len(line.checkpoints))
    except ValueError as error:
        st.error(as_text(error))
        return ()
    return rates


def _said_in_files(line: Timeline) -> None:
    """Show what the files tell of the optimizer, and offer to take the learning rates from there."""
    by_words: dict[str, list[str]] = {}
    rates = []
    for label, text in zip(line.labels, line.checkpoints, strict=True):
        words = str((answer(inspection(text)) or {}).get("optimizer") or "")
        by_words.setdefault(words, []).append(label)
        rates += RATE.findall(words)[:1]
    kept = [f"{words} ({', '.join(labels)})" for words, labels in by_words.items() if words]
    if kept:
        st.caption("In the files: " + as_text("; ".join(kept)))
    if len(rates) == len(line.checkpoints):
        st.button("Take the learning rates in the files", on_click=_take, args=(", ".join(rates),))


def _take(rates: str) -> None:
    st.session_state["learning-rate"] = rates


def learning_rates(text: str, count: int) -> tuple[float, ...]:
    """Read one learning rate, or one for each checkpoint; () for an empty text. Raises ValueError in words."""
    parts = [each for each in re.split(r"[,;\s]+", text) if each]
    try:
        rates = tuple(map(float, parts))
    except ValueError:
        rates = (math.nan,)
    if not all(math.isfinite(each) and each > 0 for each in rates):
        raise ValueError(f"The learning rate is {text!r}; give numbers above zero, as 0.1 or 0.1, 0.1, 0.01.")
    if len(rates) not in (0, 1, count):
        raise ValueError(f"There are {len(rates)} learning rates for {count} checkpoints; give one, or one for each.")
    return rates * count if len(rates) == 1 else rates


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
