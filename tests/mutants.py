"""Damaged copies of good files, and what a reader may answer: tensors that can be read, or a refusal in words."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits, Record, Stored

LIMITS = Limits()
_NUMBERS = (0, 1, 2, 3, 7, 31, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)

Reader = Callable[[Path, str, Limits], Contents]


@st.composite
def mutants(draw: st.DrawFn, good: bytes, ranges: tuple[tuple[int, int], ...] = ()) -> bytes:
    """Draw a damaged copy; ranges: where the damage is to be (start, end), by default anywhere."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        start, end = draw(st.sampled_from(ranges)) if ranges else (0, len(good))
        at = draw(st.integers(start, min(end, len(content)) - 1)) if min(end, len(content)) > start else 0
        match draw(st.sampled_from(("cut", "byte", "bit", "number", "drop", "double"))):
            case "cut":
                del content[at:]
            case "byte":
                content[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "bit" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                code = draw(st.sampled_from(("<I", "<Q", ">I", ">Q", "<H")))
                number = struct.pack(code, draw(st.sampled_from(_NUMBERS)) % 256 ** struct.calcsize(code))
                content[at : at + len(number)] = number
            case "drop":
                del content[at : at + draw(st.integers(1, 16))]
            case "double":
                content[at:at] = content[at : at + draw(st.integers(1, 64))]
    return bytes(content)


def stored_in(value: Any) -> Iterator[Stored]:
    """Yield every tensor in what a reader handed back."""
    if isinstance(value, Stored):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from stored_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from stored_in(each)
    elif isinstance(value, Record):
        yield from stored_in([value.arguments, value.state, value.items])


def answer(read: Reader, path: Path) -> str:
    """Read all that a file holds; return the refusal, or "" where all tensors could be read."""
    try:
        contents = read(path, path.name, LIMITS)
        for each in stored_in(contents.value):
            assert each.read().nbytes == each.bytes
        contents.verify()
    except RefusedCheckpoint as error:
        words = str(error)
        assert path.name in words
        assert words.isprintable()
        assert 20 < len(words) < 800, words
        return words
    return ""


def refusal(read: Reader, path: Path, megabytes: int = 48, seconds: float = 3) -> str:
    """Return the words in which a file is refused; it must cost little memory and time."""
    tracemalloc.start()
    started = time.process_time()
    try:
        words = answer(read, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert words, "it was not refused"
    assert peak < megabytes * 10**6, f"{peak:,} bytes were taken"
    assert time.process_time() - started < seconds
    return words
