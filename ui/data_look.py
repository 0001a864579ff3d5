"""What the data in use look like: doubts, the split, the order of classes, ten examples, balance and ranges."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from probes.dataset.classes import differs_in_order
from probes.specs import DataSpec
from ui import bench as benches
from ui.state import heeding, key_for
from ui.text import as_list, as_text, number

SHEET = "data:image/png;base64,"
LOUD = "CONTRADICTION"
ORDER = "the same names in another order"  # said beside the button that mends it

Found = Mapping[str, Any]


def draw(id: str, spec: DataSpec, found: Found) -> None:
    """Draw a preview: what is in use, what to doubt, and what can be chosen because of what was found."""
    st.success(as_text(summary(found)))
    _split(id, spec, found)
    _class_order(id, spec, found)
    _doubts(found)
    examples, classes, ranges = st.tabs(["Examples", "Classes", "Ranges and copies"])
    with examples:
        _examples(found)
    with classes:
        _balance(found)
    with ranges:
        _ranges(found)


def summary(found: Found) -> str:
    """Say in one line what data is in use, as raw text."""
    shape = " × ".join(str(each) for each in found["shape"])
    low, high = (number(each) for each in found["range"])
    total = found["about"].get("of", found["examples"])
    few = f"{number(found['examples'])} of " if total != found["examples"] else ""
    taken = f"{few}{number(total)} examples"
    if found.get("kind") == "tokens":
        low, high = (number(int(each)) for each in found["range"])
        return f"{taken}, each of {shape} tokens, ids from {low} to {high}"
    return f"{taken}, each {shape} ({found['dtype']}), values from {low} to {high} as they enter the model"


def _split(id: str, spec: DataSpec, found: Found) -> None:
    splits = [str(each) for each in found["about"].get("splits", ())]
    if len(splits) < 2:
        return
    now = spec.split if spec.split in splits else None
    key = key_for("data-split", spec.split)
    place, _ = st.columns([1, 2])
    place.selectbox(
        "Split",
        splits,
        index=None if now is None else splits.index(now),
        placeholder=f"{found['about'].get('split', '')} (none chosen)",
        key=key,
        on_change=heeding(key, now, lambda each: benches.put(id, data=replace(spec, split=each or ""))),
        help="The data comes in several parts; one of them is used.",
    )


def _class_order(id: str, spec: DataSpec, found: Found) -> None:
    """Offer the model's order of classes where it is known and another than the data's."""
    own = tuple(str(each) for each in found.get("own_classes", ()))
    names = [str(name) for name, _ in found["classes"]]
    if spec.classes:
        st.button(
            "Use the data's own order of classes",
            on_click=benches.put,
            args=(id,),
            kwargs={"data": replace(spec, classes=())},
        )
    elif differs_in_order(names, own):
        st.error(
            f"The model has these classes in another order: {as_text(', '.join(own[:12]))}. As it is, labels mean "
            "other classes.",
            icon=":material/swap_vert:",
        )
        st.button(
            "Use the model's order of classes",
            type="primary",
            on_click=benches.put,
            args=(id,),
            kwargs={"data": replace(spec, classes=own)},
        )


def _doubts(found: Found) -> None:
    loud = [each for each in found["doubts"] if str(each).startswith(LOUD)]
    quiet = [each for each in found["doubts"] if each not in loud and ORDER not in str(each)]
    if loud:
        st.error(as_list(loud), icon=":material/error:")
    if quiet:
        st.warning(as_list(quiet))


def _examples(found: Found) -> None:
    rows = pd.DataFrame([_sample(each) for each in found.get("samples", ())])
    shown = rows[[each for each in rows.columns if rows[each].astype(bool).any()]]
    table = st.container()
    if str(found["sheet"] or "").startswith(SHEET):
        left, table = st.columns(2)
        left.image(base64.b64decode(found["sheet"][len(SHEET) :]), alt="The first examples")
        labels = as_text(", ".join(str(each) for each in found["labels"]))
        left.caption(f"The first examples, row by row: {labels}" if labels else "The first examples, row by row")
    elif found["lines"]:
        st.code("\n".join(str(each)[:160] for each in found["lines"]), language=None)
    if len(shown):
        table.dataframe(shown, hide_index=True, alt="The first ten examples")


def _sample(sample: Mapping[str, Any]) -> dict[str, str]:
    label = sample["label"]
    shown = number(label) if isinstance(label, float) else "" if label is None else str(label)
    return {"Example": str(sample["id"]), "Label": shown, "Content": str(sample["text"])}


def _balance(found: Found) -> None:
    total = sum(count for _, count in found["classes"])
    if not total:
        st.caption("These data have no classes: the targets are " + as_text(found.get("targets", "values")) + ".")
        return
    most = max(count for _, count in found["classes"])
    counts = [count for _, count in found["classes"]]
    st.caption(f"{len(counts)} classes, from {number(min(counts))} to {number(most)} examples.")
    rows = [{"Class": str(name), "Examples": count, "Share": 100 * count / total} for name, count in found["classes"]]
    bar = st.column_config.ProgressColumn("Share", format="%.1f %%", min_value=0.0, max_value=100 * most / total)
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, column_config={"Share": bar}, alt="Examples of each class and their share"
    )


def _ranges(found: Found) -> None:
    channels = found.get("channels", ())
    if channels:
        rows = [{key: each if key == "name" else number(each) for key, each in row.items()} for row in channels]
        head = "Channel" if found.get("kind") == "images" else "Column"
        names = {"name": head, "mean": "Mean", "std": "Standard deviation", "min": "Least", "max": "Greatest"}
        st.dataframe(pd.DataFrame(rows).rename(columns=names), hide_index=True, alt="The range of each channel")
        st.caption(
            f"As they enter the model, over the first {number(found.get('duplicates', {}).get('seen'))} examples."
        )
    copies = found.get("duplicates")
    if copies:
        st.markdown(as_list(_copies(copies)))


def _copies(copies: Mapping[str, Any]) -> list[str]:
    """Say how many copies there are, in raw text."""
    seen = number(copies["seen"])
    rows = [f"Exact copies among the first {seen} examples: {number(copies['contents'])}"]
    if copies["first"]:
        rows[0] += f" (first: {copies['first'][0]} and {copies['first'][1]})"
    if copies["contradictions"]:
        one, other, this, that = copies["first_contradiction"]
        count = number(copies["contradictions"])
        rows.append(f"Copies with another label: {count} (first: {one} is {this}, {other} is {that})")
    again = f" (first: {copies['first_id'][0]})" if copies["ids"] else ""
    rows.append(f"Repeated ids: {number(copies['ids'])}{again}")
    return rows
