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
        stem = stem_of(job, name)
        _plain(row, name, stem, figure, table)
        save(row, "JSON", "json", name, stem, lambda: json_of(result, figure), "Result, card and figure.")
        script = "A script that repeats this run."
        save(row, "Python", "py", name, stem, lambda: snippet_of(job.payload, names()).encode(), script)
        _choose_camera(name)
        if wanted := st.session_state.get(f"drawing-{job.id}-{name}"):
            _picture(job, name, str(wanted), view)


def plain(name: str, stem: str, figure: go.Figure, table: pd.DataFrame) -> None:
    """Draw the exports of a figure that belongs to no single run: what this process writes, and the camera."""
    with st.expander("Export this figure", icon=":material/download:"):
        _plain(st.container(horizontal=True), name, stem, figure, table)
        _choose_camera(name)


def _plain(
    row: st.delta_generator.DeltaGenerator, name: str, stem: str, figure: go.Figure, table: pd.DataFrame | None
) -> None:
    save(row, "HTML", "html", name, stem, lambda: html_of(figure), "One page that opens offline.")
    if table is not None:
        save(row, "CSV", "csv", name, stem, lambda: csv_of(table), "The data behind the figure.")
        save(row, "Parquet", "parquet", name, stem, lambda: parquet_of(table), "The data behind the figure.")


def _choose_camera(name: str) -> None:
    st.radio(
        "The camera button above the plot saves",
        CAMERA,
        key=f"camera-{name}",
        horizontal=True,
        help="Drawn by this browser: it works where the server has no Chromium.",
    )


def camera(name: str) -> str:
    """Return the format in which the camera button of a figure saves it."""
    return str(st.session_state.get(f"camera-{name}", CAMERA[0])).lower()


def save(
    row: st.delta_generator.DeltaGenerator,
    label: str,
    suffix: str,
    name: str,
    stem: str,
    content: Callable[[], bytes],
    help: str,
) -> None:
    """Draw a button that saves a file, which is only written when it is pressed; name: no other on the page has it."""
    row.download_button(
        label,
        data=_safely(content),
        file_name=f"{stem}.{suffix}",
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
        file_name=f"{stem_of(job, name)}.{format}",
        mime=MIME[format],
        key=f"save-{name}-{format}",
        on_click="ignore",
        type="primary",
    )


def stem_of(job: Job, name: str) -> str:
    """Name an exported file after what it shows and the run it came from, without its ending."""
    return f"{as_filename(name)}-{job.id[:8]}"
