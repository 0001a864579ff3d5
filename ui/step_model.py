"""Step 2 of the workbench: which model do these tensors belong to? Nothing runs until every name and shape matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from probes.architecture.families import FAMILIES
from probes.specs import ModelSpec
from ui import bench as benches
from ui.bench import Bench
from ui.progress import ask
from ui.questions import comparison
from ui.ready import Found, alike, is_mismatch, is_recognised, model_in_use
from ui.state import key_for, store
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
        _strangers(bench, first, found)
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


def _strangers(bench: Bench, first: Found, found: Mapping[str, Found]) -> None:
    """Name the checkpoints on the bench that one model cannot fit together with the first."""
    same = alike(bench, first)
    others = [each["name"] for sha256, each in found.items() if sha256 not in same]
    if others:
        st.warning(
            f"{as_text(', '.join(others))} has other tensors than {as_text(first['name'])}, so one model does not fit "
            "both: it is left out until it is alone on the bench or first."
        )


def _way(bench: Bench, found: Found) -> str:
    chosen = bench.model is not None and not _is_variant(bench.model, found)
    usual = bench.model.source if bench.model is not None and chosen else "recognised"
    return st.segmented_control(
        "How to find the model",
        list(WAYS),
        default=usual,
        required=True,
        format_func=lambda each: WAYS[each],
        key=f"model-way-{bench.checkpoints[0][:8]}",
        label_visibility="collapsed",
        persist_state="session",
    )


def _recognised(id: str, bench: Bench, found: Found) -> None:
    recognition = found["recognition"]
    if recognition["spec"] is None:
        st.error("No model that is known here has exactly these tensors.", icon=":material/help:")
        st.markdown(as_list(recognition["reasons"]))
        if is_mismatch(recognition["mismatch"]):
            difference(recognition["mismatch"])
        return
    spec = ModelSpec.from_json(recognition["spec"])
    if bench.model is None or _is_variant(bench.model, found):
        st.success(f"**{_title(recognition, bench.model)}**", icon=":material/check_circle:")
    else:
        st.info(f"Recognised: **{as_text(recognition['title'])}**. Another model is in use, see below.")
        st.button("Use the recognised model", on_click=benches.put, args=(id,), kwargs={"model": None})
    st.markdown(as_list(recognition["reasons"]))
    if spec.source == "text":
        st.code(spec.text, language="python", wrap_lines=True)
    _choices(id, bench.model or spec, recognition["choices"])


def _title(recognition: Mapping[str, Any], chosen: ModelSpec | None) -> str:
    if chosen is None or chosen.to_json() == recognition["spec"]:
        return as_text(recognition["title"])
    return as_text(FAMILIES[chosen.name].name_of(chosen.arguments))


def _is_variant(model: ModelSpec, found: Found) -> bool:
    """Tell whether a model is the recognised one but for what the shapes leave open."""
    recognition = found["recognition"]
    if recognition["spec"] is None:
        return False
    spec, open_to_choice = ModelSpec.from_json(recognition["spec"]), recognition["choices"]
    fixed = {name: value for name, value in model.arguments.items() if name not in open_to_choice}
    same = {name: value for name, value in spec.arguments.items() if name not in open_to_choice}
    return fixed == same and replace(model, arguments={}) == replace(spec, arguments={})


def _choices(id: str, spec: ModelSpec, choices: Mapping[str, list[Any]]) -> None:
    """Draw what shapes do not determine, as heads or the activation."""
    if not choices:
        return
    for (name, values), column in zip(choices.items(), st.columns(max(3, len(choices))), strict=False):
        now = spec.arguments.get(name)
        options = list(values) if now in values else [now, *values]
        key = key_for(f"model-choice-{name}", now)
        column.selectbox(
            name.replace("_", " ").capitalize(),
            options,
            index=options.index(now),
            key=key,
            format_func=str,
            on_change=_set,
            args=(id, spec, name, key),
        )


def _set(id: str, spec: ModelSpec, name: str, key: str) -> None:
    arguments = {**spec.arguments, name: st.session_state[key]}
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
