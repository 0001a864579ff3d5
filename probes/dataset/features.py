"""Columns of a data set -> examples: images, token ids, text, arrays or plain numbers, and their labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from probes.dataset.arrow import check_schema
from probes.dataset.columns import Column, is_array, is_numeric, is_picture, is_text
from probes.dataset.encoders import encoder_of
from probes.dataset.examples import Examples, Own, Taken, numbered
from probes.dataset.files import MAX_BYTES, Array, Source, check_budget, shown, words
from probes.dataset.parquet import open_parquet, read_table, refusal
from probes.dataset.pictures import MAX_IMAGE_BYTES, stack
from probes.dataset.roles import ID_FIELDS, LABELS, FieldKind, roles_of
from probes.dataset.tables import PARQUET_ERRORS, from_frame
from probes.dataset.tables import read_parquet as read_numbers
from probes.dataset.targets import as_labels
from probes.dataset.text import MAX_TEXT_BYTES, sequences_of, tokens_of
from probes.dataset.tokens import IGNORED, Tokens, labelled, shower
from probes.errors import DataError
from probes.specs import DataSpec

INPUTS = ("image", "img", "pixel_values", "images", "x", "X", "data", "features", "inputs")


@dataclass(frozen=True)
class Frame:
    """Keep the record batches of a data set, and what its own description says of the columns ("features")."""

    name: str
    schema: pa.Schema
    batches: list[pa.RecordBatch]
    features: Mapping[str, Any]

    def columns(self) -> dict[str, Column]:
        """Return the columns that hold any value."""
        return {
            each.name: Column.of(self.name, each.name, each.type, [batch.column(place) for batch in self.batches])
            for place, each in enumerate(self.schema)
            if not pa.types.is_null(each.type)
        }


@dataclass(frozen=True)
class Labels:
    """Hold one label for each row, and the names of the classes where the data set has them."""

    column: str
    values: Array
    classes: tuple[str, ...] = ()


def read_frame(source: Source, format: str, frame: Frame, spec: DataSpec, own: Own) -> Examples:
    """Make examples of the columns; what kind is decided by their names and types."""
    columns = frame.columns()
    rows = sum(each.num_rows for each in frame.batches)
    if not rows:
        raise DataError(f"{source.name} has no rows. Give data with examples.")
    pictures = [each for each, column in columns.items() if is_picture(column.type)]
    ids = [each for each in ID_FIELDS if each in columns]
    arrays = [each for each, column in columns.items() if is_array(column.type) and each not in (*LABELS, spec.label)]
    if ids or (not pictures and not arrays and "text" in columns) or _is_named_text(columns, spec):
        made = _sequences(source, format, columns, frame, spec, own)
    elif pictures or arrays:
        field = _input(source, pictures or arrays)
        made = (_images if pictures else _arrays)(source, format, columns, field, frame, spec)
    else:
        made = _rows(source, format, columns, frame, spec)
    return replace(made, about={**made.about, "columns": [shown(each) for each in columns][:1000]})


def read_parquet(source: Source, spec: DataSpec, own: Own) -> Examples:
    """Read a Parquet file: a table of numbers, or columns of images, tokens, text or arrays as `datasets` has them."""
    try:
        with open_parquet(source) as file:
            schema = file.schema_arrow
        if not any(is_picture(each.type) or is_array(each.type) or _is_text_input(each, spec) for each in schema):
            return read_numbers(source, spec.label)
        check_schema(schema, source.name)
        table = read_table(source)
    except PARQUET_ERRORS as error:
        raise refusal(source, error) from error
    return read_frame(source, "Parquet", Frame(source.name, schema, table.to_batches(), _described(schema)), spec, own)


def _is_text_input(column: pa.Field, spec: DataSpec) -> bool:
    return is_text(column.type) and (column.name == "text" or (column.name == spec.label and column.name not in LABELS))


def _described(schema: pa.Schema) -> Mapping[str, Any]:
    """Return the features that `datasets` writes into a schema's metadata."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _is_named_text(columns: Mapping[str, Column], spec: DataSpec) -> bool:
    return spec.label in columns and spec.label not in LABELS and is_text(columns[spec.label].type)


