"""Read what a pickle says without executing any of it.

A pickle is a small program. `read_pickle` follows its instructions on stand-ins of our own: nothing is imported,
called or allocated. Tensors become `Stored`s, objects of other classes inert `Record`s; a pickle that would run, load
or open something, or call a function that is not known, is refused by the name of that function.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Record, Span, printable
from probes.formats.pickle_keys import fault_of, key_of
from probes.formats.pickle_names import danger, stranger

ARRAY = "numpy.ndarray"
MAXIMUM_BYTES = 32 * 2**20
_MAXIMUM_LINE = 2**20
_MAXIMUM_STEPS = 4_000_000
_NEWEST_PROTOCOL = 5
_COSTS = {"EMPTY_SET": 8, "FROZENSET": 8, "REDUCE": 3, "NEWOBJ": 3, "NEWOBJ_EX": 3, "OBJ": 3, "INST": 3}  # in steps
_COST_OF_ONE = 50  # of following a pickle at all, in steps
_ADVICE = "Save a plain state dict instead: torch.save(model.state_dict(), file)."


class Storages(Protocol):
    """Where the bytes of a pickle's tensors lie."""

    def find(self, key: str, dtype: str, numel: int, device: str) -> Span:
        """Return the reader of a storage's bytes; raise RefusedCheckpoint where it is not there or has another size."""
        ...


class NoStorages:
    """A pickle that has no tensors outside of itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find(self, key: str, dtype: str, numel: int, device: str) -> Span:
        """Refuse."""
        del dtype, numel, device
        raise RefusedCheckpoint(f"{self.name} names the storage {printable(key)}, which is not in the file.")


@dataclass
class Budget:
    """The instructions that may yet be followed in a file, however many pickles it has, side by side or nested."""

    left: int = _MAXIMUM_STEPS


@dataclass(frozen=True)
class Walk:
    """What a pickle says: its value, and the names of the foreign classes and functions in it, with their counts."""

    value: Any
    foreign: dict[str, int]


def read_pickle(
    stream: IO[bytes],
    name: str,
    storages: Storages | None = None,
    *,
    most: int = MAXIMUM_BYTES,
    persistent: Callable[[Any], Any] | None = None,
    budget: Budget | None = None,
) -> Walk:
    """Follow one pickle from the stream's position to its end; the stream stays behind its last byte.

    name: the file's, for errors. most: bytes that are read at most. persistent: what a persistent id stands for where
    it is not a storage of torch's. budget: shared by the pickles of a file. Raises RefusedCheckpoint naming whatever
    is not honest.
    """
    from probes.formats.pickle_calls import Machine

    machine = Machine(name, storages or NoStorages(name), persistent, budget or Budget())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools decodes old strings with escapes that Python frowns upon
            return _follow(machine, cast("IO[bytes]", _Bounded(stream, most)))
    except RecursionError:
        raise RefusedCheckpoint(f"{name} is nested too deeply to be a checkpoint. {_ADVICE}") from None


def _follow(machine: Any, stream: IO[bytes]) -> Walk:
    name, instruction, budget = machine.name, "", machine.budget
    budget.left -= _COST_OF_ONE
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            instruction = opcode.name
            budget.left -= _COSTS.get(instruction, 1)
            if budget.left < 0:
                machine.refuse(f"has a pickle of more than {_MAXIMUM_STEPS:,} instructions")
            step = STEPS.get(instruction)
            if step is None:
                machine.refuse(f"uses the pickle instruction {instruction}, which no checkpoint needs")
            else:
                step(machine, argument)
        return Walk(machine.stack.pop(), machine.foreign)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, AssertionError) as error:
        where = f" at {instruction}" if instruction else ""
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise RefusedCheckpoint(f"{name} is damaged or cut short: its pickle breaks off{where} ({reason}).") from None


class _Bounded:
    """A stream that gives a pickle so many bytes and no more, whatever lengths the pickle claims."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._left = most

    def read(self, count: int) -> bytes:
        self._left -= max(count, 0)
        if count < 0 or self._left < 0:
            raise ValueError(f"it claims {count:,} bytes")
        return self._stream.read(count)

    def readline(self) -> bytes:
        line = self._stream.readline(_MAXIMUM_LINE)
        self._left -= len(line)
        if self._left < 0:
            raise ValueError("it is too long")
        return line


