"""Bytes on disk -> Checkpoint: what a file holds, found safely, and its tensors when they are asked for.

Formats are recognised by content, never by name (`probes.formats.files`). Everything is read by readers of our own:
nothing in a file is imported, called or executed, and no tensor is read before it is asked for. Torch is imported only
where a tensor is asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probes.formats.amounts import check_amount
from probes.formats.contents import Contents, Limits, Stored, Texts
from probes.formats.files import open_contents
from probes.formats.find import Found, find

if TYPE_CHECKING:
    import torch

    Tensors = Iterator[tuple[str, torch.Tensor]]
    Part = Callable[[int, int], torch.Tensor]

FULL_BYTES = 2**30  # larger files are described by their structure; they are read in full on the way into the store
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_FLOATING = ("float64", "float32", "float16", "bfloat16", "float8")


class Entry(NamedTuple):
    """A tensor of a file: its name, shape, and dtype like "float32"."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class TensorInfo:
    """Describe a tensor: its shape and its dtype like "float32"."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


def _none(_: str) -> Tensors:
    return iter(())


def _whole(_: str) -> None:
    return None


@dataclass(frozen=True)
class Checkpoint:
    """Named parameters and buffers at one point theta; the tensors stay in the file until `load`.

    tensors: names as the model has them (wrapper and prefix removed), in the order of the file. facts: what the file
    says besides: "wrapper", "prefix", "epoch", "step", "metrics", "optimizer", "model_args", "tied". stream: yields
    (name, tensor) one at a time. weights, sets: the set of weights this is, and all that the file has. moments: what
    the optimizer keeps for each parameter ("exp_avg"); stream_moments yields one kind of them. texts: config.json and
    the like. left: what was left behind. fetch: returns one tensor. parts: returns the reader of a tensor's stretches,
    (first element, elements) -> flat tensor, or None where it can only be read whole.
    """

    path: Path
    name: str
    sha256: str
    bytes: int
    format: str
    tensors: Mapping[str, TensorInfo]
    facts: Mapping[str, Any]
    doubts: tuple[str, ...]
    stream: Callable[[], Tensors] = field(repr=False, compare=False)
    weights: str = ""
    sets: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()
    stream_moments: Callable[[str], Tensors] = field(default=_none, repr=False, compare=False)
    texts: Texts = field(default_factory=dict, repr=False)
    left: tuple[str, ...] = ()
    fetch: Callable[[str], torch.Tensor] | None = field(default=None, repr=False, compare=False)
    parts: Callable[[str], Part | None] = field(default=_whole, repr=False, compare=False)

    @property
    def parameters(self) -> int:
        """Count the elements of the floating tensors, tied ones once, running statistics left out."""
        return count_parameters(self.tensors, self.facts.get("tied", {}))

    def load(self) -> dict[str, torch.Tensor]:
        """Return fresh, contiguous, detached copies of all tensors on the CPU; raise RefusedCheckpoint."""
        return dict(self.stream())

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor as `load` does, without reading the others; raise KeyError or RefusedCheckpoint."""
        if name not in self.tensors:
            raise KeyError(name)
        return self.fetch(name) if self.fetch else next(each for key, each in self.stream() if key == name)

    def describe(self) -> dict[str, Any]:
        """Return JSON for the page: what was found and every doubt."""
        said = {"epoch": self.facts.get("epoch"), "metrics": dict(self.facts.get("metrics", {}))}
        return {
            "name": self.name,
            "format": self.format,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "tensors": len(self.tensors),
            "parameters": self.parameters,
            "dtypes": count_dtypes(self.tensors),
            **said,
            "optimizer": self.facts.get("optimizer"),
            "doubts": list(self.doubts),
            "shapes": [[name, list(info.shape), info.dtype] for name, info in self.tensors.items()],
            "facts": dict(self.facts),
            "weights": self.weights,
            "sets": list(self.sets),
            "left": list(self.left),
        }


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a file holds, and whether there is something to be warned of.

    Iterating gives (name, shape, dtype) of each tensor; `read` gives its values. full: whether checksums and values
    were looked at too, or the structure alone (large files).
    """

    path: Path
    name: str
    found: Found
    contents: Contents = field(repr=False)
    doubts: tuple[str, ...]
    full: bool

    @property
    def verdict(self) -> str:
        """Return "ok", or "warning" where there are doubts. A refused file raises RefusedCheckpoint instead."""
        return "warning" if self.doubts else "ok"

    @property
    def message(self) -> str:
        """Return the doubts as one text; "" when there are none."""
        return " ".join(self.doubts)

    @property
    def format(self) -> str:
        """Return the name of the format."""
        return self.contents.format

    @property
    def tensors(self) -> tuple[Entry, ...]:
        """List the tensors."""
        return tuple(self)

    @cached_property
    def sha256(self) -> str:
        """Hash the file, or the files of the folder by their names (reads all of it)."""
        return hash_of(self.path)

    def __iter__(self) -> Iterator[Entry]:
        """Yield (name, shape, dtype) of each tensor."""
        return (Entry(name, each.shape, each.dtype) for name, each in self.found.tensors.items())

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self.found.tensors)

    def read(self, name: str) -> torch.Tensor:
        """Return the values of one tensor, fresh on the CPU; raise KeyError or RefusedCheckpoint."""
        return as_tensor(self.found.tensors[name])


def inspect(path: Path | str, *, name: str | None = None, weights: str = "", full: bool | None = None) -> Inspection:
    """Say what a file or folder holds; nothing in it is executed and, of large files, no tensor is read.

    weights: the set of weights that is meant, where the file has several. full: check checksums and look at all values;
    None does so up to 1 GiB. Raises RefusedCheckpoint, in words, for whatever is refused.
    """
    path = Path(path)
    name = name or path.name
    contents = open_contents(path, name)
    found = find(contents, name, weights, Limits.from_environment())
    check_amount(contents, found, name)
    full = contents.bytes <= FULL_BYTES if full is None else full
    doubts = list(found.doubts)
    if full:
        from probes.formats.statistics import doubts_of, look

        contents.verify()
        doubts += doubts_of({key: look(each.read(), each.dtype) for key, each in found.tensors.items()})
    return Inspection(path, name, found, contents, tuple(doubts), full)


def read_checkpoint(path: Path, *, name: str | None = None, sha256: str | None = None, weights: str = "") -> Checkpoint:
    """Say what a file or folder holds, in this process; the tensors are not read yet.

    name: what the user calls it (default: the file's name). sha256: its hash where it is known already, else the
    file is hashed. weights: the set that is meant, where the file has several. Raises RefusedCheckpoint.
    """
    path = Path(path)
    name = name or path.name
    contents = open_contents(path, name)
    found = find(contents, name, weights, Limits.from_environment())
    check_amount(contents, found, name)
    size = path.stat().st_size

    def same(tensors: Mapping[str, Stored]) -> Mapping[str, Stored]:
        if path.stat().st_size != size:
            from probes.errors import RefusedCheckpoint

            raise RefusedCheckpoint(f"{name} has changed since it was described. Upload it again.")
        return tensors

    def stream(tensors: Mapping[str, Stored]) -> Tensors:
        return ((key, as_tensor(each)) for key, each in same(tensors).items())

    return Checkpoint(
        path=path,
        name=name,
        sha256=sha256 or hash_of(path),
        bytes=contents.bytes,
        format=contents.format,
        tensors={key: TensorInfo(each.shape, each.dtype) for key, each in found.tensors.items()},
        facts=found.facts,
        doubts=found.doubts,
        stream=lambda: stream(found.tensors),
        weights=found.default,
        sets=tuple(found.sets),
        moments=tuple(found.moments),
        stream_moments=lambda kind: stream(found.moments[kind]),
        texts=contents.texts,
        left=found.left,
        fetch=lambda key: as_tensor(same(found.tensors)[key]),
        parts=lambda key: part_of(same(found.tensors)[key]),
    )


def as_tensor(stored: Stored) -> torch.Tensor:
    """Make a tensor of our own of a stored one: dense, contiguous, on the CPU, without hooks or history."""
    return tensor_of_bytes(stored.read(), stored.dtype, stored.shape)


def part_of(stored: Stored) -> Part | None:
    """Return what makes flat tensors of stretches of a stored one, or None where it can only be read whole."""
    part = stored.part
    return None if part is None else lambda first, count: tensor_of_bytes(part(first, count), stored.dtype, (count,))


def tensor_of_bytes(raw: Any, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Make a tensor of its little-endian, row-major bytes."""
    import torch

    kind = getattr(torch, dtype)
    if not len(raw):
        return torch.empty(shape, dtype=kind)
    raw = (raw != 0).view("u1") if dtype == "bool" else raw
    return torch.frombuffer(raw if raw.flags.writeable else raw.copy(), dtype=kind).reshape(shape)


def count_parameters(tensors: Mapping[str, Any], tied: Mapping[str, str]) -> int:
    """Count the elements of the floating tensors, tied ones once, running statistics left out."""
    return sum(each.numel for name, each in tensors.items() if name not in tied and _trained(name, each))


def count_dtypes(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Count the tensors of each dtype."""
    found: dict[str, int] = {}
    for each in tensors.values():
        found[each.dtype] = found.get(each.dtype, 0) + 1
    return found


def hash_of(path: Path) -> str:
    """Return the sha256 (hex) of a file; of a folder that over the names and hashes of its files."""
    if not path.is_dir():
        return hash_file(path)
    files = sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
    rows = (f"{each.relative_to(path).as_posix()} {hash_file(each)}\n" for each in files)
    return hashlib.sha256("".join(rows).encode(errors="surrogateescape")).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trained(name: str, info: Any) -> bool:
    mask = name.endswith("attn.bias") and len(info.shape) == 4  # the causal masks that GPT files may hold
    return info.dtype.startswith(_FLOATING) and not mask and not name.endswith(_STATISTICS)
