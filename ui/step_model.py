"""Step 2 of the workbench: which model do these tensors belong to? Nothing runs until every name and shape matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from probes.architecture.families import FAMILIES
from probes.specs import ModelSpec
from ui import bench as benches
from ui import model_ways
from ui.bench import Bench
from ui.progress import ask
from ui.questions import comparison
from ui.ready import Found, alike, is_mismatch, is_recognised, model_in_use
from ui.state import heeding, key_for
from ui.text import as_list, as_text

WAYS = {
    "recognised": "Recognised",
    "catalogue": "From the catalogue",
    "library": "torchvision or timm",
    "text": "Pasted text",
    "hugging_face": "Hugging Face folder",
    "operator": "This server's own",
}


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
        else:
            model_ways.draw(way, id, bench, first)
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
    usual = "operator" if usual == "trusted" else usual
    return st.segmented_control(
        "How to find the model",
        [each for each in WAYS if each != "operator" or usual == each or model_ways.has_own()],
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
        _runner_up(recognition)
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
    _runner_up(recognition)
    _choices(id, bench.model or spec, recognition["choices"])


def _runner_up(recognition: Mapping[str, Any]) -> None:
    """Name what came second, and how it differs."""
    second = recognition.get("runner_up")
    if not second:
        return
    with st.expander(f"Runner-up: {as_text(second['title'])}"):
        st.markdown(as_text(second["sentence"]))
        if is_mismatch(second["mismatch"]):
            difference(second["mismatch"])


def _title(recognition: Mapping[str, Any], chosen: ModelSpec | None) -> str:
    if chosen is None or chosen.to_json() == recognition["spec"]:
        return as_text(recognition["title"])
    if chosen.source == "catalogue":
        return as_text(FAMILIES[chosen.name].name_of(chosen.arguments))
    return as_text(chosen.arguments.get("variant", recognition["title"]))


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
            on_change=heeding(key, now, partial(_set, id, spec, name)),
        )


def _set(id: str, spec: ModelSpec, name: str, value: Any) -> None:
    benches.put(id, model=replace(spec, arguments={**spec.arguments, name: value}))


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
