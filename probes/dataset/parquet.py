"""Parquet -> an arrow table, after its declared sizes were added up: a page says how far it unpacks.

The pages' headers are read by hand (Thrift's compact protocol), since the footer's sums are only claims and pyarrow
allocates what a header asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from probes.dataset.files import FREE_BYTES, MAX_BYTES, Source, check_budget, short, words
from probes.errors import DataError

MAX_PAGES = 1_000_000
MAX_COLUMNS = 20_000
MAX_HEADER_BYTES = 2**16
MAX_DEPTH = 16
ROWS = 4096
DICTIONARY = 2  # kind of a page


def open_parquet(source: Source, **options: Any) -> pq.ParquetFile:
    """Open a file, its footer bounded; the caller turns pyarrow's errors into DataError with `refusal`."""
    bounds = {"thrift_string_size_limit": 2**26, "thrift_container_size_limit": 2**22}
    return pq.ParquetFile(source.path, **bounds, **options)


def check_parquet(source: Source, file: pq.ParquetFile) -> int:
    """Refuse repeated names, too many columns, and pages that unpack too far.

    Returns the bytes of the largest dictionary of texts or bytes: a row can repeat one of its values for nothing.
    """
    names = file.schema_arrow.names
    if len(set(names)) != len(names):
        raise DataError(f"{source.name} has two columns of one name. Rename one.")
    if file.metadata.num_columns > MAX_COLUMNS:
        raise DataError(f"{source.name} has {file.metadata.num_columns} columns; at most {MAX_COLUMNS} are read.")
    total, largest, pages = 0, 0, 0
    with source.path.open("rb") as raw:
        end = os.fstat(raw.fileno()).st_size
        for start, stop, texts in _chunks(file.metadata):
            for size, kind in _pages(source, raw, start, min(stop, end)):
                total, pages = total + size, pages + 1
                largest = max(largest, size if texts and kind == DICTIONARY else 0)
                check_budget(source.name, total, end)
                if pages > MAX_PAGES:
                    raise DataError(f"{source.name} has over {MAX_PAGES} pages. Write it with larger row groups.")
    return largest


def read_table(source: Source) -> pa.Table:
    """Read all rows in small steps, so that a value that a page repeats a million times is noticed in time."""
    with open_parquet(source) as file:
        largest = check_parquet(source, file)
        rows = max(1, min(ROWS, FREE_BYTES // max(1, largest)))
        batches, held = [], 0
        for batch in file.iter_batches(batch_size=rows, use_threads=False):
            batch.validate(full=True)
            held += batch.nbytes
            check_budget(source.name, held, source.size(), MAX_BYTES)
            batches.append(batch)
        return pa.Table.from_batches(batches, file.schema_arrow)


def refusal(source: Source, error: Exception) -> DataError:
    """Say that pyarrow cannot read a file."""
    return DataError(f"{source.name} is no readable Parquet file ({short(error)}). Write it again.")


def _chunks(metadata: Any) -> Iterator[tuple[int, int, bool]]:
    """Yield where the pages of each column of each row group begin and end, and whether it holds texts or bytes."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            about = metadata.row_group(group).column(column)
            starts = [each for each in (about.dictionary_page_offset, about.data_page_offset) if each]
            start = min(starts, default=0)
            yield start, start + max(0, about.total_compressed_size), "BYTE_ARRAY" in about.physical_type


def _pages(source: Source, raw: IO[bytes], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield how many bytes each page of a column unpacks to, and its kind."""
    while start < stop:
        raw.seek(start)
        head = raw.read(MAX_HEADER_BYTES)
        try:
            fields, length = _struct(head, 0, 0)
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{source.name} is a damaged Parquet file (a page has no header). Write it again."
            ) from error
        unpacked, packed = fields.get(2, -1), fields.get(3, -1)
        if unpacked < 0 or packed < 0 or start + length + packed > stop:
            raise DataError(
                f"{source.name} is a damaged Parquet file: a page says that it has {words(max(0, packed))} and unpacks "
                f"to {words(max(0, unpacked))}. Write it again."
            )
        yield unpacked, fields.get(1, -1)
        start += length + packed


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, int], int]:
    """Return the whole numbers among a struct's fields by their ids, and where the struct ends."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    found: dict[int, int] = {}
    last = 0
    while data[at]:
        delta, kind = data[at] >> 4, data[at] & 15
        at += 1
        if delta:
            last += delta
        else:
            last, at = _number(data, at)
        if kind in (4, 5, 6):  # i16, i32, i64
            found[last], at = _number(data, at)
        else:
            at = _skip(data, at, kind, depth)
    return found, at + 1


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    if kind in (1, 2):  # a truth, in the kind itself
        return at
    if kind == 3:
        return at + 1
    if kind in (4, 5, 6):
        return _number(data, at)[1]
    if kind == 7:
        return at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return at + length
    if kind in (9, 10):
        return _skip_list(data, at, depth)
    if kind == 12:
        return _struct(data, at, depth + 1)[1]
    raise ValueError(f"kind {kind}")


def _skip_list(data: bytes, at: int, depth: int) -> int:
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data) or depth > MAX_DEPTH:
        raise ValueError("too long, or too deep")
    for _ in range(count):
        at = at + 1 if kind in (1, 2) else _skip(data, at, kind, depth + 1)
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 128:
            return value, at
        if shift > 63:
            raise ValueError("too long")


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
