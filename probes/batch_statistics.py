"""The running statistics of BatchNorm, measured anew at a point: moments over all examples, pooled exactly.

In train mode every BatchNorm layer normalises by the moments of the batch that it sees, so what later layers see
depends on how the examples are cut into batches. Here all examples are one batch wherever the memory allows it, and
then the moments do not depend on any cut; otherwise the parts' moments are pooled in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from probes.memory import spare_bytes
from probes.objective import Objective
from probes.points import Point, tensors_of
from probes.pool import Pool
from probes.strict import strict

HELD_AT_ONCE = 8  # tensors as large as the largest activation: input, output, and double-precision copies


def has_batch_norm(objective: Objective) -> bool:
    """Tell whether the model has a BatchNorm layer with running statistics."""
    return bool(_layers(objective.module))


def renewed(objective: Objective, point: Point) -> Point:
    """Return the point with the running statistics that the objective's examples give there; as it is without any.

    The variance is the unbiased one, as torch keeps it. Dropout stays off. Raises ObjectiveError (memory).
    """
    layers = _layers(objective.module)
    if not layers:
        return point
    cuts = [_fewest(objective, point)]

    def work() -> dict[str, Pool]:
        parts, cuts[0] = cuts[0], 2 * cuts[0]
        return _measured(objective, point, layers, parts)

    moments = objective.in_memory(work)
    buffers = dict(point.buffers)
    for name, found in moments.items():
        if found.mean is None:  # a layer that the model does not call
            continue
        prefix = f"{name}." if name else ""
        buffers[f"{prefix}running_mean"] = found.mean.to(objective.dtype)
        buffers[f"{prefix}running_var"] = found.unbiased().to(objective.dtype)
    return replace(point, buffers=buffers)


def _layers(module: nn.Module) -> dict[str, _BatchNorm]:
    found = {name: each for name, each in module.named_modules() if isinstance(each, _BatchNorm)}
    return {name: each for name, each in found.items() if each.running_mean is not None}


def _fewest(objective: Objective, point: Point) -> int:
    """Estimate into how many parts the examples must be cut: one, but for large data."""
    largest = [1]

    def note(_layer: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor):
            largest[0] = max(largest[0], output.nbytes)

    hooks = [each.register_forward_hook(note) for each in objective.module.modules()]
    try:
        with torch.no_grad(), strict(objective.module):
            values = {**objective.constants, **tensors_of(objective, point)}
            functional_call(objective.module, values, (objective.inputs[:1].to(objective.device),))
    finally:
        for hook in hooks:
            hook.remove()
    needed = HELD_AT_ONCE * largest[0] * len(objective.inputs)
    return max(1, math.ceil(needed / max(spare_bytes(objective.device) / 2, 1)))


def _measured(objective: Objective, point: Point, layers: dict[str, _BatchNorm], parts: int) -> dict[str, Pool]:
    moments = {name: Pool(1) for name in layers}
    values = {**objective.constants, **tensors_of(objective, point)}
    kept = ("running_mean", "running_var")
    scratch = {name: torch.zeros_like(each) if name.endswith(kept) else each for name, each in values.items()}
    counters = {name: each.clone() for name, each in values.items() if name.endswith("num_batches_tracked")}
    with torch.no_grad(), strict(objective.module), _watched(layers, moments):
        for part in objective.inputs.tensor_split(parts):
            functional_call(objective.module, {**scratch, **counters}, (part.to(objective.device),))
    return moments


@contextmanager
def _watched(layers: dict[str, _BatchNorm], moments: dict[str, Pool]) -> Iterator[None]:
    """Let the BatchNorm layers use the moments of their batch, and note these as they keep them; undone afterwards.

    With a momentum of 1 the running statistics are those of the last batch: the layer sums them up anyhow.
    """

    def note(name: str) -> Any:
        def pooled(layer: _BatchNorm, args: tuple[Tensor, ...], _output: Tensor) -> None:
            mean, variance = layer.running_mean, layer.running_var
            count = args[0].numel() / args[0].shape[1]
            if mean is not None and variance is not None:
                moments[name].join(count, mean.double(), variance.double() * (count - 1))

        return pooled

    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    before = {name: (layer.training, layer.momentum) for name, layer in layers.items()}
    for layer in layers.values():
        layer.training, layer.momentum = True, 1.0
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.training, layer.momentum = before[name]
