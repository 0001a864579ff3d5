"""Whole modules, TorchScript and `.pt2` programs from folders that the operator marks as trusted.

To open such a file is to run the code in it. This is the only module that does, and only for files that lie in a folder
of THEODOLITE_TRUSTED on this machine's disk. Nothing that was uploaded or copied into a workspace ever counts as
trusted, whoever sent it and whatever it is called.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

VARIABLE = "THEODOLITE_TRUSTED"
SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".bin", ".ckpt", ".th", ".tar", ".pkl")
_MOST = 1000
_MOST_SEEN = 100_000
_WORKSPACE = "theodolite.db"
_STORED = re.compile(r"[0-9a-f]{64}")
_USUAL = ("model_ema", "ema", "model", "net", "network", "module")
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")


def is_trusted(path: Path) -> bool:
    """Tell whether a file lies, links followed, in a folder that the operator trusts, and in no workspace."""
    try:
        real = Path(path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return False
    if not real.is_file() or any(map(_STORED.fullmatch, real.parts)):
        return False
    if any((folder / _WORKSPACE).exists() for folder in real.parents):
        return False
    return any(real.is_relative_to(folder) for folder in _folders())


def listed() -> tuple[Path, ...]:
    """List the files of the trusted folders that may hold a model, a thousand at most; nothing is opened."""
    named = (path for path in _files() if path.suffix.lower() in SUFFIXES and is_trusted(path))
    return tuple(islice(named, _MOST))


def load_trusted(path: Path, sha256: str = "") -> nn.Module:
    """Open a trusted file by its own loader, which runs code from it; return its module on the CPU, in float32 or more.

    sha256: of the file when it was chosen; another one is refused. Raises ModelError.
    """
    path = Path(path)
    if not is_trusted(path):
        raise ModelError(
            f"{path.name} does not lie in a folder that the operator trusts ({VARIABLE}). It is not opened."
        )
    if sha256 and hash_of(path) != sha256:
        raise ModelError(f"{path.name} has changed since it was chosen. Choose it again.")
    try:
        with warnings.catch_warnings():
            module = _opened(path)
    except ModelError:
        raise
    except Exception as error:  # the code in the file may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{path.name} cannot be opened by torch ({reason}).") from error
    return _widened(module)


def hash_of(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders() -> Iterator[Path]:
    for entry in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        if folder.is_dir():
            yield folder.resolve()


def _files() -> Iterator[Path]:
    """Yield the files below the trusted folders in order, until many have been seen."""
    seen = 0
    for folder in _folders():
        for place, folders, names in os.walk(folder):
            folders.sort()
            seen += len(names)
            if seen > _MOST_SEEN:
                return
            yield from (Path(place, name) for name in sorted(names))


def _opened(path: Path) -> nn.Module:
    import torch

    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated, but files of it abound
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        return _evaluating(torch.export.load(path).module())
    if any(name.endswith("/constants.pkl") for name in names):
        return _scripted(torch.jit.load(path, map_location="cpu").eval())
    return _only(torch.load(path, map_location="cpu", weights_only=False), path.name)


def _only(value: Any, name: str) -> nn.Module:
    """Return the module itself, or the one in a training checkpoint."""
    from torch import nn

    if isinstance(value, dict):
        modules = {key: each for key, each in value.items() if isinstance(each, nn.Module)}
        value = next((modules[key] for key in (*_USUAL, *modules) if key in modules), value)
    if not isinstance(value, nn.Module):
        raise ModelError(f"{name} holds a {type(value).__name__}, no whole module: open it as a checkpoint.")
    while type(value).__name__ in _WRAPPERS:
        value = value._orig_mod if hasattr(value, "_orig_mod") else value.module
    return value  # type: ignore[no-any-return]


def _widened(module: nn.Module) -> nn.Module:
    """Turn half precision into float32, tensor by tensor; drop stored gradients."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor.data = tensor.data.float()
    for parameter in module.parameters():
        parameter.grad = None
    return module


def _evaluating(module: nn.Module) -> nn.Module:
    """Let an exported program pass for a module in eval mode; it has the mode in which it was exported."""
    same = lambda *_: module
    module.train, module.eval = same, same  # type: ignore[method-assign]
    return module


def _scripted(program: Any) -> nn.Module:
    """Wrap TorchScript so that its parameters can be passed in, and without the fusions that lack a double backward."""
    import torch
    from torch import nn

    class Scripted(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            before = [owner.getattr(leaf) for owner, leaf, _ in slots]
            try:
                for owner, leaf, name in slots:
                    owner.setattr(leaf, attrgetter(name)(self))
                with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                    return program(*inputs)
            finally:
                for (owner, leaf, _), tensor in zip(slots, before, strict=True):
                    owner.setattr(leaf, tensor)

    slots = [_slot(program, name) for name, _ in [*program.named_parameters(), *program.named_buffers()]]
    module = Scripted()
    trained = dict(program.named_parameters())
    for name, tensor in [*trained.items(), *program.named_buffers()]:
        folders, _, leaf = name.rpartition(".")
        parent: nn.Module = module
        for folder in filter(None, folders.split(".")):
            parent = parent.get_submodule(folder) if folder in parent._modules else _added(parent, folder)
        if name in trained:
            parent.register_parameter(leaf, nn.Parameter(tensor.detach(), tensor.is_floating_point()))
        else:
            parent.register_buffer(leaf, tensor)
    return module.eval()


def _added(parent: nn.Module, name: str) -> nn.Module:
    from torch import nn

    parent.add_module(name, nn.Module())
    return parent.get_submodule(name)


def _slot(program: Any, name: str) -> tuple[Any, str, str]:
    *folders, leaf = name.split(".")
    owner = program._c
    for folder in folders:
        owner = owner.getattr(folder)
    return owner, leaf, name
