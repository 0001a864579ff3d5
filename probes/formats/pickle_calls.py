"""The calls in a pickle, done on stand-ins: what torch and NumPy rebuild, and the objects of other classes."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from probes.formats.contents import ITEM_BYTES, Record, Stored, printable
from probes.formats.pickle_names import constructs, danger, stranger
from probes.formats.pickle_values import (
    DTYPES,
    STORAGE_NAMES,
    NumpyType,
    Storage,
    numpy_array,
    numpy_number,
    size,
    sizes,
    tensor_of,
)
from probes.formats.pickles import ARRAY, Budget, Stack, Storages, kind_of

_ENCODINGS = {"latin1": "latin-1", "latin-1": "latin-1", "utf-8": "utf-8", "ascii": "ascii"}
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


class Machine(Stack):
    """A pickle being followed, with what its calls make."""

    def __init__(self, name: str, storages: Storages, persistent: Callable[[Any], Any] | None, budget: Budget) -> None:
        super().__init__(name, budget)
        self.storages = storages
        self.known: dict[str, Storage] = {}
        self.persistent = persistent

    def reduce(self) -> None:
        """Call the function below its arguments."""
        function, arguments = self.take(2)
        if not isinstance(function, Record) or function.made or not isinstance(arguments, tuple):
            self.refuse(f"calls a {kind_of(function)} as a function")
        self.stack.append(self.call(function.name, arguments))

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return what a call would make: of the calls known here the value itself, of a class a record."""
        known = CALLS.get(name)
        if known is not None:
            return known(self, *arguments)
        if not constructs(name):
            what = stranger(name)
            self.refuse(
                what if " names " not in f" {what}" else f"calls the function {printable(name)}, which is not known"
            )
        return self.record(name, arguments)

    def record(self, name: str, arguments: tuple[Any, ...]) -> Record:
        """Make an inert object."""
        self.foreign[name] = self.foreign.get(name, 0) + 1
        return Record(name, arguments)

    def new_object(self, names: Any = None) -> None:
        """Make an object of the class below its arguments, as `cls.__new__` does."""
        kind, arguments = self.take(2)
        if not isinstance(kind, Record) or kind.made or not isinstance(arguments, tuple):
            self.refuse(f"makes an object of a {kind_of(kind)}")
        if kind.name == "collections.OrderedDict" and not arguments:
            self.stack.append(OrderedDict())
        elif kind.name.startswith("torch.") and kind.name.endswith(("Tensor", "Storage")):
            self.refuse(stranger(kind.name))
        else:
            self.stack.append(self.record(kind.name, (*arguments, names) if names else arguments))

    def new_object_with_names(self) -> None:
        """Make an object with keyword arguments."""
        (names,) = self.take(1)
        self.new_object(names)

    def instance(self, name: str) -> None:
        """Call a class by its name, as protocol 0 does."""
        arguments = tuple(self.since_mark())
        if danger(name):
            self.refuse(stranger(name))
        self.stack.append(self.call(name, arguments))

    def object(self) -> None:
        """Call the class that lies below the arguments since the mark."""
        kind, *arguments = self.since_mark()
        self.stack += [kind, tuple(arguments)]
        self.reduce()

    def build(self) -> None:
        """Give the object on top its state; nothing of it is called."""
        (state,) = self.take(1)
        target = self.stack[-1]
        if isinstance(target, NumpyType):
            target.take_state(state)
        elif isinstance(target, Record) and target.name == ARRAY and target.made:
            self.stack[-1] = self._replaced(target, self.array(state))
        elif isinstance(target, Record) and target.made:
            target.state = state if target.state is None else (target.state, state)
        elif not isinstance(target, OrderedDict) or not _is_metadata(state):
            self.refuse(f"sets attributes of a {kind_of(target)} (a hook, or a class of its own)")

    def _replaced(self, old: Record, new: Any) -> Any:
        """Let the memo know what an object has become."""
        for index in self.unfinished.pop(id(old), ()):
            if self.memo.get(index) is old:
                self.memo[index] = new
        return new

    def array(self, state: Any) -> Any:
        """Return the array that NumPy's state describes: version, shape, type, order, bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("a NumPy array of an unknown kind")
        _, shape, kind, fortran, content = state
        made = numpy_array(shape, kind, content, bool(fortran))
        if isinstance(made, Record):
            self.foreign[ARRAY] = self.foreign.get(ARRAY, 0) + 1
        return made

    def persist(self) -> None:
        """Push what a persistent id stands for: a storage, or the class of an old file's module."""
        (given,) = self.take(1)
        if self.persistent is not None:
            self.stack.append(self.persistent(given))
            return
        kind, *rest = given if isinstance(given, tuple) and given else (None,)
        kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
        if kind == "module" and rest:
            self.stack.append(rest[0])
        elif kind == "storage" and 4 <= len(rest) <= 5:
            self.stack.append(self.storage(*rest))
        else:
            self.refuse(f"refers to a {printable(str(kind))} outside of itself")

    def storage(self, kind: Record, key: Any, location: Any, numel: Any, view: Any = None) -> Storage:
        """Return a storage; the same key must always mean the same size."""
        if isinstance(kind, Record) and kind.name.startswith("torch.Q"):
            self.refuse(stranger(kind.name))
        if not isinstance(kind, Record) or kind.name not in STORAGE_NAMES:
            self.refuse(f"has a storage of an unknown kind ({kind_of(kind)})")
        key, dtype, numel = _text(key), STORAGE_NAMES[kind.name], size(numel)
        found = self.known.get(key)
        if found is None:
            device = printable(_text(location), 20)
            found = Storage(key, dtype, numel, device, self.storages.find(key, dtype, numel, device))
            self.known[key] = found
        if found.bytes != numel * ITEM_BYTES.get(dtype, 1):
            self.refuse(f"declares the storage {printable(key)} twice, with different sizes")
        if found.dtype != dtype:
            self.refuse(f"declares the storage {printable(key)} twice, with different types")
        return found if view is None else found.part(size(view[1]), size(view[2]))

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Stored:
        """Return a tensor; `rest` is requires_grad, hooks, and a dtype (version 3) or flags."""
        hooks, last = (rest[1] if len(rest) > 1 else None), (rest[2] if len(rest) > 2 else None)
        if hooks:
            self.refuse("holds a tensor with backward hooks, functions that would be called later")
        if not isinstance(storage, Storage):
            self.refuse(f"holds a tensor whose storage is a {kind_of(storage)}")
        if isinstance(last, dict) and last:
            self.refuse("holds a tensor that is conjugated or negated by a flag; save it resolved")
        named = isinstance(last, Record) and last.name in DTYPES
        dtype = last.name.removeprefix("torch.") if named and last is not None else storage.dtype
        if dtype == "bytes":
            self.refuse("holds a tensor of bytes without a type")
        return tensor_of(storage, dtype, size(offset), sizes(shape), sizes(stride))

    def typed(self, function: Any, _kind: Any, arguments: Any, _state: Any = None) -> Any:
        """Return a tensor of a class of the user's: its values, without the attributes."""
        if not isinstance(function, Record) or function.made or not isinstance(arguments, tuple):
            self.refuse("rebuilds a tensor in an unknown way")
        return self.call(function.name, arguments)

    def parameter(self, data: Any, _grad: Any = None, hooks: Any = None, *_: Any) -> Any:
        """Return the tensor of a parameter."""
        if hooks or not isinstance(data, Stored):
            self.refuse("holds a parameter with hooks, functions that would be called later")
        return data

    def nested(self, content: Any) -> Storage:
        """Return the storage that a plain pickle holds as the bytes of a torch file."""
        from probes.formats.torch_legacy import read_legacy_storage

        if not isinstance(content, bytes):
            raise ValueError("a storage without bytes")
        return read_legacy_storage(io.BytesIO(content), len(content), self.name, self.budget)

    def ordered(self, items: Any = ()) -> OrderedDict[Any, Any]:
        """Return an ordered dict."""
        return OrderedDict((self.key(key), value) for key, value in items)

    def set(self, items: Any = ()) -> set[Any]:
        """Return a set."""
        if not isinstance(items, list | tuple | set | frozenset):
            raise ValueError("a set of something that has no items")
        return {self.key(each) for each in items}

    def encoded(self, text: Any, encoding: Any = "latin1") -> bytes:
        """Return the bytes that old protocols write as text."""
        return str(text).encode(_ENCODINGS[str(encoding)])

    def bytes(self, content: Any = b"", encoding: Any = "latin-1") -> bytes:
        """Return bytes or a bytearray; a number of bytes would ask for memory."""
        if isinstance(content, str):
            return self.encoded(content, encoding)
        if not isinstance(content, bytes | bytearray):
            self.refuse("asks for memory with bytearray")
        return bytes(content)

    def reconstructed(self, kind: Any, *_: Any) -> Any:
        """Make an object as protocols 0 and 1 do."""
        if not isinstance(kind, Record) or kind.made:
            self.refuse(f"makes an object of a {kind_of(kind)}")
        return self.record(kind.name, ())

    def frombuffer(self, content: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
        """Return a NumPy array as protocol 5 writes it."""
        return numpy_array(shape, kind, content, order == "F")


def _is_metadata(state: Any) -> bool:
    return isinstance(state, dict) and not set(state) - {"_metadata"}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str | int):
        raise ValueError("a key that is no text")
    return str(value)


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": Machine.tensor,
    "torch._utils._rebuild_tensor_v2": Machine.tensor,
    "torch._utils._rebuild_tensor_v3": Machine.tensor,
    "torch._utils._rebuild_parameter": Machine.parameter,
    "torch._utils._rebuild_parameter_with_state": Machine.parameter,
    "torch._tensor._rebuild_from_type_v2": Machine.typed,
    "torch._tensor._rebuild_from_type": Machine.typed,
    "torch.storage._load_from_bytes": Machine.nested,
    "torch.Size": lambda _, items=(): tuple(sizes(tuple(items))),
    "torch.device": lambda _, *parts: Record("torch.device", parts),
    "collections.OrderedDict": Machine.ordered,
    "collections.defaultdict": lambda machine, _=None, items=(): dict(machine.ordered(items)),
    "collections.Counter": lambda machine, items=(): machine.record("collections.Counter", (items,)),
    "copy_reg._reconstructor": Machine.reconstructed,
    "copyreg._reconstructor": Machine.reconstructed,
    "copyreg.__newobj__": Machine.reconstructed,
    "_codecs.encode": Machine.encoded,
    **{f"{module}.bytearray": Machine.bytes for module in ("builtins", "__builtin__")},
    **{f"{module}.bytes": Machine.bytes for module in ("builtins", "__builtin__")},
    **{f"{module}.set": Machine.set for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": lambda machine, items=(): frozenset(machine.set(items))
       for module in ("builtins", "__builtin__")},
    "numpy.dtype": lambda _, code, *__: NumpyType(_text(code)),
    **{f"{module}.scalar": lambda _, kind, content=None: numpy_number(kind, content) for module in _NUMPY},
    **{f"{module}._reconstruct": lambda *_: Record(ARRAY) for module in _NUMPY},
    "numpy._core.numeric._frombuffer": Machine.frombuffer,
    "numpy.core.numeric._frombuffer": Machine.frombuffer,
}  # fmt: skip
