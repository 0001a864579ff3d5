"""What the walker of pickles makes of the calls that torch and NumPy write: storages, tensors, numbers, arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.formats.contents import ITEM_BYTES, Record, Span, Stored, printable
from probes.formats.raw import row_major, span_of_bytes, stored

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "ComplexHalfStorage": "complex32", "UInt16Storage": "uint16",
    "UInt32Storage": "uint32", "UInt64Storage": "uint64", "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2", "Float8_e4m3fnuzStorage": "float8_e4m3fnuz",
    "Float8_e5m2fnuzStorage": "float8_e5m2fnuz", "Float8_e8m0fnuStorage": "float8_e8m0fnu",
}  # fmt: skip
STORAGE_NAMES: Mapping[str, str] = {
    **{f"{module}.{name}": dtype for name, dtype in _STORAGES.items() for module in ("torch", "torch.cuda")},
    "torch.storage.UntypedStorage": "bytes",
    "torch.UntypedStorage": "bytes",
}
DTYPES = frozenset(f"torch.{name}" for name in ITEM_BYTES)
_RANK = 16
_LARGEST = 2**48
_KINDS = "biufc"
_NUMBER_BYTES = 16


@dataclass(frozen=True, eq=False)
class Storage:
    """A stretch of bytes that tensors look into: `numel` items of `dtype` ("bytes": untyped), from the byte `start`."""

    key: str
    dtype: str
    numel: int
    device: str
    span: Span
    start: int = 0

    @property
    def bytes(self) -> int:
        """Return its size."""
        return self.numel * ITEM_BYTES.get(self.dtype, 1)

    def part(self, first: int, numel: int) -> Storage:
        """Return a view of it, in items; raise ValueError where it reaches out."""
        if first + numel > self.numel:
            raise ValueError(f"a view outside of the storage {self.key}")
        start = self.start + first * ITEM_BYTES.get(self.dtype, 1)
        return Storage(self.key, self.dtype, numel, self.device, self.span, start)


def tensor_of(storage: Storage, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Stored:
    """Describe a tensor; raise ValueError where it reaches out of its storage or claims more than the storage has."""
    if len(shape) > _RANK or len(shape) != len(stride):
        raise ValueError(f"a tensor of {len(shape)} dimensions and {len(stride)} strides; at most {_RANK} are read")
    item = ITEM_BYTES[dtype]
    items, numel = storage.bytes // item, math.prod(shape)
    reach = sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
    if numel > items > reach + offset:
        raise ValueError(f"a tensor of shape {shape} whose strides spread {items} stored elements; save it contiguous")
    if numel and (offset + reach >= items or numel > items):
        raise ValueError(f"a tensor of shape {shape} that does not lie within its {items} stored elements")
    if math.prod(max(count, 1) for count in shape) >= _LARGEST:
        raise ValueError(f"a tensor of the shape {shape}, which no machine holds")
    if storage.start % item:
        raise ValueError("a view that begins inside of an element")
    first = storage.start // item + offset
    return stored(storage.span, dtype, first, shape, stride, storage.key, device=storage.device)


@dataclass(eq=False)
class NumpyType:
    """The type of a NumPy value, made from its code ("f8") and the byte order that BUILD tells."""

    code: str
    order: str = "<"

    def take_state(self, state: Any) -> None:
        """Take the byte order out of the state that NumPy pickles."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a NumPy type of an unknown kind")
        self.order = "<" if state[1] == "=" else state[1]

    def dtype(self) -> np.dtype[Any] | None:
        """Return NumPy's type for plain numbers and text; None for objects, records and dates."""
        known = self.code[:1] in (*_KINDS, "U", "S") and self.code[1:].isdigit() and int(self.code[1:]) < _LARGEST
        try:
            return np.dtype(f"{self.order}{self.code}") if known else None
        except TypeError:
            return None


def numpy_number(kind: Any, content: Any = None) -> Any:
    """Return the Python number or text that a NumPy scalar was; a record where its type is none of the plain ones."""
    dtype = kind.dtype() if isinstance(kind, NumpyType) else None
    if dtype is None:
        return Record("numpy.generic", (getattr(kind, "code", "?"),))
    content = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(content, bytes) or len(content) != dtype.itemsize or dtype.itemsize == 0:
        raise ValueError(f"a NumPy number with other bytes than {dtype} has")
    return np.frombuffer(content, dtype)[0].item()


def numpy_array(shape: Any, kind: Any, content: Any, fortran: bool = False) -> Any:
    """Return an array of numbers as a tensor; a record where it holds text or objects."""
    dtype = kind.dtype() if isinstance(kind, NumpyType) else None
    content = content.encode("latin-1") if isinstance(content, str) else content
    if dtype is None or dtype.kind not in _KINDS or not isinstance(content, bytes | bytearray):
        return Record("numpy.ndarray", (getattr(kind, "code", "?"),))
    counts = sizes(shape)
    if math.prod(counts) * dtype.itemsize != len(content) or len(counts) > _RANK:
        raise ValueError(f"a NumPy array of shape {counts} with {len(content):,} bytes")
    plain = np.frombuffer(content, dtype).astype(dtype.newbyteorder("<"))
    if str(plain.dtype) not in ITEM_BYTES:
        return Record("numpy.ndarray", (str(dtype),))
    span = span_of_bytes(plain.tobytes())
    stride = tuple(reversed(row_major(tuple(reversed(counts))))) if fortran else row_major(counts)
    return stored(span, str(plain.dtype), 0, counts, stride, object())


def size(value: Any) -> int:
    """Return a size; raise ValueError for what is none."""
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"{printable(repr(value)[:60])} is no size")
    return value


def sizes(values: Any) -> tuple[int, ...]:
    """Return sizes; raise ValueError for what is none."""
    if not isinstance(values, tuple | list) or len(values) > 1000:
        raise ValueError("a shape that is none")
    return tuple(size(each) for each in values)
