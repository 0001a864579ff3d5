"""What every analysis page shows of a result: figures, caveats, the card, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analyzers._base import Result
from ui import exports, pinning
from ui.text import as_list, as_text, duration, moment
from workspace.export import PLOT_CONFIG, as_filename
from workspace.jobs import Job

HEIGHT = 540  # pixels, of figures that name none: room for the longest axis title


def head(job: Job) -> None:
    """Say which run this is."""
    took = f", took {duration(job.ended - job.started)}" if job.ended and job.started else ""
    st.subheader(as_text(job.title), anchor=False)
    st.caption(f"Run {job.id[:8]} · {moment(job.ended or job.created)}{took}")


def caveats(result: Result) -> None:
    """Say every doubt about a result."""
    if result.caveats:
        st.warning(as_list(result.caveats), icon=":material/info:")


def figures(
    job: Job,
    result: Result,
    drawn: Mapping[str, go.Figure],
    tables: Mapping[str, pd.DataFrame],
    view: Mapping[str, Any],
) -> None:
    """Draw figures of a result, each with its exports; view: how they are drawn (see `requests.figures_of`)."""
    for name, figure in drawn.items():
        plot(name, figure, f"figure-{name}")
        left, right = st.columns([6, 1])
        with right:
            pinning.button(job, name, view)
        with left:
            exports.panel(job, result, name, figure, tables.get(name), view)


def plot(name: str, figure: go.Figure, key: str) -> None:
    """Draw one figure; the camera above it saves it under its name."""
    picture = {"format": exports.camera(name), "scale": 2, "filename": as_filename(name)}
    config = {**PLOT_CONFIG, "toImageButtonOptions": picture}
    height = int(figure.layout.height or HEIGHT)
    st.plotly_chart(figure, theme=None, height=height, config=config, key=key, alt=name.replace("_", " "))


def tables(found: Mapping[str, pd.DataFrame]) -> None:
    """Show the data behind the figures."""
    with st.expander("Tables", icon=":material/table:"):
        for tab, table in zip(
            st.tabs([as_text(name.replace("_", " ")) for name in found]), found.values(), strict=True
        ):
            tab.dataframe(table, hide_index=True)


def card(result: Result, title: str) -> None:
    """Draw what a result is of, as a table of two columns."""
    with st.expander(title, icon=":material/badge:"):
        rows = [{"What": name.replace("_", " "), "Value": written(value)} for name, value in _flat(result.card)]
        st.dataframe(pd.DataFrame(rows), hide_index=True, alt=title, height="content")


def written(value: Any) -> str:
    """Write an entry of a card as raw text."""
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return ", ".join(written(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flat(card: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in card.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}: {key}", each) for key, each in value.items()]
        else:
            rows.append((name, value))
    return rows
