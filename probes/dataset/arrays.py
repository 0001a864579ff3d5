"""Read arrays: MNIST-style IDX pairs and .npz files."""

from __future__ import annotations

import math
import struct
import tokenize
import warnings
import zipfile
from dataclasses import replace
from typing import IO, Any

import numpy as np

from probes.dataset.examples import Examples, Own, from_array, numbered
from probes.dataset.files import Array, Source, check_budget, open_zip, read_member, short, shown, words
from probes.dataset.pairs import check_arrays, pairs_of_arrays
from probes.dataset.roles import ID_FIELDS
from probes.dataset.tokens import IGNORED, Tokens, context_for, labelled, sequences, shower
from probes.errors import DataError
from probes.specs import DataSpec

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
INPUT_NAMES = ("images", "x", "X", "data")
TARGET_NAMES = ("labels", "y", "targets")
NAMES = ("ids", "id")
CAPTIONS = "captions"
HEADER_ERRORS = (
    ValueError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError, LookupError, AttributeError,
    tokenize.TokenError,
)  # fmt: skip


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


def read_npz(source: Source, spec: DataSpec, own: Own) -> Examples:
    """Read `images|x|X|data` and `labels|y|targets` of an .npz, or `input_ids`, without ever unpickling.

    Images with `input_ids` or `captions` are pairs.
    """
    with open_zip(source) as (archive, members):
        arrays = {each.filename.removesuffix(".npy"): each for each in members if each.filename.endswith(".npy")}
        fields = [each for each in ID_FIELDS if each in arrays]
        if (fields or CAPTIONS in arrays) and any(each in arrays for each in INPUT_NAMES):
            return _pairs(source, spec, own, {name: _read_npy(archive, each, source) for name, each in arrays.items()})
        if fields:
            used = [each for each in (*fields, "labels", "label", "attention_mask", *NAMES) if each in arrays]
            found = {each: _read_npy(archive, arrays[each], source) for each in used}
            return _sequences(source, spec, own, found, sorted(set(arrays) - set(used)))
        inputs, targets = (_pick(source, arrays, names) for names in (INPUT_NAMES, TARGET_NAMES))
        x, y = _read_npy(archive, arrays[inputs], source), _read_npy(archive, arrays[targets], source)
        named = [each for each in NAMES if each in arrays]
        ids = _names(source, _read_npy(archive, arrays[named[0]], source), len(x)) if named and x.ndim else ()
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y):
        raise DataError(
            f"{source.name}: {inputs!r} has shape {x.shape} and {targets!r} {y.shape}; both need one entry for each "
            "example first, the inputs at least two dimensions."
        )
    left_out = [shown(each) for each in sorted(set(arrays) - {inputs, targets, *named[:1]})]
    return array_examples("npz", source.stem, x, y, {"arrays": [inputs, targets], "not_used": left_out}, ids)


def _pairs(source: Source, spec: DataSpec, own: Own, found: dict[str, Array]) -> Examples:
    images = next(found[each] for each in INPUT_NAMES if each in found)
    ids = next((found[each] for each in ID_FIELDS if each in found), None)
    check_arrays(source, ids, found.get(CAPTIONS))
    names = next((_names(source, found[each], len(images)) for each in NAMES if each in found and images.ndim), ())
    made = pairs_of_arrays(source, images, ids, found.get(CAPTIONS), spec, own, names)
    known = (*INPUT_NAMES, *ID_FIELDS, *NAMES, CAPTIONS)
    return replace(made, about={**made.about, "not_used": [shown(each) for each in sorted(set(found) - set(known))]})


def array_examples(
    format: str,
    stem: str,
    inputs: Array,
    targets: Array,
    about: dict[str, Any] | None = None,
    ids: tuple[str, ...] = (),
) -> Examples:
    """Hand back arrays in memory as examples, in their order."""
    if inputs.dtype.kind not in "buif":
        raise DataError(f"{stem}: the inputs are of type {inputs.dtype}; give numbers.")
    return Examples(
        format=format,
        kind="images" if inputs.ndim > 2 else "rows",
        count=len(inputs),
        take=from_array(inputs),
        name_of=numbered(stem, ids),
        labels=targets,
        about=about or {},
    )


