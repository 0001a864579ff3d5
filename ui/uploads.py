"""The uploader on a page: many files by drag and drop, in chunks, each with its progress, cancel and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import streamlit as st

from ui.state import uploads
from ui.text import size

ASSETS = Path(__file__).resolve().parents[1] / "assets"
LABELS = {"checkpoint": "checkpoint", "data": "data", "test": "test data"}

_uploader = st.components.v2.component(
    "theodolite_uploader",
    html=(ASSETS / "uploader.html").read_text(),
    css=(ASSETS / "uploader.css").read_text(),
    js=(ASSETS / "uploader.js").read_text(),
)


def uploader(kind: Literal["checkpoint", "data", "test"], bench_id: str, hint: str) -> None:
    """Draw the uploader; a file that has arrived is laid on the bench by the server (`ui.bench.take_upload`)."""
    key = f"upload-{kind}-{bench_id}"
    about = {
        "key": key,
        "token": uploads().token(f"{kind}/{bench_id}"),
        "base": str(st.get_option("server.baseUrlPath") or "").rstrip("/"),
        "hint": f"{hint} At most {size(uploads().limits.file)} each.",
        "label": f"Upload {LABELS[kind]} files",
    }
    _uploader(key=key, data=about, on_finished_change=lambda: None)
