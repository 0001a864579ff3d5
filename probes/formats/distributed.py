"""Read folders of torch.distributed.checkpoint (.metadata, __0_0.distcp): tensors, whole again, and plain values.

torch's own reader unpickles `.metadata` without restraint; here it is walked like any other pickle. Every item in a
.distcp file is a torch file of its own, and is read as such when its tensor is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Contents, Limits, Raw, Stored, printable
from probes.formats.distributed_index import Chunk, Index, Place, Tensor, read_index
from probes.formats.pickles import read_pickle
from probes.formats.torch_zip import read_torch_zip

FORMAT = "torch.distributed checkpoint"
_METADATA = ".metadata"
_MOST_VALUES, _LARGEST_VALUE = 2000, 2**20


def is_distributed(path: Path) -> bool:
    """Say whether a folder is what torch.distributed.checkpoint writes."""
    return path.is_dir() and (path / _METADATA).exists()


def read_distributed(path: Path, name: str, limits: Limits) -> Contents:
    """Read a folder: the nested dicts that were saved, a Stored in the place of every tensor, put together on reading.

    Values that are no tensors stay if they are plain numbers or texts, else they are left behind. Raises
    RefusedCheckpoint for files that are missing, links or outside of the folder, for stretches outside of a file or
    shared by two tensors, and for chunks that do not tile their tensor, each by its name.
    """
    try:
        folder = _Folder(path, name, limits)
        index = folder.index()
        folder.check(index)
        left = folder.others()
    except OSError as error:
        raise RefusedCheckpoint(f"{name} cannot be read from the disk: {error.strerror or error}.") from None
    values, more = folder.values(index)
    tensors = {key: folder.stored(key, tensor) for key, tensor in index.tensors.items()}
    found = {**tensors, **values}
    value = {key: found[key] for key in index.names if key in found}

    def verify() -> None:
        for key, tensor in index.tensors.items():
            for chunk in tensor.chunks:
                folder.part(key, tensor, chunk, whole=True)

    facts = {"distributed": {"files": len(folder.sizes) - 1, "items": sum(1 for _ in index.places())}}
    size = sum(folder.sizes.values())
    return Contents(path, FORMAT, size, _nested(value, index), left=(*more, *left), facts=facts, verify=verify)


class _Folder:
    """The files of a folder, each opened only if it is a plain one inside."""

    def __init__(self, path: Path, name: str, limits: Limits) -> None:
        self.path, self.name, self.limits = path, name, limits
        self.sizes: dict[str, int] = {}

    def refuse(self, what: str) -> NoReturn:
        raise RefusedCheckpoint(f"{self.name} is a damaged folder of torch.distributed: {what}. Copy the whole folder.")

    def size(self, file: str) -> int:
        """Return the bytes of a file; raise RefusedCheckpoint if it is none of the folder's own."""
        if file not in self.sizes:
            shown = printable(file, 80)
            if Path(file).name != file or file in ("", ".", "..") or "\\" in file or "\0" in file or len(file) > 255:
                self.refuse(f"the file {shown} is not a plain name inside of the folder")
            if file.endswith(".safetensors"):
                self.refuse(f"{shown} is safetensors: open it by itself")
            place = self.path / file
            if place.is_symlink() or not place.is_file():
                self.refuse(f"the file {shown} is {'a link' if place.is_symlink() else 'missing'}")
            self.sizes[file] = place.stat().st_size
        return self.sizes[file]

    def index(self) -> Index:
        """Walk the pickle of the metadata."""
        if self.size(_METADATA) > self.limits.index:
            self.refuse(f"its {_METADATA} has {self.sizes[_METADATA]:,} bytes; at most {self.limits.index:,} are read")
        with (self.path / _METADATA).open("rb") as file:
            metadata = read_pickle(file, f"{self.name}/{_METADATA}", most=self.limits.index).value
            if file.read(1):
                self.refuse(f"bytes follow the end of its {_METADATA}")
        try:
            return read_index(metadata, self.limits)
        except ValueError as error:
            self.refuse(printable(str(error), 300))

    def check(self, index: Index) -> None:
        """Compare the stretches that the index names with the files: inside of them, and none used twice."""
        if not index.tensors:
            self.refuse("there are no tensors in it")
        end, last = 0, ""
        for place in sorted(index.places(), key=lambda each: (each.file, each.start, each.bytes)):
            if place.start + place.bytes > self.size(place.file):
                cut = f"{place.start + place.bytes:,} bytes are needed of {self.sizes[place.file]:,}"
                self.refuse(f"the file {printable(place.file, 80)} is cut short ({cut})")
            if place.file == last and place.start < end:
                self.refuse(f"two items share the byte {place.start:,} of {printable(place.file, 80)}")
            end, last = place.start + place.bytes, place.file
        if sum(self.sizes.values()) > self.limits.bytes:
            self.refuse(f"its files have {sum(self.sizes.values()):,} bytes; at most {self.limits.bytes:,} are read")

    def others(self) -> tuple[str, ...]:
        """Say which files of the folder are not used."""
        names = sorted(each.name for each in islice(self.path.iterdir(), self.limits.members))
        unused = [printable(each, 60) for each in names if each not in self.sizes]
        return (f"{len(unused)} other files ({', '.join(unused[:3])})",) if unused else ()

    def values(self, index: Index) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the plain values, and the sentence on the others."""
        found, others = {}, []
        for number, (key, place) in enumerate(index.values.items()):
            readable = number < _MOST_VALUES and place.bytes <= _LARGEST_VALUE
            value = self.item(place).value if readable else place
            if value is None or isinstance(value, str | int | float):
                found[key] = value
            else:
                others.append(printable(key, 60))
        left = f"{len(others)} values that are no tensors ({', '.join(others[:3])})"
        return found, (left,) if others else ()

    def item(self, place: Place) -> Contents:
        """Open one item of a file."""
        name = f"{self.name}/{printable(place.file, 80)}"
        return read_torch_zip(self.path / place.file, name, self.limits, start=place.start, length=place.bytes)

    def part(self, key: str, tensor: Tensor, chunk: Chunk, *, whole: bool = False) -> Raw:
        """Return the elements of a chunk; whole: check all checksums of its item."""
        item = self.item(chunk.place)
        if not isinstance(item.value, Stored) or (item.value.dtype, item.value.shape) != (tensor.dtype, chunk.shape):
            self.refuse(
                f"the chunk of {printable(key, 80)} at {chunk.offset} is not the tensor that its index declares"
            )
        if whole:
            item.verify()
        return item.value.read()

    def stored(self, key: str, tensor: Tensor) -> Stored:
        """Describe a tensor."""

        def read() -> Raw:
            if len(tensor.chunks) == 1:
                return self.part(key, tensor, tensor.chunks[0])
            item = np.dtype(f"V{ITEM_BYTES[tensor.dtype]}")
            content: Raw = np.empty(math.prod(tensor.shape) * item.itemsize, np.uint8)
            box = content.view(item).reshape(tensor.shape)
            for chunk in tensor.chunks:
                where = tuple(slice(at, at + n) for at, n in zip(chunk.offset, chunk.shape, strict=True))
                box[where] = self.part(key, tensor, chunk).view(item).reshape(chunk.shape)
            return content

        return Stored(tensor.dtype, tensor.shape, read, (tensor.chunks[0].place.file, tensor.chunks[0].place.start))


def _nested(value: Mapping[str, Any], index: Index) -> dict[Any, Any]:
    """Put the values back into the dicts and lists that they were saved in; leave all flat where that fails."""
    root: dict[Any, Any] = {}
    for key, each in value.items():
        *way, last = index.routes.get(key, (key,))
        home = root
        for step in way:
            home = home.setdefault(step, _Node()) if isinstance(home, dict) else home
            if not isinstance(home, _Node):
                return dict(value)
        if last in home:
            return dict(value)
        home[last] = each
    return {key: _plain(each) for key, each in root.items()}


class _Node(dict[Any, Any]):
    """A dict on the way to values, and none that was saved as a value."""


def _plain(node: Any) -> Any:
    """Turn nodes into dicts, and into lists where their keys count from 0."""
    if not isinstance(node, _Node):
        return node
    if list(node) and all(type(each) is int for each in node) and sorted(node) == list(range(len(node))):
        return [_plain(node[each]) for each in range(len(node))]
    return {key: _plain(each) for key, each in node.items()}
