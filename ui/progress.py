"""Work under way: its place in the queue, how far it is, cancel and retry; and the answer once it is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from ui.state import answer, jobs
from ui.text import as_text, duration
from workspace.jobs import Job, JobSpec

REFRESH_SECONDS = 0.7
STATES = {
    "waiting": ("Waiting", "gray"),
    "running": ("Running", "blue"),
    "done": ("Done", "green"),
    "failed": ("Failed", "red"),
    "cancelled": ("Cancelled", "gray"),
    "interrupted": ("Interrupted", "orange"),
    "parked": ("Parked", "orange"),
}


def ask(spec: JobSpec, place: str = "") -> dict[str, Any] | None:
    """Return the answer to a question, or ask it and show how it stands; `place` tells two showings apart."""
    found = answer(spec)
    if found is None:
        show(jobs().status(spec.id) or jobs().enqueue(spec), place)
    return found


def ask_all(
    specs: Sequence[JobSpec], place: str, drop: Callable[[int], None] | None = None
) -> list[dict[str, Any] | None]:
    """Ask several questions; one line shows how far they are, and each that failed says why.

    drop: takes the thing that the question with this number is about off the page; offered where it failed.
    """
    found = [answer(spec) for spec in specs]
    asked = [
        jobs().status(spec.id) or jobs().enqueue(spec)
        for spec, value in zip(specs, found, strict=True)
        if value is None
    ]
    for job in asked:
        if not job.is_open and job.state != "done":
            number = next(count for count, spec in enumerate(specs) if spec.id == job.id)
            ended(job, place, partial(drop, number) if drop else None)
    if waiting := [job.id for job in asked if job.is_open or job.state == "done"]:
        watch_many(waiting, len(specs))
    return found


def show(job: Job, place: str = "") -> None:
    """Show an open job's progress, or how it ended without a result."""
    if job.is_open or job.state == "done":
        watch(job.id, place)
    else:
        ended(job, place)


@st.fragment(run_every=REFRESH_SECONDS)
def watch(id: str, place: str = "") -> None:
    """Follow one job; the whole page runs again when it ends."""
    job = jobs().status(id)
    if job is None or not job.is_open:
        st.rerun()
    bar, button = st.columns([6, 1], vertical_alignment="center")
    bar.progress(min(1.0, max(0.0, job.share)), text=line(job))
    if button.button("Cancel", key=f"cancel-{place}-{id}"):
        jobs().cancel(id)
        st.rerun()


@st.fragment(run_every=REFRESH_SECONDS)
def watch_many(ids: Sequence[str], of: int = 0) -> None:
    """Follow several jobs in one line; the whole page runs again when one of them ends.

    of: how many there were, the others being done; 0 when that is not known.
    """
    found = [job for id in ids if (job := jobs().status(id))]
    still_open = [job for job in found if job.is_open]
    if len(still_open) < len(ids):
        st.rerun()
    done = max(0, of - len(ids))
    share = (done + sum(job.share for job in still_open)) / (done + len(ids))
    now = next((job for job in still_open if job.state == "running"), still_open[0])
    many = f"{done} of {of} done" if of else f"{len(ids)} to do"
    st.progress(min(1.0, max(0.0, share)), text=f"{many} · {line(now)}")


def line(job: Job) -> str:
    """Say in one line how an open job stands (Markdown)."""
    if job.state == "waiting":
        place = "next in the queue" if job.position in (None, 1) else f"number {job.position} in the queue"
        return f"{as_text(job.title)} · {place}"
    left = f" · {duration(job.seconds_left)} left" if job.seconds_left is not None else ""
    doing = f" · {as_text(job.doing)}" if job.doing else ""
    return f"{as_text(job.title)} · {100 * job.share:.0f} %{doing}{left}"


def ended(job: Job, place: str = "", drop: Callable[[], None] | None = None) -> None:
    """Say why a job has no result; offer a retry, its log, and to take off what it was about."""
    words = STATES[job.state][0].lower()
    sentence = as_text(job.error) if job.error else f"{as_text(job.title)} was {words}."
    (st.error if job.state == "failed" else st.warning)(sentence)
    row = st.container(horizontal=True)
    if row.button("Retry", key=f"retry-{place}-{job.id}", icon=":material/refresh:"):
        jobs().retry(job.id)
        st.rerun()
    if drop is not None:
        row.button("Take off the bench", key=f"drop-{place}-{job.id}", on_click=drop, icon=":material/remove:")
    if text := jobs().log(job.id):
        with row.popover("Log"):
            st.code(text[-20000:], language=None)
