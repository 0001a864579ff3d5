"""A grid of maps as a value: what is drawn in which row and column, whatever the features are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzers._figures import COLOURS, as_plotly
from analyzers._series_figures import of_what

Array = np.ndarray[Any, Any]
Values = Mapping[str, Any]
FOR, AGAINST = COLOURS[1], COLOURS[0]
DIVERGING = ((0.0, AGAINST), (0.5, "#FFFFFF"), (1.0, FOR))
MOST_ROWS, MOST_COLUMNS = 16, 12
LONGEST_TARGET = 48  # signs of it in a title
SHARE = 0.995  # of the values of pictures within the colour scale


@dataclass(frozen=True)
class Cell:
    """One map. note: in its corner, as "doubtful"; reason: in place of a map, raw text."""

    values: Array | None
    note: str = ""
    reason: str = ""
    stderr: Array | None = None
    picture: Array | None = None
    labels: tuple[str, ...] = ()  # of tokens or columns, raw text
    special: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Maps in rows that share a scale, and columns. title, rows, columns: fit for plotly; left_out: what is not shown.

    value: what the numbers are, for axes and hovers.
    """

    title: str
    subtitle: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    value: str = "attribution"
    left_out: str = ""

    @property
    def told(self) -> str:
        """The line below the title."""
        said = f"{self.subtitle}<br>orange speaks for it, blue against it"
        return f"{said}; {self.left_out}" if self.left_out else said


@dataclass(frozen=True)
class View:
    """How a result is looked at."""

    opacity: float = 0.8
    case: int | None = None
    method: str | None = None
    absolute: bool = False


def view_of(given: Mapping[str, Any], values: Values) -> View:
    """Read a view; what is not among the cases and methods of the result is taken for all of them."""
    opacity = float(given.get("opacity", View.opacity))
    case, method = given.get("case"), given.get("method")
    known = isinstance(case, int) and not isinstance(case, bool) and 0 <= case < len(values["cases"])
    names = {each["method"] for each in values["maps"]}
    return View(
        min(max(opacity, 0.0), 1.0), case if known else None, method if method in names else None,
        bool(given.get("absolute", False)),
    )  # fmt: skip


def cell_of(values: Values, arrays: Mapping[str, Array], map: Mapping[str, Any], view: View) -> Cell:
    """Make the cell of a map."""
    case = values["cases"][map["case"]]
    labels = tuple(case["tokens"] or case["columns"])
    if map["array"] is None:
        return Cell(None, reason="; ".join(map["reasons"]) or "no map", labels=labels)
    found = arrays[map["array"]].astype(float)
    note = "" if map["badge"] == "ok" else map["badge"]
    spread = None if map["stderr"] is None else arrays[map["stderr"]]
    picture = arrays.get(f"picture_{map['case']}")
    return Cell(np.abs(found) if view.absolute else found, note, "", spread, picture, labels, tuple(case["special"]))


def flat(values: Array) -> Array:
    """Sum the channels of an image's map (C, H, W) up."""
    return np.asarray(values.sum(0) if values.ndim == 3 else values)


def scale_of(cells: Iterable[Cell], share: float = 1.0) -> float:
    """Return the size that so large a share of the values of a row lie within; special tokens are not counted."""
    sizes = [np.abs(_counted(each)).ravel() for each in cells if each.values is not None]
    sizes = [each[np.isfinite(each)] for each in sizes]
    joined = np.concatenate(sizes) if sizes else np.zeros(0)
    found = float(np.quantile(joined, share)) if len(joined) else 0.0
    return found or (float(joined.max()) if len(joined) else 0.0) or 1.0


def wrapped(text: object, width: int, lines: int = 8) -> str:
    """Break a text into lines that are fit for plotly."""
    found = textwrap.wrap(" ".join(str(text).split()), width, max_lines=lines, placeholder=" …")
    return "<br>".join(map(as_plotly, found))


def chosen_cases(values: Values, view: View) -> list[int]:
    """Return the cases that are shown."""
    return list(range(len(values["cases"]))) if view.case is None else [view.case]


def chosen_methods(values: Values, view: View) -> dict[str, str]:
    """Return the methods that are shown, with their titles."""
    found = {each["method"]: each["title"] for each in values["maps"]}
    return found if view.method is None else {view.method: found[view.method]}


def heading(case: Mapping[str, Any], *, with_checkpoint: bool) -> str:
    """Say which example a column is, and what the model says of it; fit for plotly."""
    label = "" if case["label_name"] is None else f"label {case['label_name']}, "
    lines = [as_plotly(case["id"])[:60], as_plotly(f"{label}predicted {case['prediction_name']}")]
    lines += [as_plotly(case["checkpoint"])] if with_checkpoint else []
    return "<br>".join(lines)


def maps_grid(card: Values, values: Values, arrays: Mapping[str, Array], view: View) -> Grid:
    """Lay the maps out: a row for each method, a column for each case."""
    methods, cases = chosen_methods(values, view), chosen_cases(values, view)
    rows, columns = list(methods)[:MOST_ROWS], cases[:MOST_COLUMNS]
    by = {(each["method"], each["case"]): each for each in values["maps"]}
    empty = Cell(None, reason="not made yet")
    cells = tuple(
        tuple(cell_of(values, arrays, by[name, case], view) if (name, case) in by else empty for case in columns)
        for name in rows
    )
    several = len(values["checkpoints"]) > 1
    return Grid(
        f"What drives the score of {as_plotly(_targets(values, columns))}",
        of_what(card),
        tuple(wrapped(methods[name], 20) for name in rows),
        tuple(heading(values["cases"][case], with_checkpoint=several) for case in columns),
        cells,
        "size of the attribution" if view.absolute else "attribution",
        left_out(rows, methods, columns, cases),
    )


def left_out(rows: Sequence[Any], methods: Iterable[Any], columns: Sequence[Any], cases: Sequence[Any]) -> str:
    """Say how much of a grid is not shown."""
    count = len(list(methods))
    if len(rows) == count and len(columns) == len(cases):
        return ""
    return f"{len(columns)} of {len(cases)} examples and {len(rows)} of {count} methods: choose a case or a method"


def _targets(values: Values, cases: Sequence[int]) -> str:
    names = list(dict.fromkeys(str(values["cases"][case]["target_name"]) for case in cases))
    first = names[0] if len(names[0]) <= LONGEST_TARGET else f"{names[0][: LONGEST_TARGET - 1]}…"
    name = f"“{first.strip()}”" if values["kind"] == "language_model" else first
    return name if len(names) == 1 else "the target of each example"


def _counted(cell: Cell) -> Array:
    if cell.values is None:
        return np.zeros(0)
    values = flat(cell.values)
    if cell.special and len(cell.special) == len(values) and not all(cell.special):
        return np.asarray(values[~np.array(cell.special)])
    return values
