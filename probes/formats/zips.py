"""Zip archives without trust: where each record really lies, that none overlap, and their checksums."""

from __future__ import annotations

import io
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Limits, Span, printable
from probes.formats.raw import span_of

# What Python's own reader of zips may raise for a damaged one.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, OSError, ValueError, OverflowError,
    IndexError, KeyError, MemoryError, RuntimeError,
)  # fmt: skip
_PIECE = 2**20
_BUFFER = 4096  # headers lie far apart
_LOCAL = struct.Struct("<4s2x2H4x3I2H")
_END, _WIDE_END = b"PK\x05\x06", b"PK\x06\x06"
_END_BYTES, _WIDE_BYTES, _COMMENT_BYTES = 22, 76, 65_536  # the wide end comes with its locator
_GAP_BYTES = 64  # a writer may put the sizes behind a record; more between records is hidden
_NAME_BYTES = 1024


@dataclass(frozen=True)
class Member:
    """A record that is stored as it is: its place in the file and the checksum that was written beside it."""

    name: str
    start: int
    bytes: int
    crc: int


class Window(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._start, self._length, self._at = start, length, 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move, counted from the beginning of the stretch."""
        base = {0: 0, 1: self._at, 2: self._length}[whence]
        if base + offset < 0:
            raise OSError(22, "a place before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: object) -> int:
        """Read, not beyond the end of the stretch."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = max(0, min(len(view), self._length - self._at))
        self._file.seek(self._start + self._at)
        got = self._file.readinto(view[:count]) or 0
        self._at += got
        return got

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_window(path: Path, start: int = 0, length: int | None = None) -> IO[bytes]:
    """Open a stretch of a file for reading; to its end where no length is given."""
    end = path.stat().st_size - start if length is None else length
    return io.BufferedReader(Window(path, start, end), _BUFFER)


def plain_members(
    archive: zipfile.ZipFile, file: IO[bytes], length: int, name: str, start: int = 0
) -> Mapping[str, Member]:
    """Find the uncompressed records of an archive by the headers that stand before them.

    The directory at the end and the headers must agree, and no two records share bytes. start: of the archive in its
    file, for `Member.start`. Raises RefusedCheckpoint.
    """
    members, end = {}, 0
    for info in sorted(archive.infolist(), key=lambda each: each.header_offset):
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size:
            raise RefusedCheckpoint(f"{name} is a damaged zip archive: a header lies behind its end. Copy it again.")
        magic, flags, method, crc, packed, plain, name_bytes, extra = _LOCAL.unpack(header)
        first = info.header_offset + _LOCAL.size + name_bytes + extra
        said = file.read(name_bytes).decode("utf-8" if flags & 0x800 else "cp437", "replace")
        streamed = bool(flags & 8)
        sizes = packed in (info.compress_size, 0xFFFFFFFF) and plain in (info.file_size, 0xFFFFFFFF)
        same = streamed or (crc == info.CRC and sizes)
        agrees = magic == b"PK\x03\x04" and said == info.orig_filename and same and method == info.compress_type
        if not agrees or info.header_offset < end or first + info.compress_size > length:
            shown = printable(info.filename, 60)
            raise RefusedCheckpoint(
                f"{name} is a damaged zip archive: the record {shown} overlaps another, or is not what the directory "
                "says. Copy it again."
            )
        if info.header_offset > end + _GAP_BYTES:
            raise RefusedCheckpoint(
                f"{name} hides {info.header_offset - end:,} bytes between the records of its archive. Save it again."
            )
        end = first + info.compress_size
        members[info.filename] = Member(info.filename, start + first, info.file_size, info.CRC)
    return members


def check_count(file: IO[bytes], name: str, limits: Limits) -> None:
    """Refuse an archive of more records than are read, before anything is made of each, or with bytes behind its end.

    What is no zip archive at all is left to be said by who opens it.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES - _WIDE_BYTES - _COMMENT_BYTES))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        return
    length, _, comment = struct.unpack_from("<2IH", tail, at + 12)
    if at >= _WIDE_BYTES and tail.startswith(_WIDE_END, at - _WIDE_BYTES):
        (length,) = struct.unpack_from("<Q", tail, at - _WIDE_BYTES + 40)
        at -= _WIDE_BYTES
    if length > limits.index:
        raise RefusedCheckpoint(f"{name} has a directory of {length:,} bytes; at most {limits.index:,} are read.")
    file.seek(max(0, size - len(tail) + at - length))
    count = file.read(length).count(b"PK\x01\x02")
    if count > limits.members:
        raise RefusedCheckpoint(f"{name} has {count:,} records; at most {limits.members:,} are read.")
    if tail.rfind(_END) + _END_BYTES + comment != len(tail):
        raise RefusedCheckpoint(f"{name} has bytes behind the end of its zip archive. Copy it again from its source.")


def check_directory(archive: zipfile.ZipFile, name: str, limits: Limits) -> None:
    """Refuse encrypted records, links, doubled names, and names that lead out of a folder."""
    records = archive.infolist()
    if len(records) > limits.members:
        raise RefusedCheckpoint(f"{name} has {len(records):,} records; at most {limits.members:,} are read.")
    if any(info.flag_bits & 1 for info in records):
        raise RefusedCheckpoint(f"{name} is an encrypted zip archive: unpack it with its password first.")
    names = [info.filename for info in records]
    if len({unicodedata.normalize("NFC", each).casefold() for each in names}) != len(names):
        raise RefusedCheckpoint(
            f"{name} is a zip with doubled records: which one counts cannot be told. Save it again."
        )
    for each, info in zip(names, records, strict=True):
        parts = each.replace("\\", "/").split("/")
        if each.startswith(("/", "\\")) or ".." in parts or "\0" in info.orig_filename or "\\" in each:
            raise RefusedCheckpoint(f"{name} has the record {printable(each, 60)}, which leads out of its folder.")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RefusedCheckpoint(f"{name} has the link or device {printable(each, 60)}. Zip the plain files again.")
        if not each.isprintable() or len(each) > _NAME_BYTES:
            raise RefusedCheckpoint(
                f"{name} has a record whose name cannot be printed, or has {len(each):,} characters "
                f"({printable(each, 40)}). Save it again."
            )


def check_sum(path: Path, member: Member, name: str) -> None:
    """Compare a record with the CRC-32 that its writer put beside it; raise RefusedCheckpoint."""
    span, crc = span_of(path, name, member.start), 0
    for first in range(0, member.bytes, _PIECE):
        crc = zlib.crc32(span(first, min(_PIECE, member.bytes - first)).data, crc)
    if crc != member.crc:
        raise RefusedCheckpoint(
            f"{name} is damaged: the checksum of its record {printable(member.name, 60)} is wrong. Copy it again."
        )


def checked_span(path: Path, member: Member, name: str) -> Span:
    """Return the reader of a record's bytes; before the first of them is given, the whole record is checked."""
    plain = span_of(path, name, member.start)
    done: list[bool] = []

    def read(first: int, length: int):  # type: ignore[no-untyped-def]
        if not done:
            check_sum(path, member, name)
            done.append(True)
        return plain(first, length)

    return read
