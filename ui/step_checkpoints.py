"""Step 1 of the workbench: take checkpoints in, say what was found in each, and choose the weights that are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from ui import bench as benches
from ui import step_series, timeline
from ui.bench import Bench
from ui.files import choose, from_server, looks_like_data
from ui.progress import ask_all
from ui.questions import inspection, name_of
from ui.state import answer, heeding, key_for, store
from ui.text import as_list, as_text, number, size
from ui.uploads import uploader
from workspace.references import reference

Found = Mapping[str, Any]
VERDICTS = {"ok": "OK", "warning": "Opens, with doubts"}


def draw(id: str, bench: Bench) -> Mapping[str, Found]:
    """Draw the step; return what was found, by reference, for the checkpoints that could be read, in their order."""
    with st.container(border=True, key="step-checkpoints"):
        st.subheader("1 · Checkpoints", anchor=False)
        uploader(
            "checkpoint", id, "or drop checkpoints here: safetensors, PyTorch (.pt .pth .ckpt .bin), GGUF, .npz, or a "
            "zip of a Hugging Face, PEFT or distributed checkpoint folder.",
        )  # fmt: skip
        from_server("checkpoint", lambda sha256: benches.take_upload(f"checkpoint/{id}", sha256))
        choose(
            "On the bench",
            lambda file: not looks_like_data(file),
            list(dict.fromkeys(map(_file_of, bench.checkpoints))),
            "bench-checkpoints",
            lambda added, removed: _pick(id, added, removed),
        )
        if not bench.checkpoints:
            return {}
        questions = [inspection(each) for each in bench.checkpoints]
        answers = ask_all(questions, "inspect", lambda number: _take_off(id, bench.checkpoints[number]))
        found = {text: value for text, value in zip(bench.checkpoints, answers, strict=True) if value}
        if found:
            in_time = [found[text] for text in timeline.of(bench, tuple(found)).checkpoints]
            _table(in_time)
            for text, each in found.items():
                _weights(id, text, each)
                _base(id, text, each)
            _doubts(in_time)
            step_series.draw(id, bench, found)
            _tensors(found)
        return found


def _file_of(text: str) -> str:
    return reference(text).sha256


def _pick(id: str, added: list[str], removed: list[str]) -> None:
    def how(bench: Bench) -> Bench:
        return replace(bench, checkpoints=benches.picked(bench.checkpoints, added, removed, _file_of))

    benches.change(id, how)


def _take_off(id: str, text: str) -> None:
    benches.change(
        id, lambda bench: replace(bench, checkpoints=tuple(each for each in bench.checkpoints if each != text))
    )


def _table(found: Sequence[Found]) -> None:
    rows = [
        {
            "File": each["name"],
            "Verdict": VERDICTS["warning" if each["doubts"] else "ok"],
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


def _weights(id: str, text: str, found: Found) -> None:
    """Offer the sets of weights that a file holds, a moving average for instance."""
    sets = list(found.get("sets", ()))
    if len(sets) < 2:
        return
    now = found["weights"]
    key = key_for("weights", [text, now])
    st.selectbox(
        f"Weights of {as_text(found['name'])}",
        sets,
        index=sets.index(now) if now in sets else 0,
        key=key,
        on_change=heeding(key, now, lambda each: _mean(id, text, weights=each)),
        help="The file holds several sets of weights, as training loops keep a moving average beside the weights.",
    )


def _base(id: str, text: str, found: Found) -> None:
    """Offer the base of an adapter among the stored files that were read."""
    if "lora" not in found["facts"] and reference(text).base is None:
        return
    others = [each.sha256 for each in store().files() if each.sha256 != reference(text).sha256]
    others = [each for each in others if (about := answer(inspection(each))) and "lora" not in about["facts"]]
    base = reference(text).base
    now = base.sha256 if base else ""
    key = key_for("base", [text, others])
    said = str(found["facts"].get("lora", {}).get("base", ""))
    st.selectbox(
        f"Base of the adapter {as_text(name_of(reference(text).sha256))}",
        ["", *others],
        index=([*others].index(now) + 1) if now in others else 0,
        key=key,
        format_func=lambda each: name_of(each) if each else "None yet: put the base on the bench, or upload it",
        on_change=heeding(key, now, lambda each: _mean(id, text, base=each)),
        help=as_text(f"The adapter names {said}." if said else "The adapter is merged with it: W + scale · B A."),
    )


def _mean(id: str, text: str, *, weights: str | None = None, base: str | None = None) -> None:
    """Put another reference in the place of one on the bench."""
    meant = reference(text)
    meant = meant if weights is None else replace(meant, weights=weights)
    meant = meant if base is None else replace(meant, base=reference(base) if base else None)

    def how(bench: Bench) -> Bench:
        checkpoints = tuple(str(meant) if each == text else each for each in bench.checkpoints)
        times = {str(meant) if each == text else each: time for each, time in bench.times.items()}
        return replace(bench, checkpoints=checkpoints, times=times, model=None)

    benches.change(id, how)


def _doubts(found: Sequence[Found]) -> None:
    for each in found:
        if each["doubts"]:
            st.warning(f"**{as_text(each['name'])}**\n{as_list(each['doubts'])}")
    notes: dict[str, list[str]] = {}
    for each in found:
        if said := " ".join(each["facts"].get("notes") or ()):
            notes.setdefault(said, []).append(each["name"])
    for said, names in notes.items():
        st.caption(f"**{as_text(', '.join(names))}**: {as_text(said)}")


def _tensors(found: Mapping[str, Found]) -> None:
    with st.expander("Tensors, and what else the files say"):
        text = st.selectbox("File", list(found), format_func=lambda key: f"{found[key]['name']} · {key[:8]}")
        each = found[text]
        rows = [
            {"Name": name, "Shape": " × ".join(map(str, shape)) or "one number", "Type": dtype}
            for name, shape, dtype in each["shapes"]
        ]
        left, right = st.columns([3, 2])
        left.dataframe(pd.DataFrame(rows), hide_index=True, height=280, alt="Names and shapes of the tensors")
        right.json(dict(each["facts"]), expanded=2)
        right.caption("sha256")
        right.code(each["sha256"], language=None, wrap_lines=True)
        if each.get("left"):
            right.caption("Left behind: objects and files that are no weights, and were not run or opened")
            right.code("\n".join(each["left"]), language=None, wrap_lines=True)
