"""What the layers of a model give for one example: watched, cut out of the graph, replaced. Hooks never stay."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from probes.attribution.errors import AttributionError
from probes.attribution.layer_places import Layout, picture_layout
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.objective import Objective

_LISTED = 12  # layers named in an error, at most
_FIRST: WeakKeyDictionary[Objective, Mapping[str, Layer]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layer:
    """One layer and its output for the example.

    shape: (1, ...). layout: None where the output has no places on the input. reached: the share of its places (of its
    entries where it has none) at which the score's gradient is not zero. inner: inside an attention. calls: in a pass.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout | None
    reached: float
    inner: bool
    calls: int


def layers_of(case: Case) -> Mapping[str, Layer]:
    """Return every layer that gives a tensor of floats, in the order in which they end.

    Of images the data's first example is looked at, once for a model, so that all examples have the same layers.
    """
    return case.once("layers", lambda: _of_first(case) if case.kind == "image" else _watched(case))


def grids_of(case: Case) -> tuple[tuple[int, ...], ...]:
    """Return the sizes of the pictures that the layers of a model of images give."""
    found = [each.layout for each in layers_of(case).values() if each.layout and each.layout.kind != "tokens"]
    return tuple(dict.fromkeys(each.grid for each in found))


def layer_of(case: Case, name: str) -> Layer:
    """Return the layer of this name; raise AttributionError where it is missing, reused or gives no tensor."""
    found = layers_of(case)
    if name in found and found[name].calls == 1:
        return found[name]
    if name in found:
        raise AttributionError(
            f"The layer {name!r} runs {found[name].calls} times in one pass, so its output is not one tensor; choose "
            "one that runs once."
        )
    known = [each.name for each in found.values() if each.calls == 1]
    if name in dict(case.module.named_modules()):
        why = "does not run, or gives no tensor of floats"
    else:
        why = "is not in the model"
    shown = ", ".join(known[-_LISTED:])
    raise AttributionError(f"The layer {name[:80]!r} {why}. Choose one of {len(known)}, such as {shown}.")


