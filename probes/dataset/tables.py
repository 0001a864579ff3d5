"""Read CSV (plain or gzip) and Parquet with a label column; every other column is a feature and must be a number."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from probes.dataset.columns import is_numeric, is_text
from probes.dataset.examples import Examples, from_array, numbered
from probes.dataset.files import MAX_BYTES, Array, Source, check_budget, short, shown
from probes.dataset.parquet import check_parquet, open_parquet, refusal
from probes.dataset.targets import as_labels
from probes.errors import DataError

LABELS = ("label", "y", "target")
INDEX_NAMES = ("", "id", "index", "unnamed: 0", "__index_level_0__")
DELIMITERS = (",", ";", "\t")
MAX_CSV_BYTES = 2**30
MAX_COLUMNS = 20_000
SHOWN = 12
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError)


def read_csv(source: Source, label: str) -> Examples:
    """Read a CSV whose first line names the columns; the delimiter is the comma, semicolon or tab of that line."""
    content = source.read(MAX_CSV_BYTES)
    text = _decoded(source, content)
    header, delimiter = _header(source, text)
    target = _label_column(source, header, label)
    try:
        frame = pd.read_csv(io.StringIO(text), sep=delimiter, dtype={target: "str"}, skipinitialspace=True)
    except (ValueError, OverflowError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{source.name} is no readable table ({short(error)}). Write it again.") from error
    if list(frame.columns) != header or not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{source.name}: its rows have more values than its first line has names. Write it again.")
    made = from_frame(source, "CSV", frame.drop(columns=target), _labels(source, frame[target]), target)
    return replace(made, lines=tuple(text[:4000].splitlines()[: SHOWN + 1]))


def read_parquet(source: Source, label: str) -> Examples:
    """Read a Parquet file of numbers; its types and declared sizes are checked before its rows are read."""
    try:
        with open_parquet(source) as file:
            target = _label_column(source, file.schema_arrow.names, label)
            _check_schema(source, file, target)
            check_parquet(source, file)
        with open_parquet(source, read_dictionary=[target]) as file:
            frame = file.read(use_threads=False).to_pandas(ignore_metadata=True, use_threads=False)
    except PARQUET_ERRORS as error:
        raise refusal(source, error) from error
    made = from_frame(source, "Parquet", frame.drop(columns=target), _labels(source, frame[target]), target)
    return replace(made, lines=tuple(str(frame.head(SHOWN)).splitlines()))


def from_frame(source: Source, format: str, features: pd.DataFrame, labels: Array, target: str) -> Examples:
    """Make examples of columns of numbers; a column `id` of texts gives the examples their ids.

    target: the name of the column that the labels come from. DataError by row and column for what is no number.
    """
    if features.empty:
        raise DataError(f"{source.name} has no rows below its column names. Give a table with examples.")
    own = [each for each in features.columns if str(each).lower() == "id" and features[each].dtype.kind not in "buif"]
    ids = tuple(shown(str(each)) for each in features[own[0]]) if own else ()
    features = features.drop(columns=own[:1])
    for name, column in features.items():
        _check_column(source, str(name), column)
    indexes = [str(each) for each in features.columns if str(each).lower() in INDEX_NAMES]
    doubts = [f"the column {shown(each)!r} looks like a row number but is used as a feature." for each in indexes]
    doubts += [f"the column {each!r} is used as a feature." for each in features.columns if each in LABELS]
    return Examples(
        format=format,
        kind="rows",
        count=len(features),
        take=from_array(features.to_numpy(np.float32)),
        name_of=numbered(source.stem, ids),
        labels=labels,
        doubts=tuple(doubts),
        about={"label": target, "features": [shown(str(each)) for each in features.columns][:1000]},
    )


def _decoded(source: Source, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source.name} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error


def _header(source: Source, text: str) -> tuple[list[str], str]:
    first = next((each for each in text[: 2**20].splitlines() if each.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    try:
        names = [each.strip() for each in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error as error:
        raise DataError(f"{source.name} has no readable first line ({short(error)}). Write it again.") from error
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{source.name} has {len(names)} columns; at most {MAX_COLUMNS} are read. Save it as .npz.")
    if len(names) < 2:
        raise DataError(
            f"{source.name}: its first line has one column, {shown(first[:80])!r}. Give a label and features."
        )
    if all(_is_number(each) for each in names):
        raise DataError(f"{source.name}: its first line holds numbers, {shown(first[:40])!r}. Name the columns there.")
    repeated = sorted(each for each, count in Counter(names).items() if count > 1)
    if repeated or "" in names[1:]:
        name = shown((repeated or [""])[0])
        raise DataError(f"{source.name}: the column name {shown(name)!r} is empty or repeated. Rename it.")
    return [each or "Unnamed: 0" for each in names], delimiter


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label_column(source: Source, names: list[str], label: str) -> str:
    held = ", ".join(repr(shown(each)[:60]) for each in names[:8]) + (", ..." if len(names) > 8 else "")
    if label and label not in names:
        raise DataError(f"{source.name} has no column {shown(label)!r}; it has {held}. Name the label column.")
    found = [label] if label else [each for each in LABELS if each in names]
    if not found:
        raise DataError(f"{source.name} has no column {', '.join(LABELS)}; it has {held}. Name the label column.")
    if len(names) < 2:
        raise DataError(f"{source.name} has only the column {shown(names[0])!r}. Give a label and features.")
    return found[0]


def _check_schema(source: Source, file: Any, target: str) -> None:
    schema, rows = file.schema_arrow, file.metadata.num_rows
    for each in schema:
        named = each.name.lower() == "id" and is_text(each.type)
        if each.name != target and not is_numeric(each.type) and not named:
            raise DataError(_not_numeric(source, each.name, f"type {each.type}"))
        if each.name == target and pa.types.is_nested(each.type):
            raise DataError(f"{source.name}: the label column {target!r} holds {each.type}. Give one value each.")
    check_budget(source.name, rows * len(schema) * 8, MAX_BYTES, MAX_BYTES)


def _check_column(source: Source, name: str, column: pd.Series[Any]) -> None:
    missing = column.isna()
    if missing.any():
        row = int(missing.to_numpy().argmax())
        raise DataError(
            f"{source.name}: row {row + 1} has no value in column {shown(name)!r}. Fill it in or leave it out."
        )
    if column.dtype.kind not in "buif":
        numbers = pd.to_numeric(column, errors="coerce")
        row = int(numbers.isna().to_numpy().argmax())
        raise DataError(_not_numeric(source, name, f"{shown(str(column.iloc[row])[:40])!r} in row {row + 1}"))
    with np.errstate(over="ignore"):
        infinite = ~np.isfinite(column.to_numpy(np.float32))
    if infinite.any():
        row = int(infinite.argmax())
        place = f"row {row + 1} has {column.iloc[row]} in column {shown(name)!r}"
        raise DataError(f"{source.name}: {place}, too large. Mend or drop it.")


def _not_numeric(source: Source, name: str, found: str) -> str:
    return f"{source.name}: the column {shown(name)!r} is not numeric ({found}). Turn it into numbers or leave it out."


def _labels(source: Source, column: pd.Series[Any]) -> Array:
    missing = column.isna()
    if missing.any():
        row = int(missing.to_numpy().argmax())
        raise DataError(
            f"{source.name}: row {row + 1} has no label in column {shown(str(column.name))!r}. Leave the row out."
        )
    if column.dtype.kind in "buif":
        return np.asarray(column)
    texts = [each if isinstance(each, str) else str(each) for each in column.astype("object")]
    return as_labels(np.array(texts, dtype=object))
