"""Where in a saved value are the weights, and what else does it say? Works on outlines: no tensor is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from probes.errors import RefusedCheckpoint
from probes.formats.pickle_values import Outline

_WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "net", "weights", "module", "network")
_PREFIXES = ("module.", "_orig_mod.")
_EPOCHS = ("epoch", "epochs", "current_epoch", "epoch_num")
_STEPS = ("step", "global_step", "iteration", "iter", "iter_num", "iters", "num_updates")
_OPTIMIZERS = ("optimizer", "optimizer_state", "optimizer_state_dict", "optim", "optimizers", "optimizer_states")
_METRIC = re.compile(r"(^|_)(prec|acc|loss|err|f1|auc|score|metric|perplexity|ppl|bleu|map|top)", re.IGNORECASE)
_TENSORS = 200_000
_NAME = 512


@dataclass(frozen=True)
class Found:
    """The weights in a saved value: `route` leads to their dict, `names` maps the model's name to the stored one."""

    route: tuple[str, ...]
    names: Mapping[str, str]
    tensors: Mapping[str, Outline]
    facts: Mapping[str, Any]
    doubts: tuple[str, ...]
    scalars: tuple[str, ...]


def find(value: Any, metadata: Mapping[str, Any], name: str) -> Found:
    """Find the state dict in what a file holds, with the facts and doubts beside it; raise RefusedCheckpoint.

    metadata: what a safetensors file says besides, all strings.
    """
    if not isinstance(value, dict):
        what = "a single tensor" if isinstance(value, Outline) else f"a {type(value).__name__}"
        raise RefusedCheckpoint(f"{name} holds {what}, not named tensors. Save model.state_dict().")
    route, doubts = _route(value, name)
    state = value
    for step in route:
        state = state[step]
    stored = {str(key): each for key, each in state.items() if isinstance(each, Outline) and isinstance(key, str)}
    doubts += _left_out(state, stored)
    prefix = _prefix(stored, value)
    names = {key.removeprefix(prefix): key for key in stored}
    tensors = {short: stored[key] for short, key in names.items()}
    _check_names(tensors, name)
    facts = _facts(value if route else {}, metadata, route, prefix, tensors)
    scalars = _scalars(value) if route else ()
    return Found(route, names, tensors, facts, (*doubts, *_doubts(tensors, facts)), scalars)


def _route(value: Mapping[Any, Any], name: str) -> tuple[tuple[str, ...], list[str]]:
    """Lead to the dict of tensors: the value itself, or what lies under one of the usual keys."""
    candidates = [key for key in _WRAPPERS if _is_state(value.get(key))]
    others = [key for key, each in value.items() if isinstance(key, str) and _is_state(each)]
    candidates += [key for key in others if key not in (*candidates, *_OPTIMIZERS)]
    tensors = sum(isinstance(each, Outline) for each in value.values())
    if tensors and (not candidates or tensors > 2):
        return (), []
    if not candidates:
        held = ", ".join(sorted(_printable(str(key)) for key in value)[:8]) or "nothing"
        raise RefusedCheckpoint(f"{name} holds no named tensors (its keys: {held}). Save model.state_dict().")
    chosen = candidates[0]
    if len(candidates) == 1:
        return (chosen,), []
    rest = ", ".join(_printable(each) for each in candidates[1:])
    return (chosen,), [f"The file holds several sets of weights; {chosen} was taken, not {rest}."]


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(each, Outline) for each in value.values())


def _left_out(state: Mapping[Any, Any], stored: Mapping[str, Any]) -> list[str]:
    others = [_printable(str(key)) for key in state if key not in stored]
    return [f"{len(others)} entries are no tensors and were left out ({', '.join(others[:3])})."] if others else []


def _prefix(stored: Mapping[str, Any], value: Mapping[Any, Any]) -> str:
    """Return what DataParallel, torch.compile or Lightning put before every name."""
    known = (*_PREFIXES, "model.", "net.") if "pytorch-lightning_version" in value else _PREFIXES
    prefix = ""
    while stored:
        more = next((each for each in known if all(key.startswith(prefix + each) for key in stored)), "")
        if not more:
            break
        prefix += more
    return prefix


def _check_names(tensors: Mapping[str, Outline], name: str) -> None:
    if not tensors:
        raise RefusedCheckpoint(f"{name} holds no tensors. Save model.state_dict().")
    if len(tensors) > _TENSORS or max(map(len, tensors)) > _NAME:
        raise RefusedCheckpoint(f"{name} holds {len(tensors):,} tensors or a name beyond {_NAME} characters.")
    if not all(each.isprintable() for each in tensors):
        raise RefusedCheckpoint(f"{name} has names of tensors that cannot be printed. It is not used.")


