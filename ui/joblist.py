"""The queue as a page: what runs, what waits, what ran; cancel, retry, log, open the result."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from ui.progress import REFRESH_SECONDS, STATES, ended, line
from ui.shell import ROOT
from ui.state import heeding, jobs, key_for
from ui.text import as_text, duration, moment
from workspace.jobs import Job

SHOWN = 300


def draw() -> None:
    """Draw the open jobs, which are followed, and the ended ones."""
    found = jobs().list(SHOWN)
    _open_jobs(tuple(job.id for job in found if job.is_open))
    rest = [job for job in found if not job.is_open]
    st.subheader("Ended", anchor=False)
    if not rest:
        st.caption("Nothing has ended yet.")
        return
    st.dataframe(
        pd.DataFrame([_row(job) for job in rest]),
        hide_index=True,
        alt="Ended jobs",
    )
    _details({job.id: job for job in rest})


@st.fragment(run_every=REFRESH_SECONDS)
def _open_jobs(ids: tuple[str, ...]) -> None:
    found = [job for job in jobs().list(SHOWN) if job.is_open]
    if {job.id for job in found} != set(ids):
        st.rerun()
    st.subheader("Running and waiting", anchor=False)
    if not found:
        st.caption("Nothing runs and nothing waits.")
    for job in sorted(found, key=lambda each: (each.state != "running", each.lane, each.position or 0)):
        with st.container(border=True):
            bar, button = st.columns([6, 1], vertical_alignment="center")
            bar.progress(min(1.0, max(0.0, job.share)), text=line(job))
            if button.button("Cancel", key=f"cancel-{job.id}"):
                jobs().cancel(job.id)
                st.rerun()


def _row(job: Job) -> dict[str, str]:
    took = duration(job.ended - job.started) if job.ended and job.started else "–"
    times = {"Started": moment(job.started), "Took": took}
    return {"State": STATES[job.state][0], "Job": job.title, "Task": job.task, **times, "Id": job.id[:8]}


def _details(found: dict[str, Job]) -> None:
    given = st.query_params.get("job")
    now = given if given in found else None
    key = key_for("job-chosen", now)
    st.selectbox(
        "Look at a job",
        list(found),
        key=key,
        index=list(found).index(now) if now else None,
        format_func=lambda id: f"{STATES[found[id].state][0]} · {found[id].title} · {id[:8]}",
        on_change=heeding(key, now, _go),
        placeholder="Choose one for its log, a retry or its result",
    )
    if not (job := found.get(str(given))):
        return
    with st.container(border=True):
        st.markdown(f"**{as_text(job.title)}** · :{STATES[job.state][1]}-badge[{STATES[job.state][0]}]")
        if job.state != "done":
            ended(job, "jobs")
            return
        _open_result(job)
        with st.expander("Log"):
            st.code(jobs().log(job.id)[-20000:] or "The log is empty.", language=None)


def _open_result(job: Job) -> None:
    page = Path("pages") / f"{job.payload.get('analyzer', '')}.py"
    if job.task == "analysis" and (ROOT / page).is_file():
        label, icon = "Open the result", ":material/arrow_forward:"
        st.page_link(str(page), label=label, icon=icon, query_params={"run": job.id})


def _go(chosen: str | None) -> None:
    if chosen:
        st.query_params["job"] = chosen
    else:
        st.query_params.pop("job", None)