def _sequences(source: Source, spec: DataSpec, own: Own, found: dict[str, Array], left_out: list[str]) -> Examples:
    field, ids = next((name, array) for name, array in found.items() if name in ID_FIELDS)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise DataError(
            f"{source.name}: {field!r} is {ids.dtype} of shape {ids.shape}; give whole numbers, one row each."
        )
    names = [array for name, array in found.items() if name in NAMES]
    starts = np.arange(0, ids.size + 1, ids.shape[1])
    tokens = Tokens(
        ids.reshape(-1), starts, _counted(source, found, ids), _names(source, names[0], len(ids)) if names else ()
    )
    about = {"tokenizer": f"ids in the array {field!r}", "arrays": list(found), "not_used": list(map(shown, left_out))}
    label = found.get("label", found.get("labels"))
    if label is not None and label.shape != ids.shape:
        if label.ndim != 1 or len(label) != len(ids):
            raise DataError(
                f"{source.name}: the labels have shape {label.shape}, {field!r} has {ids.shape}. Mend them."
            )
        made = labelled(source, "npz", replace(tokens, counted=None), label, _within(own, spec), about)
    else:
        context, doubts = context_for(source, spec, ids.shape[1], own, ids.shape[1] - 1)
        made = sequences(source, "npz", tokens, context, own, about, doubts)
    return replace(made, show=shower())


def _within(own: Own, spec: DataSpec) -> Own:
    return replace(own, context=spec.context or own.context)


def _counted(source: Source, found: dict[str, Array], ids: Array) -> Array | None:
    """Return which ids count as targets, by labels (-100: not) and attention_mask (0: not) of their shape."""
    marks = [found[each] != hidden for each, hidden in (("labels", IGNORED), ("attention_mask", 0)) if each in found]
    fitting = [each for each in marks if each.shape == ids.shape]
    if "attention_mask" in found and found["attention_mask"].shape != ids.shape:
        raise DataError(f"{source.name}: attention_mask has shape {found['attention_mask'].shape}, not {ids.shape}.")
    return np.logical_and.reduce(fitting).reshape(-1) if fitting else None


def _names(source: Source, array: Array, count: int) -> tuple[str, ...]:
    if array.ndim != 1 or len(array) != count or array.dtype.kind not in "iuUS":
        raise DataError(f"{source.name}: the ids are {array.dtype} of shape {array.shape}; give {count}, one each.")
    return tuple(shown(each.decode("latin-1") if isinstance(each, bytes) else str(each)) for each in array.tolist())


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
    name = f"{source.name}/{shown(member.filename)}"
    with archive.open(member) as file:
        shape, columns_first, dtype, offset = _npy_header(name, file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or dtype.itemsize == 0:
        raise DataError(f"{name} holds Python objects or nothing ({dtype}). Save it as numbers or strings.")
    if offset + size != member.file_size:
        raise DataError(
            f"{name}: its header says {_shape(shape)} of {dtype}, that is {words(size)}, but "
            f"{words(member.file_size - offset)} follow. Write the file again."
        )
    content = read_member(archive, member, source.name)
    try:
        array = np.frombuffer(content, dtype, offset=offset)
        return array.reshape(shape, order="F" if columns_first else "C").astype(dtype.newbyteorder("="), copy=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name} is no readable array ({short(error)}). Write the file again.") from error


def _shape(shape: tuple[int, ...]) -> str:
    return shown(str(shape))


def _npy_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, columns_first, dtype = readers[version](file)
    except HEADER_ERRORS as error:
        raise DataError(f"{name} has no readable array header ({short(error)}). Write the file again.") from error
    if any(size < 0 for size in shape):
        raise DataError(f"{name}: its header says {_shape(shape)}, a negative size. Write the file again.")
    return tuple(shape), bool(columns_first), dtype, file.tell()


def _list(sources: tuple[Source, ...]) -> str:
    return " and ".join(source.name for source in sources) or "no file"
