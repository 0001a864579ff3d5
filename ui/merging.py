"""Checkpoints made of a result: merged, permuted or averaged weights, to be downloaded or laid on the bench."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from analyzers._base import Analyzer, Result
from ui import bench as benches
from ui.progress import ask
from ui.questions import merging
from ui.state import store
from ui.text import as_text, size
from workspace.jobs import Job


def draw(job: Job, result: Result, analyzer: type[Analyzer]) -> None:
    """Offer the checkpoints that can be made of a result; nothing where there are none."""
    offered = analyzer.merges(result)
    if not offered:
        return
    asked = any(st.session_state.get(f"merging-{job.id}-{key}") for key in offered)
    with st.expander("Make a checkpoint of this", icon=":material/merge:", expanded=asked):
        which = st.selectbox("Checkpoint", list(offered), format_func=lambda key: offered[key], key=f"merge-{job.id}")
        wanted = f"merging-{job.id}-{which}"
        help = "The worker makes it as safetensors, with the names that the checkpoints have."
        if st.button("Make this checkpoint", key=f"make-{job.id}", help=help):
            st.session_state[wanted] = True
        if st.session_state.get(wanted):
            _offer(job, which, offered[which])


def _offer(job: Job, which: str, words: str) -> None:
    spec = merging(job.id, which)
    found = ask(spec, f"merge-{which}")
    if not found:
        return
    path = store().folder(spec.id) / str(found["file"])
    row = st.container(horizontal=True, vertical_alignment="center")
    row.download_button(
        f"Download ({size(found['bytes'])})",
        data=path.read_bytes,
        file_name=str(found["name"]),
        mime="application/octet-stream",
        key=f"download-{spec.id}",
        on_click="ignore",
        type="primary",
        icon=":material/download:",
    )
    row.button("Lay it on the bench", key=f"lay-{spec.id}", on_click=_lay, args=(path, found))
    row.caption(as_text(f"{words}."))


def _lay(path: Path, found: Mapping[str, Any]) -> None:
    """Put the file among those of the workspace, and on this page's bench."""
    stored = store().add_file(path, str(found["name"]))

    def with_it(bench: benches.Bench) -> benches.Bench:
        return replace(bench, checkpoints=tuple(dict.fromkeys((*bench.checkpoints, stored.sha256))))

    benches.change(benches.current_id(), with_it)
    st.toast(as_text(f"{stored.name} lies on the bench."))
