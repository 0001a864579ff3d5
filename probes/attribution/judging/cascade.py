"""A model that forgets from its head downwards: stages of layers, and weights drawn anew, beside the module itself.

Adebayo et al. (2018): the head is randomised first, then also the block before it, and so on to the input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from probes.attribution.errors import AttributionError
from probes.attribution.language_cases import AnswerCase
from probes.points import point_of
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.objective import Objective

FEWEST, MOST = 5, 8  # stages that are aimed at


@dataclass(frozen=True)
class Layer:
    """A layer that holds parameters. names: of these among the objective's; last: when it ran, the later the larger."""

    path: str
    names: tuple[str, ...]
    last: int
    vectors: bool  # no parameter has more than one dimension, as in norms


@dataclass(frozen=True)
class Stage:
    """Layers that are randomised together. name: for people."""

    name: str
    layers: tuple[Layer, ...]


def stages_of(case: Case) -> tuple[Stage, ...]:
    """Group the layers into blocks, five to eight where there are as many, from the head to the input.

    Layers count in the order in which they run, tied weights where they are used last; norms go with the layer before
    them. The layer that the token vectors stand in for has no stage.
    """
    layers = [each for each in _layers(case) if each.path != case.embedding]
    if not layers:
        raise AttributionError("The model has no layers with weights to randomise, so it cannot fail the sanity check.")
    blocks = _without_norms(_blocks(layers))
    return tuple(Stage(_title([name for name, _ in part]), tuple(layer for _, group in part for layer in group))
                 for part in reversed(_bound(blocks)))  # fmt: skip


def cascade(case: Case, stages: tuple[Stage, ...], seed: int) -> Iterator[Case]:
    """Yield the case at each stage: its layers, and those of all stages before, have weights drawn anew.

    Layers with `reset_parameters` are initialised by it (norms lose their statistics too); other parameters become
    Gaussian noise of their own mean and deviation. The module is never written to; the target stays.
    """
    objective = case.objective
    theta = dict(zip(objective.names, objective.theta, strict=True))
    buffers = dict(point_of(objective).buffers)
    for number, stage in enumerate(stages):
        for place, layer in enumerate(stage.layers):
            fresh, kept = _drawn(objective, layer, theta, [seed, number, place])
            theta.update(fresh)
            buffers.update({name: each for name, each in kept.items() if name in buffers})
        yield _elsewhere(case, objective.moved(list(theta.values()), buffers))


def _elsewhere(case: Case, objective: Objective) -> Case:
    kept: dict[Any, Any] = {"chunk": case.chunk()}
    if isinstance(case, AnswerCase):  # what answers share was run at the real weights
        return replace(case, objective=objective, shared=None, _kept=kept)
    return replace(case, objective=objective, _kept=kept)


def _layers(case: Case) -> list[Layer]:
    """List the layers that hold parameters, each parameter once, in the order in which they run last."""
    names = {id(each): name for name, each in case.module.named_parameters()}
    ran, holders = _ran(case), dict[str, list[str]]()
    latest: dict[str, str] = {}
    for path, module in case.module.named_modules():
        for each in module.parameters(recurse=False):
            name = names[id(each)]
            if name in case.objective.names and (name not in latest or _when(ran, path) > _when(ran, latest[name])):
                latest[name] = path
    for name, path in latest.items():
        holders.setdefault(path, []).append(name)
    sizes = dict(zip(case.objective.names, case.objective.theta, strict=True))
    found = [Layer(path, tuple(held), _when(ran, path), all(sizes[each].ndim < 2 for each in held))
             for path, held in holders.items()]  # fmt: skip
    return sorted(found, key=lambda each: each.last)


def _ran(case: Case) -> dict[str, int]:
    """Return when each module was called last, as a count of calls, by its path."""
    calls: dict[str, int] = {}
    count = iter(range(1 << 30))
    handles = [module.register_forward_pre_hook(lambda *_, path=path: calls.__setitem__(path, next(count)))
               for path, module in case.module.named_modules()]  # fmt: skip
    try:
        with torch.no_grad(), strict(case.module):
            case.logits(case.features)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _when(ran: dict[str, int], path: str) -> int:
    """Return when a module ran; one that is only read by its parent ran with it."""
    while path and path not in ran:
        path = path.rpartition(".")[0]
    return ran.get(path, 0)


def _blocks(layers: list[Layer]) -> list[tuple[str, list[Layer]]]:
    """Group layers by the beginnings of their paths; the largest group is divided until there are five."""
    depths = {"": 0}  # beginning of a path -> how many more parts of it count
    while True:
        groups: dict[str, list[Layer]] = {}
        for layer in layers:
            groups.setdefault(_beginning(layer.path, depths), []).append(layer)
        divisible = [name for name, group in groups.items() if any(layer.path != name for layer in group)]
        if len(groups) >= FEWEST or not divisible:
            return sorted(groups.items(), key=lambda pair: max(layer.last for layer in pair[1]))
        depths[max(divisible, key=lambda name: len(groups[name]))] = 1


def _beginning(path: str, divided: dict[str, int]) -> str:
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        if name not in divided:
            return name
    return path


def _without_norms(blocks: list[tuple[str, list[Layer]]]) -> list[tuple[str, list[Layer]]]:
    """Join blocks that hold only vectors to the block before them, the first one to the block after it."""
    found: list[tuple[str, list[Layer]]] = []
    if len(blocks) > 1 and all(layer.vectors for layer in blocks[0][1]):
        (_, first), (name, second), *others = blocks
        blocks = [(name, [*first, *second]), *others]
    for name, group in blocks:
        if found and all(layer.vectors for layer in group):
            found[-1] = found[-1][0], [*found[-1][1], *group]
        else:
            found.append((name, group))
    return found


def _bound(blocks: list[tuple[str, list[Layer]]]) -> list[list[tuple[str, list[Layer]]]]:
    """Join neighbours until there are eight at most; the head stays by itself."""
    *rest, head = blocks
    parts = np.array_split(np.arange(len(rest)), min(len(rest), MOST - 1)) if rest else []
    return [*([rest[i] for i in part] for part in parts), [head]]


def _title(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _drawn(
    objective: Objective, layer: Layer, theta: dict[str, Tensor], seed: list[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw the parameters of a layer, and the statistics that belong to them, by their names."""
    generator = np.random.default_rng(seed)
    module = objective.module.get_submodule(layer.path)
    own = dict(module.named_parameters(recurse=False))
    if not callable(getattr(module, "reset_parameters", None)):
        return {name: _noise(theta[name], generator) for name in layer.names}, {}
    fresh = _reset(module, int(generator.integers(2**31)))
    whole = {id(each): name for name, each in objective.module.named_parameters()}
    values = dict(fresh.named_parameters(recurse=False))
    found = {whole[id(each)]: objective.cast(values[name]) for name, each in own.items()}
    prefix = f"{layer.path}." if layer.path else ""
    kept = {prefix + name: objective.cast(each) for name, each in fresh.named_buffers(recurse=False)}
    return {name: found[name] for name in layer.names}, kept


def _reset(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a layer, initialised anew on the CPU without touching the randomness of others."""
    fresh: Any = copy.deepcopy(module).cpu().float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.reset_parameters()
    return fresh  # type: ignore[no-any-return]


def _noise(tensor: Tensor, generator: np.random.Generator) -> Tensor:
    values = tensor.detach()
    spread = values.std(correction=0)
    drawn = torch.from_numpy(generator.standard_normal(tuple(values.shape)))
    return values.mean() + spread * drawn.to(values)
