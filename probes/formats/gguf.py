"""Read GGUF, versions 2 and 3: the format of llama.cpp, quantised weights with their settings in one file.

The header is a list of settings and a list of tensors, then the tensors follow one another, aligned. It is read here
with hard bounds and by no library; quantised weights are turned into float32 when a tensor is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Contents, Limits, Raw, Span, Stored, printable
from probes.formats.gguf_blocks import BLOCKS, OTHERS, PLAIN
from probes.formats.gguf_header import Header, read_settings
from probes.formats.raw import span_of

_MOST_FACTS = 200


def is_gguf(head: bytes) -> bool:
    """Say whether a file that begins with these bytes is GGUF, of any version."""
    return head[:4] == b"GGUF"


def read_gguf(path: Path, name: str, limits: Limits) -> Contents:
    """Say what a GGUF file holds: {tensor: Stored} with shapes as PyTorch has them; the tensors are not read yet.

    Quantised tensors are float32 when read; the others keep their dtype. metadata: the scalars under "general.".
    facts: "gguf" (architecture, name, version and the plain settings of the architecture) and "quantised" ({type:
    tensors}). Raises RefusedCheckpoint for a damaged or incomplete file, another byte order or version, or an unknown
    type of weights. Source: the GGUF specification in ggml's docs.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = Header(file, name, min(size, limits.index))
            version = _version(header)
            tensors, settings = header.number("<Q"), header.number("<Q")
            plain, lists = read_settings(header, settings)
            items = _tensors(header, tensors, limits)
    except OSError as error:
        raise RefusedCheckpoint(f"{name} cannot be read from the disk: {error.strerror or error}.") from None
    _refuse_parts(plain, name)
    start = _check_places(items, header, plain, size)
    value = {item.name: _stored(span_of(path, name), item, start) for item in items}
    quantised = _quantised(items)
    return Contents(
        path, "GGUF", size, value,
        metadata={printable(key): each for key, each in plain.items() if key.startswith("general.")},
        left=_left(lists), doubts=_doubts(quantised, plain),
        facts={"gguf": _facts(plain, version), "quantised": quantised},
    )  # fmt: skip


