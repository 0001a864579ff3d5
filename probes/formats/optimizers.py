"""What a checkpoint says of its optimizer: its kind, and the moments that belong to each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.formats.contents import Stored, is_number

KEYS = ("optimizer", "optimizer_state", "optimizer_state_dict", "optim", "optimizers", "optimizer_states", "opt")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum", "acc_delta")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def optimizer_in(value: Mapping[Any, Any]) -> Mapping[str, Any] | None:
    """Return the state dict of the (first) optimizer in a training checkpoint."""
    found: Any = next((value[key] for key in KEYS if key in value), None)
    found = found[0] if isinstance(found, list | tuple) and found else found
    return found if is_optimizer(found) else None


def is_optimizer(value: Any) -> bool:
    """Say whether a value is the state dict of an optimizer."""
    return isinstance(value, dict) and isinstance(value.get("param_groups"), list)


def words_of(optimizer: Mapping[str, Any]) -> str:
    """Name an optimizer by the keys of its state; its class is not stored."""
    group, state = _group(optimizer), _state(optimizer)
    keys = {key for each in state.values() if isinstance(each, dict) for key in each}
    rate = group.get("lr")
    rate_words = f", learning rate {rate:g}" if is_number(rate) else ""
    return _kind(keys, group) + rate_words + ("" if state else " (no state yet)")


def moments_of(
    optimizer: Mapping[str, Any], tensors: Mapping[str, Stored], tied: Mapping[str, str]
) -> tuple[dict[str, dict[str, Stored]], str]:
    """Give each parameter the moments that the optimizer keeps for it: {"exp_avg": {parameter: moment}}, and a doubt.

    The optimizer numbers its parameters. They are named by `param_names` where the file has them, else by the order of
    the state dict (buffers and second names of tied tensors left out), if all shapes agree; else none is given.
    """
    state = {key: each for key, each in _state(optimizer).items() if isinstance(each, dict)}
    names = _names(optimizer, tensors, tied)
    found: dict[str, dict[str, Stored]] = {}
    for key, each in state.items():
        name = names.get(key)
        for kind in _MOMENTS:
            moment = each.get(kind)
            if not isinstance(moment, Stored):
                continue
            if name is None or moment.shape != tensors[name].shape:
                return {}, "The moments of the optimizer could not be matched to the parameters; they are not used."
            found.setdefault(kind, {})[name] = moment
    return found, ""


def _names(optimizer: Mapping[str, Any], tensors: Mapping[str, Stored], tied: Mapping[str, str]) -> dict[Any, str]:
    groups = [each for each in optimizer["param_groups"] if isinstance(each, dict)]
    numbers = [number for group in groups for number in _listed(group.get("params"))]
    said = [name for group in groups for name in _listed(group.get("param_names"))]
    if len(said) == len(numbers) and all(isinstance(each, str) and each in tensors for each in said):
        return dict(zip(numbers, said, strict=True))
    if all(isinstance(each, str) and each in tensors for each in numbers):  # FSDP and DCP name them
        return {each: each for each in numbers}
    order = [name for name in tensors if name not in tied and not name.endswith(_BUFFERS)]
    order = [name for name in order if tensors[name].dtype.startswith(("float", "bfloat"))]
    return dict(zip(sorted(numbers), order, strict=True)) if _numbered(numbers) and len(numbers) == len(order) else {}


def _numbered(numbers: list[Any]) -> bool:
    return all(type(each) is int for each in numbers) and len(set(numbers)) == len(numbers)


def _listed(value: Any) -> list[Any]:
    return [each for each in value if isinstance(each, str | int)] if isinstance(value, list | tuple) else []


def _group(optimizer: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = optimizer["param_groups"]
    return groups[0] if groups and isinstance(groups[0], dict) else {}


def _state(optimizer: Mapping[str, Any]) -> Mapping[Any, Any]:
    state = optimizer.get("state")
    return state if isinstance(state, dict) else {}


def _kind(keys: set[Any], group: Mapping[str, Any]) -> str:
    if "exp_avg_sq" in keys or "betas" in group:
        return "AdamW" if group.get("decoupled_weight_decay") else "Adam or AdamW"
    if "square_avg" in keys:
        return "RMSprop"
    if "acc_delta" in keys:
        return "Adadelta"
    if "sum" in keys:
        return "Adagrad"
    momentum = group.get("momentum")
    if "momentum_buffer" in keys or momentum:
        told = is_number(momentum) and momentum
        return f"SGD with momentum {momentum:g}" if told else "SGD with momentum"
    return "SGD" if "momentum" in group else "an optimizer that is not known"
