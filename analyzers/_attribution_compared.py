"""Maps of the same example at several checkpoints: side by side, their difference, and how they settle over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzers._attribution_panels import (
    MOST_COLUMNS,
    MOST_ROWS,
    Array,
    Cell,
    Grid,
    Values,
    View,
    cell_of,
    chosen_methods,
    flat,
    left_out,
    wrapped,
)
from analyzers._base import Result
from analyzers._figures import COLOURS, as_plotly, figure
from analyzers._series_figures import as_labels, of_what, time_axis
from probes.errors import ProbeError

Arrays = Mapping[str, Array]


def difference_grid(card: Values, values: Values, arrays: Arrays, view: View) -> Grid:
    """Lay out the maps of one example at two checkpoints and the second less the first, all on one scale."""
    row = _row(values, view)
    cases = _cases(values, row)
    methods = chosen_methods(values, view)
    shown = list(methods)[:MOST_ROWS]
    cells = []
    for name in shown:
        pair = [_cell(values, arrays, name, case, view) for case in cases]
        cells.append((*pair, _difference(*pair)))
    names = [as_plotly(values["cases"][case]["checkpoint"]) for case in cases]
    said = [f"predicted {as_plotly(values['cases'][case]['prediction_name'])}" for case in cases]
    columns = [f"{name}<br>{words}" for name, words in zip(names, said, strict=True)]
    first = values["cases"][cases[0]]
    return Grid(
        f"Attribution of {as_plotly(first['target_name'])} in {as_plotly(first['id'])} at two checkpoints",
        of_what(card),
        tuple(wrapped(methods[name], 20) for name in shown),
        (*columns, "second less first"),
        tuple(cells),
        left_out=left_out(shown, methods, [0], [0]),
    )


def run_grid(card: Values, values: Values, arrays: Arrays, view: View) -> Grid:
    """Lay out the maps of one example over the checkpoints, in the order given."""
    cases = _cases(values, _row(values, view))
    methods = chosen_methods(values, view)
    shown, columns = list(methods)[:MOST_ROWS], _spread(cases, MOST_COLUMNS)
    first = values["cases"][cases[0]]
    return Grid(
        f"Attribution of {as_plotly(first['target_name'])} in {as_plotly(first['id'])} over the checkpoints",
        of_what(card),
        tuple(wrapped(methods[name], 20) for name in shown),
        tuple(as_plotly(values["cases"][case]["checkpoint"]) for case in columns),
        tuple(tuple(_cell(values, arrays, name, case, view) for case in columns) for name in shown),
        left_out=left_out(shown, methods, columns, cases),
    )


def run_table(values: Values, arrays: Arrays) -> list[dict[str, Any]]:
    """Return the rank correlation of each map with the one of the same example and method at the last checkpoint."""
    rows = []
    for row in rows_of(values):
        cases = _cases(values, row)
        for name in chosen_methods(values, View()):
            cells = [_cell(values, arrays, name, case, View()) for case in cases]
            for place, (case, cell) in enumerate(zip(cases, cells, strict=True)):
                rows.append(
                    {
                        "method": name,
                        "row": row,
                        "place": place,
                        "checkpoint": values["cases"][case]["checkpoint"],
                        "correlation_with_last": spearman(cell.values, cells[-1].values),
                    }
                )
    return rows


def run_figure(card: Values, values: Values, arrays: Arrays, view: View) -> go.Figure:
    """Draw, for each method, how its maps rank the features as at the last checkpoint, averaged over the examples."""
    times, unit = values.get("times") or list(range(len(values["checkpoints"]))), values.get("unit", "position")
    shown = figure(
        "When the maps came to be what they are at the last checkpoint", of_what(card), time_axis(unit),
        "Rank correlation with the last map (Spearman)",
    )  # fmt: skip
    table = run_table(values, arrays)
    for number, (name, title) in enumerate(chosen_methods(values, view).items()):
        own = [[each["correlation_with_last"] for each in table if (each["method"], each["place"]) == (name, place)]
               for place in range(len(times))]  # fmt: skip
        known = [np.array([each for each in some if each is not None]) for some in own]
        means = [float(each.mean()) if len(each) else None for each in known]
        errors = [float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0 for each in known]
        shown.add_scatter(
            x=times, y=means, name=as_plotly(title), mode="lines+markers", line_color=COLOURS[number % len(COLOURS)],
            error_y={"type": "data", "array": errors, "thickness": 1.5, "width": 4},
            text=as_labels(values["checkpoints"]), hovertemplate="%{text}<br>%{y:.3f}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    return shown.update_yaxes(range=[-1.05, 1.05])


def spearman(one: Array | None, other: Array | None) -> float | None:
    """Return the rank correlation of two maps, channels summed up; None where one is constant or there is none."""
    if one is None or other is None or flat(one).shape != flat(other).shape or flat(one).size < 2:
        return None
    from scipy.stats import rankdata

    a, b = (rankdata(flat(each).ravel()) for each in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else None


def rows_of(values: Values) -> list[int]:
    """Return the examples of a result that all of its checkpoints have been asked about, as far as it has come."""
    seen: dict[int, int] = {}
    for case in values["cases"]:
        seen[case["row"]] = seen.get(case["row"], 0) + 1
    most = max(seen.values(), default=0)
    return [row for row, count in seen.items() if count == most]


def beside(result: Result, others: Sequence[Result]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Put two runs of one checkpoint each together as if they were one; raise ProbeError where they cannot be."""
    if len(others) != 1 or any(len(each.values["checkpoints"]) != 1 for each in (result, *others)):
        raise ProbeError("Differences are of two runs of one checkpoint each; choose one other run.")
    (other,) = others
    for what in ("examples_sha256", "dtype", "rows"):
        if result.card.get(what) != other.card.get(what):
            raise ProbeError(
                f"The two runs differ in {what}: {result.card.get(what)} against {other.card.get(what)}; a difference "
                "needs the same examples. Ask for the same rows of the same data."
            )
    ours, theirs = result.values, other.values
    if [each["target"] for each in ours["cases"]] != [each["target"] for each in theirs["cases"]]:
        raise ProbeError("The two runs explain different targets; ask both for the same class in place of predicted.")
    both = {each["method"] for each in ours["maps"]} & {each["method"] for each in theirs["maps"]}
    if not both:
        raise ProbeError("The two runs have no method in common; ask both for the same.")
    return _joined(result, other, both)