class Stack:
    """The stack, the marks and the memo of a pickle being followed."""

    def __init__(self, name: str, budget: Budget) -> None:
        self.name = name
        self.budget = budget
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.unfinished: dict[int, list[int]] = {}  # where the memo has arrays that BUILD has yet to fill
        self.foreign: dict[str, int] = {}

    def refuse(self, what: str) -> None:
        """Raise the error, with the advice that mends nearly all such files."""
        raise RefusedCheckpoint(f"{self.name} {what}, so it is not opened. {_ADVICE}")

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def mark(self) -> None:
        """Begin a new stretch of the stack."""
        self.marks.append(self.stack)
        self.stack = []

    def named(self, name: str) -> None:
        """Push a reference to a class or a function, unless it is one that no checkpoint needs."""
        if danger(name):
            self.refuse(stranger(name))
        self.stack.append(Record(name, made=False))

    def take(self, count: int) -> tuple[Any, ...]:
        """Take the last few values."""
        if len(self.stack) < count:
            raise IndexError("its stack is empty")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def extend(self, items: Iterable[Any]) -> None:
        """Append to the list, set or object on top."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(self.key(each) for each in items)
        elif isinstance(target, Record) and target.made:
            target.items.extend(items)
        else:
            self.refuse(f"appends to a {kind_of(target)}")

    def fill(self, items: list[Any]) -> None:
        """Set items of the dict or object on top."""
        target = self.stack[-1]
        if len(items) % 2:
            raise IndexError("a key has no value")
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in pairs:
                target[self.key(key)] = value
        elif isinstance(target, Record) and target.made:
            target.items.extend(pairs)
        else:
            self.refuse(f"sets items of a {kind_of(target)}")

    def key(self, value: Any) -> Hashable:
        """Return the key of a dict; lists and dicts are none, nor is what would take long to hash or to find."""
        fault = fault_of(value)
        if fault:
            self.refuse(f"has {fault} as the key of a dict")
        return cast("Hashable", key_of(value))


def kind_of(value: Any) -> str:
    """Name the kind of a value in an error."""
    return printable(value.name) if isinstance(value, Record) else type(value).__name__


def _push(machine: Any, value: Any) -> None:
    machine.stack.append(value)


def _memoise(machine: Any, index: int) -> None:
    value = machine.stack[-1]
    machine.memo[int(index)] = value
    if isinstance(value, Record) and value.name == ARRAY:
        machine.unfinished.setdefault(id(value), []).append(int(index))


def _begin(machine: Any, protocol: int) -> None:
    if protocol > _NEWEST_PROTOCOL:
        machine.refuse(f"is of pickle protocol {protocol}, which does not exist yet")


def _recall(machine: Any, index: int) -> None:
    machine.stack.append(machine.memo[int(index)])


def _stack_global(machine: Any, _: Any) -> None:
    module, name = machine.take(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a name that is no text")
    machine.named(f"{module}.{name}")


def _dict_of(items: list[Any], machine: Any) -> dict[Any, Any]:
    machine.stack.append({})
    machine.fill(items)
    return cast("dict[Any, Any]", machine.stack.pop())


_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
)  # fmt: skip
Step = Callable[[Any, Any], Any]
STEPS: dict[str, Step] = {
    **dict.fromkeys(_VALUES, _push),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "PROTO": _begin,
    "FRAME": lambda *_: None,
    "STOP": lambda *_: None,
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.since_mark(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "MEMOIZE": lambda machine, _: _memoise(machine, len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _memoise),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    "LIST": lambda machine, _: _push(machine, machine.since_mark()),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "DICT": lambda machine, _: _push(machine, _dict_of(machine.since_mark(), machine)),
    "FROZENSET": lambda machine, _: _push(machine, frozenset(machine.key(each) for each in machine.since_mark())),
    "TUPLE1": lambda machine, _: _push(machine, machine.take(1)),
    "TUPLE2": lambda machine, _: _push(machine, machine.take(2)),
    "TUPLE3": lambda machine, _: _push(machine, machine.take(3)),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.fill(list(machine.take(2))),
    "SETITEMS": lambda machine, _: machine.fill(machine.since_mark()),
    "GLOBAL": lambda machine, name: machine.named(str(name).replace(" ", ".", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.new_object(),
    "NEWOBJ_EX": lambda machine, _: machine.new_object_with_names(),
    "INST": lambda machine, name: machine.instance(str(name).replace(" ", ".", 1)),
    "OBJ": lambda machine, _: machine.object(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persist(),
}
