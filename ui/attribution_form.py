"""What an attribution is asked: examples from the gallery, and methods by their titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from analyzers._attribution_names import FAMILIES, METHODS
from ui import gallery
from ui.questions import preview
from ui.ready import Ready
from ui.state import answer

USUAL = ("integrated_gradients", "occlusion")
OF_TABLES = ("integrated_gradients", "feature_ablation")  # columns have no neighbours for a window to cover


def draw(what: Ready, checkpoints: Sequence[str], given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Draw the choice of examples and methods; return the options `examples` and `methods`."""
    examples = gallery.pick(what, checkpoints, str(given.get("examples", "")), place)
    asked = str(given.get("methods", ""))
    before = list(METHODS) if asked == "all" else [each.strip() for each in asked.split(",")]
    usual = OF_TABLES if _is_table(what) else USUAL
    chosen = st.multiselect(
        "Methods",
        list(METHODS),
        default=[each for each in before if each in METHODS] or list(usual),
        format_func=lambda name: f"{METHODS[name].title} · {FAMILIES[METHODS[name].family]}",
        key=f"{place}-methods",
        help="One that cannot run on this model says why, and what to choose instead; the others go on.",
        persist_state="session",
    )
    if not chosen:
        st.warning("Choose at least one method.")
    return {"examples": examples, "methods": ",".join(chosen or usual)}


def _is_table(what: Ready) -> bool:
    known = answer(preview(what.data)) or {}
    return len(known.get("shape", ())) == 1 and "float" in str(known.get("dtype"))
