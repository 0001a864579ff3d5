"""What surrounds every page: name, logo, and the pages in the side bar."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from analyzers import catalogue
from ui.state import jobs, store

ROOT = Path(__file__).resolve().parents[1]
WORKBENCH = "pages/workbench.py"
JOBS = "pages/jobs.py"


def navigation() -> StreamlitPage:
    """Set the page up and return the one that was asked for; every analyzer with a page is found by itself."""
    st.set_page_config(page_title="Theodolite", page_icon=str(ROOT / "assets" / "icon.svg"), layout="wide")
    st.logo(str(ROOT / "assets" / "logo.svg"), icon_image=str(ROOT / "assets" / "icon.svg"), size="large")
    analyses = [
        st.Page(f"pages/{name}.py", title=analyzer.title, help=analyzer.question, icon=":material/monitoring:")
        for name, analyzer in catalogue().items()
        if (ROOT / "pages" / f"{name}.py").is_file()
    ]
    bench = st.Page(WORKBENCH, title="Workbench", icon=":material/build:", default=True)
    queue = st.Page(JOBS, title="Jobs", icon=":material/list_alt:")
    return st.navigation({"": [bench], "Analyses": analyses, "Engine": [queue]})


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
