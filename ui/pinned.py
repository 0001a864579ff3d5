"""What is pinned: each figure as it was looked at, its sentence, and the link to its run."""

from __future__ import annotations

import streamlit as st

from analyzers import catalogue
from probes.errors import ProbeError
from ui import panels
from ui.shell import ROOT
from ui.state import jobs, result_of, store
from ui.text import as_text, moment
from workspace.pins import Pin, pinned, unpin
from workspace.requests import figures_of


def draw() -> None:
    """Draw everything that is pinned, the newest first."""
    found = pinned(store())
    if not found:
        st.info("Nothing is pinned yet. Below every figure of a finished run stands a button that pins it.")
    for each in found:
        with st.container(border=True, key=f"pinned-{each.id}"):
            _draw(each)


def _draw(each: Pin) -> None:
    job = jobs().status(each.run)
    top, off = st.columns([6, 1], vertical_alignment="top")
    top.markdown(f"**{as_text(each.sentence or each.figure.replace('_', ' '))}**")
    if off.button("Take off", key=f"unpin-{each.id}", help="It leaves this list; the run stays."):
        unpin(store(), each.id)
        st.rerun()
    if job is None:
        st.warning(f"The run {each.run[:8]} of this figure is no longer in the workspace.")
        return
    top.caption(f"{as_text(job.title)} · {as_text(each.figure.replace('_', ' '))} · pinned {moment(each.created)}")
    name = str(job.payload.get("analyzer", ""))
    if result_of(each.run, name) is None:
        st.warning("The run has no result any more; retry it on the page of jobs.")
        return
    try:
        figure = figures_of(each.run, each.view, store()).get(each.figure)
    except ProbeError as error:
        st.error(as_text(error))
        return
    if figure is None:
        st.warning("The run's result no longer has this figure.")
        return
    panels.plot(each.figure, figure, f"pin-figure-{each.id}")
    if name in catalogue() and (ROOT / "pages" / f"{name}.py").is_file():
        run = {"run": each.run}
        st.page_link(f"pages/{name}.py", label="Open the run", icon=":material/open_in_new:", query_params=run)
