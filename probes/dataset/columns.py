"""Columns of arrow arrays in pieces: single cells, or chosen rows as one NumPy array, without reading the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probes.dataset.arrow import storage
from probes.dataset.files import Array, short, shown, words
from probes.errors import DataError

BLOCK = 1024
MAX_INPUT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Column:
    """One column of a data set, named for messages; `chunks` hold its rows one after another."""

    source: str
    name: str
    type: pa.DataType
    chunks: tuple[pa.Array, ...]
    starts: Array

    @classmethod
    def of(cls, source: str, name: str, kind: pa.DataType, chunks: Sequence[pa.Array]) -> Column:
        """Take the chunks of a column; extension types become what they are stored as."""
        plain = tuple(each.storage if isinstance(each, pa.ExtensionArray) else each for each in chunks)
        starts = np.concatenate([[0], np.cumsum([len(each) for each in plain])]).astype(np.int64)
        return cls(source, name, storage(kind), plain, starts)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.starts[-1])

    def cell(self, row: int) -> Any:
        """Return one value as Python has it; None where it is missing."""
        chunk = int(np.searchsorted(self.starts, row, "right")) - 1
        return self.chunks[chunk][row - int(self.starts[chunk])].as_py()

    def refuse(self, row: int, problem: str) -> DataError:
        """Say what is wrong in a row; rows are counted from 1."""
        return DataError(f"{self.source}: row {row + 1} {problem} in the column {shown(self.name)!r}. Mend or drop it.")

    def check_whole(self) -> None:
        """Refuse missing values, by row."""
        for start, chunk in zip(self.starts, self.chunks, strict=False):
            if chunk.null_count:
                row = int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
                raise self.refuse(int(start) + row, "has no value")

    def numbers(self) -> Array:
        """Return a column of numbers or truths as one array (N,)."""
        self.check_whole()
        parts = [np.asarray(each.to_numpy(zero_copy_only=False)) for each in self.chunks]
        return np.concatenate(parts) if parts else np.zeros(0)

    def texts(self, limit: int) -> list[str]:
        """Return a column of texts; DataError where all together have over `limit` bytes."""
        self.check_whole()
        held = sum(int(pc.sum(pc.binary_length(each)).as_py() or 0) for each in self.chunks)
        if held > limit:
            raise DataError(
                f"{self.source}: the column {shown(self.name)!r} holds {words(held)} of text; at most {words(limit)} "
                "are read. Give a smaller part of the data."
            )
        return [text for each in self.chunks for text in each.to_pylist()]

    def lists(self) -> tuple[Array, Array]:
        """Return the values of a column of lists of whole numbers end to end, and the length of each list."""
        self.check_whole()
        values, lengths, row = [], [], 0
        for chunk in self.chunks:
            flat = chunk.flatten()
            counts = pc.list_value_length(chunk).to_numpy(zero_copy_only=False).astype(np.int64)
            if flat.null_count:
                at = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
                raise self.refuse(row + int(np.searchsorted(np.cumsum(counts), at, "right")), "misses a value")
            values.append(flat.to_numpy(zero_copy_only=False))
            lengths.append(counts)
            row += len(chunk)
        empty = np.zeros(0, np.int64)
        return np.concatenate(values or [empty]), np.concatenate(lengths or [empty])

    def rows(self, chosen: Array) -> Array:
        """Return chosen rows of (nested) lists of numbers as one array; ragged ones are refused by row."""
        out: Array | None = None
        for begin in range(0, len(chosen), BLOCK):
            part = chosen[begin : begin + BLOCK]
            block = self._stacked(part)
            if out is None:
                size = len(chosen) * (block[0].nbytes if len(block) else 0)
                if size > MAX_INPUT_BYTES:
                    raise DataError(f"{self.source}: the chosen rows need {words(size)}. Choose fewer examples.")
                out = np.empty((len(chosen), *block.shape[1:]), block.dtype)
            if block.shape[1:] != out.shape[1:]:
                raise self.refuse(int(part[0]), f"has {_size(block)} values, row {int(chosen[0]) + 1} {_size(out)}")
            out[begin : begin + len(part)] = block
        return np.zeros((0, 1)) if out is None else out

    def _stacked(self, chosen: Array) -> Array:
        array, shape = self._take(chosen), [len(chosen)]
        while True:
            if array.null_count:
                at = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
                raise self.refuse(int(chosen[at * len(chosen) // max(1, len(array))]), "misses a value")
            if not _is_list(array.type):
                return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)
            lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
            uneven = np.flatnonzero(lengths != lengths[:1])
            if uneven.size:
                at = int(uneven[0])
                row = int(chosen[at * len(chosen) // len(array)])
                raise self.refuse(row, f"has {int(lengths[at])} values, row {int(chosen[0]) + 1} {int(lengths[0])}")
            shape.append(int(lengths[0]) if len(lengths) else 0)
            array = array.flatten()

    def _take(self, chosen: Array) -> pa.Array:
        order = np.argsort(chosen, kind="stable")
        rows = chosen[order]
        owners = np.searchsorted(self.starts, rows, "right") - 1
        parts = [
            self.chunks[owner].take(pa.array(rows[owners == owner] - self.starts[owner])) for owner in np.unique(owners)
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        try:
            return pa.concat_arrays(parts).take(pa.array(back))
        except pa.ArrowException as error:
            raise DataError(f"{self.source}: the column {shown(self.name)!r} is too large ({short(error)}).") from error


def is_numeric(kind: pa.DataType) -> bool:
    """Tell whether a type is a whole number, a float or a truth."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_array(kind: pa.DataType) -> bool:
    """Tell whether a type is lists, nested or not, of numbers."""
    while _is_list(kind):
        kind = kind.value_type
        if is_numeric(kind):
            return True
    return False


def is_picture(kind: pa.DataType) -> bool:
    """Tell whether a type is what `datasets` keeps images in: their bytes and their path."""
    if not pa.types.is_struct(kind):
        return False
    held = {each.name: each.type for each in kind}
    return "bytes" in held and bool(pa.types.is_binary(held["bytes"]) or pa.types.is_large_binary(held["bytes"]))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _size(array: Array) -> str:
    return " x ".join(str(each) for each in array.shape[1:])
