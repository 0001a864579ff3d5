"""The choices that change the drawing of a result only, by analyzer; they become keywords of `Result.figures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from analyzers._base import Result

View = dict[str, Any]


def choose(result: Result) -> View:
    """Draw the choices for a result; return them."""
    choice = VIEWS.get(result.analyzer)
    return choice(result) if choice else {}


def _random_walk(_result: Result) -> View:
    told = "How far each layer would have turned by steps of these sizes in random directions."
    return {"null": st.toggle("Draw the random walk of each layer", key="null", bind="query-params", help=told)}


def _layer(result: Result) -> View:
    names = [name.removeprefix("pairs_") for name in result.arrays if name.startswith("pairs_")]
    if len(names) < 2:
        return {}
    told = "The figure “Pairs of units” shows these: cosine and correlation of each unit and its partner."
    return {
        "layer": st.selectbox(
            "Layer whose units are drawn in pairs", names, key="layer", bind="query-params", help=told
        )
    }


def _log(_result: Result) -> View:
    told = "What lies near zero shows; what is drawn stays the same."
    return {"log": st.toggle("Losses on a logarithmic axis", key="log", bind="query-params", help=told)}


def _predicted(result: Result) -> View:
    """Choose of which checkpoint the confusion is, and which two are compared."""
    names, view = result.values["checkpoints"], View()
    if len(names) < 2:
        return view
    last = len(names) - 1
    asked = (("checkpoint", "Confusion of", last), ("first", "Compare", 0), ("second", "with", last))
    for place, (key, label, start) in zip(st.columns(4), asked, strict=False):
        view[key] = place.selectbox(label, range(len(names)), start, format_func=lambda at: names[at], key=key)
    return view


def _maps(result: Result) -> View:
    """Choose what of an attribution is drawn, and how strongly."""
    values, view = result.values, View()
    methods = {each["method"]: each["title"] for each in values["maps"]}
    places = iter(st.columns(4, vertical_alignment="bottom"))
    if len(values["cases"]) > 1:
        names = [f"{each['id']} · {each['checkpoint']}" for each in values["cases"]]
        view["case"] = next(places).selectbox(
            "Example", [None, *range(len(names))], format_func=lambda at: "All" if at is None else names[at], key="case"
        )
    if len(methods) > 1:
        view["method"] = next(places).selectbox(
            "Method", [None, *methods], format_func=lambda name: methods[name] if name else "All", key="method"
        )
    if values["kind"] == "image":
        told = "Of the map over the picture."
        view["opacity"] = next(places).slider("Opacity", 0.0, 1.0, 0.8, 0.05, key="opacity", help=told)
    elif values["kind"] != "table":
        told = "Of the text below: the sums of their tokens, which keep completeness."
        view["words"] = next(places).toggle("Add tokens up to words", True, key="words", help=told)
    view["absolute"] = next(places).toggle("Sizes only", key="absolute", help="Absolute values: for and against alike.")
    return view


VIEWS: Mapping[str, Callable[[Result], View]] = {
    "attribution": _maps,
    "layer_rotation": _random_walk,
    "loss_path": _log,
    "mode_connectivity": _layer,
    "predictions": _predicted,
}
