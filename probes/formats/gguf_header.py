"""The header of a GGUF file: numbers, strings, settings and lists, read within hard bounds."""

from __future__ import annotations

import math
import struct
from typing import IO, Any, NoReturn

from probes.errors import RefusedCheckpoint
from probes.formats.contents import printable

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MOST_SETTINGS, _MOST_ITEMS, _DEEPEST_ARRAY = 65_536, 5_000_000, 4
_LONGEST_KEY, _LONGEST_TEXT = 500, 500


class Header:
    """The bytes before the tensors, read as they are needed and never beyond `most`."""

    def __init__(self, file: IO[bytes], name: str, most: int) -> None:
        self.name = name
        self.at = 0
        self._file = file
        self._most = most
        self._content = b""
        self._items = 0

    def refuse(self, what: str) -> NoReturn:
        """Raise the error of a damaged file."""
        raise RefusedCheckpoint(f"{self.name} is a damaged or cut GGUF file: {what}. Copy it again from its source.")

    def skip(self, count: int) -> int:
        """Step over so many bytes and return where they began."""
        start, self.at = self.at, self.at + count
        if self.at > len(self._content):
            if self.at > self._most:
                self.refuse(f"its header claims {count:,} bytes at byte {start:,}, more than it has or may have")
            wanted = max(self.at, 2 * len(self._content), 2**16) - len(self._content)
            self._content += self._file.read(min(wanted, self._most - len(self._content)))
            if self.at > len(self._content):
                self.refuse(f"its header ends at byte {len(self._content):,}")
        return start

    def number(self, code: str) -> Any:
        """Read a number; code: as `struct` has it."""
        start = self.skip(struct.calcsize(code))
        return struct.unpack_from(code, self._content, start)[0]

    def text(self, most: int, what: str) -> str:
        """Read a string of at most `most` bytes that must be UTF-8."""
        count = self.number("<Q")
        if count > most:
            self.refuse(f"{what} claims {count:,} letters, where {most:,} are allowed")
        start = self.skip(count)
        try:
            return self._content[start : start + count].decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} at byte {start:,} is no UTF-8")

    def long_text(self) -> str:
        """Read the beginning of a string of any length."""
        count = self.number("<Q")
        start = self.skip(count)
        return printable(
            self._content[start : start + min(count, 4 * _LONGEST_TEXT)].decode(errors="replace"), _LONGEST_TEXT
        )

    def count_items(self, count: int, depth: int) -> int:
        """Return the length of a list, unless all lists together are too long or this one lies too deep."""
        self._items += count
        if self._items > _MOST_ITEMS or depth > _DEEPEST_ARRAY:
            self.refuse(f"a list claims {count:,} items at depth {depth}")
        return count


def read_settings(header: Header, count: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the plain settings, and how many items each list has."""
    if count > _MOST_SETTINGS:
        header.refuse(f"it claims {count:,} settings, where {_MOST_SETTINGS:,} are allowed")
    plain: dict[str, Any] = {}
    lists: dict[str, int] = {}
    for _ in range(count):
        key = header.text(_LONGEST_KEY, "the name of a setting")
        if key in plain or key in lists:
            header.refuse(f"the setting {printable(key)} is there twice")
        kind = header.number("<I")
        if kind == _ARRAY:
            lists[key] = _skip_array(header, 1)
        else:
            plain[key] = _scalar(header, kind, key)
    return plain, lists


def _scalar(header: Header, kind: int, key: str) -> Any:
    if kind == _STRING:
        return header.long_text()
    if kind not in _SCALARS:
        header.refuse(f"the setting {printable(key)} has the unknown type {kind}")
    value = header.number("<B" if kind == _BOOL else _SCALARS[kind])
    if kind == _BOOL:
        return bool(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _skip_array(header: Header, depth: int) -> int:
    kind, count = header.number("<I"), header.count_items(header.number("<Q"), depth)
    if kind in _SCALARS:
        header.skip(count * struct.calcsize(_SCALARS[kind]))
    elif kind == _STRING:
        for _ in range(count):
            header.skip(header.number("<Q"))
    elif kind == _ARRAY:
        for _ in range(count):
            _skip_array(header, depth + 1)
    else:
        header.refuse(f"a list has items of the unknown type {kind}")
    return count
