"""Read CSV (plain or gzip) and Parquet with a label column; every other column is a feature and must be a number."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from probes.dataset.files import MAX_BYTES, Array, Examples, Source, check_budget, from_array, short
from probes.dataset.targets import read_targets
from probes.errors import DataError

LABELS = ("label", "y", "target")
INDEX_NAMES = ("", "id", "index", "unnamed: 0", "__index_level_0__")
DELIMITERS = (",", ";", "\t")
MAX_CSV_BYTES = 2**30
SHOWN = 12


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
    return _examples(source, "CSV", frame, target, tuple(text[:4000].splitlines()[: SHOWN + 1]))


def read_parquet(source: Source, label: str) -> Examples:
    """Read a Parquet file; the types of its columns and its declared size are checked before its rows are read."""
    try:
        with pq.ParquetFile(source.path) as file:
            target = _label_column(source, file.schema_arrow.names, label)
            _check_schema(source, file, target)
        with pq.ParquetFile(source.path, read_dictionary=[target]) as file:
            frame = file.read(use_threads=False).to_pandas(ignore_metadata=True, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{source.name} is no readable Parquet file ({short(error)}). Write it again.") from error
    return _examples(source, "Parquet", frame, target, tuple(str(frame.head(SHOWN)).splitlines()))


def _examples(source: Source, format: str, frame: pd.DataFrame, target: str, lines: tuple[str, ...]) -> Examples:
    if frame.empty:
        raise DataError(f"{source.name} has no rows below its column names. Give a table with examples.")
    features = frame.drop(columns=target)
    for name, column in features.items():
        _check_column(source, str(name), column)
    inputs = features.to_numpy(np.float32)
    targets, classes, noted = read_targets(_labels(source, frame[target]), f"{source.name}, column {target!r}")
    indexes = [str(each) for each in features.columns if str(each).lower() in INDEX_NAMES]
    doubts = tuple(f"the column {each!r} looks like a row number but is used as a feature." for each in indexes)
    doubts += tuple(f"the column {each!r} is used as a feature." for each in features.columns if each in LABELS)
    return Examples(
        format=format,
        kind="rows",
        targets=targets,
        take=from_array(inputs),
        name_of=lambda index: f"{source.stem}[{index}]",
        classes=classes,
        doubts=(*doubts, *noted),
        about={"label": target, "features": [str(each) for each in features.columns][:1000]},
        lines=lines,
    )


def _decoded(source: Source, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source.name} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error


def _header(source: Source, text: str) -> tuple[list[str], str]:
    first = next((each for each in text[: 2**20].splitlines() if each.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    names = [each.strip() for each in next(csv.reader([first], delimiter=delimiter), [])]
    if len(names) < 2:
        raise DataError(f"{source.name}: its first line has one column, {first[:80]!r}. Give a label and features.")
    if all(_is_number(each) for each in names):
        raise DataError(f"{source.name}: its first line holds numbers, {first[:40]!r}. Name the columns there.")
    repeated = sorted({each for each in names if names.count(each) > 1})
    if repeated or "" in names[1:]:
        raise DataError(f"{source.name}: the column name {(repeated or [''])[0]!r} is empty or repeated. Rename it.")
    return [each or "Unnamed: 0" for each in names], delimiter


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label_column(source: Source, names: list[str], label: str) -> str:
    held = ", ".join(repr(each) for each in names[:12]) + (", ..." if len(names) > 12 else "")
    if label and label not in names:
        raise DataError(f"{source.name} has no column {label!r}; it has {held}. Name the label column.")
    found = [label] if label else [each for each in LABELS if each in names]
    if not found:
        raise DataError(f"{source.name} has no column {', '.join(LABELS)}; it has {held}. Name the label column.")
    if len(names) < 2:
        raise DataError(f"{source.name} has only the column {names[0]!r}. Give a label and features.")
    return found[0]


def _check_schema(source: Source, file: pq.ParquetFile, target: str) -> None:
    schema, rows = file.schema_arrow, file.metadata.num_rows
    if len(set(schema.names)) != len(schema.names):
        raise DataError(f"{source.name} has two columns of one name. Rename one.")
    for each in schema:
        numeric = pa.types.is_integer(each.type) or pa.types.is_floating(each.type) or pa.types.is_boolean(each.type)
        if each.name != target and not numeric:
            raise DataError(_not_numeric(source, each.name, f"type {each.type}"))
        if each.name == target and pa.types.is_nested(each.type):
            raise DataError(f"{source.name}: the label column {target!r} holds {each.type}. Give one value each.")
    check_budget(source.name, rows * len(schema) * 8, MAX_BYTES, MAX_BYTES)


def _check_column(source: Source, name: str, column: pd.Series[Any]) -> None:
    missing = column.isna()
    if missing.any():
        row = int(missing.to_numpy().argmax())
        raise DataError(f"{source.name}: row {row + 1} has no value in column {name!r}. Fill it in or leave it out.")
    if column.dtype.kind not in "buif":
        numbers = pd.to_numeric(column, errors="coerce")
        row = int(numbers.isna().to_numpy().argmax())
        raise DataError(_not_numeric(source, name, f"{str(column.iloc[row])[:40]!r} in row {row + 1}"))
    with np.errstate(over="ignore"):
        infinite = ~np.isfinite(column.to_numpy(np.float32))
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(
            f"{source.name}: row {row + 1} has {column.iloc[row]} in column {name!r}, too large. Mend or drop it."
        )


def _not_numeric(source: Source, name: str, found: str) -> str:
    return f"{source.name}: the column {name!r} is not numeric ({found}). Turn it into numbers or leave it out."


def _labels(source: Source, column: pd.Series[Any]) -> Array:
    missing = column.isna()
    if missing.any():
        row = int(missing.to_numpy().argmax())
        raise DataError(f"{source.name}: row {row + 1} has no label in column {column.name!r}. Leave the row out.")
    if column.dtype.kind in "buif":
        return np.asarray(column)
    texts = np.asarray(column.astype("str"), dtype=object)
    for kind in (np.int64, np.float64):
        try:
            return texts.astype(kind)
        except (ValueError, OverflowError):
            continue
    return texts.astype(np.str_)
