"""Step 3 of the workbench: which examples, how they are scaled and ordered, and what they look like."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, get_args

import pandas as pd
import streamlit as st

from probes.specs import DataFormat, DataSpec
from ui import bench as benches
from ui.bench import Bench
from ui.files import choose, from_server, looks_like_data
from ui.progress import ask
from ui.questions import name_of, preview
from ui.state import store
from ui.text import as_list, as_text, number
from ui.uploads import uploader

FORMATS: Mapping[DataFormat, str] = {
    "auto": "Recognise by content",
    "idx": "MNIST-style IDX pair",
    "npz": "NumPy .npz",
    "images": "Images by class, or with labels.csv (zip)",
    "table": "Table (CSV, Parquet)",
    "text": "Text or JSONL",
    "dataset": "Hugging Face dataset saved to disk (zip)",
    "tokens16": "Tokens, 16 bits (.bin)",
    "tokens32": "Tokens, 32 bits (.bin)",
    "operator": "Data of a module on this server",
}
SHEET = "data:image/png;base64,"


def draw(id: str, bench: Bench) -> dict[str, Any] | None:
    """Draw the step; return the preview of the data in use, or None while there is none."""
    with st.container(border=True, key="step-data"):
        st.subheader("3 · Data", anchor=False)
        hint = "or drop data here: IDX (.gz), .npz, a zip of images by class, CSV, Parquet, JSONL or text."
        uploader("data", id, hint)
        from_server("data", lambda sha256: benches.take_upload(f"data/{id}", sha256))
        choose("Files", _offered, bench.files, "bench-files", lambda chosen: benches.put(id, files=tuple(chosen)))
        if not bench.files:
            return None
        _form(id, bench)
        if bench.data is None:
            return None
        return _shown(bench.data)


def _offered(file: Any) -> bool:
    return looks_like_data(file) or (file.name.lower().endswith(".zip"))


def _form(id: str, bench: Bench) -> None:
    now = bench.data or DataSpec(bench.files)
    with st.form("data-fields"):
        spec = _fields(bench, now)
        if st.form_submit_button("Use this data", type="primary"):
            try:
                benches.put(id, data=spec())
            except ValueError as error:
                st.error(as_text(error))
            else:
                st.rerun()
    if bench.data and bench.data.files != bench.files:
        st.info("The files have changed since: press “Use this data” to take them.")


def _fields(bench: Bench, now: DataSpec) -> Any:
    """Draw the fields; return a function that makes the DataSpec of them (ValueError in words)."""
    one, two, three = st.columns(3)
    formats = get_args(DataFormat)
    format = one.selectbox("Format", formats, index=formats.index(now.format), format_func=lambda each: FORMATS[each])
    examples = two.number_input("Examples", 0, None, now.examples, step=100, help="How many to use; 0 takes all.")
    seed = three.text_input(
        "Shuffle seed",
        "" if now.shuffle is None else str(now.shuffle),
        placeholder="order of the file",
        help="A whole number draws the examples in a random order that it determines; empty keeps the file's order.",
    )
    mean = one.text_input("Mean", _numbers(now.mean), placeholder="none", help="Per channel, for inputs in [0, 1].")
    std = two.text_input("Standard deviation", _numbers(now.std), placeholder="none", help="Per channel.")
    label = three.text_input("Label column", now.label, placeholder="label, y or target", help="Tables only.")
    with st.expander("Text: tokens and context"):
        left, right = st.columns(2)
        known = ["auto", "bytes", "characters", *_tokenizers(now)]
        at = known.index(now.tokenizer) if now.tokenizer in known else 0
        tokenizer = left.selectbox("Tokens", known, index=at, format_func=_tokenizer_title)
        context = right.number_input(
            "Context", 0, None, now.context, help="Tokens in one sequence; 0 takes the model's own."
        )
    return lambda: DataSpec(
        files=bench.files,
        format=format,
        mean=_floats(mean, "mean"),
        std=_floats(std, "standard deviation"),
        examples=int(examples),
        shuffle=_seed(seed),
        label=label.strip(),
        tokenizer=tokenizer,
        context=int(context),
    )


def _shown(spec: DataSpec) -> dict[str, Any] | None:
    found = ask(preview(spec), "preview")
    if found is None:
        return None
    st.success(as_text(summary(found)))
    if found["doubts"]:
        st.warning(as_list(found["doubts"]))
    left, right = st.columns([3, 2])
    if found["sheet"] and str(found["sheet"]).startswith(SHEET):
        left.image(base64.b64decode(found["sheet"][len(SHEET) :]), alt="The first examples")
        left.caption("The first examples: " + as_text(", ".join(str(each) for each in found["labels"])))
    elif found["lines"]:
        left.code("\n".join(str(each)[:160] for each in found["lines"]), language=None)
    if found["classes"]:
        rows = pd.DataFrame([{"Class": str(name), "Examples": count} for name, count in found["classes"]])
        right.dataframe(rows, hide_index=True, alt="Examples of each class")
    return found


def summary(found: Mapping[str, Any]) -> str:
    """Say in one line what data is in use, as raw text."""
    shape = " × ".join(str(each) for each in found["shape"])
    low, high = (number(each) for each in found["range"])
    total = found["about"].get("of", found["examples"])
    few = f"{number(found['examples'])} of " if total != found["examples"] else ""
    taken = f"{few}{number(total)} examples"
    return f"{taken}, each {shape} ({found['dtype']}), values from {low} to {high} as they enter the model"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{each:g}" for each in values)


def _floats(text: str, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in re.split(r"[\s,;()\[\]]+", text) if each)
    except ValueError:
        raise ValueError(f"The {what} is {text!r}; give one number a channel, as 0.485, 0.456, 0.406.") from None


def _seed(text: str) -> int | None:
    if text.strip() and not text.strip().isdecimal():
        raise ValueError(f"The shuffle seed is {text!r}; write a whole number, or leave it empty.")
    return int(text) if text.strip() else None


def _tokenizers(now: DataSpec) -> list[str]:
    found = [each.sha256 for each in store().files() if each.name.lower().endswith("tokenizer.json")]
    return [*found, *([now.tokenizer] if len(now.tokenizer) == 64 and now.tokenizer not in found else [])]


def _tokenizer_title(value: str) -> str:
    titles = {"auto": "Recognise", "bytes": "Bytes", "characters": "Characters"}
    return titles.get(value) or name_of(value)
