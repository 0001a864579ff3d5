"""The ways to say which model it is, other than to let it be recognised: forms that lay a ModelSpec on the bench."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import streamlit as st

from probes import operator_models, trusted
from probes.architecture.families import FAMILIES
from probes.specs import ModelSpec
from ui import bench as benches
from ui.bench import Bench
from ui.state import store
from ui.text import as_text, size

LISTS = {"mlp": ("widths", "names"), "lenet": ("channels", "kernels", "paddings", "pools", "widths", "names")}
WORDS = {"true": True, "yes": True, "false": False, "no": False}
FRACTION = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d{1,2})?")
EXAMPLE_TEXT = "Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(5408, 10))"


def draw(way: str, id: str, bench: Bench, found: Mapping[str, Any]) -> None:
    """Draw the form of a way: catalogue, library, text, hugging_face or operator."""
    forms = {"library": _library, "text": _text, "hugging_face": _hugging_face, "operator": _operator}
    if way == "catalogue":
        _catalogue(id, bench, found)
    else:
        forms[way](id, bench)


def has_own() -> bool:
    """Tell whether the operator of this server offers models of their own."""
    return bool(operator_models.listed() or trusted.listed())


def _library(id: str, bench: Bench) -> None:
    now = bench.model if bench.model and bench.model.source == "library" else None
    given = now.arguments if now else {}
    with st.form("model-library"):
        left, middle, right = st.columns([3, 1, 1])
        name = left.text_input(
            "Model", now.name if now else "", placeholder="torchvision/resnet50 or timm/vit_small_patch16_224",
            help="By its name in torchvision.models or timm; built without weights, nothing is downloaded.",
        )  # fmt: skip
        classes = middle.number_input("Classes", 0, 2**24, int(given.get("num_classes", 1000)))
        channels = right.number_input("Channels", 1, 4096, int(given.get("in_chans", 3)))
        if st.form_submit_button("Use this model", type="primary") and name.strip():
            arguments = {**given, "num_classes": int(classes), "in_chans": int(channels)}
            benches.put(id, model=ModelSpec("library", name=name.strip(), arguments=arguments))
            st.rerun()


def _operator(id: str, bench: Bench) -> None:
    st.caption("Python files and trusted folders that the operator of this server has named; jobs run their code.")
    specs = {each.name: ModelSpec("operator", each.name, {"sha256": each.sha256}) for each in operator_models.listed()}
    for each in operator_models.listed():
        if each.problem:
            specs.pop(each.name, None)
            st.warning(as_text(each.problem))
    files = {str(path): path for path in trusted.listed()}
    now = bench.model.name or bench.model.folder if bench.model else ""
    names = [*specs, *files]
    if not names:
        st.info("None can be used at present.")
        return
    with st.form("model-operator"):
        chosen = st.selectbox("Model", names, index=names.index(now) if now in names else 0)
        if st.form_submit_button("Use this model", type="primary"):
            model = specs.get(chosen) or _trusted(files[chosen])
            benches.put(id, model=model)
            st.rerun()


def _trusted(path: Any) -> ModelSpec:
    return ModelSpec("trusted", folder=str(path), arguments={"sha256": trusted.hash_of(path)})


def _catalogue(id: str, bench: Bench, found: Mapping[str, Any]) -> None:
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
    if word.lstrip("-").isdecimal():
        return int(word)
    return float(word) if FRACTION.fullmatch(word) else word
