"""Bytes of a file -> bytes of one tensor: reading a stretch, gathering strides, turning byte orders."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Raw, Span, Stored

_COMPLEX = ("complex32", "complex64", "complex128")


def span_of(path: Path, name: str, start: int = 0) -> Span:
    """Return the reader of stretches of a file, from the byte `start` on; it refuses a file that became shorter."""

    def read(first: int, length: int) -> Raw:
        raw: Raw = np.empty(length, np.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start + first)
                got = 0
                while got < length and (more := file.readinto(raw[got:].data)):  # at most 2 GiB come at a time
                    got += more
        except OSError as error:
            raise RefusedCheckpoint(f"{name} cannot be read from the disk: {error.strerror or error}.") from None
        if got != length:
            raise RefusedCheckpoint(f"{name} has changed since it was described. Upload it again.")
        return raw

    return read


def span_of_bytes(content: bytes) -> Span:
    """Return the reader of stretches of bytes in memory."""
    return lambda first, length: np.frombuffer(content, np.uint8, length, first)


def stored(
    span: Span,
    dtype: str,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    key: object,
    *,
    device: str = "cpu",
) -> Stored:
    """Describe a tensor that looks into a storage: offset and strides are in elements, checked by the caller."""
    item = ITEM_BYTES[dtype]
    reach = sum((count - 1) * step for count, step in zip(shape, stride, strict=True)) + 1 if math.prod(shape) else 0

    def read() -> Raw:
        return gathered(span(offset * item, reach * item), item, shape, stride)

    def part(first: int, count: int) -> Raw:
        return span((offset + first) * item, count * item)

    in_a_row = stride == row_major(shape)
    return Stored(dtype, shape, read, (key, offset, shape, stride), device, part if in_a_row else None)


def gathered(raw: Raw, item: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Raw:
    """Return the elements of a strided tensor in row-major order; `raw` begins at its first element."""
    if not math.prod(shape):
        return np.empty(0, np.uint8)
    if stride == row_major(shape):
        return raw
    elements = raw.view(np.dtype(f"V{item}"))
    steps = tuple(each * item for each in stride)
    picked = np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)
    return np.frombuffer(np.ascontiguousarray(picked).tobytes(), np.uint8)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor."""
    steps, step = [], 1
    for count in reversed(shape):
        steps.append(step)
        step *= count
    return tuple(reversed(steps))


def swapped(span: Span, dtype: str) -> Span:
    """Turn the big-endian numbers of a storage round; stretches must begin and end between elements."""
    item = ITEM_BYTES[dtype] // (2 if dtype in _COMPLEX else 1)
    return lambda first, length: np.frombuffer(span(first, length).reshape(-1, item)[:, ::-1].tobytes(), np.uint8)
