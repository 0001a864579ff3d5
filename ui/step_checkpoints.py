"""Step 1 of the workbench: take checkpoints in, and say what was found in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from ui import bench as benches
from ui.bench import Bench
from ui.files import choose, from_server, looks_like_data
from ui.progress import ask_all
from ui.questions import inspection
from ui.text import as_list, as_text, number, size
from ui.uploads import uploader

Found = Mapping[str, Any]


def draw(id: str, bench: Bench) -> Mapping[str, Found]:
    """Draw the step; return what was found, by sha256, for the checkpoints that could be read, in their order."""
    with st.container(border=True, key="step-checkpoints"):
        st.subheader("1 · Checkpoints", anchor=False)
        uploader("checkpoint", id, "or drop checkpoints here: safetensors, PyTorch (.pt .pth .ckpt .bin), or a zip.")
        from_server("checkpoint", lambda sha256: benches.take_upload(f"checkpoint/{id}", sha256))
        choose(
            "On the bench",
            lambda file: not looks_like_data(file),
            bench.checkpoints,
            "bench-checkpoints",
            lambda chosen: benches.put(id, checkpoints=tuple(chosen)),
        )
        if not bench.checkpoints:
            return {}
        answers = ask_all([inspection(sha256) for sha256 in bench.checkpoints], "inspect")
        found = {sha256: value for sha256, value in zip(bench.checkpoints, answers, strict=True) if value}
        if found:
            _table(list(found.values()))
            _doubts(list(found.values()))
            _tensors(found)
        return found


def _table(found: Sequence[Found]) -> None:
    rows = [
        {
            "File": each["name"],
            "Format": each["format"],
            "Size": size(each["bytes"]),
            "Tensors": each["tensors"],
            "Parameters": number(each["parameters"]),
            "Type": ", ".join(each["dtypes"]),
            "Epoch": number(each["epoch"]),
            "Stored figures": metrics(each),
            "Optimizer": each["optimizer"] or "–",
            "sha256": each["sha256"][:12],
        }
        for each in found
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="What was found in the checkpoints")


def metrics(found: Found) -> str:
    """Write the figures that a checkpoint stores about itself, as raw text."""
    return ", ".join(f"{name} {number(value)}" for name, value in found["metrics"].items()) or "–"


def _doubts(found: Sequence[Found]) -> None:
    for each in found:
        if each["doubts"]:
            st.warning(f"**{as_text(each['name'])}**\n{as_list(each['doubts'])}")


def _tensors(found: Mapping[str, Found]) -> None:
    with st.expander("Tensors, and what else the files say"):
        sha256 = st.selectbox("File", list(found), format_func=lambda key: f"{found[key]['name']} · {key[:8]}")
        each = found[sha256]
        rows = [
            {"Name": name, "Shape": " × ".join(map(str, shape)) or "one number", "Type": dtype}
            for name, shape, dtype in each["shapes"]
        ]
        left, right = st.columns([3, 2])
        left.dataframe(pd.DataFrame(rows), hide_index=True, height=280, alt="Names and shapes of the tensors")
        right.json(dict(each["facts"]), expanded=2)
        right.caption("sha256")
        right.code(sha256, language=None, wrap_lines=True)
