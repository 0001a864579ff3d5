"""The final linear head of a model: which layer it is, and what enters it.

A forward pass with hooks finds it; later passes stop before it, so that its outputs need not be made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probes.errors import ModelError, ObjectiveError
from probes.objective import Objective
from probes.strict import strict

TOLERANCE = 1e-3  # relative: is the layer's output W z + b?
_CHECKED = 8  # places at which that is looked at
_OTHERWISE = "Choose the scope network: it needs no such layer."


@dataclass(frozen=True)
class Head:
    """The layer whose output is the model's. shared: other layers that hold the same weights (tied embeddings)."""

    name: str
    kind: str
    shared: tuple[str, ...]


@dataclass(frozen=True)
class Logits:
    """Outputs (n, T, C) of a model, not made yet: inputs z (n, T, D) of its head, kernel (C, D) and bias (C,).

    weight: None where z is the outputs themselves. by_channel: whether the model gives them as (n, C, T).
    """

    z: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    by_channel: bool = False

    @property
    def width(self) -> int:
        """Return C."""
        return int(self.z.shape[-1]) if self.weight is None else len(self.weight)

    def scores(self, z: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        """Return W z without and with the bias for rows z and some outputs, float64."""
        if self.weight is None:
            made = z[..., columns].double()
            return made, made
        plain = (z @ self.weight[columns].mT).double()
        return plain, plain if self.bias is None else plain + self.bias[columns].double()


@dataclass(frozen=True)
class _Call:
    """A layer has run. version: how often its output had been written to at the time."""

    name: str
    layer: nn.Module
    logits: Logits | None
    output: Tensor
    version: int


class _Reached(Exception):
    """The forward pass has come to the head."""


def find_head(objective: Objective) -> Head:
    """Find the last linear layer, the output of which is the model's, by running the model on two examples.

    Linear, a convolution with a 1x1 kernel, and Conv1D of transformers count. Raises ModelError when there is none, and
    ObjectiveError for an operator's own loss, whose derivative by the outputs is not known.
    """
    if objective.own is not None:
        raise ObjectiveError(
            f"The derivative by the outputs is not known of a loss that runs the model itself. {_OTHERWISE}"
        )
    calls: list[_Call] = []

    def note(name: str, layer: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append(_Call(name, layer, _logits(layer, args), output, output._version))

    with _hooked(objective.module, note), torch.no_grad(), strict(objective.module):
        outputs = objective.outputs(objective.theta, slice(0, min(2, len(objective.inputs))))
        call = next((each for each in reversed(calls) if _ends(each, outputs)), None)
    if call is None or call.logits is None:
        raise ModelError(f"The model's output is not that of a linear layer{_last(calls)}. {_OTHERWISE}")
    if sum(each.layer is call.layer for each in calls) > 1:
        raise ModelError(f"The last linear layer `{call.name}` is used more than once. {_OTHERWISE}")
    if objective.loss == "cross_entropy" and call.logits.z.shape[1] != 1:
        raise ModelError(f"The layer `{call.name}` gives the classes of an example at several places. {_OTHERWISE}")
    return Head(call.name, type(call.layer).__name__, _shared(objective.module, call))


def logits_of(objective: Objective, head: Head | None, part: slice) -> Logits:
    """Run the model on a micro-batch up to its head, or without a head to its end; call it inside `strict()`.

    Raises ModelError when the head is not reached.
    """
    if head is None:
        outputs = objective.outputs(objective.theta, part)
        return Logits(outputs if objective.loss == "causal_lm" else outputs.reshape(len(outputs), 1, -1))
    reached: list[Logits] = []

    def stop(layer: nn.Module, args: Any) -> None:
        found = _logits(layer, args)
        reached.extend([found] if found is not None else [])
        raise _Reached

    hook = objective.module.get_submodule(head.name).register_forward_pre_hook(stop)
    try:
        objective.outputs(objective.theta, part)
    except _Reached:
        return reached[0]
    finally:
        hook.remove()
    raise ModelError(f"The layer `{head.name}` is not reached by all examples. {_OTHERWISE}")


def _logits(layer: nn.Module, args: Any) -> Logits | None:
    """Return what a linear layer does with its input, inside the forward pass; None of other layers."""
    z = args[0] if args and isinstance(args[0], Tensor) else None
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if z is None or z.ndim < 2 or not isinstance(weight, Tensor):
        return None
    if isinstance(layer, nn.Linear):
        return Logits(z.reshape(len(z), -1, z.shape[-1]), weight, bias)
    if type(layer).__name__ == "Conv1D" and weight.ndim == 2:  # transformers': a Linear with its kernel transposed
        return Logits(z.reshape(len(z), -1, z.shape[-1]), weight.mT, bias)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and _pointwise(layer) and z.ndim == weight.ndim:
        return Logits(z.flatten(2).mT, weight.flatten(1), bias, by_channel=True)
    return None


def _pointwise(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    padded = not isinstance(layer.padding, str) and any(layer.padding)
    return layer.groups == 1 and not padded and all(each == 1 for each in (*layer.kernel_size, *layer.stride))


def _ends(call: _Call, outputs: Tensor) -> bool:
    """Tell whether a layer's output is the model's: the same memory in the same order, not written to since."""
    made, logits = call.output, call.logits
    if logits is None or made.numel() != outputs.numel() or made._version != call.version:
        return False
    if made.untyped_storage().data_ptr() != outputs.untyped_storage().data_ptr():
        return False
    return torch.equal(made.flatten(), outputs.flatten()) and _linear(logits, made)


def _linear(logits: Logits, made: Tensor) -> bool:
    """Tell whether the output is W z + b: a layer may be derived from Linear and do more."""
    first = made[0].reshape(logits.width, -1).mT if logits.by_channel else made[0].reshape(-1, logits.width)
    _, expected = logits.scores(logits.z[0, :_CHECKED], slice(None))
    return bool((expected - first[:_CHECKED]).abs().amax() <= TOLERANCE * expected.abs().amax())


def _shared(module: nn.Module, call: _Call) -> tuple[str, ...]:
    own = f"{call.name}.weight".removeprefix(".")
    names = [name for name, each in module.named_parameters(remove_duplicate=False) if each is call.layer.weight]
    return tuple(each.removesuffix(".weight") for each in names if each != own)


def _last(calls: list[_Call]) -> str:
    leaves = [each for each in calls if each.name and not list(each.layer.children())]
    return f": the last layer is `{leaves[-1].name}` ({type(leaves[-1].layer).__name__})" if leaves else ""


@contextmanager
def _hooked(module: nn.Module, note: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    hooks = [
        layer.register_forward_hook(lambda layer, args, output, name=name: note(name, layer, args, output))
        for name, layer in module.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
