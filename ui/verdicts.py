"""What a result concludes, and on what grounds: shown before the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from ui.text import LONGEST_SENTENCE, as_list, as_text

GOOD = ("same_basin", "same_after_permutation", "same_after_repair")
BETWEEN = ("connected_by_curve",)


def draw(values: Mapping[str, Any]) -> None:
    """Draw the verdict of a result with its evidence; nothing where it gives none."""
    sentence = values.get("verdict_sentence")
    if not sentence:
        return
    name, firm = values.get("verdict"), bool(values.get("verdict_firm", True))
    with st.container(key="verdict"):
        if not firm:
            st.warning(as_text(sentence, LONGEST_SENTENCE), icon=":material/help:")
        elif name in GOOD:
            st.success(as_text(sentence, LONGEST_SENTENCE), icon=":material/check_circle:")
        elif name in BETWEEN:
            st.info(as_text(sentence, LONGEST_SENTENCE), icon=":material/route:")
        else:
            st.error(as_text(sentence, LONGEST_SENTENCE), icon=":material/block:")
        if values.get("verdict_evidence"):
            with st.expander("What the verdict rests on", icon=":material/fact_check:"):
                st.markdown(as_list(values["verdict_evidence"]))
