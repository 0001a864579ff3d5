"""Read what a torch pickle says without executing any of it.

A pickle is a small program. `read_outline` follows its instructions on stand-ins of our own: nothing is imported,
called or allocated, and every instruction or name outside the few that `torch.save` writes for tensors and plain
values is refused by name. `torch.load(weights_only=True)` admits more than is safe (tensor classes as constructors
of uninitialised memory, sparse tensors with unchecked indices, hooks that are called later): it only ever sees files
whose outline has passed.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import IO, Any, cast

from probes.errors import RefusedCheckpoint
from probes.formats.pickle_values import (
    DTYPES,
    ITEM_BYTES,
    STORAGE_NAMES,
    NumpyType,
    Outline,
    Storage,
    short,
    size,
    sizes,
    stranger,
)

_MAXIMUM_RANK = 16
_MAXIMUM_BYTES = 64 * 2**20
_MAXIMUM_LINE = 1000


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names."""

    name: str


def read_outline(stream: IO[bytes], name: str) -> tuple[Any, dict[str, Storage]]:
    """Follow one pickle from the stream's position to its end.

    Returns the value (dicts, lists, tuples, strings, numbers, `Outline`s) and the storages by key. The stream stays
    behind the pickle's last byte. Raises `RefusedCheckpoint` naming whatever is not ordinary; `name` is the file's.
    """
    machine = _Machine(name)
    instruction = ""
    try:
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", _Bounded(stream))):
            instruction = opcode.name
            machine.step(instruction, argument)
        return machine.stack.pop(), machine.storages
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        where = f" at {instruction}" if instruction else ""
        raise RefusedCheckpoint(
            f"{name} is damaged or cut short: its pickle breaks off{where} ({short(error)}). Copy it again."
        ) from None


