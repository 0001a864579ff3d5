"""What drives whole classes: mean maps, the columns that count most, the tokens that come up most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyzers._attribution_panels import (
    MOST_COLUMNS,
    MOST_ROWS,
    Array,
    Cell,
    Grid,
    Values,
    View,
    chosen_methods,
    flat,
    left_out,
    wrapped,
)
from analyzers._figures import as_plotly
from analyzers._series_figures import of_what

Arrays = Mapping[str, Array]


def classes_of(values: Values) -> dict[str, list[int]]:
    """Return the cases of each target, at the last checkpoint, where there are two or more examples of it."""
    last = max((each["checkpoint_index"] for each in values["cases"]), default=0)
    found: dict[str, list[int]] = {}
    for number, case in enumerate(values["cases"]):
        if case["checkpoint_index"] == last and case["target"] != "answer":
            found.setdefault(f"{case['target']}", []).append(number)
    return {name: cases for name, cases in found.items() if len(cases) > 1}


def class_grid(card: Values, values: Values, arrays: Arrays, view: View) -> Grid:
    """Lay out the mean map of each target's examples: a row for each method, a column for each target."""
    classes, methods = classes_of(values), chosen_methods(values, view)
    rows, columns = list(methods)[:MOST_ROWS], list(classes)[:MOST_COLUMNS]
    names = [as_plotly(values["cases"][classes[each][0]]["target_name"]) for each in columns]
    sizes = [len(classes[each]) for each in columns]
    return Grid(
        "What drives the scores of whole classes",
        of_what(card),
        tuple(wrapped(methods[name], 20) for name in rows),
        tuple(f"{name}<br>mean of {size} examples" for name, size in zip(names, sizes, strict=True)),
        tuple(tuple(_mean(values, arrays, name, classes[each], view) for each in columns) for name in rows),
        "mean size of the attribution" if view.absolute else "mean attribution",
        left_out(rows, methods, columns, list(classes)),
    )  # fmt: skip


def class_table(values: Values, arrays: Arrays) -> list[dict[str, Any]]:
    """Return the mean attribution of every feature by method and target, with standard errors over examples.

    Of images a row is a whole map, with the share of its size that lies in it.
    """
    rows = []
    for target, cases in classes_of(values).items():
        for name in chosen_methods(values, View()):
            cell = _mean(values, arrays, name, cases, View())
            own = {"method": name, "target": values["cases"][cases[0]]["target_name"], "class": target, "n": len(cases)}
            if cell.values is None:
                continue
            if not cell.labels:
                rows.append({**own, "sum": float(cell.values.sum()), "size": float(np.abs(cell.values).sum())})
                continue
            spread = [None] * len(cell.labels) if cell.stderr is None else cell.stderr
            for label, value, error in zip(cell.labels, cell.values, spread, strict=True):
                shown = None if error is None or not np.isfinite(error) else float(error)
                rows.append({**own, "feature": label, "mean": float(value), "stderr": shown})
    return rows


def _mean(values: Values, arrays: Arrays, method: str, cases: list[int], view: View) -> Cell:
    kept = [each for each in values["maps"] if each["method"] == method and each["case"] in cases and each["array"]]
    maps = [flat(arrays[each["array"]]).astype(float) for each in kept]
    maps = [np.abs(each) for each in maps] if view.absolute else maps
    if len(maps) < 2:
        return Cell(None, reason="fewer than two maps")
    if values["kind"] in ("text", "language_model"):
        return _of_tokens(values, kept, maps)
    if len({each.shape for each in maps}) > 1:
        return Cell(None, reason="maps of several sizes")
    stack = np.stack(maps)
    if values["kind"] == "image":
        return Cell(stack.mean(0))
    error = stack.std(0, ddof=1) / np.sqrt(len(stack))
    return Cell(stack.mean(0), stderr=error, labels=tuple(values["cases"][cases[0]]["columns"]))


def _of_tokens(values: Values, kept: list[Any], maps: list[Array]) -> Cell:
    """Average over all places at which a token stands; special tokens are left out."""
    seen: dict[str, list[float]] = {}
    for each, own in zip(kept, maps, strict=True):
        case = values["cases"][each["case"]]
        for token, special, value in zip(case["tokens"], case["special"], own, strict=True):
            if not special:
                seen.setdefault(token, []).append(float(value))
    means = np.array([np.mean(some) for some in seen.values()])
    errors = np.array(
        [np.std(some, ddof=1) / np.sqrt(len(some)) if len(some) > 1 else np.nan for some in seen.values()]
    )
    return Cell(means, stderr=errors, labels=tuple(f"{token} (×{len(some)})" for token, some in seen.items()))
