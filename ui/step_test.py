"""In step 3 of the workbench: test data beside the data, read in the same way."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from probes.specs import as_test
from ui import bench as benches
from ui.bench import Bench
from ui.data_look import summary
from ui.files import choose, looks_like_data
from ui.progress import ask
from ui.questions import name_of, preview
from ui.state import answer
from ui.text import as_list, as_text
from ui.uploads import uploader

HINT = "or drop test data here: they are scaled, labelled and cut into tokens as the data above are."


def draw(id: str, bench: Bench) -> None:
    """Draw the choice of test data and what is in use; nothing before there are data."""
    if bench.data is None or bench.data.format == "operator":
        return
    words = f": {', '.join(name_of(each) for each in bench.test.files)}" if bench.test else ""
    with st.expander(f"Test data{as_text(words)}", icon=":material/science:", expanded=False):
        st.caption("Loss paths, connectivity and grafting draw a second curve for data the model was not trained on.")
        uploader("test", id, HINT)
        chosen = bench.test.files if bench.test else ()
        choose("Files", looks_like_data, chosen, "bench-test", lambda added, gone: _pick(id, added, gone))
        _split(id, bench)
        if bench.test and (found := ask(preview(bench.test), "preview-test")):
            st.success(as_text(summary(found)))
            if found["doubts"]:
                st.warning(as_list(found["doubts"]))


def _pick(id: str, added: list[str], removed: list[str]) -> None:
    def how(bench: Bench) -> Bench:
        files = benches.picked(bench.test.files if bench.test else (), added, removed)
        return replace(bench, test=as_test(bench.data, files) if files and bench.data else None)

    benches.change(id, how)


def _split(id: str, bench: Bench) -> None:
    """Offer another part of the data themselves where these come in several."""
    found = answer(preview(bench.data)) if bench.data else None
    splits = [str(each) for each in found["about"].get("splits", ())] if found else []
    rest = [each for each in splits if found and each != found["about"].get("split")]
    for each in rest:
        st.button(
            f"Use the part {as_text(each)} of the data", key=f"test-split-{each}", on_click=_part, args=(id, each)
        )


def _part(id: str, split: str) -> None:
    def how(bench: Bench) -> Bench:
        return replace(bench, test=as_test(bench.data, bench.data.files, split) if bench.data else None)

    benches.change(id, how)
