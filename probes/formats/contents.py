"""What every reader of checkpoints hands back: plain values, a `Stored` in the place of every tensor. No torch here.

A reader opens one kind of file or folder, checks its structure without reading the tensors, and returns `Contents`.
Nothing from the file is imported, called or executed; whatever is neither a plain value nor a tensor becomes an inert
`Record`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

Raw = np.ndarray[Any, np.dtype[np.uint8]]
Texts = Mapping[str, bytes]
Span = Callable[[int, int], Raw]  # (first byte, bytes) -> these bytes of a storage

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Bound what is read. Operators change a bound with THEODOLITE_MAX_<NAME>.

    bytes: of a file, or of all files of a folder. tensors: in one file. name: characters of a tensor's name.
    parameters: elements of all tensors together. index: bytes of a pickle or of a header. rank: dimensions.
    members: records of an archive, files of a folder.
    """

    bytes: int = 200 * 10**9
    tensors: int = 200_000
    name: int = 512
    parameters: int = 200 * 10**9
    index: int = 32 * 2**20
    rank: int = 16
    members: int = 300_000

    @classmethod
    def from_environment(cls) -> Limits:
        """Read THEODOLITE_MAX_BYTES, THEODOLITE_MAX_TENSORS and so on; what is not set keeps its default."""
        given = {name: os.environ.get(f"THEODOLITE_MAX_{name.upper()}", "") for name in cls.__dataclass_fields__}
        return cls(**{name: int(text) for name, text in given.items() if text.isdecimal()})


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file, as declared and checked, not yet read.

    dtype: torch's name, a key of ITEM_BYTES. read: returns its elements in row-major order as little-endian bytes,
    uint8 of length numel * item size; raises RefusedCheckpoint where the file is damaged. place: equal for tensors
    that show the very same stretch of bytes. device: where it lay when it was saved ("cpu", "cuda:0"). part: returns
    the same bytes of so many elements from one on, without reading the others; None where they do not lie in a row.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Raw]
    place: Hashable
    device: str = "cpu"
    part: Span | None = None

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Return the bytes of its elements."""
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(eq=False)
class Record:
    """A foreign object of a pickle, made inert: the name of its class, what it was built from, its state.

    name: "argparse.Namespace". arguments: of its construction. state: what BUILD gave it (its attributes, mostly).
    items: what was appended to it, and its (key, value) pairs. made: False where the pickle only refers to a class or a
    function, and does not make anything of it. Only the walker of the pickle fills it in.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    made: bool = True


def nothing() -> None:
    """Verify nothing: the format carries no checksum."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file or a folder holds.

    value: what was saved: dicts, lists, tuples, strings, numbers, `Stored`s and `Record`s. metadata: strings or numbers
    that the format keeps beside the tensors (safetensors, GGUF). left: what was left behind, a sentence each. doubts:
    what a colleague would warn of, a sentence each. texts: small files beside the weights that are plain JSON or text
    ("config.json", "tokenizer.json"), bounded and cleaned. facts: what the reader itself knows ("hugging_face",
    "lora", "epoch", "metrics", "model_text"). verify: reads all that has a checksum; raises RefusedCheckpoint.
    """

    path: Path
    format: str
    bytes: int
    value: Any = field(repr=False)  # a pickle may hold a list of lists that would fill the memory as text
    metadata: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    texts: Texts = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    verify: Callable[[], None] = nothing


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether a value from a file is a finite number that a float and JSON can hold; True and False are none."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**63)


def printable(text: str, most: int = 120) -> str:
    """Return a name from a file fit for a sentence: printable characters, shortened."""
    clean = "".join(each if each.isprintable() else "?" for each in text[: most + 1])
    return clean if len(clean) <= most else f"{clean[:most]}…"
