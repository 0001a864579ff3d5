"""Take a figure away: pictures drawn by the worker, a page, the data behind it, the card, a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analyzers._base import Result
from probes.errors import ProbeError
from ui.progress import ask
from ui.questions import rendering
from ui.state import names, store
from workspace.export import IMAGE_FORMATS, as_filename, csv_of, html_of, json_of, parquet_of, snippet_of
from workspace.jobs import Job

CAMERA = ("PNG", "SVG")
MIME = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "pdf": "application/pdf",
    "html": "text/html",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "json": "application/json",
    "py": "text/x-python",
}


def panel(
    job: Job,
    result: Result,
    name: str,
    figure: go.Figure,
    table: pd.DataFrame | None,
    view: Mapping[str, Any],
) -> None:
    """Draw the exports of one figure as it is looked at; data is only written when it is asked for."""
    with st.expander("Export this figure", icon=":material/download:"):
        row = st.container(horizontal=True)
        for format in IMAGE_FORMATS:
            if row.button(format.upper(), key=f"draw-{name}-{format}", help="Drawn by the worker in Chromium."):
                st.session_state[f"drawing-{job.id}-{name}"] = format
        _file(row, "HTML", "html", job, name, lambda: html_of(figure), "One page that opens offline.")
        if table is not None:
            _file(row, "CSV", "csv", job, name, lambda: csv_of(table), "The data behind the figure.")
            _file(row, "Parquet", "parquet", job, name, lambda: parquet_of(table), "The data behind the figure.")
        _file(row, "JSON", "json", job, name, lambda: json_of(result, figure), "Result, card and figure.")
        script = "A script that repeats this run."
        _file(row, "Python", "py", job, name, lambda: snippet_of(job.payload, names()).encode(), script)
        st.radio(
            "The camera button above the plot saves",
            CAMERA,
            key=f"camera-{name}",
            horizontal=True,
            help="Drawn by this browser: it works where the server has no Chromium.",
        )
        if wanted := st.session_state.get(f"drawing-{job.id}-{name}"):
            _picture(job, name, str(wanted), view)


def camera(name: str) -> str:
    """Return the format in which the camera button of a figure saves it."""
    return str(st.session_state.get(f"camera-{name}", CAMERA[0])).lower()


def _file(
    row: st.delta_generator.DeltaGenerator,
    label: str,
    suffix: str,
    job: Job,
    name: str,
    content: Callable[[], bytes],
    help: str,
) -> None:
    row.download_button(
        label,
        data=_safely(content),
        file_name=file_name(job, name, suffix),
        mime=MIME[suffix],
        key=f"save-{name}-{suffix}",
        on_click="ignore",
        help=help,
    )


def _safely(content: Callable[[], bytes]) -> Callable[[], bytes]:
    """Write the reason into the file when it cannot be made: here nothing can be said on the page any more."""

    def made() -> bytes:
        try:
            return content()
        except (ProbeError, OSError, ValueError, KeyError, TypeError) as error:
            return f"This file could not be made: {error}\n".encode()

    return made


def _picture(job: Job, name: str, format: str, view: Mapping[str, Any]) -> None:
    spec = rendering(job.id, name, format, view)
    found = ask(spec, f"draw-{name}")
    if not found:
        return
    path = store().folder(spec.id) / str(found["file"])
    st.download_button(
        f"Save the {format.upper()}",
        data=path.read_bytes(),
        file_name=file_name(job, name, format),
        mime=MIME[format],
        key=f"save-{name}-{format}",
        on_click="ignore",
        type="primary",
    )


def file_name(job: Job, name: str, suffix: str) -> str:
    """Name an exported file after what it shows and the run it came from."""
    return f"{as_filename(name)}-{job.id[:8]}.{suffix}"
