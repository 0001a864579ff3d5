"""Mean and variance of every unit's pre-activation in every linear and convolutional layer, exact over all examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from probes.objective import Objective
from probes.points import Point, point_of, tensors_of
from probes.pool import Moments, Pool
from probes.strict import strict


@dataclass(frozen=True)
class Layer:
    """A linear or convolutional layer that was called: where its units are, and what stands in the way of REPAIR.

    axis: of its output that holds the units (-1 or 1). weight_axis: of its weight that holds them. normalised: whether
    its output goes straight into BatchNorm. last: whether no layer with weights comes after it. shared: whether its
    weights belong to several layers, or it was called several times. bias: whether it has one.
    """

    name: str
    axis: int
    weight_axis: int
    bias: bool
    normalised: bool = False
    last: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Layout:
    """The layers in the order in which they are called, the BatchNorm layers between them.

    order: names of layers and of BatchNorm layers as they are called. unseen: layers of these kinds that were not
    called as such (torch's attention computes with their weights itself). bytes: the largest activation of an example.
    """

    layers: tuple[Layer, ...]
    order: tuple[str, ...]
    norms: tuple[str, ...]
    unseen: tuple[str, ...]
    bytes: int


def places(module: nn.Module | None) -> tuple[int, int] | None:
    """Return the axes that hold the units, of a layer's output and of its weight; None for other modules."""
    if isinstance(module, nn.Linear):
        return -1, 0
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 1, 0
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # the linear layer of GPT-2 in transformers
        return -1, 1
    return None


def layout(objective: Objective) -> Layout:
    """Run one example and see which layers are called, in which order, and what BatchNorm follows directly."""
    module, seen = objective.module, _Seen()
    kinds = {name: each for name, each in module.named_modules() if places(each) is not None}
    norms = {name: each for name, each in module.named_modules() if isinstance(each, _BatchNorm)}
    hooks = [each.register_forward_hook(seen.called(name)) for name, each in kinds.items()]
    hooks += [each.register_forward_pre_hook(seen.normalised(name)) for name, each in norms.items()]
    hooks += [each.register_forward_hook(seen.measured) for each in module.modules()]
    with removed_after(hooks):
        run(objective, point_of(objective), objective.inputs[:1])
    called = [name for name in dict.fromkeys(seen.order) if name in kinds]
    layers = []
    for name in called:
        axis, weight_axis = places(kinds[name]) or (-1, 0)
        last = name == called[-1]
        shared = seen.order.count(name) > 1 or not _own(objective, kinds[name], name)
        bias = kinds[name].bias is not None
        layers.append(Layer(name, axis, weight_axis, bias, name in seen.before_norm, last, shared))
    order = tuple(dict.fromkeys(seen.order))
    unseen = tuple(name for name in kinds if name not in called)
    return Layout(tuple(layers), order, tuple(each for each in order if each in norms), unseen, max(seen.bytes, 1))


def moments_at(
    objective: Objective, point: Point, tick: Callable[[float, str], None] | None = None
) -> dict[str, Moments]:
    """Measure the moments of all layers that are called, by name in that order; raise ObjectiveError (memory).

    The network stands as in use: BatchNorm with the statistics of the point, dropout off. Padding counts as positions.
    """
    plan = layout(objective)
    return objective.in_memory(lambda: _moments(objective, point, plan.layers, tick))


def run(objective: Objective, point: Point | Mapping[str, Tensor], inputs: Tensor) -> Any:
    """Run the model at a point (or with named tensors) on inputs, without a graph; return what it returns."""
    tensors = point if isinstance(point, Mapping) else tensors_of(objective, point)
    with torch.no_grad(), strict(objective.module):
        return functional_call(objective.module, {**objective.constants, **tensors}, (inputs.to(objective.device),))


@contextmanager
def removed_after(hooks: Sequence[Any]) -> Iterator[None]:
    """Remove hooks on the way out, whatever happens."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _Seen:
    """What hooks note of one pass."""

    order: list[str] = field(default_factory=list)
    outputs: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    before_norm: set[str] = field(default_factory=set)
    bytes: int = 0

    def called(self, name: str) -> Any:
        def note(_module: nn.Module, _args: object, output: Tensor) -> None:
            self.order.append(name)
            self.outputs[name] = (output, output._version)  # kept alive: its memory is not given to another

        return note

    def normalised(self, norm: str) -> Any:
        def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.order.append(norm)
            for name, (output, version) in self.outputs.items():
                if output.data_ptr() == args[0].data_ptr() and args[0]._version == version:
                    self.before_norm.add(name)

        return note

    def measured(self, _module: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor):
            self.bytes = max(self.bytes, output.nbytes)


def _own(objective: Objective, module: nn.Module, name: str) -> bool:
    """Tell whether the layer's parameters are parameters of the objective that no other layer has."""
    uses: dict[int, int] = {}
    for _, each in objective.module.named_parameters(remove_duplicate=False):
        uses[id(each)] = uses.get(id(each), 0) + 1
    own = dict(module.named_parameters(recurse=False))
    known = "weight" in own and f"{name}.weight".lstrip(".") in objective.names
    return known and all(uses[id(each)] == 1 for each in own.values())


def _moments(
    objective: Objective, point: Point, layers: Sequence[Layer], tick: Callable[[float, str], None] | None
) -> dict[str, Moments]:
    pools = {each.name: Pool(each.axis) for each in layers}
    modules = dict(objective.module.named_modules())
    note = lambda pool: lambda _module, _args, output: pool.add(output)
    with removed_after([modules[name].register_forward_hook(note(pool)) for name, pool in pools.items()]):
        for part in objective.parts():
            run(objective, point, objective.inputs[part])
            if tick is not None:
                tick(part.stop / len(objective.inputs), "moments of the layers")
    return {name: pool.moments() for name, pool in pools.items()}