def _images(
    source: Source, format: str, columns: Mapping[str, Column], field: str, frame: Frame, spec: DataSpec
) -> Examples:
    column, name_of = columns[field], _naming(source, columns)

    def contents(chosen: Array) -> Iterator[bytes]:
        for row in chosen:
            cell = column.cell(int(row)) or {}
            content = cell.get("bytes")
            if content is None:
                held = f"only the path {shown(str(cell['path']))!r}" if cell.get("path") else "no image"
                raise column.refuse(int(row), f"holds {held}")
            if len(content) > MAX_IMAGE_BYTES:
                raise column.refuse(int(row), f"has {words(len(content))}, too much for an image,")
            yield content

    def take(chosen: Array) -> Taken:
        return stack(source.name, [name_of(int(each)) for each in chosen], contents(chosen))

    labels = _labels(source, columns, frame, spec, (field,))
    return _labelled(Examples(format, "images", len(column), take, name_of), labels, field)


def _arrays(
    source: Source, format: str, columns: Mapping[str, Column], field: str, frame: Frame, spec: DataSpec
) -> Examples:
    column, labels = columns[field], _labels(source, columns, frame, spec, (field,))
    first = column.rows(np.zeros(1, np.int64))
    made = Examples(
        format=format,
        kind="images" if first.ndim > 2 else "rows",
        count=len(column),
        take=lambda chosen: Taken(column.rows(chosen)),
        name_of=_naming(source, columns),
    )
    return _labelled(made, labels, field)


def _rows(source: Source, format: str, columns: Mapping[str, Column], frame: Frame, spec: DataSpec) -> Examples:
    labels = _labels(source, columns, frame, spec, ())
    names = [each for each in columns if each != labels.column]
    odd = next((each for each in names if not is_numeric(columns[each].type) and each.lower() != "id"), None)
    if odd is not None:
        kind = str(columns[odd].type)[:40]
        raise DataError(
            f"{source.name}: the column {shown(odd)!r} is not numeric ({kind}). Turn it into numbers or leave it out."
        )
    wide = [each for each in names if is_numeric(columns[each].type)]
    check_budget(source.name, len(labels.values) * len(wide) * 8, MAX_BYTES)
    table = {each: columns[each].numbers() for each in wide}
    made = from_frame(source, format, pd.DataFrame(table), labels.values, labels.column)
    if "id" in columns and is_text(columns["id"].type):
        made = replace(made, name_of=_naming(source, columns))
    return replace(made, classes=labels.classes or made.classes)


def _sequences(
    source: Source, format: str, columns: Mapping[str, Column], frame: Frame, spec: DataSpec, own: Own
) -> Examples:
    kinds = {name: _kind(column) for name, column in columns.items()}
    roles = roles_of(source.name, kinds, spec)
    names = tuple(_id_cells(columns)) if "id" in columns else ()
    if kinds[roles.input] == "text":
        texts = columns[roles.input].texts(MAX_TEXT_BYTES)
        encoder = encoder_of(source.name, spec.tokenizer, own.tokenizer, "".join(texts))
        tokens, about = tokens_of(source, map(encoder.encode, texts), names), {**encoder.about, "field": roles.input}
        decode, pad = encoder.decode, encoder.pad
    elif kinds[roles.input] == "ids":
        tokens = _tokens(columns, roles.input, bool(roles.label), names)
        about = {"tokenizer": f"ids in the column {roles.input!r}", "field": roles.input}
        decode, pad = None, None
    else:
        raise DataError(f"{source.name}: the column {roles.input!r} holds {columns[roles.input].type}, no token ids.")
    if not roles.label:
        return replace(sequences_of(source, format, tokens, spec, own, about), show=shower(decode))
    labels = _labels(source, columns, frame, replace(spec, label=roles.label), ())
    own = replace(own, context=spec.context or own.context)
    made = labelled(source, format, tokens, labels.values, own, about, pad)
    return replace(_labelled(made, labels, roles.input), show=shower(decode))


