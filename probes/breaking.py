"""Where does a permuted model stop giving the outputs of its layers rearranged?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from probes.in_float64 import InFloat64
from probes.objective import Objective
from probes.strict import strict

_TOLERANCE = 1e-8
_EXAMPLES = 4
Sums = list[tuple[str, Tensor]]  # (layer, sums over the values of an example that no rearrangement changes)


def first_broken_layer(one: Objective, other: Objective) -> str:
    """Return the first layer, in order of execution, whose outputs are not the same values in another order.

    one, other: the model at two points. Returns "" when it happens outside all layers, or nowhere.
    """
    for (name, before), (_, after) in zip(_sums(one), _sums(other), strict=False):
        size = before.abs().clamp_min(1e-300)
        if before.shape != after.shape or not bool((((after - before).abs() / size) < _TOLERANCE).all()):
            return name
    return ""


def _sums(objective: Objective) -> Sums:
    few = objective.chosen(list(range(min(_EXAMPLES, len(objective.inputs)))))
    found: Sums = []
    with torch.no_grad(), strict(few.module), InFloat64(), _listening(few.module, found, len(few.inputs)):
        if few.own is not None:
            few.tallied(finite=False)
        else:
            few.outputs(few.theta, slice(0, len(few.inputs)))
    return found


@contextmanager
def _listening(module: nn.Module, found: Sums, examples: int) -> Iterator[None]:
    """Note what every layer gives, in the order in which they finish; one within another comes first."""

    def note(name: str, output: object) -> None:
        tensors = output if isinstance(output, tuple | list) else (output,)
        for each in tensors:
            if isinstance(each, Tensor) and each.is_floating_point():
                found.append((name, _symmetric(each.detach().double(), examples)))

    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, layer in module.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _symmetric(output: Tensor, examples: int) -> Tensor:
    """Sum functions of the values of each example (of all together, where examples are not along the first axis)."""
    rows = output.reshape(examples, -1) if output.ndim and output.shape[0] == examples else output.reshape(1, -1)
    spread = rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-300)
    unit = (rows / spread).clamp(-1e6, 1e6)
    bent = [unit.cos(), (unit + 1).cos(), 1 / (1 + unit.square()), torch.sigmoid(unit)]
    sums = [each.sum(1) / each.abs().sum(1).clamp_min(1e-300) for each in bent]
    return torch.stack([spread[:, 0], *(2 + each for each in sums)])
