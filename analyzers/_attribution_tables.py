"""The tables behind the figures of attributions."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analyzers._attribution_classes import class_table
from analyzers._attribution_compared import run_table
from analyzers._attribution_curves import METRICS, curve_rows
from analyzers._attribution_matrix import matrix_table
from analyzers._attribution_panels import View
from analyzers._base import Result

AGREEMENT = {"correlation": "agreement", "low": "agreement_low", "high": "agreement_high"}
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
    others = {
        "token_matrix": matrix_table(values, arrays),
        "curves": _curves(result),
        "sanity": _sanity(result),
        "agreement": _agreement(result),
        "scoreboard": [_flat(each) for each in values["scoreboard"]],
        "class_summary": class_table(values, arrays),
    }
    return found | {name: pd.DataFrame(rows) for name, rows in others.items() if rows}


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


def _curves(result: Result) -> list[dict[str, Any]]:
    rows = []
    for each in curve_rows(result.values, result.arrays, View()):
        case = result.values["cases"][each["case"]]
        head = {"method": each["method"], "checkpoint": case["checkpoint"], "row": case["row"], "curve": each["way"]}
        name = case["curves"]["baselines"][each["baseline"]]
        for share, value in zip(each["shares"], each["curve"], strict=True):
            rows.append({**head, "baseline": name, "share": float(share), case["curves"]["measure"]: float(value)})
    return rows


def _sanity(result: Result) -> list[dict[str, Any]]:
    rows = []
    for number, each in enumerate(result.values["maps"]):
        found, errors = (result.arrays.get(f"{name}_{number}") for name in ("sanity", "sanity_stderr"))
        if found is None or errors is None:
            continue
        case = result.values["cases"][each["case"]]
        head = {"method": each["method"], "checkpoint": case["checkpoint"], "row": case["row"]}
        for layer, value, error in zip(result.values["sanity_layers"], found, errors, strict=True):
            rows.append({**head, "layer": layer, "correlation": float(value), "stderr": float(error)})
    return rows


def _agreement(result: Result) -> list[dict[str, Any]]:
    names = result.values["agreement_methods"]
    kept = {name: result.arrays.get(key) for name, key in AGREEMENT.items()}
    return [
        {"method": one, "other": two, **{name: float(each[i, j]) for name, each in kept.items() if each is not None}}
        for i, one in enumerate(names) for j, two in enumerate(names) if i < j
    ]  # fmt: skip


def _flat(standing: dict[str, Any]) -> dict[str, Any]:
    """Bring a row of the scoreboard into one level: the interval of each measure, the gains over the nulls."""
    head = {name: standing[name] for name in ("method", "title", "n", "refused")}
    for name in METRICS:
        head |= {f"{name}_{end}" if end != "mean" else name: standing[name][end] for end in ("mean", "low", "high")}
    for other, areas in standing["gains"].items():
        for area, each in areas.items():
            head |= {f"{area}_gain_over_{other}_{end}": each[end] for end in ("mean", "low", "high")}
    return head
