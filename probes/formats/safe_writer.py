"""Write tensors into a safetensors file, one after another: what is in memory is one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Stored, printable
from probes.formats.safe import DTYPES
from probes.formats.statistics import Seen, look

Tick = Callable[[float, str], None]
CODES: Mapping[str, str] = {dtype: code for code, dtype in DTYPES.items()}
_ALIGNMENT = 8
_PIECE = 2**24


@dataclass(frozen=True)
class Written:
    """Describe a file that was written. other_types: tensors of types that safetensors has not, kept as raw bytes:
    name -> (dtype, shape). seen: what a look at each tensor found.
    """

    sha256: str
    bytes: int
    other_types: Mapping[str, tuple[str, tuple[int, ...]]]
    seen: Mapping[str, Seen]


def write_tensors(
    path: Path, tensors: Mapping[str, Stored], name: str, progress: Callable[[int, str], None]
) -> Written:
    """Write a new file, and look at every value on the way; raise RefusedCheckpoint where a tensor cannot be read.

    The header keeps the order of `tensors`; their bytes lie by item size, largest first, so that all are aligned.
    name: of the checkpoint, for messages. progress: is told how many bytes more are done.
    """
    if "__metadata__" in tensors:
        raise RefusedCheckpoint(
            f"{name} has a tensor called __metadata__, which safetensors keeps for itself. Rename it."
        )
    order = sorted(tensors, key=lambda key: -ITEM_BYTES[tensors[key].dtype])
    header = _header(tensors, order)
    digest, seen = hashlib.sha256(header), {}
    with path.open("xb") as file:
        file.write(header)
        for key in order:
            each = tensors[key]
            raw = each.read()
            if raw.size != each.bytes:
                raise ValueError(f"{each.bytes} bytes of {key} were to be read, {raw.size} came")
            seen[key] = look(raw, each.dtype)
            for first in range(0, raw.size, _PIECE):
                piece = raw[first : first + _PIECE].data
                digest.update(piece)
                file.write(piece)
            progress(raw.size, f"copying {printable(key, 60)}")
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    others = {key: (each.dtype, each.shape) for key, each in tensors.items() if each.dtype not in CODES}
    return Written(digest.hexdigest(), size, others, {key: seen[key] for key in tensors})


def _header(tensors: Mapping[str, Stored], order: list[str]) -> bytes:
    places, end = {}, 0
    for key in order:
        places[key] = (end, end + tensors[key].bytes)
        end += tensors[key].bytes
    entries = {}
    for key, each in tensors.items():
        shape = list(each.shape) if each.dtype in CODES else [each.bytes]
        entries[key] = {"dtype": CODES.get(each.dtype, "U8"), "shape": shape, "data_offsets": list(places[key])}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
