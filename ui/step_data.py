"""Step 3 of the workbench: which examples, how they are scaled and ordered, and what they look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import streamlit as st

from probes.operator_models import listed
from probes.specs import DataFormat, DataSpec
from ui import bench as benches
from ui import data_look, step_test
from ui.bench import Bench
from ui.files import choose, from_server, looks_like_data
from ui.progress import ask
from ui.questions import name_of
from ui.ready import look
from ui.state import store
from ui.text import as_text
from ui.uploads import uploader

FORMATS: Mapping[DataFormat, str] = {
    "auto": "Recognise by content",
    "idx": "MNIST-style IDX pair",
    "npz": "NumPy .npz",
    "images": "Images by class, or with labels.csv or captions.csv (zip)",
    "dataset": "Hugging Face dataset, saved to disk (zip)",
    "table": "Table (CSV, Parquet)",
    "text": "Text or JSONL",
    "tokens16": "Token ids of 16 bits (.bin)",
    "tokens32": "Token ids of 32 bits (.bin)",
    "operator": "A module of this server",
}
HINT = (
    "or drop data here: IDX (.gz), .npz, images (a zip with class folders, a labels.csv or a captions.csv), a saved "
    "Hugging Face dataset (zip), CSV, Parquet, JSONL, text, or a .bin of tokens."
)


def draw(id: str, bench: Bench) -> dict[str, Any] | None:
    """Draw the step; return the preview of the data in use, or None while there is none."""
    with st.container(border=True, key="step-data"):
        st.subheader("3 · Data", anchor=False)
        uploader("data", id, HINT)
        from_server("data", lambda sha256: benches.take_upload(f"data/{id}", sha256))
        choose("Files", _offered, bench.files, "bench-files", lambda added, removed: _pick(id, added, removed))
        _operator(id, bench)
        if not bench.files:
            return None
        _form(id, bench)
        found = _shown(id, bench)
        step_test.draw(id, bench)
        return found


def _pick(id: str, added: list[str], removed: list[str]) -> None:
    benches.change(id, lambda bench: replace(bench, files=benches.picked(bench.files, added, removed)))


def _offered(file: Any) -> bool:
    return looks_like_data(file) or file.name.lower().endswith((".zip", ".bin"))


def _operator(id: str, bench: Bench) -> None:
    """Offer the data that a module of the operator builds; draws nothing when there is none."""
    offered = {each.name.partition(":")[0]: each for each in listed() if each.data}
    if not offered:
        return
    names = list(offered)
    now = bench.files[0].partition("@")[0] if bench.data and bench.data.format == "operator" and bench.files else ""
    place = st.expander("Data that a module of this server builds", icon=":material/terminal:", expanded=now in names)
    with place.form("data-operator", border=False):
        chosen = st.selectbox("Module", names, index=names.index(now) if now in names else 0)
        if st.form_submit_button("Use its data"):
            files = (f"{chosen}@{offered[chosen].sha256[:12]}",)
            benches.put(id, files=files, data=DataSpec(files, format="operator"))
            st.rerun()


def _form(id: str, bench: Bench) -> None:
    now = bench.data or DataSpec(bench.files)
    if now.format == "operator" and now.files != bench.files:
        now = DataSpec(bench.files)
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
    label = three.text_input(
        "Label column",
        now.label,
        placeholder="label, y or target",
        help="Of tables, datasets, JSONL, labels.csv and captions.csv.",
    )
    tokenizer, context = _text_fields(now)
    classes = _class_field(now)
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
        split=now.split if now.files == bench.files else "",
        classes=tuple(filter(None, map(str.strip, classes.splitlines()))),
    )


def _text_fields(now: DataSpec) -> tuple[str, int]:
    with st.expander("Text: tokens and context"):
        left, right = st.columns(2)
        known = ["auto", "bytes", "characters", *_tokenizers(now)]
        at = known.index(now.tokenizer) if now.tokenizer in known else 0
        tokenizer = left.selectbox(
            "Tokens",
            known,
            index=at,
            format_func=_tokenizer_title,
            help="“Recognise” takes the tokenizer.json beside the checkpoint's weights; without one, characters.",
        )
        context = right.number_input(
            "Context", 0, None, now.context, help="Tokens in one sequence; 0 takes the model's own."
        )
    return tokenizer, int(context)


def _class_field(now: DataSpec) -> str:
    with st.expander("Classes: the model's order", expanded=bool(now.classes)):
        return st.text_area(
            "The model's names of its classes, in its order, one a line",
            "\n".join(now.classes),
            placeholder="empty: the data's own order",
            help="The data's classes are mapped onto these by name; capitals, hyphens and underscores do not matter.",
        )


def _shown(id: str, bench: Bench) -> dict[str, Any] | None:
    asked = look(bench)
    found = ask(asked, "preview") if asked else None
    if found is None or bench.data is None:
        return None
    data_look.draw(id, bench.data, found)
    return found


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
