"""Models that the operator of this server brings as Python: the files or modules named in THEODOLITE_MODELS.

Such a file is part of the server, like its configuration: it is never uploaded, and a browser only chooses among what
`listed` found in its text. The process that computes runs it, and no other. It has `build_model()`, or
`MODELS = {"name": function}` for several, and `build_data()` and `loss(model, batch)` if wanted.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from probes.errors import DataError, ModelError, ProbeError

if TYPE_CHECKING:
    from torch import Tensor, nn

VARIABLE = "THEODOLITE_MODELS"
_SINGLE = "build_model"


@dataclass(frozen=True)
class Offered:
    """A model that the operator offers, as the text of the file says; the file was not run.

    name: "<module>:<model>". data, loss: whether the file has `build_data` and `loss`. problem: why the file cannot be
    read, in a sentence; the name then ends with the colon.
    """

    name: str
    file: str
    sha256: str
    data: bool = False
    loss: bool = False
    problem: str = ""


@dataclass(frozen=True)
class _Source:
    """One entry of THEODOLITE_MODELS: a file, or a module found on Python's path."""

    module: str
    path: Path
    imported: bool


def listed() -> tuple[Offered, ...]:
    """List the models of THEODOLITE_MODELS by reading, not running, the files; cheap, without torch."""
    return tuple(each for source in _sources() for each in _offered(source))


def build_operator(name: str, sha256: str = "") -> nn.Module:
    """Run the operator's function that builds the model; raise ModelError naming file and line where it fails.

    sha256: of the file when the model was chosen; another one is refused.
    """
    from torch import nn

    source, model = _find(name, ModelError)
    if sha256 and _hash(source) != sha256:
        raise ModelError(f"{source.path.name} has changed since this model was chosen. Choose it again.")
    module = _run(source, ModelError)
    several = getattr(module, "MODELS", {})
    function = several[model] if model in several else getattr(module, model, None) if model == _SINGLE else None
    if not callable(function):
        raise ModelError(f"{source.path.name} has no model {model[:80]!r}: give it {_SINGLE}() or put it into MODELS.")
    built = _guarded(source, f"{model}()", function, ModelError)
    if not isinstance(built, nn.Module):
        raise ModelError(f"{source.path.name}: {model}() returns a {type(built).__name__}, not a torch.nn.Module.")
    return built


def operator_loss(name: str) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """Return the operator's `loss(model, batch)`; raise ModelError when the file has none.

    batch: (inputs, targets). It returns the mean over the batch's examples, a scalar.
    """
    source, _ = _find(name, ModelError)
    function = getattr(_run(source, ModelError), "loss", None)
    if not callable(function):
        raise ModelError(f"{source.path.name} has no loss(model, batch); choose one of the built-in losses.")
    return lambda model, batch: _guarded(source, "loss()", lambda: function(model, batch), ModelError)  # type: ignore[no-any-return]


