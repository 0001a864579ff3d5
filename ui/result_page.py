"""A finished result: verdict, numbers, doubts, figures, examples to check, checkpoints to make, tables, other runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from analyzers._base import Analyzer, Result
from probes.errors import ProbeError
from ui import examples, key_numbers, merging, panels, verdicts, views
from ui.run_points import in_time
from ui.runs import history, title_of
from ui.state import answer_of, jobs, result_of
from ui.text import as_text
from workspace.jobs import Job

LISTED = 300  # jobs that are looked through for accuracies


def draw(job: Job, result: Result, analyzer: type[Analyzer]) -> None:
    """Draw a finished result."""
    panels.head(job)
    verdicts.draw(result.values)
    key_numbers.draw(analyzer.name, result.values)
    panels.caveats(result)
    view = views.choose(result)
    tables = dict(result.tables())
    panels.figures(job, result, result.figures(**view), tables, view)
    examples.draw(job, result)
    merging.draw(job, result, analyzer)
    panels.card(result, "Of what")
    panels.tables(tables)
    if analyzer.result.overlay is not Result.overlay:
        compare(job, result, analyzer)


def compare(job: Job, result: Result, analyzer: type[Analyzer]) -> None:
    """Draw this result over others, when all are of the same thing."""
    others = {each.id: each for each in history(analyzer) if each.state == "done" and each.id != job.id}
    if not others:
        return
    with st.expander("Compare with other runs", icon=":material/compare:"):
        chosen = st.multiselect(
            "Other runs",
            list(others),
            format_func=lambda id: title_of(others[id]),
            key=f"compare-{job.id}",
            placeholder="Choose finished runs",
        )
        beside = [(others[id], each) for id in chosen if (each := result_of(id, analyzer.name))]
        if not beside:
            return
        view: dict[str, Any] = {}
        if analyzer.name == "layer_rotation":
            view = {"accuracies": accuracies([(job, result), *beside])}
        try:
            drawn = result.overlay([each for _, each in beside], **view)
        except ProbeError as error:
            st.error(as_text(error))
            return
        panels.figures(job, result, drawn, {}, {**view, "over": [each.id for each, _ in beside]})


def accuracies(runs: Sequence[tuple[Job, Result]]) -> list[float | None]:
    """Draw a field for the accuracy of each run, filled in where the gate or the files know it; return fractions."""
    st.caption("Mean rotation is drawn against accuracy where three runs or more have one (of the same test data).")
    judged = [each for each in jobs().list(LISTED) if each.task == "gate" and each.state == "done"]
    found: list[float | None] = []
    places = st.columns(min(3, len(runs)))
    for number, (job, result) in enumerate(runs):
        known, where = _known(job, result, judged)
        value = places[number % len(places)].number_input(
            f"{number + 1} · {as_text(result.values['checkpoints'][-1])} ({job.id[:6]}): accuracy in %",
            0.0,
            100.0,
            None if known is None else round(100 * known, 4),
            step=0.01,
            format="%g",
            key=f"accuracy-{job.id}",
            placeholder="unknown",
            help=where,
        )
        found.append(None if value is None else value / 100)
    return found


def _known(job: Job, result: Result, judged: Sequence[Job]) -> tuple[float | None, str]:
    """Return the accuracy of the last checkpoint of a run as a fraction, and in words where it is from."""
    last = (in_time(job, result.values["checkpoints"]) or ("",))[-1]
    for each in judged:
        found = answer_of(each.id) if each.payload.get("checkpoint") == last else None
        if found and found.get("accuracy") is not None:
            return float(found["accuracy"]), f"From the gate, on {found['examples']} examples."
    stored = result.values.get("accuracy")
    return (None, "Neither the gate nor the file knows it: type it.") if stored is None else (stored, "From the file.")
