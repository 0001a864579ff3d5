"""What the outline of a pickle is made of: storages, tensors as declared, and the names a state dict may use."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
STORAGE_NAMES = {f"{module}.{name}": dtype for name, dtype in _STORAGES.items() for module in ("torch", "torch.cuda")}
STORAGE_NAMES |= {"torch.storage.UntypedStorage": "bytes", "torch.UntypedStorage": "bytes"}
DTYPES = {f"torch.{name}" for name in ITEM_BYTES}


NUMPY_CODES = {
    "f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b", "u8": "<Q", "u4": "<I",
    "u2": "<H", "u1": "<B", "b1": "<?",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A stretch of bytes in the file that tensors look into: `numel` items of `dtype` ("bytes": untyped)."""

    key: str
    dtype: str
    numel: int

    @property
    def bytes(self) -> int:
        """Return its size."""
        return self.numel * ITEM_BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class Outline:
    """A tensor as the file declares it; its strides have been checked to stay inside its storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class NumpyType:
    """The type of a NumPy number, as recipes store accuracies: one of the plain ones, little-endian."""

    code: str
    align: bool
    copy: bool

    def __post_init__(self) -> None:
        if self.code not in NUMPY_CODES:
            raise ValueError(f"a NumPy value of type {str(self.code)[:20]!r}")

    def number(self, content: bytes) -> float:
        """Return the number that these bytes are; raise ValueError for any other length."""
        letters = NUMPY_CODES[self.code]
        if not isinstance(content, bytes) or len(content) != struct.calcsize(letters):
            raise ValueError(f"a NumPy number with other bytes than {self.code} has")
        return struct.unpack(letters, content)[0]  # type: ignore[no-any-return]

    def is_state(self, state: object) -> bool:
        """Say whether NumPy pickles this type with this state."""
        order = "|" if self.code in ("b1", "u1", "i1") else "<"
        return state == (3, order, None, None, None, -1, -1, 0)


def stranger(name: str) -> str:
    if "sparse" in name.lower():
        return f"holds sparse tensors ({printable(name)}), whose indices cannot be trusted; make them dense first"
    if "qtensor" in name or name.startswith(("torch.q", "torch.Q", "torch.per_")):
        return f"holds quantized tensors ({printable(name)}), which have no gradients; save the float weights"
    if name.startswith(("torch.float8", "torch.float4", "torch.int", "torch.uint", "torch.bits", "torch.complex")):
        return f"holds numbers of type {printable(name)}, which cannot be analysed; save them as float32"
    if name.startswith("torch.nn.") or "__main__" in name:
        return f"holds a whole module or object ({printable(name)}), which would need code to be run"
    return f"names {printable(name)}, which would need code to be run"


def printable(name: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in name)[:120]


def size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError(f"{value!r} is no size")
    return value


def sizes(values: Any) -> tuple[int, ...]:
    return tuple(size(each) for each in values)


def short(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__
