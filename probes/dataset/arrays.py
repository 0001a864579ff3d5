"""Read arrays: MNIST-style IDX pairs and .npz files."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from typing import IO, Any

import numpy as np

from probes.dataset.files import (
    Array,
    Examples,
    Source,
    check_budget,
    from_array,
    open_zip,
    read_member,
    short,
    words,
)
from probes.errors import DataError

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
INPUT_NAMES = ("images", "x", "X", "data")
TARGET_NAMES = ("labels", "y", "targets")


def is_idx(head: bytes) -> bool:
    """Tell whether the first bytes are those of an IDX file."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in IDX_TYPES and 1 <= head[3] <= 4


def read_idx(sources: tuple[Source, ...]) -> Examples:
    """Read a pair of IDX files, images and labels in either order: the labels are the one with one dimension."""
    if len(sources) != 2:
        raise DataError(
            f"{_list(sources)}: MNIST-style data is two files, images and labels, {len(sources)} given. Give both."
        )
    arrays = [(source, _read_one_idx(source)) for source in sources]
    labels = [pair for pair in arrays if pair[1].ndim == 1]
    images = [pair for pair in arrays if pair[1].ndim > 1]
    if len(labels) != 1:
        shapes = " and ".join(str(array.shape) for _, array in arrays)
        raise DataError(f"{_list(sources)} hold shapes {shapes}: one must be images, the other labels (one dimension).")
    (image_file, inputs), (label_file, targets) = images[0], labels[0]
    if len(inputs) != len(targets):
        raise DataError(
            f"{image_file.name} has {len(inputs)} examples, {label_file.name} {len(targets)} labels. "
            "Give the files of the same split."
        )
    return array_examples("IDX", image_file.stem, inputs, targets)


def read_npz(source: Source) -> Examples:
    """Read `images|x|X|data` and `labels|y|targets` of an .npz without ever unpickling."""
    with open_zip(source) as (archive, members):
        arrays = {each.filename.removesuffix(".npy"): each for each in members if each.filename.endswith(".npy")}
        inputs, targets = (_pick(source, arrays, names) for names in (INPUT_NAMES, TARGET_NAMES))
        x, y = _read_npy(archive, arrays[inputs], source), _read_npy(archive, arrays[targets], source)
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y):
        raise DataError(
            f"{source.name}: {inputs!r} has shape {x.shape} and {targets!r} {y.shape}; both need one entry for each "
            "example first, the inputs at least two dimensions."
        )
    left_out = sorted(set(arrays) - {inputs, targets})
    about = {"arrays": [inputs, targets], "not_used": left_out}
    return array_examples("npz", source.stem, x, y, about)


def array_examples(
    format: str, stem: str, inputs: Array, targets: Array, about: dict[str, Any] | None = None
) -> Examples:
    """Hand back arrays in memory as examples, numbered in their order."""
    if inputs.dtype.kind not in "buif":
        raise DataError(f"{stem}: the inputs are of type {inputs.dtype}; give numbers.")
    return Examples(
        format=format,
        kind="images" if inputs.ndim > 2 else "rows",
        targets=targets,
        take=from_array(inputs),
        name_of=lambda index: f"{stem}[{index}]",
        about=about or {},
    )


def _read_one_idx(source: Source) -> Array:
    with source.open() as file:
        shape, dtype = _idx_header(source, file)
        size = math.prod(shape) * dtype.itemsize
        check_budget(source.name, size, source.size())
        content = file.read(size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else str(len(content))
        raise DataError(
            f"{source.name}: its header says {shape}, that is {size} bytes, but {found} follow. Copy the file again."
        )
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _idx_header(source: Source, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    magic = file.read(4)
    if not is_idx(magic):
        raise DataError(
            f"{source.name} is no IDX file: it begins with {magic.hex() or 'nothing'}. Give MNIST-style files."
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise DataError(f"{source.name} ends inside its header. Copy the file again.")
    return struct.unpack(f">{magic[3]}I", sizes), np.dtype(IDX_TYPES[magic[2]])


def _pick(source: Source, arrays: dict[str, zipfile.ZipInfo], names: tuple[str, ...]) -> str:
    found = [name for name in names if name in arrays]
    if len(found) == 1:
        return found[0]
    held = ", ".join(repr(name) for name in sorted(arrays)) or "no array"
    problem = f"has {len(found)} of" if found else "has none of"
    raise DataError(
        f"{source.name} {problem} the arrays {', '.join(names)} (it holds {held}). Keep exactly one of them."
    )


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Source) -> Array:
    name = f"{source.name}/{member.filename}"
    with archive.open(member) as file:
        shape, dtype, offset = _npy_header(name, file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or dtype.itemsize == 0:
        raise DataError(f"{name} holds Python objects or nothing ({dtype}). Save it as numbers or strings.")
    if offset + size != member.file_size:
        raise DataError(
            f"{name}: its header says {shape} of {dtype}, that is {words(size)}, but "
            f"{words(member.file_size - offset)} follow. Write the file again."
        )
    content = read_member(archive, member, source.name)
    try:
        return np.asarray(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False))
    except ValueError as error:
        raise DataError(f"{name} is no readable array ({short(error)}). Write the file again.") from error


def _npy_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version}")
        shape, _, dtype = readers[version](file)
    except (ValueError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{name} has no readable array header ({short(error)}). Write the file again.") from error
    if any(size < 0 for size in shape):
        raise DataError(f"{name}: its header says {shape}, a negative size. Write the file again.")
    return tuple(shape), dtype, file.tell()


def _list(sources: tuple[Source, ...]) -> str:
    return " and ".join(source.name for source in sources) or "no file"
