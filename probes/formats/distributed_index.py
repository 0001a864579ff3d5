"""What the `.metadata` of torch.distributed.checkpoint says, checked: tensors, the chunks that tile them, and files.

It is a pickle, which torch's own reader executes; here it has been walked into inert records, which are read as data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from probes.formats.contents import ITEM_BYTES, Limits, Record, printable

_PACKAGE = "torch.distributed.checkpoint."
_MOST_ODD_CHUNKS = 256
_DEEPEST = 32
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A stretch of one of the folder's files: a torch file of its own."""

    file: str
    start: int
    bytes: int


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and where its elements are."""

    offset: Shape
    shape: Shape
    place: Place


@dataclass(frozen=True)
class Tensor:
    """A tensor as declared; its chunks tile it."""

    dtype: str
    shape: Shape
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """What a folder holds: tensors, other values, and the way to each through the nested dicts that were saved.

    names: of both, in the order in which they were saved.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Place]
    routes: Mapping[str, tuple[str | int, ...]]

    def places(self) -> Iterable[Place]:
        """Yield every stretch of a file that is used."""
        for tensor in self.tensors.values():
            yield from (chunk.place for chunk in tensor.chunks)
        yield from self.values.values()


def read_index(metadata: Any, limits: Limits) -> Index:
    """Interpret the walked `.metadata`; raise ValueError, in words, for whatever is not as torch writes it."""
    fields = _fields(metadata, "metadata.Metadata")
    declared, stored = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(declared, dict) or not isinstance(stored, dict):
        raise ValueError("it has no list of tensors, or none of where they are stored")
    places = _places(stored)
    tensors: dict[str, Tensor] = {}
    values: dict[str, Place] = {}
    for name, about in declared.items():
        if not isinstance(name, str) or len(name) > limits.name or len(tensors) >= limits.tensors:
            raise ValueError(f"it has too many tensors, or the unusable name {printable(str(name)[:99], 60)}")
        if isinstance(about, Record) and about.name == f"{_PACKAGE}metadata.TensorStorageMetadata":
            tensors[name] = _tensor(name, about, places, limits)
        elif (name, None) in places:
            values[name] = places[name, None]
    numel = sum(math.prod(each.shape) for each in tensors.values())
    if numel > limits.parameters:
        raise ValueError(f"its tensors claim {numel:,} elements; at most {limits.parameters:,} are read")
    return Index((*declared,), tensors, values, _routes(fields.get("planner_data"), limits))


def _fields(record: Any, kind: str) -> Mapping[str, Any]:
    if not isinstance(record, Record) or record.name != f"{_PACKAGE}{kind}" or not isinstance(record.state, dict):
        raise ValueError(f"something else stands where a {kind.rpartition('.')[2]} should")
    return record.state


def _places(stored: Mapping[Any, Any]) -> dict[tuple[str, Shape | None], Place]:
    found: dict[tuple[str, Shape | None], Place] = {}
    for key, about in stored.items():
        index, info = _fields(key, "metadata.MetadataIndex"), _fields(about, "filesystem._StorageInfo")
        name, offset = index.get("fqn"), index.get("offset")
        if not isinstance(name, str) or (name, offset) in found or not (offset is None or _is_shape(offset)):
            raise ValueError("two stretches of its files are for the same chunk")
        if info.get("transform_descriptors"):
            how = printable(str(info["transform_descriptors"]), 60)
            raise ValueError(f"{printable(name, 80)} was written through {how}; save it without a transform")
        file, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
        if not isinstance(file, str) or not _is_shape((start, length)):
            raise ValueError(f"{printable(name, 80)} is stored at no place")
        found[name, offset] = Place(file, int(str(start)), int(str(length)))
    return found