@dataclass(frozen=True)
class _Item:
    """A tensor as the header declares it; shape in PyTorch's order, offset from the start of the tensors."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def bytes(self) -> int:
        numel = math.prod(self.shape)
        if self.kind in BLOCKS:
            return numel // BLOCKS[self.kind].weights * BLOCKS[self.kind].layout.itemsize
        return numel * ITEM_BYTES[PLAIN[self.kind]]


def _version(header: Header) -> int:
    header.skip(4)
    version = header.number("<I")
    if version in (2, 3):
        return int(version)
    if version == 1:
        words = "a GGUF file of version 1, from before August 2023: convert it again with a llama.cpp of today"
    elif not version & 0xFFFF:
        words = "a big-endian GGUF file, while this reads little-endian ones: convert it with gguf_convert_endian.py"
    else:
        words = f"a GGUF file of version {version}, while this knows 2 and 3: convert it with an older llama.cpp"
    raise RefusedCheckpoint(f"{header.name} is {words}.")


def _tensors(header: Header, count: int, limits: Limits) -> list[_Item]:
    if count > limits.tensors:
        header.refuse(f"it claims {count:,} tensors, where {limits.tensors:,} are allowed")
    items = [_tensor(header, limits) for _ in range(count)]
    if len({item.name for item in items}) != count:
        header.refuse("two of its tensors have the same name")
    numel = sum(math.prod(item.shape) for item in items)
    if numel > limits.parameters:
        header.refuse(f"its tensors claim {numel:,} weights, where {limits.parameters:,} are allowed")
    return items


def _tensor(header: Header, limits: Limits) -> _Item:
    name = header.text(limits.name, "the name of a tensor")
    shown = printable(name)
    rank = header.number("<I")
    if rank > limits.rank:
        header.refuse(f"its tensor {shown} claims {rank:,} dimensions")
    shape = tuple(header.number("<Q") for _ in range(rank))[::-1]
    if math.prod(each or 1 for each in shape) > limits.parameters:
        header.refuse(f"its tensor {shown} claims the shape {shape}")
    kind, offset = header.number("<I"), header.number("<Q")
    if kind not in BLOCKS and kind not in PLAIN:
        what = OTHERS.get(kind, f"number {kind}")
        raise RefusedCheckpoint(
            f"{header.name} holds the tensor {shown} in the GGML type {what}, which this cannot turn into numbers: "
            "convert it to F16 or Q8_0, or bring the original PyTorch or safetensors file."
        )
    if kind in BLOCKS and (not shape or shape[-1] % BLOCKS[kind].weights):
        weights = BLOCKS[kind].weights
        header.refuse(f"its tensor {shown} of shape {shape} does not divide into blocks of {weights} weights")
    return _Item(name, shape, kind, offset)


def _refuse_parts(plain: Mapping[str, Any], name: str) -> None:
    parts = plain.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise RefusedCheckpoint(
            f"{name} is one of {parts} parts of a split GGUF file: join them with `llama-gguf-split --merge` first."
        )


def _check_places(items: list[_Item], header: Header, plain: Mapping[str, Any], size: int) -> int:
    """Return where the tensors begin; they must lie one behind the other up to the end of the file."""
    alignment = plain.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        header.refuse(f"its alignment is {printable(str(alignment))}, no power of two")
    start, end = _aligned(header.at, alignment), 0
    for item in sorted(items, key=lambda item: (item.offset, item.bytes)):
        if item.offset != _aligned(end, alignment):
            where = f"at byte {item.offset:,} where the one before it ends at {end:,}"
            header.refuse(f"its tensor {printable(item.name)} lies {where}, with a gap or an overlap")
        end = item.offset + item.bytes
        if start + end > size:
            header.refuse(f"its tensor {printable(item.name)} ends at byte {start + end:,} of {size:,}")
    if items and size > start + _aligned(end, alignment):
        header.refuse(f"{size - start - end:,} bytes follow its last tensor")
    return start


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _stored(span: Span, item: _Item, start: int) -> Stored:
    place = (start + item.offset, item.bytes, item.kind, item.shape)

    def read() -> Raw:
        content = span(start + item.offset, item.bytes)
        return BLOCKS[item.kind].dequantise(content) if item.kind in BLOCKS else content

    return Stored("float32" if item.kind in BLOCKS else PLAIN[item.kind], item.shape, read, place)


def _quantised(items: list[_Item]) -> dict[str, int]:
    names = [BLOCKS[item.kind].name for item in items if item.kind in BLOCKS]
    return {each: names.count(each) for each in sorted(set(names))}


def _left(lists: Mapping[str, int]) -> tuple[str, ...]:
    longest = sorted(lists.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{printable(key, 60)} with {count:,} items" for key, count in longest)
    return (f"{len(lists)} lists of settings and words were left out ({shown}).",) if lists else ()


def _doubts(quantised: Mapping[str, int], plain: Mapping[str, Any]) -> tuple[str, ...]:
    doubts = []
    if quantised:
        counts = ", ".join(f"{kind} ({count})" for kind, count in quantised.items())
        doubts.append(f"Only for analyses of weights: dequantised from {counts}, so small differences are rounding.")
    kind = plain.get("general.type", "model")
    if kind != "model":
        doubts.append(f"It says that it is no model of its own but of the type {kind}.")
    if plain.get("general.architecture") == "llama":
        doubts.append("llama.cpp reorders the rows of attn_q and attn_k: compare it with other GGUF files only.")
    return tuple(doubts)


def _facts(plain: Mapping[str, Any], version: int) -> dict[str, Any]:
    architecture = str(plain.get("general.architecture", ""))
    own = [key for key in plain if key.startswith(f"{architecture}.")][:_MOST_FACTS]
    settings = {printable(key.partition(".")[2], 80): plain[key] for key in own}
    return {**settings, "architecture": architecture, "name": str(plain.get("general.name", "")), "version": version}