def _joined(result: Result, other: Result, both: set[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    ours, theirs = result.values, other.values
    shift = len(ours["cases"])
    names = [f"{each['checkpoints'][0]}" for each in (ours, theirs)]
    moved = [{**each, "checkpoint_index": 1} for each in theirs["cases"]]
    maps = [each for each in ours["maps"] if each["method"] in both]
    for each in theirs["maps"]:
        if each["method"] in both:
            renamed = {name: each[name] and f"other_{each[name]}" for name in ("array", "stderr")}
            maps.append({**each, **renamed, "case": each["case"] + shift})
    arrays = {**result.arrays, **{f"other_{name}": each for name, each in other.arrays.items()}}
    for case in range(shift):
        if f"picture_{case}" in other.arrays:
            arrays[f"picture_{case + shift}"] = other.arrays[f"picture_{case}"]
    return {**ours, "checkpoints": names, "cases": [*ours["cases"], *moved], "maps": maps}, arrays


def _row(values: Values, view: View) -> int:
    known = rows_of(values)
    asked = None if view.case is None else values["cases"][view.case]["row"]
    return asked if asked in known else known[0]


def _cases(values: Values, row: int) -> list[int]:
    return [place for place, case in enumerate(values["cases"]) if case["row"] == row]


def _cell(values: Values, arrays: Arrays, method: str, case: int, view: View) -> Cell:
    for each in values["maps"]:
        if each["method"] == method and each["case"] == case:
            return cell_of(values, arrays, each, view)
    return Cell(None, reason="not made yet")


def _difference(first: Cell, second: Cell) -> Cell:
    if first.values is None or second.values is None or first.values.shape != second.values.shape:
        return Cell(None, reason="no difference: one of the maps is missing", labels=first.labels)
    return Cell(second.values - first.values, labels=first.labels, special=first.special)


def _spread(cases: Sequence[int], most: int) -> list[int]:
    """Return at most so many, the first and the last among them."""
    if len(cases) <= most:
        return list(cases)
    return [cases[int(place)] for place in np.linspace(0, len(cases) - 1, most).round()]
