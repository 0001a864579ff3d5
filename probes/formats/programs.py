"""Read the weights of programs: TorchScript archives here, those of torch.export in `exported`. None of it is run.

TorchScript keeps a tree of objects in a pickle, and the source of their classes beside it. The source is only looked
at to tell parameters and buffers from other attributes, as text.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits, Record, Stored, printable
from probes.formats.exported import is_exported, read_exported
from probes.formats.pickles import read_pickle
from probes.formats.torch_zip import Records
from probes.formats.zips import Member, check_directory, check_sum, open_window, plain_members

FORMAT = "TorchScript program"
_DEEPEST, _MOST_MODULES = 60, 50_000
_CLASS = re.compile(r"^class (\w+)\((\w*)\):\n(?:  __parameters__ = \[(.*)\]\n)?(?:  __buffers__ = \[(.*)\]\n)?", re.M)
_QUOTED = re.compile(r'"([^"]*)"')
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, OSError, LookupError, ValueError,
    OverflowError,
)  # fmt: skip


def is_program(names: Iterable[str]) -> bool:
    """Say whether a zip with these records holds a program beside the tensors."""
    held = list(names)
    inner = {each.partition("/")[2] for each in held}
    script = "constants.pkl" in inner or ("data.pkl" in inner and any(each.startswith("code/") for each in inner))
    return script or is_exported(held)


def read_program(path: Path, name: str, limits: Limits) -> Contents:
    """Read the tensors of a TorchScript or torch.export archive; raise RefusedCheckpoint."""
    try:
        with open_window(path) as file, zipfile.ZipFile(file) as archive:
            exported = is_exported(archive.namelist())
        return (read_exported if exported else read_torchscript)(path, name, limits)
    except _DAMAGE as error:
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise RefusedCheckpoint(
            f"{name} is a damaged or truncated program archive ({reason}). Copy it again from its source."
        ) from None


def read_torchscript(path: Path, name: str, limits: Limits) -> Contents:
    """Read the parameters and buffers of a TorchScript module: {tensor: Stored}, named as its state dict names them.

    Raises RefusedCheckpoint where they cannot be had without running the program: frozen into it as constants, or
    rebuilt by a `__setstate__` of its own (quantised layers).
    """
    with open_window(path) as file, zipfile.ZipFile(file) as archive:
        check_directory(archive, name, limits)
        size = path.stat().st_size
        members = plain_members(archive, file, size, name)
        stem = _stem(archive, name)
        plain = {info.filename: members[info.filename] for info in archive.infolist() if not info.compress_type}
        classes = _classes(archive, f"{stem}code/", name, limits)
        is_big = f"{stem}byteorder" in plain and archive.read(f"{stem}byteorder")[:8].strip() == b"big"
    root = _root(path, name, limits, Records(path, name, plain, stem, is_big))
    found = _Weights(name, classes, limits)
    found.collect(root)
    if not found.value:
        words = "whose weights are constants of the program (torch.jit.freeze does that): save the module before it"
        raise RefusedCheckpoint(f"{name} is a TorchScript program {words}, or its state dict.")

    def verify() -> None:
        for each in plain.values():
            check_sum(path, each, name)

    left = ("the program (its code is not run)", *found.left(), *_others(members, stem))
    return Contents(path, FORMAT, size, found.value, left=left, facts={"program": "TorchScript"}, verify=verify)


def _stem(archive: zipfile.ZipFile, name: str) -> str:
    homes = {each.partition("/")[0] for each in archive.namelist()}
    stem = f"{homes.pop()}/" if len(homes) == 1 else ""
    if f"{stem}data.pkl" not in archive.namelist() or not stem:
        raise RefusedCheckpoint(
            f"{name} is no TorchScript archive that this knows (it has no data.pkl, or several folders): save the "
            "state dict of the module."
        )
    return stem


def _root(path: Path, name: str, limits: Limits, records: Records) -> Record:
    pickle = records.members.get(f"{records.stem}data.pkl")
    if pickle is None or pickle.bytes > limits.index:
        raise RefusedCheckpoint(f"{name} has an index that is packed, or larger than {limits.index:,} bytes.")
    check_sum(path, pickle, name)
    with open_window(path, pickle.start, pickle.bytes) as stream:
        value = read_pickle(stream, name, records, most=limits.index).value
        behind = stream.read(1)
    if behind or not isinstance(value, Record) or not value.name.startswith("__torch__."):
        raise RefusedCheckpoint(f"{name} is a TorchScript archive without a module in it. Save the state dict.")
    return value


@dataclass(frozen=True)
class _Class:
    """What the source says of a class: is it a module, what are its weights, does it rebuild itself."""

    is_module: bool
    weights: tuple[str, ...]
    rebuilds: bool


def _classes(archive: zipfile.ZipFile, folder: str, name: str, limits: Limits) -> dict[str, _Class]:
    """Look through the source for the classes, by their full names."""
    infos = [each for each in archive.infolist() if each.filename.startswith(folder) and each.filename.endswith(".py")]
    if sum(each.file_size for each in infos) > limits.index:
        raise RefusedCheckpoint(f"{name} has more than {limits.index:,} bytes of source. Save the state dict.")
    found: dict[str, _Class] = {}
    for info in infos:
        module = info.filename[len(folder) : -len(".py")].replace("/", ".")
        text = archive.read(info).decode("utf-8", "replace")
        for match in _CLASS.finditer(text):
            weights = (*_QUOTED.findall(match[3] or ""), *_QUOTED.findall(match[4] or ""))
            after = text.find("\nclass ", match.end())
            rebuilds = "\n  def __setstate__(" in text[match.start() : after if after >= 0 else len(text)]
            found[f"{module}.{match[1]}"] = _Class(match[2] == "Module", weights, rebuilds)
    return found


@dataclass
class _Weights:
    """The weights found on the way through a tree of modules, and the other tensors that were left behind."""

    name: str
    classes: Mapping[str, _Class]
    limits: Limits
    value: dict[str, Stored] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def refuse(self, what: str) -> NoReturn:
        raise RefusedCheckpoint(f"{self.name} is a TorchScript program {what}. Bring the state dict of the module.")

    def collect(self, root: Record) -> None:
        """Take the weights of a module and of those inside of it."""
        stack, visits = [("", root, 0)], 0
        while stack:
            prefix, module, depth = stack.pop()
            visits += 1
            if depth > _DEEPEST or visits > _MOST_MODULES:
                self.refuse("whose modules are nested too deeply, or within themselves")
            kind, state = self.classes.get(module.name), module.state if module.state is not None else {}
            rebuilds = kind is not None and kind.rebuilds
            if rebuilds or not isinstance(state, dict) or not all(isinstance(each, str) for each in state):
                where = f"the module {printable(prefix, 80).rstrip('.') or 'itself'}"
                self.refuse(f"in which {where} rebuilds its weights by code of its own, as quantised layers do")
            self.own(prefix, state, kind)
            inner = [(key, each) for key, each in state.items() if self.is_module(each)]
            stack += [(f"{prefix}{key}.", each, depth + 1) for key, each in reversed(inner)]

    def own(self, prefix: str, state: Mapping[str, Any], kind: _Class | None) -> None:
        """Take the weights of one module; those that its class does not list are no part of its state dict."""
        tensors = [key for key, each in state.items() if isinstance(each, Stored)]
        weights = kind.weights if kind is not None else tuple(tensors)
        for key in weights:
            if key not in state:
                self.refuse(f"without the weights {printable(prefix + key, 80)}")
            if isinstance(state[key], Stored):
                self.take(f"{prefix}{key}", state[key])
        others = (key for key, each in state.items() if key not in weights and _holds_tensors(each))
        self.others += [printable(f"{prefix}{key}", 60) for key in others]

    def take(self, key: str, tensor: Stored) -> None:
        if len(key) > self.limits.name or len(self.value) >= self.limits.tensors or key in self.value:
            self.refuse(f"with too many weights, or too long or doubled names of them ({printable(key, 60)})")
        self.value[key] = tensor

    def is_module(self, value: Any) -> bool:
        """Say whether an attribute is a module; of classes without source it is taken to be so."""
        if not isinstance(value, Record) or not value.name.startswith("__torch__."):
            return False
        kind = self.classes.get(value.name)
        return kind.is_module if kind is not None else isinstance(value.state, dict)

    def left(self) -> tuple[str, ...]:
        if not self.others:
            return ()
        return (f"{len(self.others)} attributes with tensors that are no weights ({', '.join(self.others[:3])})",)


def _holds_tensors(value: Any, depth: int = 5) -> bool:
    if isinstance(value, Stored):
        return True
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    elif isinstance(value, Record) and value.name.startswith("torch.jit._pickle."):
        inner = value.arguments
    return depth > 0 and any(_holds_tensors(each, depth - 1) for each in inner)


def _others(members: Mapping[str, Member], stem: str) -> tuple[str, ...]:
    constants = sum(1 for each in members if each.startswith(f"{stem}constants/"))
    inputs = "the inputs it was traced with" if f"{stem}traced_inputs.pkl" in members else ""
    extra = [printable(each.removeprefix(stem), 60) for each in members if each.startswith(f"{stem}extra/")]
    told = (
        f"{constants} constants of the program" if constants else "",
        inputs,
        f"extra files ({', '.join(extra[:3])})" if extra else "",
    )
    return tuple(each for each in told if each)
