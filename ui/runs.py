"""Runs of one analyzer: ask for one, follow it, find it again by the id in the URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import streamlit as st

from analyzers._base import Analyzer, Result
from ui import asked, pairs, panels, timeline
from ui import bench as benches
from ui.bench import Bench
from ui.forms import options_form
from ui.pairs import judged
from ui.progress import STATES, ended, watch
from ui.questions import name_of
from ui.ready import Laid, Ready, laid, ready
from ui.shell import WORKBENCH
from ui.state import heeding, jobs, key_for, partial_of, result_of
from ui.text import as_list, as_text, duration, moment
from workspace.jobs import Job, JobSpec
from workspace.requests import analysis

HISTORY = 300
SO_FAR_SECONDS = 2.0


def current_id(analyzer: type[Analyzer]) -> str | None:
    """Return the run that the URL names, else the one last looked at in this tab; the URL then shows it."""
    key = f"last-run-{analyzer.name}"
    given = st.query_params.get("run") or st.session_state.get(key) or ""
    run = given if re.fullmatch(r"[0-9a-f]{24}", given) else None
    st.session_state[key] = run
    if run and st.query_params.get("run") != run:
        st.query_params["run"] = run
    return run


def choose(analyzer: type[Analyzer]) -> Job | None:
    """Draw the form for a new run and the earlier ones; return the run that the URL names."""
    bench_id = benches.current_id()
    run = current_id(analyzer)
    job = jobs().status(run) if run else None
    if run and job is None:
        st.warning("The run in this link is not in this workspace.")
    _history(analyzer, job)
    label = "Ask again, with other options or checkpoints" if job else "Ask"
    with st.expander(label, expanded=job is None, icon=":material/tune:"):
        _form(analyzer, bench_id, job)
    return job


def follow(job: Job, analyzer: type[Analyzer]) -> Result | None:
    """Return the result of a run, or show how far it is, or why there is none."""
    result = result_of(job.id, analyzer.name)
    if result is None:
        with st.container(border=True, key="run-state"):
            if job.is_open or job.state == "done":
                watch(job.id, "run")
                st.caption("This page may be closed: the run goes on, and this link shows it.")
            else:
                ended(job, "run")
        if job.is_open:
            _so_far(job, analyzer)
    return result


@st.fragment(run_every=SO_FAR_SECONDS)
def _so_far(job: Job, analyzer: type[Analyzer]) -> None:
    """Draw what a run under way has found so far."""
    result = partial_of(job.id, analyzer.name)
    if result is None:
        return
    st.caption("So far; the run goes on and refines this.")
    for name, figure in result.figures().items():
        panels.plot(name, figure, f"so-far-{name}")


def history(analyzer: type[Analyzer]) -> list[Job]:
    """List the runs of an analyzer, newest first."""
    found = jobs().list(HISTORY)
    return [job for job in found if job.task == "analysis" and job.payload.get("analyzer") == analyzer.name]


def title_of(job: Job) -> str:
    """Name a run in a list, as raw text."""
    started = moment(job.created)
    took = f", {duration(job.ended - job.started)}" if job.ended and job.started and job.state == "done" else ""
    state = "under way" if job.is_open else STATES[job.state][0].lower()
    return f"{job.title} · {state}{took} · {started} · {job.id[:6]}"


def _history(analyzer: type[Analyzer], job: Job | None) -> None:
    found = {each.id: each for each in history(analyzer)}
    if job:
        found.setdefault(job.id, job)
    if not found:
        return
    now = job.id if job else None
    key = key_for(f"history-{analyzer.name}", [now, job.state if job else ""])
    st.selectbox(
        "Run",
        list(found),
        key=key,
        index=list(found).index(now) if now else None,
        format_func=lambda id: title_of(found[id]),
        on_change=heeding(key, now, lambda each: go(analyzer, each)),
        placeholder="Earlier runs",
    )


def _form(analyzer: type[Analyzer], bench_id: str, job: Job | None) -> None:
    bench = benches.read(bench_id)
    what = ready(bench) if analyzer.needs_objective else laid(bench)
    if isinstance(what, str):
        st.info(as_text(what))
        st.page_link(WORKBENCH, label="To the workbench", icon=":material/build:", query_params={"bench": bench_id})
        return
    place = f"{analyzer.name}-{job.id[:8] if job else 'new'}"
    fixed: dict[str, Any] = {}
    if analyzer.roles:
        chosen = pairs.choose(analyzer.roles, bench, what, place)
    else:
        way = _series if analyzer.series else _several if analyzer.several else _one
        chosen, fixed = way(bench, what, place)
    if analyzer.uses_test and isinstance(what, Ready):
        st.caption(as_text(pairs.test_words(what)))
    given = dict(job.payload["options"]) if job else {}
    fixed |= asked.options(analyzer, what, chosen, given, place)
    values = options_form(analyzer, given, place, tuple(fixed))
    key = f"run-{analyzer.name}"
    lacking = not chosen or fixed.get("examples") == ""
    if st.button("Run", type="primary", icon=":material/play_arrow:", key=key, disabled=lacking):
        _start(analyzer, what, chosen, values | fixed)


def _one(_bench: Bench, what: Laid, place: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Choose one checkpoint; return it, and the options that follow from it."""
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    checkpoint = left.selectbox("Checkpoint", what.checkpoints, format_func=name_of, key=f"{place}-checkpoint")
    with right:
        judged(what, checkpoint)
    return (checkpoint,), {}


