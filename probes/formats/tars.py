"""Tar archives without trust: what lies where, from the headers alone. Links and devices are named, never made.

Written for streams of unknown size: every header that may hold a long name is bounded, and nothing is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

_BLOCK = 512
_MOST_NAME = 2**16
_MOST_SAID = 16
_LARGEST = 2**62
_KINDS: Mapping[bytes, str] = {
    b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "link", b"2": "link",
    b"3": "device", b"4": "device", b"6": "device",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A member of an archive.

    kind: "file", "folder", "link", "device". start: the first of its bytes in the archive, once that is unpacked.
    packed: whether the bytes are compressed. crc: the checksum that was written beside them.
    """

    name: str
    bytes: int
    kind: str
    start: int = 0
    packed: bool = False
    crc: int | None = None


def is_tar(head: bytes) -> bool:
    """Say whether a file that begins so is a tar archive."""
    return len(head) >= _BLOCK and head[257:262] == b"ustar"


def entries_of(stream: IO[bytes], budget: int) -> Iterator[Entry]:
    """List the members of a tar archive; the stream may be read by seeking to `Entry.start`, between two of them.

    budget: bytes that the archive may claim to hold. Raises ValueError saying what is wrong.
    """
    at, told, said = 0, dict[str, str](), 0
    while True:
        stream.seek(at)
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        name, size, flag = _header(header)
        size = _number(told.pop("size", ""), size)
        start, at = at + _BLOCK, at + _BLOCK + -(-size // _BLOCK) * _BLOCK
        if start + size > budget:
            raise ValueError(f"its members claim {start + size:,} bytes of {budget:,}: it is cut short, or far more")
        if flag in (b"L", b"K", b"x", b"g"):
            told |= _told(flag, stream, size)
            said += 1
            if said > _MOST_SAID:
                raise ValueError("a member has more headers than any needs")
            continue
        kind = _KINDS.get(flag)
        if kind is None:
            raise ValueError(f"it has a member of the unknown kind {flag!r}")
        name = told.get("path", name)
        yield Entry(name, size, "folder" if name.endswith("/") else kind, start)
        told, said = {}, 0


def _header(header: bytes) -> tuple[str, int, bytes]:
    stored = header[148:156].strip(b" \0")
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if len(header) < _BLOCK or not stored.isdigit() or int(stored, 8) != total:
        raise ValueError("a header is damaged")
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    field = header[124:136]
    octal = field.strip(b" \0")
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(octal or b"0", 8)
    return name, size, header[156:157]


def _told(flag: bytes, stream: IO[bytes], size: int) -> dict[str, str]:
    """Read what a header says of the next member: its long name, or pax records."""
    if size > _MOST_NAME:
        raise ValueError(f"a name or a header takes {size:,} bytes")
    content = stream.read(size)
    if flag == b"L":
        return {"path": _text(content)}
    records = dict(_records(content)) if flag in b"xg" else {}
    if any(key.startswith("GNU.sparse") for key in records) or (flag == b"g" and records.keys() & {"path", "size"}):
        raise ValueError("it has sparse members, or one name for all of them")
    return {key: records[key] for key in ("path", "size") if key in records and flag == b"x"}


def _records(content: bytes) -> Iterator[tuple[str, str]]:
    while content.strip(b"\0"):
        digits, _, _ = content[:12].partition(b" ")
        if not digits.isdigit() or not len(digits) + 3 < int(digits) <= len(content):
            raise ValueError("a pax header is damaged")
        record, content = content[len(digits) + 1 : int(digits)], content[int(digits) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "replace")


def _number(text: str, otherwise: int) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError("a pax header is damaged")
    size = int(text) if text else otherwise
    if not 0 <= size < _LARGEST:
        raise ValueError(f"a member claims {size:,} bytes")
    return size


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "replace")
