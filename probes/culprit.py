"""Which layer has no second derivative, or a wrong one? Each layer is tried alone, the innermost first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.errors import CurvatureError
from probes.objective import Objective
from probes.strict import strict

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
WRONG = "has a wrong second derivative (its backward is marked once_differentiable, or detaches?)"
Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def culprit(objective: Objective, seed: int) -> str:
    """Return " The layer `name` (Class) ..." for the innermost module that fails alone, or ""."""
    calls = _record(objective)
    modules = dict(objective.module.named_modules())
    for name in sorted(calls, key=lambda each: -each.count(".") - bool(each)):
        verdict = _verdict(objective, modules[name], calls[name], seed)
        if verdict:
            where = f"layer `{name}`" if name else "model itself"
            return f" The {where} ({type(modules[name]).__name__}) {verdict}; rewrite it with basic operations."
    return ""


def _record(objective: Objective) -> dict[str, Call]:
    """Run the model once and note the first call of every module."""
    calls: dict[str, Call] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(name, (args, kwargs))

    hooks = [
        module.register_forward_pre_hook(lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True)
        for name, module in objective.module.named_modules()
    ]
    try:
        with torch.no_grad(), strict(objective.module):
            objective.part_loss(objective.theta, slice(0, min(2, len(objective.inputs))))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _verdict(objective: Objective, module: nn.Module, call: Call, seed: int) -> str:
    """Say what is wrong with a module's second derivative, or ""."""
    args, kwargs = call
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = {name: objective.cast(each) for name, each in state.items()}
    moved = {name: each for name, each in values.items() if each.is_floating_point()}
    point = [each.detach() for each in args if isinstance(each, Tensor) and each.is_floating_point()]
    point += list(moved.values())
    if not point:
        return ""

    def run(z: list[Tensor]) -> Tensor:
        queue = list(z)
        new_args = [queue.pop(0) if isinstance(each, Tensor) and each.is_floating_point() else each for each in args]
        return _weighed(
            functional_call(module, {**values, **dict(zip(moved, queue, strict=True))}, tuple(new_args), dict(kwargs))
        )

    with strict(module):
        return _compare(run, point, seed)


def _compare(run: Any, point: list[Tensor], seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    v = [torch.randn(each.shape, generator=generator, dtype=each.dtype).to(each.device) for each in point]
    try:
        z = [each.clone().requires_grad_() for each in point]
        gradients = _gradient(run, z, graph=True)
        live = [(g, each) for g, each in zip(gradients, v, strict=True) if g.requires_grad]
        Hv = [torch.zeros_like(each) for each in z]
        if live:
            outputs, directions = zip(*live, strict=True)
            Hv = list(torch.autograd.grad(outputs, z, directions, allow_unused=True, materialize_grads=True))
    except (RuntimeError, CurvatureError):
        return "has no second derivative"
    errors = [_error(run, point, v, Hv, step) for step in STEPS]
    return WRONG if min(errors) > 1e-3 else ""


def _error(run: Any, point: list[Tensor], v: list[Tensor], Hv: list[Tensor], step: float) -> float:
    sides = []
    for sign in (1, -1):
        z = [(each + sign * step * way).requires_grad_() for each, way in zip(point, v, strict=True)]
        sides.append(_gradient(run, z, graph=False))
    change = [(a - b) / (2 * step) for a, b in zip(*sides, strict=True)]
    off = sum(float((a - b).square().sum()) for a, b in zip(change, Hv, strict=True)) ** 0.5
    size = sum(float(each.square().sum()) for each in (*change, *Hv)) ** 0.5
    return off / size if size > 1e-8 else 0.0


def _gradient(run: Any, z: list[Tensor], *, graph: bool) -> list[Tensor]:
    value = run(z)
    if not value.requires_grad:
        return [torch.zeros_like(each) for each in z]
    found = torch.autograd.grad(value, z, create_graph=graph, allow_unused=True, materialize_grads=True)
    return list(found)


def _weighed(output: Any) -> Tensor:
    """Turn any output into one number: uneven weights, so that nothing cancels, and curved, as a loss is."""
    tensors = output if isinstance(output, tuple | list) else (output,)
    total = torch.zeros((), dtype=torch.float64)
    for each in tensors:
        if isinstance(each, Tensor) and each.is_floating_point():
            weights = torch.linspace(0.5, 1.5, each.numel(), dtype=each.dtype, device=each.device)
            total = total.to(each.device) + (weights.view_as(each) * (each + each.square() / 2)).sum()
    return total
