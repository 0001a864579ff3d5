"""What a layer gives for examples, and the derivatives of a class's logit by it: for concepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probes.errors import ModelError, ObjectiveError
from probes.objective import Objective
from probes.strict import strict


def activations(objective: Objective, layer: str, rows: Sequence[int], pooled: bool) -> Tensor:
    """Return the layer's output for these examples, (n, D) float64."""
    chosen = objective.chosen(rows)
    return chosen.in_memory(lambda: torch.cat([_run(chosen, layer, part, pooled)[0] for part in chosen.parts()]))


def slopes_of(objective: Objective, layer: str, rows: Sequence[int], class_index: int, pooled: bool) -> Tensor:
    """Return the derivatives of the class's logit by the layer's output for these examples, (n, D) float64."""
    chosen = objective.chosen(rows)

    def one(part: slice) -> Tensor:
        _, activation, outputs = _run(chosen, layer, part, pooled)
        if outputs.ndim != 2 or not 0 <= class_index < outputs.shape[1]:
            raise ObjectiveError(
                f"The class is {class_index}, the model gives outputs of shape {tuple(outputs.shape[1:])}; give a "
                f"class from 0 to {outputs.shape[-1] - 1} of a classifier."
            )
        if not outputs.requires_grad:
            return _flat(torch.zeros_like(activation), pooled)
        total = outputs[:, class_index].sum()
        with strict(chosen.module):
            (found,) = torch.autograd.grad(total, activation, allow_unused=True, materialize_grads=True)
        return _flat(found, pooled, sums=True)

    slopes = chosen.in_memory(lambda: torch.cat([one(part) for part in chosen.parts()]))
    if not bool(slopes.any()):
        raise ModelError(f"The logit of class {class_index} does not depend on the output of `{layer}`.")
    return slopes


def some_layers(objective: Objective, row: int, most: int = 4) -> tuple[str, ...]:
    """Choose layers at evenly spaced depths, first to last as they run: blocks, else layers with weight matrices.

    All run once and give a single tensor that the outputs depend on and that is not the outputs. Raises ModelError
    where there is none.
    """
    found = objective.in_memory(lambda: _candidates(objective.chosen([row])))
    blocks = _outer([name for name in found if _is_block(objective.module, name)])
    names = blocks or [name for name in found if _has_matrix(objective.module.get_submodule(name))] or found
    if not names:
        raise ModelError("No inner layer of this model runs once and gives a single tensor; name a layer.")
    places = {round(at * (len(names) - 1) / max(min(most, len(names)) - 1, 1)) for at in range(min(most, len(names)))}
    return tuple(names[place] for place in sorted(places))


def _candidates(objective: Objective) -> list[str]:
    """Name the layers that run once, give one tensor of floats and come before the outputs, in the order they end."""
    found: dict[str, Tensor] = {}
    often: set[str] = set()

    def look(name: str, output: Any) -> None:
        often.update([name] if name in found else [])
        if isinstance(output, Tensor) and output.is_floating_point() and output.requires_grad and output.ndim > 1:
            found[name] = output

    layers = [(name, each) for name, each in objective.module.named_modules() if name]
    hooks = [each.register_forward_hook(lambda _, __, output, name=name: look(name, output)) for name, each in layers]
    try:
        with strict(objective.module), torch.enable_grad():
            outputs = objective.outputs(objective.theta, slice(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    same = lambda each: each.shape == outputs.shape and torch.equal(each, outputs)
    inner = {name: each for name, each in found.items() if name not in often and not same(each)}
    if not inner:
        return []
    slopes = torch.autograd.grad(outputs.sum(), list(inner.values()), allow_unused=True)
    return [name for name, slope in zip(inner, slopes, strict=True) if slope is not None]


def _outer(blocks: list[str]) -> list[str]:
    """Return the blocks that are in no other, or, where that is one alone, those that are in it only; [] for none."""
    outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    return outer if len(outer) > 1 or not blocks else _outer([name for name in blocks if name not in outer])


def _is_block(module: nn.Module, name: str) -> bool:
    """Tell whether a layer is one of a row of layers, and made of layers itself."""
    return name.rpartition(".")[2].isdigit() and any(module.get_submodule(name).children())


def _has_matrix(layer: nn.Module) -> bool:
    return any(each.ndim > 1 for each in layer.parameters(recurse=False)) and not isinstance(layer, nn.Embedding)


def _run(objective: Objective, layer: str, part: slice, pooled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's output flat and as a leaf of the graph, and the model's outputs."""
    if layer not in dict(objective.module.named_modules()) or not layer:
        names = ", ".join(name for name, _ in objective.module.named_modules() if name)
        raise ModelError(f"The model has no layer {layer[:80]!r}; it has {names[:300]}.")
    theta = [each.detach() for each in objective.theta]
    with _captured(objective.module.get_submodule(layer), layer) as found, strict(objective.module):
        outputs = objective.outputs(theta, part)
    if len(found) != 1:
        raise ModelError(f"The layer `{layer}` runs {len(found)} times in one pass; choose one that runs once.")
    return _flat(found[0].detach(), pooled), found[0], outputs


@contextmanager
def _captured(module: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Cut the graph at a layer's output, which becomes a leaf; what comes after may write to its copy in place."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ModelError(f"The output of the layer `{layer}` is a {type(output).__name__}, not a tensor of floats.")
        found.append(output.detach().requires_grad_())
        return found[-1].clone()

    hook = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _flat(each: Tensor, pooled: bool, *, sums: bool = False) -> Tensor:
    """Return (n, D): all entries; or of (n, C, places...) and of tokens (n, T, C) the mean over places, or the sum."""
    if not pooled or each.ndim < 3:
        return each.flatten(1).double()
    places = tuple(range(2, each.ndim)) if each.ndim > 3 else (1,)
    return (each.sum(places) if sums else each.mean(places)).double()
