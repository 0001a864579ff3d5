"""Pin a figure as it is looked at, with a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from ui.state import store
from workspace.jobs import Job
from workspace.pins import LONGEST, pin, pinned


def button(job: Job, name: str, view: Mapping[str, Any]) -> None:
    """Draw what pins one figure of a run as it is looked at."""
    there = sum(each.figure == name for each in pinned(store(), job.id))
    label = f"Pinned ({there})" if there else "Pin"
    with st.popover(label, icon=":material/keep:", key=f"pin-{name}", help="Keep this figure with a sentence."):
        sentence = st.text_input(
            "What it shows", key=f"pin-sentence-{name}", max_chars=LONGEST, placeholder="One sentence for the others"
        )
        if st.button("Pin this figure", key=f"pin-now-{name}", type="primary"):
            pin(store(), job.id, name, view, sentence)
            st.rerun()