def _tensor(name: str, about: Record, places: Mapping[tuple[str, Shape | None], Place], limits: Limits) -> Tensor:
    fields, shown = _fields(about, "metadata.TensorStorageMetadata"), printable(name, 80)
    shape, boxes = fields.get("size"), fields.get("chunks")
    if not isinstance(shape, tuple) or not _is_shape(shape) or not isinstance(boxes, list) or len(shape) > limits.rank:
        raise ValueError(f"{shown} has no shape or no chunks")
    if math.prod(each or 1 for each in shape) > limits.parameters:
        raise ValueError(f"{shown} claims the shape {shape}")
    chunks = []
    for box in boxes:
        said = _fields(box, "metadata.ChunkStorageMetadata")
        offset, size = said.get("offsets"), said.get("sizes")
        if not isinstance(offset, tuple) or not isinstance(size, tuple) or not _is_shape((*offset, *size)):
            raise ValueError(f"{shown} has a chunk without a place")
        if (name, offset) not in places:
            raise ValueError(f"the chunk of {shown} at {offset} is not stored")
        chunks.append(Chunk(offset, size, places[name, offset]))
    kept = tuple(each for each in chunks if math.prod(each.shape)) if math.prod(shape) else tuple(chunks[:1])
    if not _tiles(shape, kept):
        raise ValueError(
            f"the {len(chunks)} chunks of {shown} do not tile its shape {shape}: some are missing or overlap"
        )
    return Tensor(_dtype(fields.get("properties"), shown), shape, kept)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(each) is int and 0 <= each < 2**48 for each in value)


def _dtype(record: Any, shown: str) -> str:
    state = record.state if isinstance(record, Record) else None
    if not isinstance(state, tuple) or len(state) < 2:
        raise ValueError(f"{shown} has no dtype")
    dtype, layout = state[:2]
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Record) else ""
    dense = isinstance(layout, Record) and layout.arguments == ("torch.strided",)
    if name not in ITEM_BYTES or not dense:
        raise ValueError(f"{shown} is a sparse or quantised tensor ({printable(name, 30)}); save it dense, as floats")
    return name


def _tiles(shape: Shape, chunks: tuple[Chunk, ...]) -> bool:
    """Say whether boxes fill a shape without holes or overlaps."""
    if any(len(each.offset) != len(shape) or len(each.shape) != len(shape) for each in chunks):
        return False
    inside = all(
        start + size <= whole
        for each in chunks
        for start, size, whole in zip(each.offset, each.shape, shape, strict=True)
    )
    if not inside or not chunks or sum(math.prod(each.shape) for each in chunks) != math.prod(shape):
        return False
    return _is_grid(shape, chunks) or (len(chunks) <= _MOST_ODD_CHUNKS and not _overlap(chunks))


def _is_grid(shape: Shape, chunks: tuple[Chunk, ...]) -> bool:
    """Say whether the boxes are the cells of a grid, as sharding makes them: then they cannot overlap."""
    if len({each.offset for each in chunks}) != len(chunks):
        return False
    for axis, whole in enumerate(shape):
        starts = sorted({each.offset[axis] for each in chunks})
        end = dict(zip(starts, [*starts[1:], whole], strict=True))
        if any(each.offset[axis] + each.shape[axis] != end[each.offset[axis]] for each in chunks):
            return False
    return True


def _overlap(chunks: tuple[Chunk, ...]) -> bool:
    return any(
        all(
            start < other + length and other < start + size
            for start, size, other, length in zip(one.offset, one.shape, two.offset, two.shape, strict=True)
        )
        for number, one in enumerate(chunks)
        for two in chunks[:number]
    )


def _routes(planned: Any, limits: Limits) -> dict[str, tuple[str | int, ...]]:
    if not isinstance(planned, dict):
        return {}
    found: dict[str, tuple[str | int, ...]] = {}
    for name, route in planned.items():
        usable = isinstance(route, tuple) and 0 < len(route) <= _DEEPEST
        if isinstance(name, str) and usable and all(_is_step(each, limits) for each in route):
            found[name] = route
    return found


def _is_step(value: Any, limits: Limits) -> bool:
    return (isinstance(value, str) and len(value) <= limits.name) or (type(value) is int and 0 <= value < 2**31)