def read_operator_data(name: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Run the operator's `build_data()`; return inputs, targets and ids, one for each example. Raises DataError.

    name: "<module>" or "<module>:<model>". `build_data` returns (inputs, targets), something with these attributes
    (and ids, if it has them), or an iterable of such pairs, as a DataLoader is.
    """
    source, _ = _find(name, DataError)
    function = getattr(_run(source, DataError), "build_data", None)
    if not callable(function):
        raise DataError(f"{source.path.name} has no build_data(); choose data on the page or with --data.")
    inputs, targets, ids = _guarded(source, "build_data()", lambda: _examples(function()), DataError)
    if len(inputs) != len(targets) or not len(inputs):
        raise DataError(f"{source.path.name}: build_data() gives {len(inputs)} inputs and {len(targets)} targets.")
    if ids and len(set(ids)) != len(inputs):
        raise DataError(
            f"{source.path.name}: build_data() gives {len(set(ids))} different ids for {len(inputs)} inputs."
        )
    return inputs, targets, ids or tuple(map(str, range(len(inputs))))


def _examples(value: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    import torch

    if hasattr(value, "inputs") and hasattr(value, "targets"):
        ids = tuple(map(str, getattr(value, "ids", ())))
        return torch.as_tensor(value.inputs).detach().cpu(), torch.as_tensor(value.targets).detach().cpu(), ids
    pairs = [value] if isinstance(value, tuple) and len(value) == 2 else list(value)
    columns: list[list[Tensor]] = [[], []]
    for inputs, targets in pairs:
        columns[0].append(torch.as_tensor(inputs).detach().cpu())
        columns[1].append(torch.as_tensor(targets).detach().cpu())
    return torch.cat(columns[0]), torch.cat(columns[1]), ()


def _sources() -> Iterator[_Source]:
    for entry in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        if entry.endswith(".py") or os.sep in entry:
            path = Path(entry).expanduser().absolute()
            yield _Source(path.stem, path, imported=False)
        else:
            yield _Source(entry, _located(entry), imported=True)


def _located(module: str) -> Path:
    """Find the file of a module without importing it or the packages that it lies in."""
    where: Sequence[str] | None = None
    origin = None
    for count in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:count])
        found = PathFinder.find_spec(name, where)
        where, origin = (found.submodule_search_locations, found.origin) if found else ([], None)
    return Path(origin or f"{module}.py")


def _offered(source: _Source) -> Iterator[Offered]:
    file, sha256 = source.path.name, _hash(source)
    try:
        tree = ast.parse(source.path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        reason = error.strerror if isinstance(error, OSError) else getattr(error, "msg", None) or str(error)
        yield Offered(f"{source.module}:", file, sha256, problem=f"{file}{line}: {reason}.")
        return
    functions = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)} | set(_imported(tree))
    models = dict.fromkeys([*([_SINGLE] if _SINGLE in functions else []), *_several(tree)])
    for model in models:
        yield Offered(f"{source.module}:{model}", file, sha256, "build_data" in functions, "loss" in functions)
    if not models:
        words = f'{file} has neither {_SINGLE}() nor MODELS = {{"name": function}}.'
        yield Offered(f"{source.module}:", file, sha256, problem=words)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the names that the file takes from others, or gives to what it has already."""
    for each in tree.body:
        if isinstance(each, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in each.names)
        elif isinstance(each, ast.Assign):
            yield from (target.id for target in each.targets if isinstance(target, ast.Name))


def _several(tree: ast.Module) -> Iterator[str]:
    """Yield the keys of MODELS = {...}, where they are plain texts."""
    for each in tree.body:
        if not isinstance(each, ast.Assign | ast.AnnAssign) or not isinstance(each.value, ast.Dict):
            continue
        targets = each.targets if isinstance(each, ast.Assign) else [each.target]
        if any(isinstance(target, ast.Name) and target.id == "MODELS" for target in targets):
            keys = (key.value for key in each.value.keys if isinstance(key, ast.Constant))
            yield from (key for key in keys if isinstance(key, str))


def _find(name: str, error: type[ProbeError]) -> tuple[_Source, str]:
    module, _, model = name.partition(":")
    for source in _sources():
        if source.module == module:
            return source, model
    known = ", ".join(source.module for source in _sources()) or "nothing"
    raise error(f"The operator offers no module {module[:80]!r}; {VARIABLE} names {known}.")


_loaded: dict[tuple[str, str], ModuleType] = {}


def _run(source: _Source, error: type[ProbeError]) -> ModuleType:
    """Run the file, once as long as it does not change."""
    key = (str(source.path), _hash(source))
    if key not in _loaded:
        work = (lambda: _import(source.module)) if source.imported else (lambda: _execute(source.path))
        _loaded[key] = _guarded(source, "the file", work, error)
    return _loaded[key]


def _import(name: str) -> ModuleType:
    return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)


def _execute(path: Path) -> ModuleType:
    name = f"_operator_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import its neighbours
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _guarded(source: _Source, what: str, work: Callable[[], Any], error: type[ProbeError]) -> Any:
    """Run the operator's code; what it raises becomes a sentence, and the traceback goes to the log as its cause."""
    from probes.memory import is_out_of_memory

    try:
        return work()
    except ProbeError:
        raise
    except (Exception, SystemExit) as failure:  # it may raise anything
        if isinstance(failure, RuntimeError) and is_out_of_memory(failure):
            raise  # the objective tries fewer examples
        lines = [
            each.lineno for each in traceback.extract_tb(failure.__traceback__) if each.filename == str(source.path)
        ]
        line = failure.lineno if isinstance(failure, SyntaxError) else lines[-1] if lines else None
        where = f"{source.path.name}{f', line {line}' if line else ''}"
        reason = " ".join(str(failure).split())[:300]
        raise error(
            f"{where}: {what} fails with {type(failure).__name__}{f': {reason}' if reason else ''}."
        ) from failure


def _hash(source: _Source) -> str:
    try:
        return hashlib.sha256(source.path.read_bytes()).hexdigest()
    except OSError:
        return ""
