"""ModelSpec -> nn.Module, one way for each source, on the default device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from probes.architecture import modules
from probes.architecture.families import family_of
from probes.architecture.llama import SmallLlama
from probes.errors import ModelError
from probes.specs import ModelSpec

_MAXIMUM_SIZE = 2**24
_MAXIMUM_LAYERS = 2_000
_FRACTIONS = ("norm_eps", "theta")
_BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "cifar_resnet": modules.CifarResNet,
    "small_gpt": modules.SmallGPT,
    "small_llama": SmallLlama,
    "mlp": modules.mlp,
    "lenet": modules.lenet,
}


def make(spec: ModelSpec) -> nn.Module:
    """Build the module; raise ModelError when it cannot be built."""
    return _SOURCES[spec.source](spec)


def _catalogue(spec: ModelSpec) -> nn.Module:
    family = family_of(spec.name)
    _check_sizes(family.title, spec.arguments)
    try:
        return _BUILDERS[spec.name](**spec.arguments)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{family.title} cannot be built from {dict(spec.arguments)}: {error}.") from None


def _check_sizes(title: str, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        limit = _MAXIMUM_LAYERS if name in ("depth", "layers", "heads") else _MAXIMUM_SIZE
        sizes = [each for each in values if isinstance(each, (int, float)) and not isinstance(each, bool)]
        wrong = next((each for each in sizes if not _allowed(name, each, limit)), None)
        if wrong is not None or len(values) > _MAXIMUM_LAYERS:
            raise ModelError(f"{title}: {name} is {wrong if wrong is not None else len(values)}; at most {limit:,}.")


def _allowed(name: str, value: float, limit: int) -> bool:
    if name in _FRACTIONS:
        return math.isfinite(value) and 0 < value < 1e12
    return isinstance(value, int) and 0 <= value <= limit


def _text(spec: ModelSpec) -> nn.Module:
    from probes.architecture.model_text import build_text

    return build_text(spec.text)


def _hugging_face(spec: ModelSpec) -> nn.Module:
    from probes.hugging_face import build_folder

    return build_folder(Path(spec.folder))


def _library(spec: ModelSpec) -> nn.Module:
    from probes.library import build_library

    return build_library(spec)


def _operator(spec: ModelSpec) -> nn.Module:
    from probes.operator_models import build_operator

    return build_operator(spec.name, str(spec.arguments.get("sha256", "")))


def _trusted(spec: ModelSpec) -> nn.Module:
    from probes.trusted import load_trusted

    return load_trusted(Path(spec.folder), str(spec.arguments.get("sha256", "")))


_SOURCES: Mapping[str, Callable[[ModelSpec], nn.Module]] = {
    "catalogue": _catalogue,
    "text": _text,
    "hugging_face": _hugging_face,
    "library": _library,
    "operator": _operator,
    "trusted": _trusted,
}
