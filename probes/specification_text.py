"""Specifications as rows of a table and as text, a line for each use, to be read and changed by people.

A line: permutation, kind, units, tensor, axis, positions; then, where they apply, `rows=AXIS:POSITIONS` (only this part
of the tensor moves), `uncounted` (running statistics), `within=PERMUTATION[UNIT,PLACE]` (acts inside one unit of
another). Names with spaces or quotes are in quotes. Lines may be changed or deleted.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probes.errors import ModelError
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, Use
from probes.positions import WrongPositions, read, written
from probes.specification_fit import Shapes, fitting, misfit, shapes_of

Row = dict[str, str | int | bool]
EDITED = "edited"
_PLAIN = re.compile(r"[^\s\"\\#=]+")
_TOKEN = re.compile(r'\s*((?:[^\s"]|"(?:[^"\\]|\\.)*")+)')
_WITHIN = re.compile(r"(.+)\[(\d{1,9}),(\d{1,9})\]", re.DOTALL)
_ROWS = re.compile(r"(\d{1,3}):(.+)", re.DOTALL)
_MOST = 1_000_000  # characters of a line


@dataclass(frozen=True)
class _Line:
    """A use, read; inside: (permutation, unit, place) of each thing it acts within."""

    number: int
    name: str
    kind: str
    size: int
    use: Use
    inside: tuple[tuple[str, int, int], ...]


def as_rows(spec: PermutationSpec) -> list[Row]:
    """Return a row for each use: permutation, kind, units, tensor, axis, positions, rows, counts, within."""
    within: dict[str, list[str]] = {}
    for each in spec:
        for unit, names in enumerate(each.inner):
            for place, name in enumerate(names):
                within.setdefault(name, []).append(f"{each.name}[{unit},{place}]")
    return [_row(each, use, within.get(each.name, [])) for each in spec for use in each.uses]


def from_rows(rows: Iterable[Mapping[str, Any]], objective: Objective, source: str = EDITED) -> PermutationSpec:
    """Read rows such as `as_rows` gives; raise ModelError naming the row and what is wrong."""
    shapes = shapes_of(objective)
    return _spec([_line(number, row, shapes, "Row") for number, row in enumerate(rows, 1)], shapes, source, (), "Row")


def as_text(spec: PermutationSpec) -> str:
    """Write a specification as text that `from_text` reads."""
    body = [_written(row) for row in as_rows(spec)]
    head = [f"# source {_quoted(spec.source)} {_mark(body)}", *(f"# note {_quoted(each)}" for each in spec.notes)]
    return "\n".join([*head, *body]) + "\n"


def from_text(text: str, objective: Objective) -> PermutationSpec:
    """Read a specification; its source is "edited" where lines were changed.

    Raises ModelError naming the line and what is wrong with it.
    """
    shapes, lines, body = shapes_of(objective), [], []
    source, mark, notes = EDITED, "", []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith("#"):
            words = _tokens(line.strip()[1:], number)
            if words[:1] == ["source"] and len(words) == 3:
                source, mark = words[1], words[2]
            elif words[:1] == ["note"] and len(words) == 2:
                notes.append(words[1])
        elif line.strip():
            body.append(line)
            lines.append(_line(number, _parsed(line, number), shapes, "Line"))
    return _spec(lines, shapes, source if mark == _mark(body) else EDITED, tuple(notes), "Line")


def _row(each: Permutation, use: Use, within: Sequence[str]) -> Row:
    rows = "" if use.rows is None else f"{use.rows[0]}:{written(use.rows[1][:, None])}"
    return {
        "permutation": each.name, "kind": each.kind, "units": each.size, "tensor": use.tensor, "axis": use.axis,
        "positions": written(use.index), "rows": rows, "counts": use.counts, "within": " ".join(map(_quoted, within)),
    }  # fmt: skip


def _written(row: Row) -> str:
    words = [_quoted(row[key]) for key in ("permutation", "kind", "units", "tensor", "axis", "positions")]
    words += [f"rows={row['rows']}"] if row["rows"] else []
    words += [] if row["counts"] else ["uncounted"]
    words += [f"within={_quoted(each)}" for each in _tokens(str(row["within"]), 0)]
    return "  ".join(words)


def _parsed(line: str, number: int) -> dict[str, Any]:
    words = _tokens(line, number)
    if len(words) < 6:
        raise _wrong(
            "Line", number, f"has {len(words)} columns; it needs permutation, kind, units, tensor, axis and positions"
        )
    row: dict[str, Any] = dict(
        zip(("permutation", "kind", "units", "tensor", "axis", "positions"), words, strict=False)
    )
    row |= {"counts": True, "rows": "", "within": ""}
    for word in words[6:]:
        key, _, value = word.partition("=")
        if word == "uncounted":
            row["counts"] = False
        elif key == "rows" and value:
            row["rows"] = value
        elif key == "within" and value:
            row["within"] = f"{row['within']} {_quoted(value)}".strip()
        else:
            raise _wrong("Line", number, f"has {word!r:.60}; after the positions come rows=, uncounted or within=")
    return row


def _line(number: int, row: Mapping[str, Any], shapes: Shapes, what: str) -> _Line:
    name, tensor = str(row.get("permutation", "")), str(row.get("tensor", ""))
    size, axis = (_whole(row.get(key), key, number, what) for key in ("units", "axis"))
    if not name:
        raise _wrong(what, number, "names no permutation")
    limit = max((max(shape, default=0) for shape in shapes.values()), default=0)
    try:
        along = shapes.get(tensor, ())[axis : axis + 1]
        index = read(str(row.get("positions", "")), along[0] if along else limit)
        rows = _read_rows(str(row.get("rows") or ""), limit)
    except WrongPositions as error:
        raise _wrong(what, number, f"cannot be read: {error}") from None
    use = Use(tensor, axis, index, rows, _flag(row.get("counts", True), number, what))
    wrong = misfit(use, size, shapes)
    if wrong:
        raise _wrong(what, number, f"does not fit the model: {wrong}")
    inside = tuple(_inside(each, number, what) for each in _tokens(str(row.get("within") or ""), number))
    return _Line(number, name, str(row.get("kind", "units")), size, use, inside)


def _read_rows(text: str, limit: int) -> tuple[int, Any] | None:
    if not text:
        return None
    found = _ROWS.fullmatch(text)
    positions = read(found.group(2), limit) if found else None
    if found is None or positions is None or positions.shape[1] != 1:
        raise WrongPositions(f"rows {text!r:.60}; write them like 0:16:32, the axis before the positions")
    return int(found.group(1)), positions[:, 0]


def _inside(text: str, number: int, what: str) -> tuple[str, int, int]:
    found = _WITHIN.fullmatch(text)
    if found is None:
        raise _wrong(what, number, f"acts within {text!r:.60}; write it like heads[3,0], unit and place in brackets")
    return found.group(1), int(found.group(2)), int(found.group(3))


def _flag(given: Any, number: int, what: str) -> bool:
    if isinstance(given, bool) or str(given).lower() in ("true", "false"):
        return str(given).lower() == "true"
    raise _wrong(what, number, f"has counts {given!r:.40}; it is true or false")


def _whole(given: Any, key: str, number: int, what: str) -> int:
    text = str(given).strip()
    if not re.fullmatch(r"\d{1,12}", text):
        raise _wrong(what, number, f"has {key} {text!r:.40}; it must be a whole number")
    return int(text)


def _spec(lines: Sequence[_Line], shapes: Shapes, source: str, notes: tuple[str, ...], what: str) -> PermutationSpec:
    groups: dict[str, list[_Line]] = {}
    for line in lines:
        first = groups.setdefault(line.name, [line])[0]
        if line is not first:
            _alike(first, line, what)
            groups[line.name].append(line)
    inner = _inner(groups, what)
    found = tuple(
        Permutation(name, each[0].size, tuple(line.use for line in each), each[0].kind, inner.get(name, ()))
        for name, each in groups.items()
    )
    spec = PermutationSpec(found, source, notes)
    fitting(spec, shapes)
    return spec


def _alike(first: _Line, line: _Line, what: str) -> None:
    for words, one, other in (
        ("units", first.size, line.size),
        ("kind", first.kind, line.kind),
        ("within", first.inside, line.inside),
    ):
        if one != other:
            raise _wrong(
                what,
                line.number,
                f"has {words} {other!r:.60}, but {what.lower()} {first.number} of the same permutation {one!r:.60}",
            )


def _inner(groups: Mapping[str, Sequence[_Line]], what: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Put together which permutations act within each unit; those whose outer one was deleted stand alone."""
    found: dict[str, dict[tuple[int, int], str]] = {}
    for name, lines in groups.items():
        for outer, unit, place in lines[0].inside:
            if outer not in groups:
                continue
            if unit >= groups[outer][0].size:
                raise _wrong(
                    what, lines[0].number, f"acts within unit {unit}, but {outer!r:.60} has {groups[outer][0].size}"
                )
            if (unit, place) in found.setdefault(outer, {}):
                raise _wrong(what, lines[0].number, f"has the place of another in {outer!r:.60}[{unit},{place}]")
            found[outer][unit, place] = name
    return {
        outer: tuple(
            tuple(name for (at, _), name in sorted(places.items()) if at == unit)
            for unit in range(groups[outer][0].size)
        )
        for outer, places in found.items()
    }


def _tokens(text: str, number: int) -> list[str]:
    """Split a line at spaces, quoted names whole."""
    if len(text) > _MOST:
        raise _wrong("Line", number, f"has {len(text)} characters; at most {_MOST} are read")
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _wrong("Line", number, f"has a quote that is not closed: {text[at:].strip()!r:.60}")
        found.append(_unquoted(match.group(1), number))
        at = match.end()
    return found


def _unquoted(token: str, number: int) -> str:
    try:
        return re.sub(r'"(?:[^"\\]|\\.)*"', lambda each: str(json.loads(each.group())), token)
    except ValueError:
        raise _wrong("Line", number, f"has a quoted name that cannot be read: {token!r:.60}") from None


def _quoted(given: object) -> str:
    text = str(given)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _mark(body: Iterable[str]) -> str:
    """Return a mark by which unchanged lines are known."""
    return f"{zlib.crc32(chr(10).join(line.strip() for line in body).encode()):08x}"


def _wrong(what: str, number: int, words: str) -> ModelError:
    where = f"{what} {number} of the specification" if number else "The specification"
    return ModelError(f"{where} {words}. Correct it, or delete it.")
