"""Read NumPy's .npz as a checkpoint: one array per tensor, plain or deflated, and nothing is ever unpickled.

Each record of the zip is a .npy: a line of text that says type, order and shape, and the numbers. Objects, which
NumPy would unpickle, are refused.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Contents, Limits, Raw, Span, Stored, printable
from probes.formats.raw import row_major, span_of, stored, swapped
from probes.formats.zips import Member, check_directory, check_sum, checked_span, open_window, plain_members

_FREE_BYTES, _MOST_RATIO = 64 * 2**20, 200
_LONGEST_HEADER = 65_536
_PIECE = 2**20
_DTYPES = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16",
    "u4": "uint32", "u8": "uint64", "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64",
    "c16": "complex128",
}  # fmt: skip
_PAIR = re.compile(
    r"\s*['\"](?P<key>descr|fortran_order|shape)['\"]\s*:\s*"
    r"(?:['\"](?P<text>[^'\"]{1,80})['\"]|(?P<bool>True|False)|\((?P<shape>[\d\sL,]*)\)|(?P<list>\[))\s*,?\s*"
)
_TYPE = re.compile(r"(?P<order>[<>|=]?)(?P<code>[A-Za-z?]\d*)(?:\[.*\])?")
_DATA = frozenset(("x", "y", "images", "labels", "data", "targets", "features", "inputs", "ids"))


@dataclass(frozen=True)
class _Array:
    """What the header of a .npy says. code: NumPy's ("f4", "O", "U7"), "" for a structured type."""

    code: str
    big: bool
    fortran: bool
    shape: tuple[int, ...]
    start: int


def is_npz(names: Iterable[str]) -> bool:
    """Say whether a zip with these records is what numpy.savez writes."""
    each = list(names)
    return bool(each) and all(name.endswith(".npy") for name in each)


def read_npz_checkpoint(path: Path, name: str, limits: Limits) -> Contents:
    """Say what an .npz holds: {tensor: Stored}, "/" in its names turned into "."; the arrays are not read yet.

    Arrays of text are left behind. Raises RefusedCheckpoint for objects and structured types, for a header that
    disagrees with its record, for records that unpack to far more than the file has, doubled or leaving names.
    """
    with _damage_named(name), open_window(path) as file, zipfile.ZipFile(file) as archive:
        size = path.stat().st_size
        check_directory(archive, name, limits)
        infos = {info.filename: info for info in archive.infolist()}
        _check_budget(infos.values(), size, name, limits)
        members = plain_members(archive, file, size, name)
        spans = {each: _span(path, member, infos[each], name) for each, member in members.items()}
        heads = {each: _head(path, member, infos[each], name) for each, member in members.items()}
        value, left = _tensors(members, heads, spans, name, limits)

    def verify() -> None:
        for each, member in members.items():
            if infos[each].compress_type == zipfile.ZIP_STORED:
                check_sum(path, member, name)
            else:
                spans[each](0, member.bytes)

    names = {each.rpartition("_")[0] or each for each in value}
    doubts = ("Its arrays have the names of data (images, labels): it may be no checkpoint.",)
    return Contents(path, "npz", size, value, left=left, doubts=doubts if names <= _DATA else (), verify=verify)


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, OSError, ValueError, IndexError,
        OverflowError,
    ) as error:  # fmt: skip
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise RefusedCheckpoint(
            f"{name} is a damaged or truncated .npz archive ({reason}). Copy it again from its source."
        ) from None


def _check_budget(infos: Iterable[zipfile.ZipInfo], size: int, name: str, limits: Limits) -> None:
    total = 0
    for info in infos:
        total += info.file_size
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RefusedCheckpoint(
                f"{name} packs {printable(info.filename, 60)} in an unusual way ({info.compress_type}). "
                "Write it again with numpy.savez."
            )
    if total > max(_FREE_BYTES, _MOST_RATIO * size) or total > limits.bytes:
        raise RefusedCheckpoint(
            f"{name} has {size:,} bytes but unpacks to {total:,}, which looks like a decompression bomb. "
            "Write it with numpy.savez, uncompressed, if it is meant."
        )


def _span(path: Path, member: Member, info: zipfile.ZipInfo, name: str) -> Span:
    """Return the reader of a record's bytes; what it gives has been checked against the record's checksum."""
    if info.compress_type == zipfile.ZIP_STORED:
        return checked_span(path, member, name)
    packed = info.compress_size
    return lambda first, length: _inflated(path, member, packed, name)[first : first + length]


