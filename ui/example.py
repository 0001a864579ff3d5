"""What a newcomer sees first: the example, how far it is, and its finished plot."""

from __future__ import annotations

from typing import Any

import streamlit as st

from analyzers import catalogue
from probes.specs import DataSpec, ModelSpec
from ui import bench as benches
from ui.progress import show, watch
from ui.state import answer, jobs
from workspace.requests import example


def draw(id: str) -> None:
    """Offer the example; once it is trained, offer to lay it on the bench and to look at its result."""
    with st.container(border=True, key="example"):
        st.subheader("New here? Begin with the example", anchor=False)
        st.markdown(
            "Two runs of a small convolutional network on scikit-learn's handwritten digits, trained on this "
            "machine in under a minute, with a Hessian spectrum of the last checkpoint."
        )
        found = answer(example())
        if found:
            _finished(id, found)
        elif job := jobs().status(example().id):
            show(job, "example")
        elif st.button("Train the example", type="primary", icon=":material/play_arrow:"):
            jobs().enqueue(example())
            st.rerun()


def _finished(id: str, found: dict[str, Any]) -> None:
    row = st.container(horizontal=True, vertical_alignment="center")
    last = found["checkpoints"][-1]
    row.button("Load the example", type="primary", on_click=_load, args=(id, found, [last]))
    run = [each for each in found["checkpoints"] if each.get("run") == last.get("run", 0)]
    if len(run) > 1:
        words = f"Load a whole training run ({len(run)} checkpoints)"
        row.button(words, on_click=_load, args=(id, found, run))
    lasts = list({each.get("run", 0): each for each in found["checkpoints"]}.values())
    if len(lasts) > 1:
        row.button("Load the ends of both runs", on_click=_load, args=(id, found, lasts))
    job = jobs().status(found["run"]) if found.get("run") else None
    if job and job.state == "done":
        name = str(job.payload["analyzer"])
        row.page_link(
            f"pages/{name}.py",
            label=f"See its finished result: {catalogue()[name].title}",
            icon=":material/arrow_forward:",
            query_params={"run": job.id},
        )
    elif job and job.is_open:
        watch(job.id, "example")


def _load(id: str, found: dict[str, Any], checkpoints: list[dict[str, Any]]) -> None:
    benches.put(
        id,
        checkpoints=tuple(str(each["sha256"]) for each in checkpoints),
        model=ModelSpec.from_json(found["model"]),
        data=DataSpec.from_json(found["data"]),
        files=tuple(found["data"]["files"]),
        loss=found["loss"],
        test=DataSpec.from_json(found["test_data"]) if found.get("test_data") else None,
    )