def evaluated(case: Case, name: str, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer's output y (B, ...), the scores (B,) and their gradients by y, at features (B, ...)."""
    with torch.enable_grad(), strict(case.module, order=1), cut(case, name) as kept:
        scores = case.scores(features.detach())
        if not scores.requires_grad:
            raise AttributionError(f"The score does not depend on the output of the layer {name!r}; choose another.")
        (slopes,) = torch.autograd.grad(scores.sum(), kept[0])
    return kept[0].detach(), scores.detach(), slopes


def cuts(case: Case, name: str) -> bool:
    """Tell whether the score depends on the features through this layer alone."""
    features = case.features.detach().requires_grad_()
    with torch.enable_grad(), strict(case.module, order=1), cut(case, name):
        scores = case.scores(features)
        if not scores.requires_grad:
            return False
        (beside,) = torch.autograd.grad(scores.sum(), features, allow_unused=True)
    return beside is None or not bool(beside.any())


@contextmanager
def cut(case: Case, name: str) -> Iterator[list[Tensor]]:
    """Make the layer's output a leaf of the graph; what comes after may write to its copy in place."""
    with _kept(case, name, lambda tensor: tensor.detach().requires_grad_()) as found:
        yield found


@contextmanager
def kept(case: Case, name: str) -> Iterator[list[Tensor]]:
    """Keep the layer's output with its graph."""
    with _kept(case, name, lambda tensor: tensor.view_as(tensor)) as found:
        yield found


@contextmanager
def replaced_output(case: Case, name: str, values: Tensor) -> Iterator[None]:
    """Let the layer give these values (B, ...)."""
    with _kept(case, name, lambda _: values):
        yield


@contextmanager
def _kept(case: Case, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def look(_module: nn.Module, _args: Any, output: Any) -> Any:
        tensor = tensor_in(output)
        if tensor is None:
            raise AttributionError(f"The layer {name!r} gives a {type(output).__name__} without a tensor of floats.")
        found.append(change(tensor))
        return with_tensor(output, found[-1].clone())

    handle = case.module.get_submodule(name).register_forward_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def tensor_in(output: Any) -> Tensor | None:
    """Return a layer's output, or the first tensor of floats in its tuple or mapping, as transformers' layers give."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.ndim > 1 else None
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((each for each in values if isinstance(each, Tensor) and tensor_in(each) is not None), None)


def with_tensor(output: Any, tensor: Tensor) -> Any:
    """Return the output with another tensor in the place of the one that `tensor_in` finds."""
    if isinstance(output, Tensor):
        return tensor
    old = tensor_in(output)
    if isinstance(output, Mapping):
        new: Any = copy.copy(output)
        new[next(key for key, each in output.items() if each is old)] = tensor
        return new
    parts = [tensor if each is old else each for each in output]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def _of_first(case: Case) -> Mapping[str, Layer]:
    from probes.attribution.case import case_of

    if case.objective not in _FIRST:
        _FIRST[case.objective] = _watched(case_of(case.objective, 0))
    return _FIRST[case.objective]


def _watched(case: Case) -> dict[str, Layer]:
    outputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def look(name: str, output: Any) -> Any:
        tensor = tensor_in(output)
        if tensor is None or name == case.embedding:  # the features stand in for that output
            return output
        calls[name] += 1
        outputs.pop(name, None)
        outputs[name] = tensor.view_as(tensor)  # a node of its own: a pooler inside may read the tensor as well
        return with_tensor(output, outputs[name].clone())

    features = case.features.detach().requires_grad_()
    with torch.enable_grad(), strict(case.module), _hooked(case.module, look):
        slopes = _slopes(case.scores(features), outputs)
    return _described(case, {name: tuple(each.shape) for name, each in outputs.items()}, slopes, calls)


def _slopes(scores: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name, each in outputs.items() if each.requires_grad]
    if not scores.requires_grad or not names:
        raise AttributionError(
            "The score does not depend on any layer by a path that can be differentiated; choose a method that only "
            "runs the model forward, such as occlusion."
        )
    found = torch.autograd.grad(scores.sum(), [outputs[name] for name in names], allow_unused=True)
    return {name: each for name, each in zip(names, found, strict=True) if each is not None}


def _described(
    case: Case, shapes: Mapping[str, tuple[int, ...]], slopes: Mapping[str, Tensor], calls: Mapping[str, int]
) -> dict[str, Layer]:
    modules = dict(case.module.named_modules())
    found: dict[str, Layer] = {}
    grids: list[tuple[int, ...]] = []
    for name, shape in shapes.items():
        layout = _layout(case, shape, modules[name], grids)
        if layout and layout.kind != "tokens":
            grids.append(layout.grid)
        slope, reached = slopes.get(name), 0.0
        if slope is not None:
            reached = layout.reached(slope) if layout else float((slope != 0).double().mean())
        found[name] = Layer(name, shape, layout, reached, _inside_attention(name, modules), calls[name])
    return found


def _layout(case: Case, shape: tuple[int, ...], module: nn.Module, grids: list[tuple[int, ...]]) -> Layout | None:
    if case.kind == "image":
        last = isinstance(module, (nn.Linear, nn.LayerNorm))
        height, width = case.shape[-2:]
        return picture_layout(shape, (height, width), grids, last=last)
    tokens = case.raw.shape[1]
    return Layout("tokens", (tokens,)) if case.embedding and len(shape) == 3 and shape[:2] == (1, tokens) else None


def _inside_attention(name: str, modules: Mapping[str, nn.Module]) -> bool:
    parts = name.split(".")
    owners = (modules[".".join(parts[:end])] for end in range(1, len(parts) + 1))
    return any(word in type(each).__name__.lower() for each in owners for word in ("attention", "attn"))


@contextmanager
def _hooked(module: nn.Module, look: Callable[[str, Any], Any]) -> Iterator[None]:
    handles = [
        each.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, each in module.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
