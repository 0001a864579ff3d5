"""A finished result about a training run: numbers, doubts, figures, examples to check, tables, other runs beside it."""

from __future__ import annotations

import streamlit as st

from analyzers._base import Analyzer, Result
from probes.errors import ProbeError
from ui import examples, key_numbers, panels
from ui.runs import history, title_of
from ui.state import result_of
from ui.text import as_text
from workspace.jobs import Job


def draw(job: Job, result: Result, analyzer: type[Analyzer]) -> None:
    """Draw a finished result."""
    panels.head(job)
    key_numbers.draw(analyzer.name, result.values)
    panels.caveats(result)
    tables = dict(result.tables())
    panels.figures(job, result, result.figures(), tables, {})
    examples.draw(job, result)
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
        beside = [each for id in chosen if (each := result_of(id, analyzer.name))]
        if not beside:
            return
        try:
            drawn = result.overlay(beside)
        except ProbeError as error:
            st.error(as_text(error))
            return
        panels.figures(job, result, drawn, {}, {"over": chosen})
