"""What surrounds every page: name, logo, and the pages in the side bar."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from analyzers import catalogue
from analyzers._base import Analyzer
from ui.state import jobs, store

ROOT = Path(__file__).resolve().parents[1]
WORKBENCH = "pages/workbench.py"
JOBS = "pages/jobs.py"
RUN = "pages/training_run.py"
REVIEWS = "pages/reviews.py"
PAIRS = "Between checkpoints"
EXAMPLES = "Single examples"
HEADINGS = {  # in the side bar, where what is asked for does not say it
    "hessian_spectrum": "Curvature",
    **dict.fromkeys(("attribution", "caption_misalignment", "concepts", "influence", "predictions"), EXAMPLES),
}
WHOLE_RUN = "What has been measured of this training run, on one time axis?"


def navigation() -> StreamlitPage:
    """Set the page up and return the one that was asked for; every analyzer with a page is found by itself."""
    st.set_page_config(page_title="Theodolite", page_icon=str(ROOT / "assets" / "icon.svg"), layout="wide")
    st.logo(str(ROOT / "assets" / "logo.svg"), icon_image=str(ROOT / "assets" / "icon.svg"), size="large")
    bench = st.Page(WORKBENCH, title="Workbench", icon=":material/build:", default=True)
    queue = st.Page(JOBS, title="Jobs", icon=":material/list_alt:")
    kept = st.Page(REVIEWS, title="Pinned", icon=":material/keep:")
    whole = st.Page(RUN, title="The whole run", help=WHOLE_RUN, icon=":material/stacked_line_chart:")
    pages: dict[str, list[StreamlitPage]] = {
        "": [bench],
        "Curvature": [],
        "Training run": [whole],
        PAIRS: [],
        EXAMPLES: [],
    }
    for name, analyzer in catalogue().items():
        if (ROOT / "pages" / f"{name}.py").is_file():
            path, icon = f"pages/{name}.py", ":material/monitoring:"
            one = st.Page(path, title=analyzer.title, help=analyzer.question, icon=icon)
            pages.setdefault(heading_of(analyzer), []).append(one)
    return st.navigation({**pages, "Team": [kept], "Engine": [queue]})


def heading_of(analyzer: type[Analyzer]) -> str:
    """Return under which heading of the side bar an analyzer stands."""
    usual = "Training run" if analyzer.series else PAIRS if analyzer.roles else "Analyses"
    return HEADINGS.get(analyzer.name, usual)


def heading(title: str, sentence: str) -> None:
    """Draw the top of a page; say it when nothing can be computed because no worker runs."""
    st.title(title, anchor=False)
    st.caption(sentence)
    if not jobs().worker_alive():
        st.warning(
            "The worker is not running: what you ask for waits in the queue. `python3 scripts/start.py` starts app "
            "and worker together; the worker alone is started in the folder of Theodolite by"
        )
        st.code(f".venv/bin/python -m workspace.worker --workspace {store().root}", language="bash")
