"""Step 2 of the workbench: which model do these tensors belong to? Nothing runs until every name and shape matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from probes.families import FAMILIES
from probes.specs import ModelSpec
from ui import bench as benches
from ui.bench import Bench
from ui.progress import ask
from ui.questions import comparison
from ui.ready import Found, is_mismatch, is_recognised, model_in_use
from ui.state import store
from ui.text import as_list, as_text, size

WAYS = {
    "recognised": "Recognised",
    "catalogue": "From the catalogue",
    "text": "Pasted text",
    "hugging_face": "Hugging Face folder",
}
LISTS = {"mlp": ("widths", "names"), "lenet": ("channels", "kernels", "paddings", "pools", "widths", "names")}
WORDS = {"true": True, "yes": True, "false": False, "no": False}
EXAMPLE_TEXT = "Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(5408, 10))"


def draw(id: str, bench: Bench, found: Mapping[str, Found]) -> None:
    """Draw the step for the first checkpoint on the bench."""
    with st.container(border=True, key="step-model"):
        st.subheader("2 · Model", anchor=False)
        if not bench.checkpoints or bench.checkpoints[0] not in found:
            st.caption("Once a checkpoint has been read, its model is looked for by the names and shapes in it.")
            return
        first = found[bench.checkpoints[0]]
        way = _way(bench, first)
        if way == "recognised":
            _recognised(id, bench, first)
        elif way == "catalogue":
            _catalogue(id, bench, first)
        elif way == "text":
            _text(id, bench)
        else:
            _hugging_face(id, bench)
        model = model_in_use(bench, first)
        if model is not None and not (way == "recognised" and is_recognised(first, model)):
            _compared(bench, model)


def _way(bench: Bench, found: Found) -> str:
    recognised = found["recognition"]["spec"] is not None
    family = found["recognition"]["spec"] if recognised else None
    same = bench.model is None or (family is not None and family["name"] == bench.model.name)
    usual: str = "recognised" if same and recognised else bench.model.source if bench.model else "catalogue"
    return str(
        st.segmented_control(
            "How to find the model",
            list(WAYS),
            default=usual,
            required=True,
            format_func=lambda each: WAYS[each],
            key=f"model-way-{bench.checkpoints[0][:8]}",
            label_visibility="collapsed",
            persist_state="session",
        )
        or usual
    )


def _recognised(id: str, bench: Bench, found: Found) -> None:
    recognition = found["recognition"]
    if recognition["spec"] is None:
        st.info("The names and shapes fit no model of the catalogue. Choose one of the other ways.")
        if recognition["reasons"]:
            st.markdown(as_list(recognition["reasons"]))
        return
    spec = ModelSpec.from_json(recognition["spec"])
    if bench.model and bench.model.name == spec.name and bench.model.source == spec.source:
        spec = bench.model
    if is_mismatch(recognition["mismatch"]):
        st.error(f"Closest is **{as_text(recognition['title'])}**, but the tensors differ:")
        difference(recognition["mismatch"])
    else:
        st.success(
            f"**{as_text(recognition['title'])}** · every name and shape matches.", icon=":material/check_circle:"
        )
    st.markdown(as_list(recognition["reasons"]))
    _choices(id, spec, recognition["choices"])


def _choices(id: str, spec: ModelSpec, choices: Mapping[str, list[Any]]) -> None:
    """Draw what shapes do not determine, as heads or the activation."""
    if not choices:
        return
    for (name, values), column in zip(choices.items(), st.columns(max(3, len(choices))), strict=False):
        now = spec.arguments.get(name)
        options = list(values) if now in values else [now, *values]
        key = f"model-choice-{name}"
        st.session_state[key] = now
        column.selectbox(
            name.replace("_", " ").capitalize(),
            options,
            key=key,
            format_func=str,
            on_change=_set,
            args=(id, spec, name),
        )


def _set(id: str, spec: ModelSpec, name: str) -> None:
    arguments = {**spec.arguments, name: st.session_state[f"model-choice-{name}"]}
    benches.put(id, model=replace(spec, arguments=arguments))


def _catalogue(id: str, bench: Bench, found: Found) -> None:
    known = found["recognition"]["spec"] or {}
    now = bench.model if bench.model and bench.model.source == "catalogue" else None
    start = now.name if now else known.get("name", "")
    names = list(FAMILIES)
    index = names.index(start) if start in names else 0
    name = st.selectbox("Family", names, index=index, format_func=lambda key: FAMILIES[key].title)
    family = FAMILIES[name]
    st.caption(as_text(family.about[:1].upper() + family.about[1:] + "."))
    given = now.arguments if now and now.name == name else known.get("arguments", {}) if start == name else {}
    with st.form(f"catalogue-{name}"):
        columns = st.columns(3)
        texts = {
            argument: columns[place % 3].text_input(argument.capitalize(), _written(given.get(argument)), help=about)
            for place, (argument, about) in enumerate(family.arguments.items())
        }
        if st.form_submit_button("Use this model", type="primary"):
            arguments = {key: _read(text, key in LISTS.get(name, ())) for key, text in texts.items() if text.strip()}
            benches.put(id, model=ModelSpec("catalogue", name=name, arguments=arguments))
            st.rerun()


def _text(id: str, bench: Bench) -> None:
    now = bench.model.text if bench.model and bench.model.source == "text" else ""
    with st.form("model-text"):
        text = st.text_area(
            "A Sequential(…), or what print(model) shows",
            now,
            height=200,
            placeholder=EXAMPLE_TEXT,
            help="Only layers of torch.nn with plain numbers and words; the text is read, never run.",
        )
        if st.form_submit_button("Use this text", type="primary") and text.strip():
            benches.put(id, model=ModelSpec("text", text=text))
            st.rerun()


def _hugging_face(id: str, bench: Bench) -> None:
    st.caption("A zip of the folder with config.json and the weights; code in it is not run. Upload it in step 1.")
    about = {each.sha256: f"{each.name} · {size(each.bytes)}" for each in store().files()}
    zips = [sha256 for sha256, name in about.items() if ".zip ·" in name.lower()]
    if not zips:
        st.info("No zip has been uploaded yet.")
        return
    now = bench.model.folder if bench.model else ""
    index = zips.index(now) if now in zips else 0
    with st.form("model-folder"):
        chosen = st.selectbox("Folder", zips, index=index, format_func=lambda sha256: about[sha256])
        if st.form_submit_button("Use this folder", type="primary"):
            benches.put(id, model=ModelSpec("hugging_face", folder=chosen))
            st.rerun()


def _compared(bench: Bench, model: ModelSpec) -> None:
    found = ask(comparison(bench.checkpoints[0], model), "compare")
    if found is None:
        return
    if found["exact"]:
        st.success(f"**{as_text(found['title'])}** · every name and shape matches.", icon=":material/check_circle:")
        return
    st.error(f"**{as_text(found['title'])}** does not fit this checkpoint, so nothing is run with it.")
    difference(found["mismatch"])


def difference(mismatch: Mapping[str, Any]) -> None:
    """Draw the exact difference between model and checkpoint as a table."""
    rows = [{"Tensor": name, "Difference": "missing in the checkpoint"} for name in mismatch["missing"]]
    rows += [{"Tensor": name, "Difference": "not in the model"} for name in mismatch["unexpected"]]
    rows += [
        {"Tensor": name, "Difference": f"model {_shape(wanted)}, checkpoint {_shape(given)}"}
        for name, wanted, given in mismatch["shapes"]
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Differences between model and checkpoint")


def _shape(shape: list[int]) -> str:
    return " × ".join(str(each) for each in shape) or "one number"


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_written(each) for each in value)
    return "" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _read(text: str, many: bool) -> Any:
    if many:
        return [_read(each, False) for each in text.split(",") if each.strip()]
    word = text.strip()
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    return int(word) if word.lstrip("-").isdecimal() else word
