"""Where the activations of a permutation's units are seen while a network runs.

In this order: at the activation function (a module, with nothing but normalisation and dropout before it) behind every
layer that makes the units; at the input of the layers that read them; at the output of the layers that make them; at
the output of a norm. A layer's name and the axis of its weight tell which. Layers that run without their modules being
called (torch's own attention, functional code on bare parameters) show nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, conv, instancenorm
from torch.utils.hooks import RemovableHandle

from probes.objective import Objective
from probes.permutations import Indices, Permutation, PermutationSpec, Use
from probes.points import point_of, tensors_of
from probes.strict import strict

ANSWER, READ, MADE, NORMED = range(4)  # the first of these is looked at
_CHANNELS = (batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm)
_PASSING = (*_CHANNELS, nn.LayerNorm, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NOT_BY_UNIT = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin, nn.GLU)
_TRANSPOSED = ("Conv1D", "Transposed")  # linear layers that keep (inputs, outputs)


@dataclass(frozen=True)
class Spot:
    """What is looked at: a layer's input, its output, or the answer of the activation function behind it.

    axis: of the tensor, along which the units lie.
    """

    layer: str
    side: Literal["input", "output", "answer"]
    axis: int

    @property
    def name(self) -> str:
        """Say it in words."""
        return f"{self.side} of {self.layer}"


@dataclass(frozen=True, eq=False)
class View:
    """A spot and where the units of a permutation are in it; index: (units, slots); rank: the least is looked at."""

    spot: Spot
    index: Indices
    rank: int


def views_of(objective: Objective, spec: PermutationSpec) -> dict[str, list[View]]:
    """List for each permutation the spots that show its units when an example passes."""
    tensors = tensors_of(objective, point_of(objective))
    views = {each.name: _views(objective.module, each, tensors) for each in spec}
    passed = seen(objective, slice(0, 1), {view.spot for each in views.values() for view in each})
    return {name: [view for view in each if passed[view.spot]] for name, each in views.items()}


def best_views(views: Sequence[View]) -> tuple[View, ...]:
    """Return the views of the best rank; answers only where all that makes the units shows one."""
    made, answers = (sum(each.rank == rank for each in views) for rank in (MADE, ANSWER))
    fit = [each for each in views if each.rank != ANSWER or answers == made]
    return tuple(each for each in fit if each.rank == min(other.rank for other in fit))


def seen(objective: Objective, part: slice, spots: Iterable[Spot]) -> dict[Spot, list[Tensor]]:
    """Run a micro-batch and keep what passes the spots, a tensor for each call of the layer."""
    found: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}
    layers = dict(objective.module.named_modules())
    hooks = [_hook(layers[spot.layer], spot, found[spot]) for spot in found if spot.side != "answer"]
    hooks += _follow(layers, {spot: found[spot] for spot in found if spot.side == "answer"})
    try:
        with torch.no_grad(), strict(objective.module):
            objective.part_loss(objective.theta, part)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _views(module: nn.Module, permutation: Permutation, tensors: Mapping[str, Tensor]) -> list[View]:
    layers = dict(module.named_modules())
    found = [view for use in permutation.uses if (view := _view(layers, use, tensors)) is not None]
    answers = [
        replace(each, spot=replace(each.spot, side="answer"), rank=ANSWER) for each in found if each.rank == MADE
    ]
    return list({view.spot: view for view in (*answers, *found)}.values())


def _view(layers: Mapping[str, nn.Module], use: Use, tensors: Mapping[str, Tensor]) -> View | None:
    """Say at which side of its layer a use is seen; None where the layer is of a kind that is not known."""
    name, _, parameter = use.tensor.rpartition(".")
    layer: Any = layers.get(name)
    if layer is None or not use.counts or use.axis > 1 or parameter not in ("weight", "in_proj_weight"):
        return None
    if tensors[use.tensor].dim() == 1:
        return View(Spot(name, "output", 1 if isinstance(layer, _CHANNELS) else -1), use.index, NORMED)
    if isinstance(layer, nn.Embedding):
        return View(Spot(name, "output", -1), use.index, NORMED) if use.axis == 1 else None
    if isinstance(layer, nn.MultiheadAttention):
        return View(Spot(name, "input", -1), use.index, READ) if use.axis == 1 else None
    if isinstance(layer, nn.Linear) or type(layer).__name__ in _TRANSPOSED:
        return _side(name, use, -1, reads=(use.axis == 1) == isinstance(layer, nn.Linear))
    if not isinstance(layer, conv._ConvNd):
        return None
    view = _side(name, use, 1, reads=(use.axis == 1) != layer.transposed)
    return view if layer.groups == 1 else _grouped(layer, use, view)


def _side(name: str, use: Use, axis: int, *, reads: bool) -> View:
    return View(Spot(name, "input" if reads else "output", axis), use.index, READ if reads else MADE)


def _grouped(layer: conv._ConvNd, use: Use, view: View) -> View | None:
    """Shift the inputs of a group to where they are among all channels."""
    if layer.transposed or (use.axis == 1 and use.rows is None):
        return None
    if use.axis == 0 or use.rows is None:
        return view
    group = int(use.rows[1][0]) // (layer.out_channels // layer.groups)
    return replace(view, index=use.index + group * (layer.in_channels // layer.groups))


def _hook(layer: nn.Module, spot: Spot, found: list[Tensor]) -> RemovableHandle:
    """Keep copies: a later layer may write into the same memory."""

    def read(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else next(iter(kwargs.values()))).clone())

    def made(_layer: nn.Module, _args: Any, output: Any) -> None:
        found.append((output if isinstance(output, Tensor) else output[0]).clone())

    if spot.side == "output":
        return layer.register_forward_hook(made)
    return layer.register_forward_pre_hook(read, with_kwargs=True)


def _follow(layers: Mapping[str, nn.Module], answers: Mapping[Spot, list[Tensor]]) -> list[RemovableHandle]:
    """Follow what layers make, from module to module, to the activation function that it is given to as it is."""
    under_way: dict[int, tuple[Tensor, Spot]] = {}  # holds the tensors, so that no other takes their identity

    def made(spot: Spot) -> Any:
        def note(_layer: nn.Module, _args: Any, output: Any) -> None:
            under_way[id(output)] = (output, spot)

        return note

    def passed(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args or id(args[0]) not in under_way:
            return
        _, spot = under_way.pop(id(args[0]))
        if isinstance(layer, _PASSING):
            under_way[id(output)] = (output, spot)
        else:
            answers[spot].append(output.clone())

    if not answers:
        return []
    hooks = [layers[spot.layer].register_forward_hook(made(spot)) for spot in answers]
    return hooks + [each.register_forward_hook(passed) for each in layers.values() if _passes(each)]


def _passes(layer: nn.Module) -> bool:
    is_function = type(layer).__module__ == activation.__name__ and not isinstance(layer, _NOT_BY_UNIT)
    return is_function or isinstance(layer, _PASSING)