class _Bounded:
    """A stream that gives a pickle so many bytes and no more, whatever lengths the pickle claims."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = _MAXIMUM_BYTES

    def read(self, count: int) -> bytes:
        self._left -= max(count, 0)
        if count < 0 or self._left < 0:
            raise ValueError(f"it claims {count:,} bytes")
        return self._stream.read(count)

    def readline(self) -> bytes:
        line = self._stream.readline(_MAXIMUM_LINE)
        self._left -= len(line)
        if b"\\" in line:
            raise ValueError("a name has a backslash")
        return line


class _Machine:
    """The stack, the marks and the memo of a pickle being followed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.protocol = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, instruction: str, argument: Any) -> None:
        """Do one instruction."""
        if instruction in _PLAIN:
            self.stack.append(argument)
        elif instruction in _STEPS:
            _STEPS[instruction](self, argument)
        else:
            self.refuse(f"uses the pickle instruction {instruction}, which no state dict needs")

    def refuse(self, what: str) -> None:
        """Raise the error, with the advice that mends nearly all such files."""
        advice = "Save a plain state dict instead: torch.save(model.state_dict(), file)."
        raise RefusedCheckpoint(f"{self.name} {what}, so it is not opened. {advice}")

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def named(self, argument: Any) -> None:
        name = str(argument).replace(" ", ".", 1)
        if name not in _KNOWN:
            self.refuse(stranger(name))
        self.stack.append(_Name(name))

    def collect(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            self.refuse(f"appends to a {type(target).__name__}")
        target.extend(items)

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            self.refuse(f"sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def key(self, value: Any) -> Hashable:
        if not isinstance(value, (str, int, float, bool, type(None))):
            self.refuse(f"has a {type(value).__name__} as the key of a dict")
        return value  # type: ignore[no-any-return]

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], NumpyType) and self.stack[-1].is_state(state):
            return
        if type(self.stack[-1]) is not OrderedDict or type(state) is not dict or set(state) - {"_metadata"}:
            self.refuse("sets attributes of an object (a hook, or a class of its own)")

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if isinstance(function, _Name) else type(function).__name__
        if name not in _CALLS:
            self.refuse(f"calls {name} as a function")
        self.stack.append(_CALLS[name](self, *arguments))

    def persistent(self, _: Any) -> None:
        kind, *rest = self.stack.pop()
        if kind != "storage":
            self.refuse("holds a whole module with its source")
        self.stack.append(self.storage(*rest))

    def storage(self, kind: _Name, key: Any, _location: Any, numel: int, view: Any = None) -> Storage:
        found = Storage(str(key), STORAGE_NAMES[kind.name], size(numel))
        first = self.storages.setdefault(found.key, found)
        if first.bytes != found.bytes:
            self.refuse(f"declares the storage {found.key} twice, with {first.bytes} and {found.bytes} bytes")
        if view is None:
            return found
        start, length = size(view[1]), size(view[2])
        if start + length > found.numel:
            self.refuse(f"declares a view outside of the storage {found.key}")
        return Storage(f"{found.key}/{view[0]}", found.dtype, length)

    def tensor(self, storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> Outline:
        hooks, dtype = (rest[1] if len(rest) > 1 else None), (rest[2] if len(rest) > 2 else None)
        if hooks:
            self.refuse("holds a tensor with backward hooks, functions that would be called later")
        if len(rest) > 3 and rest[3]:
            self.refuse("holds a tensor with attributes of its own")
        found = dtype.name.removeprefix("torch.") if isinstance(dtype, _Name) else storage.dtype
        outline = Outline(storage, found, size(offset), sizes(shape), sizes(stride))
        self.check(outline)
        return outline

    def check(self, outline: Outline) -> None:
        """Refuse a tensor that reaches out of its storage, or claims more elements than the storage has."""
        if len(outline.shape) > _MAXIMUM_RANK or len(outline.shape) != len(outline.stride):
            self.refuse(f"holds a tensor of {len(outline.shape)} dimensions and {len(outline.stride)} strides")
        items = outline.storage.bytes // ITEM_BYTES[outline.dtype]
        reach = sum((count - 1) * step for count, step in zip(outline.shape, outline.stride, strict=True))
        if outline.numel and (outline.offset + reach >= items or outline.numel > items):
            self.refuse(f"holds a tensor of shape {outline.shape} that does not lie within its {items} stored elements")

    def parameter(self, data: Any, _grad: Any = None, hooks: Any = None, *_: Any) -> Outline:
        if hooks or not isinstance(data, Outline):
            self.refuse("holds a parameter with hooks or state of its own")
        return data  # type: ignore[no-any-return]

    def ordered(self, items: Any = ()) -> OrderedDict[Any, Any]:
        return OrderedDict((self.key(key), value) for key, value in items)

    def plain(self, *values: Any) -> Any:
        """Stand in for a size, a device, a set: nothing here looks at them, but their parts must be harmless."""
        flat = [each for value in values for each in (value if isinstance(value, (list, tuple, dict)) else [value])]
        return tuple(self.key(each) for each in flat)

    def encoded(self, text: str, encoding: str) -> bytes:
        return text.encode({"latin1": "latin-1"}[encoding])


_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
_PUSH_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip


def _pusher(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _memoise(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _start(machine: _Machine, version: int) -> None:
    machine.protocol = version


def _stop(machine: _Machine, _: Any) -> None:
    if machine.protocol != 2:
        machine.refuse(f"is written in pickle protocol {machine.protocol}, while the safe reader knows protocol 2")


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.named(f"{module} {name}")


def _new_object(machine: _Machine, _: Any) -> None:
    machine.stack.pop()
    kind = machine.stack.pop()
    machine.refuse(f"builds an object of {kind.name if isinstance(kind, _Name) else 'some class'}")


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **{name: _pusher(make) for name, make in _PUSH_EMPTY.items()},
    "PROTO": _start,
    "STOP": _stop,
    "FRAME": lambda *_: None,
    "MEMOIZE": lambda machine, _: _memoise(machine, len(machine.memo)),
    "STACK_GLOBAL": _stack_global,
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.named,
    "NEWOBJ": _new_object,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "BINPUT": _memoise,
    "LONG_BINPUT": _memoise,
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.collect(1),
    "TUPLE2": lambda machine, _: machine.collect(2),
    "TUPLE3": lambda machine, _: machine.collect(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.fill(list(reversed([machine.stack.pop(), machine.stack.pop()]))),
    "SETITEMS": lambda machine, _: machine.fill(machine.since_mark()),
}
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _Machine.tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch._utils._rebuild_tensor_v3": _Machine.tensor,
    "torch._utils._rebuild_parameter": _Machine.parameter,
    "collections.OrderedDict": _Machine.ordered,
    "collections.Counter": _Machine.plain,
    "builtins.set": _Machine.plain,
    "__builtin__.set": _Machine.plain,
    "torch.Size": _Machine.plain,
    "torch.device": _Machine.plain,
    "_codecs.encode": _Machine.encoded,
    "numpy.dtype": lambda _, code, align, copy: NumpyType(code, align, copy),
    "numpy.core.multiarray.scalar": lambda _, kind, content: kind.number(content),
    "numpy._core.multiarray.scalar": lambda _, kind, content: kind.number(content),
}
_KNOWN = set(_CALLS) | set(STORAGE_NAMES) | DTYPES
