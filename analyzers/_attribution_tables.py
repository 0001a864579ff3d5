"""The tables behind the figures of attributions."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analyzers._attribution_compared import run_table
from analyzers._base import Result

LISTS = ("reasons", "notes")
OF_A_CASE = (
    "checkpoint", "row", "id", "label_name", "prediction_name", "probability", "target_name",
)  # fmt: skip


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """Return "maps" (one row a map), "features" (of text and tables, one row a feature), and what the figures draw."""
    values, arrays = result.values, result.arrays
    found = {"maps": pd.DataFrame([_map(values["cases"], each) for each in values["maps"]])}
    if values["kind"] != "image":
        found["features"] = pd.DataFrame(features(result))
    if len({each["checkpoint_index"] for each in values["cases"]}) > 2:
        found["run"] = pd.DataFrame(run_table(values, arrays))
    return found


def features(result: Result) -> list[dict[str, Any]]:
    """Return a row for each feature of each map of text or tables."""
    rows = []
    for number, each in enumerate(result.values["maps"]):
        if each["array"] is None:
            continue
        case = result.values["cases"][each["case"]]
        names = case["tokens"] or case["columns"]
        spread = result.arrays[each["stderr"]] if each["stderr"] else [None] * len(names)
        for place, (name, value, error) in enumerate(zip(names, result.arrays[each["array"]], spread, strict=True)):
            own = {"map": number, "method": each["method"], "checkpoint": case["checkpoint"], "row": case["row"]}
            special = bool(case["special"][place]) if case["special"] else False
            rows.append({**own, "place": place, "feature": name, "special": special, "attribution": float(value),
                         "stderr": None if error is None else float(error)})  # fmt: skip
    return rows


def _map(cases: Any, each: dict[str, Any]) -> dict[str, Any]:
    case = cases[each["case"]]
    left = {name: case[name] for name in OF_A_CASE}
    scalars = {name: value for name, value in each.items() if name not in ("about", "array", "stderr", "case", *LISTS)}
    return {**left, **scalars, **{name: " ".join(each[name]) for name in LISTS}}