def _tokens(columns: Mapping[str, Column], field: str, alone: bool, names: tuple[str, ...]) -> Tokens:
    """Return the ids of a column of lists; `labels` and `attention_mask` beside it say which count, unless alone."""
    ids, lengths = columns[field].lists()
    counted: Array | None = None
    for name, hidden in (("labels", IGNORED), ("attention_mask", 0)):
        if name in columns and is_array(columns[name].type) and not alone:
            marks, counts = columns[name].lists()
            uneven = np.flatnonzero(counts != lengths)
            if uneven.size:
                row = int(uneven[0])
                raise columns[name].refuse(row, f"has {int(counts[row])} values for {int(lengths[row])} tokens")
            counted = (marks != hidden) if counted is None else counted & (marks != hidden)
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), counted, names)


def _kind(column: Column) -> FieldKind:
    if is_array(column.type) and pa.types.is_integer(column.type.value_type):
        return "ids"
    return "text" if is_text(column.type) else "number" if is_numeric(column.type) else "other"


def _labelled(made: Examples, labels: Labels, field: str) -> Examples:
    about = {**made.about, "label": labels.column, "field": field}
    return replace(made, labels=labels.values, classes=labels.classes, about=about)


def _labels(
    source: Source, columns: Mapping[str, Column], frame: Frame, spec: DataSpec, inputs: tuple[str, ...]
) -> Labels:
    named = [each for each in columns if _class_names(frame, each)]
    found = [spec.label] if spec.label else [each for each in LABELS if each in columns] or named[:1]
    if not found or found[0] not in columns or found[0] in inputs:
        wanted = repr(shown(spec.label)) if spec.label else ", ".join(LABELS)
        held = ", ".join(repr(shown(each)) for each in list(columns)[:12])
        raise DataError(f"{source.name} has no column {wanted}; it has {held}. Name the label column.")
    column, classes = columns[found[0]], _class_names(frame, found[0])
    if is_text(column.type):
        return Labels(found[0], as_labels(np.array(column.texts(MAX_TEXT_BYTES), dtype=object)))
    if is_array(column.type):
        return Labels(found[0], column.rows(np.arange(len(column))))
    if not is_numeric(column.type):
        raise DataError(f"{source.name}: the label column {shown(found[0])!r} holds {column.type}. Name another.")
    values = column.numbers()
    if classes and values.dtype.kind in "iu":
        odd = np.flatnonzero((values < 0) | (values >= len(classes)))
        if odd.size:
            raise column.refuse(int(odd[0]), f"has the label {values[odd[0]]}, of classes 0 to {len(classes) - 1},")
        return Labels(found[0], values.astype(np.int64), classes)
    return Labels(found[0], values)


def _class_names(frame: Frame, column: str) -> tuple[str, ...]:
    about = frame.features.get(column)
    names = about.get("names") if isinstance(about, dict) and about.get("_type") == "ClassLabel" else None
    return tuple(shown(str(each)) for each in names) if isinstance(names, list) else ()


def _naming(source: Source, columns: Mapping[str, Column]) -> Callable[[int], str]:
    return numbered(source.stem, tuple(_id_cells(columns)) if "id" in columns else ())


def _id_cells(columns: Mapping[str, Column]) -> Iterator[str]:
    column = columns["id"]
    if not (is_text(column.type) or pa.types.is_integer(column.type)):
        return
    column.check_whole()
    for chunk in column.chunks:
        yield from (shown(str(each)) for each in chunk.to_pylist())


def _input(source: Source, fields: list[str]) -> str:
    known = [each for each in INPUTS if each in fields]
    if len(fields) > 1 and len(known) != 1:
        held = ", ".join(repr(shown(each)) for each in fields[:8])
        raise DataError(f"{source.name} has {len(fields)} columns of inputs ({held}). Keep one, named image or x.")
    return known[0] if known else fields[0]