def _several(bench: Bench, what: Laid, place: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Choose any number of checkpoints, in the order of time; return them, and the options that follow from it."""
    known = timeline.of(bench, what.checkpoints).checkpoints
    chosen = st.multiselect(
        "Checkpoints",
        known,
        default=known[-1:],
        format_func=name_of,
        key=key_for(f"{place}-several", known),
        help="One; or two, to see the difference; or those of a training run.",
    )
    kept = tuple(each for each in known if each in chosen)
    if kept:
        judged(what, kept[-1])
    return kept, {}


def _series(bench: Bench, what: Laid, place: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Choose checkpoints of a training run; return them in the order of time, and the options that follow from it."""
    line = timeline.of(bench, what.checkpoints)
    titles = {text: f"{label} · {name_of(text)}" for text, label in zip(line.checkpoints, line.labels, strict=True)}
    chosen = st.multiselect(
        "Checkpoints of the training run",
        line.checkpoints,
        default=line.checkpoints,
        format_func=lambda text: titles.get(text, text[:8]),
        key=key_for(f"{place}-checkpoints", line.checkpoints),
        help="In the order of time. Epochs or steps that are not known are typed in step 1 of the workbench.",
    )
    kept = timeline.of(bench, [each for each in line.checkpoints if each in chosen])
    if kept.problem:
        st.error(as_text(kept.problem))
        return (), {"times": ""}
    st.caption(as_text(kept.sentence))
    if kept.doubts:
        st.warning(as_list(kept.doubts))
    judged(what, kept.checkpoints[-1])
    return kept.checkpoints, {"times": kept.typed}


def _start(analyzer: type[Analyzer], what: Laid, checkpoints: tuple[str, ...], values: dict[str, Any]) -> None:
    try:
        question_of = analyzer(**values)
    except ValueError as error:
        st.error(as_text(error))
        return
    job = jobs().enqueue(question(question_of, what, checkpoints))
    go(analyzer, job.id)
    st.rerun()


def question(asked: Analyzer, what: Laid, checkpoints: Sequence[str]) -> JobSpec:
    """Ask an analyzer about checkpoints of the bench."""
    names = [name_of(each) for each in checkpoints]
    about = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)} checkpoints)"
    if asked.roles and len(names) > 1:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        about = f"{names[0]} and {names[1]}{more}"
    title = f"{asked.title}: {about}"
    if not isinstance(what, Ready):
        return analysis(asked, checkpoints, None, None, None, title)
    return analysis(asked, checkpoints, what.model, what.data, what.loss, title, what.test)


def go(analyzer: type[Analyzer], id: str | None) -> None:
    """Look at this run from now on, or at none."""
    st.session_state[f"last-run-{analyzer.name}"] = id
    if id:
        st.query_params["run"] = id
    else:
        st.query_params.pop("run", None)