def _inflated(path: Path, member: Member, packed: int, name: str) -> Raw:
    """Unpack a deflated record; never more than it declares."""
    content: Raw = np.empty(member.bytes, np.uint8)
    at = 0
    for piece in _unpacked(path, member, packed, name):
        if at + len(piece) > member.bytes:
            _refuse(name, f"its record {printable(member.name, 60)} unpacks to more than it declares")
        content[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    if at != member.bytes or zlib.crc32(content.data) != member.crc:
        _refuse(name, f"the length or the checksum of its record {printable(member.name, 60)} is wrong")
    return content


def _unpacked(path: Path, member: Member, packed: int, name: str) -> Iterator[bytes]:
    inflater, span = zlib.decompressobj(-15), span_of(path, name, member.start)
    try:
        for first in range(0, packed, _PIECE):
            rest = span(first, min(_PIECE, packed - first)).tobytes()
            while not inflater.eof and (piece := inflater.decompress(rest, _PIECE)):
                yield piece
                rest = inflater.unconsumed_tail
    except zlib.error as error:
        _refuse(name, f"its record {printable(member.name, 60)} cannot be unpacked ({printable(str(error))})")


def _head(path: Path, member: Member, info: zipfile.ZipInfo, name: str) -> bytes:
    """Return the beginning of a record."""
    count = min(member.bytes, _LONGEST_HEADER)
    if info.compress_type == zipfile.ZIP_STORED:
        return span_of(path, name, member.start)(0, count).tobytes()
    return next(_unpacked(path, member, info.compress_size, name), b"")[:count]


def _refuse(name: str, what: str) -> NoReturn:
    raise RefusedCheckpoint(f"{name} is damaged: {what}. Copy it again from its source.")


def _tensors(
    members: Mapping[str, Member], heads: Mapping[str, bytes], spans: Mapping[str, Span], name: str, limits: Limits
) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """Return the tensors by name, and a sentence on the arrays of text."""
    value: dict[str, Stored] = {}
    texts, numel = [], 0
    for record, member in members.items():
        array, tensor = _header(heads[record], printable(record, 60), name), record.removesuffix(".npy")
        tensor = tensor.replace("/", ".")
        if len(tensor) > limits.name or tensor in value:
            _refuse(name, f"the name of its record {printable(record, 60)} is too long or there twice")
        numel += math.prod(each or 1 for each in array.shape)
        if numel > limits.parameters or len(members) > limits.tensors or len(array.shape) > limits.rank:
            _refuse(name, f"its record {printable(record, 60)} claims the shape {_shown(array.shape)}")
        if array.code[:1] in ("U", "S"):
            texts.append(printable(tensor, 60))
        else:
            value[tensor] = _stored(array, spans[record], member, name)
    return value, (f"{len(texts)} arrays of text ({', '.join(texts[:3])})",) if texts else ()


def _stored(array: _Array, span: Span, member: Member, name: str) -> Stored:
    shown, dtype = printable(member.name, 60), _DTYPES.get(array.code)
    if dtype is None:
        raise RefusedCheckpoint(f"{name} holds {shown}, an array of {_kind(array.code)}. Save it as float32.")
    held, declared = member.bytes - array.start, math.prod(array.shape) * ITEM_BYTES[dtype]
    if held != declared:
        _refuse(name, f"the header of {shown} declares {declared:,} bytes and {held:,} follow")
    strides = row_major(array.shape[::-1])[::-1] if array.fortran else row_major(array.shape)
    behind: Span = lambda first, length: span(array.start + first, length)
    return stored(swapped(behind, dtype) if array.big else behind, dtype, 0, array.shape, strides, member.start)


def _kind(code: str) -> str:
    """Say what a type of NumPy is that no tensor has."""
    words = {"O": "Python objects, which would have to be unpickled", "": "records with fields", "M": "dates"}
    words |= {"m": "spans of time", "V": "raw bytes (bfloat16, perhaps)", "f": "long doubles", "c": "long doubles"}
    return words.get(code[:1], f"the type {printable(code, 20)}")


def _header(head: bytes, record: str, name: str) -> _Array:
    """Read the header of a .npy. Source: numpy.lib.format, versions 1.0 to 3.0."""
    wide = head[6:7] != b"\x01"
    length = int.from_bytes(head[8 : 12 if wide else 10], "little")
    start = (12 if wide else 10) + length
    if head[:6] != b"\x93NUMPY" or head[6:7] not in (b"\x01", b"\x02", b"\x03") or start > len(head):
        _refuse(name, f"its record {record} has no header of a NumPy array")
    text = head[12 if wide else 10 : start].decode("utf-8" if head[6] == 3 else "latin-1", "replace").strip()
    pairs, at = {}, 1
    while match := _PAIR.match(text, at):
        pairs[match["key"]] = match
        at = match.end()
        if match["list"]:
            return _Array("", False, False, (), start)
    kind = _TYPE.fullmatch(pairs["descr"]["text"] or "") if len(pairs) == 3 else None
    shape = pairs["shape"]["shape"] if kind else None
    if kind is None or shape is None or not pairs["fortran_order"]["bool"] or text[:1] != "{" or text[at:] != "}":
        _refuse(name, f"the header of its record {record} cannot be read")
    counts = tuple(int(each.rstrip("L")) for each in shape.replace(" ", "").split(",") if each)
    return _Array(kind["code"], kind["order"] == ">", pairs["fortran_order"]["bool"] == "True", counts, start)


def _shown(shape: tuple[int, ...]) -> str:
    return printable(str(shape[:20]), 80)
