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


VIEWS: Mapping[str, Callable[[Result], View]] = {
    "layer_rotation": _random_walk,
    "loss_path": _log,
    "mode_connectivity": _layer,
}
