"""Theodolite's app: `streamlit run app.py` imports this file as the server and runs it as the script of every visit."""

from __future__ import annotations

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

if get_script_run_ctx(suppress_warning=True) is None:
    from ui import server

    app = st.App(
        __file__,
        routes=server.routes(),
        middleware=server.middleware(),
        lifespan=server.lifespan,
        on_script_error=server.say,
    )
else:
    from ui import shell

    shell.navigation().run()
