"""The members of zips and tars(.gz), listed in one way and read piece by piece, without trust in what they claim."""

from __future__ import annotations

import gzip
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Limits, printable
from probes.formats.tars import Entry, entries_of, is_tar
from probes.formats.zips import check_count, plain_members

_SPARE_BYTES = 64 * 2**20
_PIECE = 2**20
_BLOCK = 512
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
Pieces = Callable[[Entry], Iterator[bytes]]


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turn whatever a damaged archive raises into one sentence."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, zlib.error) as error:
        reason = printable(" ".join(str(error).split()))
        raise RefusedCheckpoint(f"{name} cannot be unpacked ({reason}). Pack the folder again.") from None


def kind_of(path: Path) -> str:
    """Say what an archive is by its first bytes: "zip", "tar" (also gzipped), or ""."""
    with path.open("rb") as file:
        head = file.read(_BLOCK)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as stream:
                head = stream.read(_BLOCK)
        except (OSError, EOFError, zlib.error):
            return ""
    return "tar" if is_tar(head) else ""


def budget_of(path: Path, limits: Limits) -> int:
    """Return the bytes that an archive may unpack to; weights hardly shrink, bombs are a thousand times smaller."""
    return min(limits.bytes, 4 * path.stat().st_size + _SPARE_BYTES)


def members_of(path: Path, name: str, limits: Limits) -> Iterator[Entry]:
    """List an archive; raise RefusedCheckpoint, or what `refusing` turns into one."""
    listing = _zip_members(path, name, limits) if kind_of(path) == "zip" else _tar_members(path, limits)
    for count, entry in enumerate(listing, 1):
        if count > limits.members:
            raise RefusedCheckpoint(f"{name} has more than {limits.members:,} records. Pack the weights alone.")
        yield entry


@contextmanager
def reading(path: Path) -> Iterator[Pieces]:
    """Open an archive once; the function that it gives returns a member's bytes in pieces, as many as were declared.

    A gzipped tar is read to its end at last, where its only checksum stands.
    """
    if kind_of(path) == "zip":
        with zipfile.ZipFile(path) as archive:
            yield lambda entry: _of_zip(archive, entry)
    else:
        with _stream(path) as stream:
            yield lambda entry: _of_tar(stream, entry)
            _drain(stream, path)


def _drain(stream: IO[bytes], path: Path) -> None:
    most = 4 * path.stat().st_size + _SPARE_BYTES
    while _is_gzip(path) and stream.read(_PIECE):
        if stream.tell() > most:
            raise ValueError("far more follows its last member than it holds")


def _of_zip(archive: zipfile.ZipFile, entry: Entry) -> Iterator[bytes]:
    total = 0
    with archive.open(entry.name) as source:  # compares the checksum at its end
        while piece := source.read(_PIECE):
            total += len(piece)
            if total > entry.bytes:
                break
            yield piece
    if total != entry.bytes:
        raise ValueError("a record has another size than the list says")


def _of_tar(stream: IO[bytes], entry: Entry) -> Iterator[bytes]:
    stream.seek(entry.start)
    left = entry.bytes
    while left:
        piece = stream.read(min(_PIECE, left))
        if not piece:
            raise EOFError("it is cut short")
        left -= len(piece)
        yield piece


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _stream(path: Path) -> IO[bytes]:
    return gzip.open(path) if _is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def _tar_members(path: Path, limits: Limits) -> Iterator[Entry]:
    packed = _is_gzip(path)
    budget = budget_of(path, limits) if packed else path.stat().st_size
    with _stream(path) as stream:
        yield from (replace(entry, packed=packed) for entry in entries_of(stream, budget))


def _zip_members(path: Path, name: str, limits: Limits) -> Iterator[Entry]:
    with path.open("rb") as file:
        check_count(file, name, limits)
        with zipfile.ZipFile(file) as archive:
            places = plain_members(archive, file, path.stat().st_size, name)
            for info in archive.infolist():
                if info.flag_bits & 1:
                    raise RefusedCheckpoint(f"{name} has encrypted records. Unpack it with its password first.")
                if info.compress_type not in _METHODS:
                    raise RefusedCheckpoint(f"{name} is compressed in a rare way. Pack the folder as an ordinary zip.")
                packed = info.compress_type != zipfile.ZIP_STORED
                if not packed and info.compress_size != info.file_size:
                    raise RefusedCheckpoint(f"{name} is damaged: the size of {printable(info.filename, 60)} is wrong.")
                start = places[info.filename].start
                yield Entry(info.orig_filename, info.file_size, _zip_kind(info), start, packed, info.CRC)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if info.is_dir():
        return "folder"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "device"
