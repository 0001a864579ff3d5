"""One question per file; `catalogue()` finds them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from analyzers._base import Analyzer


@cache
def catalogue() -> Mapping[str, type[Analyzer]]:
    """Find the analyzers in this folder: name -> class, in alphabetical order. Imports no torch."""
    names = sorted(each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))
    return MappingProxyType({name: _only_analyzer(name) for name in names})


def _only_analyzer(name: str) -> type[Analyzer]:
    module = importlib.import_module(f"{__name__}.{name}")
    values = vars(module).values()
    found: list[type[Analyzer]] = [each for each in values if _is_analyzer_of(each, module.__name__)]
    if len(found) != 1:
        raise ValueError(f"analyzers/{name}.py must define one Analyzer, found {len(found)}")
    if found[0].name != name:
        raise ValueError(f"the analyzer in analyzers/{name}.py must be named {name!r}, not {found[0].name!r}")
    return found[0]


def _is_analyzer_of(each: object, module: str) -> bool:
    return isinstance(each, type) and issubclass(each, Analyzer) and each.__module__ == module
