"""What the readers of data share: a named file, and reading it, or a zip, under a budget.

A file is hostile: a megabyte can unpack to a gigabyte. Nothing here reads more than `MAX_BYTES`, nor, beyond
`FREE_BYTES`, more than `MAX_RATIO` times what lies on the disk.
"""

from __future__ import annotations

import gzip
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np

from probes.errors import DataError

MAX_BYTES = 4 * 2**30
FREE_BYTES = 64 * 2**20
MAX_RATIO = 200
MAX_MEMBERS = 500_000
CHUNK = 2**20

Array = np.ndarray[Any, Any]
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Source:
    """A file on disk and the name that its owner knows it by."""

    path: Path
    name: str

    @property
    def stem(self) -> str:
        """Return the name less its endings, for ids: `t10k-images-idx3-ubyte.gz` -> `t10k-images`."""
        return self.name.split("-idx")[0].split(".idx")[0].removesuffix(".gz").rsplit(".", 1)[0] or self.name

    def size(self) -> int:
        """Return the bytes on disk."""
        return self.path.stat().st_size

    def head(self, count: int = 4096) -> bytes:
        """Return the first bytes, unpacked when the file is gzip."""
        with self.open() as file:
            return file.read(count)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open for reading, through gzip when the content is; damage becomes a DataError."""
        try:
            with self.path.open("rb") as raw:
                packed = raw.read(2) == GZIP
                raw.seek(0)
                yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self.name} is damaged: its gzip data ends or breaks ({short(error)}). Copy it again."
            ) from error
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror or error}. Check the path.") from error

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """Return the whole content, unpacked; DataError where it would pass the budget."""
        with self.open() as file:
            return read_bounded(file, self.name, self.size(), limit)


def check_budget(name: str, unpacked: int, packed: int, limit: int = MAX_BYTES) -> None:
    """Refuse content that is too large, or too large for the file that it comes from."""
    if unpacked > limit:
        raise DataError(f"{name} unpacks to more than {words(limit)}; give a smaller part of the data.")
    if unpacked > max(FREE_BYTES, MAX_RATIO * packed):
        raise DataError(
            f"{name} has {words(packed)} but unpacks to {words(unpacked)} or more, over {MAX_RATIO} times as much: "
            "it looks like a decompression bomb. Give the data uncompressed if it is meant."
        )


def read_bounded(file: IO[bytes], name: str, packed: int, limit: int = MAX_BYTES) -> bytes:
    """Read to the end, checking the budget at every chunk."""
    content = bytearray()
    while chunk := file.read(CHUNK):
        content += chunk
        check_budget(name, len(content), packed, limit)
    return bytes(content)


def words(size: int) -> str:
    """Write a number of bytes for people."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size} bytes"


def shown(name: str) -> str:
    """Return a path from a folder or a zip fit for a sentence and for an id: printable, at most 200 characters."""
    clean = "".join(each if each.isprintable() else "?" for each in name)
    return clean if len(clean) <= 200 else f"{clean[:100]}…{clean[-99:]}"


@contextmanager
def open_zip(source: Source) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Open a zip and list its files, after checks of names, count, encryption and declared sizes."""
    try:
        with _zip(source) as archive:
            members = [each for each in archive.infolist() if not each.filename.endswith("/")]
            _check_members(source, members)
            yield archive, members
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, struct.error, UnicodeDecodeError) as error:
        raise DataError(f"{source.name} is a damaged or unusual zip ({short(error)}). Write it again.") from error
    except OSError as error:
        raise DataError(f"{source.name} cannot be read: {error.strerror or error}. Check the path.") from error


def short(error: object) -> str:
    """Return the first line of what another library says, shortened, printable."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return "".join(each if each.isprintable() else "?" for each in line)[:160].rstrip(". ")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, limit: int = MAX_BYTES) -> bytes:
    """Read one member; its checksum is checked on the way."""
    name = f"{name}/{shown(member.filename)}"
    check_budget(name, member.file_size, member.compress_size, limit)
    with archive.open(member) as file:
        return read_bounded(file, name, member.compress_size, limit)


def _zip(source: Source) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source.path)
    except (ValueError, IndexError, struct.error, OverflowError) as error:  # zipfile lets these through
        raise zipfile.BadZipFile(short(error)) from error


def _check_members(source: Source, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{source.name} holds {len(members)} files; at most {MAX_MEMBERS} are read. Split it.")
    seen: set[str] = set()
    for member in members:
        problem = _problem(member)
        if problem:
            raise DataError(f"{source.name} holds {shown(member.filename)!r}, {problem}")
        twin = unicodedata.normalize("NFC", member.filename)
        if twin in seen:
            raise DataError(f"{source.name} holds {shown(member.filename)!r} twice. Write the zip again.")
        seen.add(twin)
    check_budget(source.name, sum(each.file_size for each in members), source.size())


def _problem(member: zipfile.ZipInfo) -> str:
    path = PurePosixPath(member.filename)
    if not member.filename:
        return "a file without a name. Write the zip again."
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or "\0" in member.orig_filename:
        return "a path that leads out of it. Write the zip again."
    if member.flag_bits & 1:
        return "which is encrypted. Write the zip without a password."
    if (member.external_attr >> 16) & 0o170000 == 0o120000:
        return "a link. Put the file itself in its place."
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"packed in an unusual way ({member.compress_type}). Write the zip with deflate, or uncompressed."
    return ""
