"""Read .bin files of token ids: plain uint16 (nanoGPT) or uint32, and llm.c's with a header of 256 int32.

The file is mapped, not read: only the chosen sequences are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from probes.dataset.encoders import read_tokenizer
from probes.dataset.examples import Examples, Own
from probes.dataset.files import Array, Source
from probes.dataset.tokens import Tokens, context_for, sequences, shower
from probes.errors import DataError
from probes.specs import DataSpec

HEADER_BYTES = 1024
PROBE_BYTES = 2**16
SMALL = 16  # the high half of a 32-bit id below a million


@dataclass(frozen=True)
class Layout:
    """One kind of llm.c's token files."""

    version: int
    bytes: int
    vocabulary: int
    title: str


LAYOUTS: Mapping[int, Layout] = {20240520: Layout(1, 2, 50257, "GPT-2"), 20240801: Layout(7, 4, 128256, "Llama 3")}
WEIGHTS = (20240326, 20240327)  # llm.c's checkpoint and its debugging state


def is_llmc(head: bytes) -> bool:
    """Tell whether a file begins with the magic number of llm.c's tokens."""
    return len(head) >= 4 and struct.unpack("<i", head[:4])[0] in LAYOUTS


def is_llmc_weights(head: bytes) -> bool:
    """Tell whether a file begins with the magic number of llm.c's checkpoints."""
    return len(head) >= 4 and struct.unpack("<i", head[:4])[0] in WEIGHTS


def read_bin(source: Source, spec: DataSpec, own: Own) -> Examples:
    """Map a file of token ids as one document and cut it into sequences."""
    ids, own, about, doubts = _ids(source, spec, own)
    context, more = context_for(source, spec, len(ids), own)
    tokens = Tokens(ids, np.array([0, len(ids)], np.int64))
    made = sequences(source, "token .bin", tokens, context, own, about, doubts + more)
    tokenizer = own.tokenizer if spec.tokenizer == "auto" else None
    decode = read_tokenizer(source.name, tokenizer).decode if tokenizer else None
    return replace(made, show=shower(decode))


def _ids(source: Source, spec: DataSpec, own: Own) -> tuple[Array, Own, dict[str, str], tuple[str, ...]]:
    with source.path.open("rb") as file:
        head = file.read(PROBE_BYTES)
    if is_llmc(head):
        return _llmc(source, head, own)
    size = source.size()
    wide, doubts = (spec.format == "tokens32", ()) if spec.format != "auto" else _looks_wide(head)
    width = 4 if wide else 2
    if size == 0 or size % width:
        raise DataError(
            f"{source.name} has {size} bytes, which is no whole number of {8 * width}-bit tokens. Copy it again, or "
            "choose another format."
        )
    about = {"tokenizer": f"ids, uint{8 * width}, without a header"}
    return np.memmap(source.path, f"<u{width}", "r"), own, about, doubts


def _llmc(source: Source, head: bytes, own: Own) -> tuple[Array, Own, dict[str, str], tuple[str, ...]]:
    if len(head) < HEADER_BYTES:
        raise DataError(f"{source.name} ends inside llm.c's header of {HEADER_BYTES} bytes. Copy it again.")
    magic, version, count = struct.unpack("<3i", head[:12])
    layout = LAYOUTS[magic]
    if version != layout.version:
        raise DataError(
            f"{source.name}: llm.c's tokens for {layout.title} are of version {layout.version}, this file is of "
            f"version {version}. Write it again with the llm.c of today."
        )
    held = source.size() - HEADER_BYTES
    if count < 0 or count * layout.bytes != held:
        raise DataError(
            f"{source.name}: its header says {count} tokens, that is {count * layout.bytes} bytes, but {held} follow. "
            "Copy it again."
        )
    if not count:
        raise DataError(f"{source.name} holds no tokens. Give a file with some.")
    ids = np.memmap(source.path, f"<u{layout.bytes}", "r", HEADER_BYTES)
    about = {"tokenizer": f"ids, uint{8 * layout.bytes}, llm.c's for {layout.title}"}
    return ids, replace(own, vocabulary=own.vocabulary or layout.vocabulary), about, ()


def _looks_wide(head: bytes) -> tuple[bool, tuple[str, ...]]:
    """Tell whether raw ids are 32 bits wide: then every other half is small, and only every other."""
    halves = np.frombuffer(head[: len(head) // 4 * 4], "<u2")
    if len(halves) < 64 or halves[1::2].max() >= SMALL or halves[::2].max() < SMALL:
        return False, ()
    return True, ("every other 16-bit number is small, so the tokens are taken as 32 bits wide; choose 16 if not.",)
