"""safetensors: a header of JSON, then the tensors one after another without a gap."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Contents, Limits, Stored, printable
from probes.formats.raw import row_major, span_of, stored

DTYPES: Mapping[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip
_LARGEST = 2**62


def read_safetensors(path: Path, name: str, limits: Limits, *, start: int = 0, length: int | None = None) -> Contents:
    """Read the header of a safetensors file, or of a stretch of a file; raise RefusedCheckpoint."""
    size = path.stat().st_size - start if length is None else length
    with path.open("rb") as file:
        file.seek(start)
        count = int.from_bytes(file.read(8), "little")
        if count > limits.index:
            raise RefusedCheckpoint(f"{name} claims a header of {count:,} bytes; at most {limits.index:,} are read.")
        if 8 + count > size:
            raise RefusedCheckpoint(
                f"{name} is cut short: its header claims {count:,} bytes of {size:,}. Copy it again."
            )
        header = _header(file.read(count), name, limits)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise RefusedCheckpoint(f"{name} is a damaged safetensors file: its metadata are no texts. Copy it again.")
    if len(header) > limits.tensors:
        raise RefusedCheckpoint(f"{name} holds {len(header):,} tensors; at most {limits.tensors:,} are read.")
    _check_offsets(header, size - 8 - count, name)
    data = start + 8 + count
    value = {key: _tensor(path, name, key, about, data, limits) for key, about in header.items()}
    return Contents(path, "safetensors", size, value, metadata)


def _header(content: bytes, name: str, limits: Limits) -> dict[str, Any]:
    most = 8 * limits.tensors + 10_000  # of objects and lists: a tensor has three, and JSON makes 60 bytes of two
    if content.count(b"{") + content.count(b"[") > most or content.count(b",") > 3 * most:
        raise RefusedCheckpoint(
            f"{name} has a safetensors header of more parts than {limits.tensors:,} tensors have; no more are read."
        )
    try:
        header = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = printable(str(error) if not isinstance(error, RecursionError) else "it is nested too deeply")
        raise RefusedCheckpoint(f"{name} has no readable safetensors header ({reason}). Copy it again.") from None
    if not isinstance(header, dict):
        raise RefusedCheckpoint(f"{name} has no readable safetensors header (it is no object). Copy it again.")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _check_offsets(header: Mapping[str, Any], size: int, name: str) -> None:
    """Refuse overlaps, holes and tensors that reach out: together they must be the rest of the file."""
    spans = []
    for key, about in header.items():
        offsets: Any = about.get("data_offsets") if isinstance(about, dict) else None
        whole = isinstance(offsets, list) and len(offsets) == 2 and all(type(each) is int for each in offsets)
        if not whole or not 0 <= offsets[0] <= offsets[1] <= size:
            raise RefusedCheckpoint(
                f"{name} is cut short or damaged: {printable(key, 60)} lies at {printable(str(offsets), 60)} "
                f"of {size:,} bytes. Copy it again."
            )
        spans.append((offsets[0], offsets[1], key))
    end = 0
    for first, last, key in sorted(spans):
        if first != end:
            what = "overlaps another" if first < end else "leaves a hole before it"
            raise RefusedCheckpoint(
                f"{name} is a damaged safetensors file: {printable(key, 60)} {what}. Copy it again."
            )
        end = last
    if end != size:
        raise RefusedCheckpoint(f"{name} is damaged: {size - end:,} bytes follow its last tensor. Copy it again.")


def _tensor(path: Path, name: str, key: str, about: Mapping[str, Any], data: int, limits: Limits) -> Stored:
    dtype, shape = DTYPES.get(str(about.get("dtype"))), about.get("shape")
    if dtype is None:
        raise RefusedCheckpoint(
            f"{name}: the tensor {printable(key, 60)} has the dtype {printable(str(about.get('dtype')), 20)}, which is "
            "not read here; save it as float32."
        )
    counts = tuple(shape) if isinstance(shape, list) else (-1,)
    if len(counts) > limits.rank or not all(type(each) is int and 0 <= each < _LARGEST for each in counts):
        raise RefusedCheckpoint(
            f"{name}: the tensor {printable(key, 60)} has the shape {printable(str(shape), 60)}; at most {limits.rank} "
            "dimensions are read."
        )
    first, last = about["data_offsets"]
    if math.prod(counts) * ITEM_BYTES[dtype] != last - first or math.prod(max(each, 1) for each in counts) >= _LARGEST:
        raise RefusedCheckpoint(
            f"{name} is a damaged safetensors file: the tensor {printable(key, 60)} of shape {list(counts)[:8]} has "
            f"{last - first:,} bytes. Copy it again."
        )
    return stored(span_of(path, name, data + first), dtype, 0, counts, row_major(counts), (key,))