def _facts(
    value: Mapping[Any, Any],
    metadata: Mapping[str, Any],
    route: tuple[str, ...],
    prefix: str,
    tensors: Mapping[str, Outline],
) -> dict[str, Any]:
    said = dict(_numbers(value)) | dict(_written(metadata))
    metrics = {key: number for key, number in said.items() if _METRIC.search(key)}
    for key in ("metrics", "results", "scores"):
        if isinstance(value.get(key), dict):
            metrics |= dict(_numbers(value[key]))
    facts = {
        "wrapper": _printable(".".join(route)),
        "prefix": prefix,
        "epoch": _first(said, _EPOCHS),
        "step": _first(said, _STEPS),
        "metrics": metrics,
        "optimizer": _optimizer(value),
        "model_args": _model_args(value),
        "model_text": _stated(metadata),
        "tied": _tied(tensors),
    }
    return {key: each for key, each in facts.items() if each not in (None, "", {})}


def _numbers(value: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for key, each in value.items():
        if _named(key) and type(each) in (int, float) and math.isfinite(each):
            yield key, each


def _written(metadata: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Read the numbers among safetensors' metadata, which are all strings."""
    for key, each in metadata.items():
        if not _named(key):
            continue
        try:
            number = float(each)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            yield key, int(number) if number.is_integer() and "." not in str(each) else number


def _first(said: Mapping[str, float], keys: tuple[str, ...]) -> int | None:
    return next((int(said[key]) for key in keys if key in said), None)


def _scalars(value: Mapping[Any, Any]) -> tuple[str, ...]:
    pairs = ((key, each) for key, each in value.items() if _named(key) and isinstance(each, Outline))
    return tuple(key for key, each in pairs if each.numel == 1 and _METRIC.search(key))


def _optimizer(value: Mapping[Any, Any]) -> str | None:
    """Name the optimizer by the keys of its state; its class is not stored."""
    found = next((value[key] for key in _OPTIMIZERS if key in value), None)
    found = found[0] if isinstance(found, (list, tuple)) and found else found
    if not isinstance(found, dict) or "param_groups" not in found:
        return None
    groups = found["param_groups"]
    group = groups[0] if isinstance(groups, list) and groups and isinstance(groups[0], dict) else {}
    state = found.get("state") or {}
    keys = {key for each in state.values() if isinstance(each, dict) for key in each}
    rate = group.get("lr")
    rate_words = f", learning rate {rate:g}" if type(rate) in (int, float) else ""
    return _optimizer_words(keys, group) + rate_words + ("" if state else " (no state yet)")


def _optimizer_words(keys: set[Any], group: Mapping[str, Any]) -> str:
    if "exp_avg_sq" in keys or "betas" in group:
        return "AdamW" if group.get("decoupled_weight_decay") else "Adam or AdamW"
    if "square_avg" in keys:
        return "RMSprop"
    if "acc_delta" in keys:
        return "Adadelta"
    if "sum" in keys:
        return "Adagrad"
    if "momentum_buffer" in keys or group.get("momentum"):
        return f"SGD with momentum {group['momentum']:g}" if group.get("momentum") else "SGD with momentum"
    return "SGD" if "momentum" in group else "an optimizer that is not known"


def _model_args(value: Mapping[Any, Any]) -> dict[str, Any]:
    args = value.get("model_args")
    if not isinstance(args, dict):
        return {}
    plain = (str, int, float, bool, type(None))
    found = {key: each for key, each in args.items() if _named(key) and isinstance(each, plain)}
    return {key: _printable(each) if isinstance(each, str) else each for key, each in found.items()}


def _stated(metadata: Mapping[str, Any]) -> str:
    """Return the model as the file itself writes it down, as this app's example does; parsed later, never run."""
    text = metadata.get("model", "")
    return text if isinstance(text, str) and text.isprintable() and "Sequential(" in text[:40] else ""


def _named(key: Any) -> bool:
    return isinstance(key, str) and key.isprintable() and len(key) <= 80


def _tied(tensors: Mapping[str, Outline]) -> dict[str, str]:
    """Map every name that shows the very same stretch of bytes as an earlier one to that earlier name."""
    first: dict[Any, str] = {}
    tied = {}
    for name, each in tensors.items():
        place = (each.storage.key, each.offset, each.shape, each.stride)
        if each.numel and place in first:
            tied[name] = first[place]
        first.setdefault(place, name)
    return tied


def _doubts(tensors: Mapping[str, Outline], facts: Mapping[str, Any]) -> Iterator[str]:
    half = [name for name, each in tensors.items() if each.dtype in ("float16", "bfloat16")]
    if half:
        yield f"{len(half)} tensors are stored in half precision ({half[0]}): some 3 digits of each weight are known."
    double = [name for name, each in tensors.items() if each.dtype == "float64"]
    if double:
        yield f"{len(double)} tensors are float64 ({double[0]}); computing in float32 rounds them."
    whole = [name for name, each in tensors.items() if not each.dtype.startswith(("float", "bfloat"))]
    whole = [name for name in whole if not name.endswith("num_batches_tracked")]
    if whole:
        yield f"{len(whole)} tensors are not floating ({whole[0]}): they are buffers or quantized weights."
    for name, first in list(facts.get("tied", {}).items())[:3]:
        yield f"{name} and {first} share their memory; they count as one parameter."
    empty = [name for name, each in tensors.items() if not each.numel]
    if empty:
        yield f"{len(empty)} tensors have no elements ({empty[0]})."


def _printable(name: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in name)[:80]
