"""Whole modules in a pickle, as inert records -> their state dict, and where it can be told their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probes.formats.contents import Record, Stored, is_number, printable

_DEPTH = 60
_MOST_MODULES = 20_000
_LONGEST_PREFIX = 2_000
_MOST_ITEMS = 16
_MOST_LAYERS = 2_000
_PACKAGE = "torch.nn.modules."
# What the constructors of torch.nn's layers are told, as far as it changes what they compute.
_TOLD: Mapping[str, tuple[str, ...]] = {
    "Linear": ("in_features", "out_features"),
    "Conv": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "BatchNorm": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "InstanceNorm": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "RMSNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx"),
    "MaxPool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "AvgPool": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "Adaptive": ("output_size",),
    "Flatten": ("start_dim", "end_dim"),
    "Dropout": ("p",),
    "LeakyReLU": ("negative_slope",),
    "ELU": ("alpha",),
    "GELU": ("approximate",),
    "Softmax": ("dim",),
    "LogSoftmax": ("dim",),
    "Hardtanh": ("min_val", "max_val"),
    "Softplus": ("beta", "threshold"),
}  # fmt: skip
_PLAIN = (
    "ReLU",
    "ReLU6",
    "Tanh",
    "Sigmoid",
    "SiLU",
    "Mish",
    "Identity",
    "Hardswish",
    "Hardsigmoid",
    "SELU",
    "Softsign",
)


def is_module(value: Any) -> bool:
    """Say whether a record is a torch module."""
    return isinstance(value, Record) and isinstance(_state(value).get("_modules"), dict)


def state_of(module: Record) -> dict[str, Stored]:
    """Return the state dict of a module: parameters and persistent buffers by their dotted names.

    Returns {} for one of more parts than any has, as when it contains itself.
    """
    found: dict[str, Stored] = {}
    stack: list[tuple[str, Record, int]] = [("", module, 0)]
    visits = 0
    while stack:
        prefix, each, depth = stack.pop()
        visits += 1
        if visits > _MOST_MODULES or depth > _DEPTH or len(prefix) > _LONGEST_PREFIX:
            return {}
        found.update(_own(each, prefix))
        stack += [(f"{prefix}{key}.", child, depth + 1) for key, child in reversed(list(_children(each)))]
    return found


def text_of(module: Record) -> str:
    """Return a module made of torch's own layers as the text of a Sequential; "" for every other."""
    text = _text(module, [_MOST_LAYERS])
    return text if text.startswith("Sequential(") else ""


def kinds_of(module: Record) -> list[tuple[str, str]]:
    """List the modules inside by name and class, the root first."""
    found = [("", printable(module.name))]
    stack = [("", module)]
    while stack and len(found) < _MOST_MODULES:
        prefix, each = stack.pop()
        for key, child in _children(each):
            found.append((f"{prefix}{key}", printable(child.name)))
            stack.append((f"{prefix}{key}.", child))
    return found


def _state(record: Record) -> Mapping[str, Any]:
    return record.state if isinstance(record.state, dict) else {}


def _children(module: Record) -> Iterator[tuple[str, Record]]:
    modules = _state(module).get("_modules")
    for key, child in modules.items() if isinstance(modules, dict) else ():
        if isinstance(key, str) and is_module(child):
            yield key, child


def _own(module: Record, prefix: str) -> Iterator[tuple[str, Stored]]:
    state = _state(module)
    passing = state.get("_non_persistent_buffers_set")
    for part in ("_parameters", "_buffers"):
        held = state.get(part)
        for key, value in held.items() if isinstance(held, dict) else ():
            if isinstance(value, Stored) and not (isinstance(passing, set) and key in passing):
                yield f"{prefix}{key}", value


def _text(module: Record, left: list[int], depth: int = 0) -> str:
    kind = module.name.rsplit(".", 1)[-1]
    left[0] -= 1
    if not module.name.startswith(_PACKAGE) or depth > 20 or left[0] < 0:
        return ""
    if kind == "Sequential":
        children = list(_children(module))
        numbered = [key for key, _ in children] == [str(count) for count in range(len(children))]
        inner = [_text(child, left, depth + 1) for _, child in children] if numbered else []
        return f"Sequential({', '.join(inner)})" if inner and all(inner) else ""
    if kind in _PLAIN:
        return f"{kind}()"
    fits = (told for start, told in _TOLD.items() if kind == start or (kind.startswith(start) and kind[-1] == "d"))
    told = next(fits, None)
    return _layer(kind, _state(module), told) if told else ""


def _layer(kind: str, state: Mapping[str, Any], told: tuple[str, ...]) -> str:
    given = [f"{key}={_literal(state[key])}" for key in told if key in state and state[key] is not None]
    parameters = state.get("_parameters")
    none = isinstance(parameters, dict) and "bias" in parameters and parameters["bias"] is None
    if none and kind.startswith(("Linear", "Conv", "LayerNorm")):
        given.append("bias=False")
    return f"{kind}({', '.join(given)})"


def _literal(value: Any, depth: int = 0) -> str:
    if isinstance(value, tuple | list) and len(value) <= _MOST_ITEMS and depth < 3:
        return "(" + "".join(f"{_literal(each, depth + 1)}, " for each in value).rstrip() + ")"
    short = isinstance(value, str) and len(value) <= 40 and value.isprintable()
    return repr(value) if isinstance(value, bool) or is_number(value) or short else "0"
