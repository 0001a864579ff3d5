"""A form for the options of any analyzer, made from what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from analyzers._base import Analyzer, Option


def options_form(
    analyzer: type[Analyzer], given: Mapping[str, Any], place: str, hidden: Sequence[str] = ()
) -> dict[str, Any]:
    """Draw the options with their bounds and help, the advanced ones folded; return their values.

    given: values to begin with (of a run that is looked at), else the defaults. hidden: options that are set elsewhere.
    """
    shown = [each for each in analyzer.options() if each.name not in hidden]
    plain = [each for each in shown if not each.advanced]
    advanced = [each for each in shown if each.advanced]
    values = _grid(plain, given, place)
    if advanced:
        with st.expander("Advanced options"):
            values |= _grid(advanced, given, place)
    return values


def _grid(options: list[Option], given: Mapping[str, Any], place: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for start in range(0, len(options), 3):
        columns = st.columns(3, vertical_alignment="bottom")
        for option, column in zip(options[start : start + 3], columns, strict=False):
            with column:
                values[option.name] = widget(option, given.get(option.name, option.default), f"{place}-{option.name}")
    return values


def widget(option: Option, value: Any, key: str) -> Any:
    """Draw one option; return its value in the option's own type."""
    shared: dict[str, Any] = {"help": option.help, "key": key, "persist_state": "session"}
    if option.kind is bool:
        return st.checkbox(option.label, value=bool(value), **shared)
    if option.choices:
        index = option.choices.index(value) if value in option.choices else 0
        return st.selectbox(option.label, option.choices, index=index, **shared)
    if option.kind is int:
        low, high = (None if bound is None else int(bound) for bound in (option.minimum, option.maximum))
        return st.number_input(option.label, low, high, int(value), step=1, **shared)
    if option.kind is float:
        return _float(option, float(value), shared)
    return st.text_input(option.label, str(value), **shared)


def _float(option: Option, value: float, shared: dict[str, Any]) -> float:
    """Draw a number that may be small: as text when steps of a hundredth would hide it."""
    bounds = [each for each in (option.minimum, value) if each]
    shown = "%g" if bounds and min(abs(each) for each in bounds) < 0.1 else "%.3f"
    step = max(abs(value) / 10, 1e-12)
    return float(
        st.number_input(option.label, option.minimum, option.maximum, value, step=step, format=shown, **shared)
    )
