"""What an attribution is asked: examples from the gallery, and methods by their titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from analyzers._attribution_names import FAMILIES, METHODS
from ui import gallery
from ui.ready import Ready

USUAL = ("integrated_gradients", "occlusion")  # they run on every kind of model


def draw(what: Ready, checkpoints: Sequence[str], given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Draw the choice of examples and methods; return the options `examples` and `methods`."""
    examples = gallery.pick(what, checkpoints, str(given.get("examples", "")), place)
    asked = str(given.get("methods", ""))
    before = list(METHODS) if asked == "all" else [each.strip() for each in asked.split(",")]
    chosen = st.multiselect(
        "Methods",
        list(METHODS),
        default=[each for each in before if each in METHODS] or list(USUAL),
        format_func=lambda name: f"{METHODS[name].title} · {FAMILIES[METHODS[name].family]}",
        key=f"{place}-methods",
        help="One that cannot run on this model says why, and what to choose instead; the others go on.",
        persist_state="session",
    )
    if not chosen:
        st.warning("Choose at least one method.")
    return {"examples": examples, "methods": ",".join(chosen or USUAL)}
