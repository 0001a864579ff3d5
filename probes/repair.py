"""REPAIR: give a merged network back the spread of its units that averaging took away.

Jordan, Sedghi, Saukh, Entezari, Neyshabur 2023 (REPAIR: REnormalizing Permuted Activations for Interpolation Repair).
Between two networks the units of the average vary less than those of either, more so with every layer. REPAIR sets mean
and standard deviation of every pre-activation to what lies between those of the ends, by a scale and a shift that are
then made part of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probes.batch_statistics import renewed
from probes.errors import ModelError
from probes.layer_moments import Layer, Layout, layout, moments_at, removed_after, run
from probes.memory import spare_bytes
from probes.objective import Objective
from probes.points import Point, between, point_from, tensors_of
from probes.pool import Moments, Pool

HELD_AT_ONCE = 6  # tensors as large as the largest activation
NAMED = 6  # layers in a sentence
STILL = 1e-10  # of the goal's variance: units that vary less are not scaled up


@dataclass(frozen=True)
class Repaired:
    """The merged network, an ordinary point. layers: those that were corrected. notes: what was not, in sentences."""

    point: Point
    layers: tuple[str, ...]
    notes: tuple[str, ...]


def repaired(
    objective: Objective,
    point_a: Point,
    point_b: Point,
    alpha: float,
    *,
    statistics: Objective | None = None,
    moments: tuple[Mapping[str, Moments], Mapping[str, Moments]] | None = None,
    layers: Collection[str] | None = None,
) -> Repaired:
    """Interpolate and REPAIR: mean (1 - alpha) mu_A + alpha mu_B and standard deviation between those of A and B alike.

    point_b: permuted already. statistics: the objective on whose examples moments are taken (default: `objective`).
    moments: of A and of B, as `moments_at` gives them, so that they are measured once for all alpha. layers: names of
    those to correct; None is every linear and convolutional layer, queries and keys among them, but the last and those
    whose output BatchNorm takes. BatchNorm has its statistics measured anew instead.

    A layer is measured in the merged network whose earlier layers are corrected already. All examples pass at once
    where the memory allows it, each layer being corrected on the way; else there is a pass for each layer. Either way
    the moments are those of all examples. Raises ModelError (no such layer), ObjectiveError (memory).
    """
    source = statistics or objective
    middle, plan = between(point_a, point_b, alpha), layout(source)
    chosen, notes = _chosen(plan, layers)
    if not chosen:
        return Repaired(renewed(source, middle), (), (*notes, *_about_norms(plan)))
    ends = moments or (moments_at(source, point_a), moments_at(source, point_b))
    goals = {each.name: _goal(ends[0][each.name], ends[1][each.name], alpha) for each in chosen}
    parts = [math.ceil(HELD_AT_ONCE * plan.bytes * len(source.inputs) / max(spare_bytes(source.device) / 2, 1))]

    def work() -> tuple[dict[str, Tensor], list[str]]:
        cuts, parts[0] = parts[0], 2 * parts[0]
        return _Repair(source, middle, plan, chosen, goals).done(cuts)

    tensors, more = source.in_memory(work)
    return Repaired(point_from(source, tensors), tuple(goals), (*notes, *more, *_about_norms(plan)))


def _chosen(plan: Layout, layers: Collection[str] | None) -> tuple[list[Layer], list[str]]:
    known = {each.name: each for each in plan.layers}
    strange = sorted(set(layers or ()) - known.keys())
    if strange:
        raise ModelError(f"The model has no linear or convolutional layer {strange[0]}; it has {', '.join(known)}.")
    wanted = [each for each in plan.layers if not each.last and not each.normalised]
    wanted = [each for each in wanted if layers is None or each.name in layers]
    notes = []
    shared = [each.name for each in wanted if each.shared]
    if shared:
        notes.append(f"Left as they are, since their weights are used several times: {_some(shared)}.")
    if plan.unseen and layers is None:
        notes.append(f"Left as they are, since they are not called as layers of their own: {_some(plan.unseen)}.")
    return [each for each in wanted if not each.shared], notes


def _about_norms(plan: Layout) -> list[str]:
    return [f"The statistics of {len(plan.norms)} BatchNorm layers were measured anew."] if plan.norms else []


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _goal(one: Moments, other: Moments, alpha: float) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation between two; the deviations are interpolated, not the variances."""
    mean = (1 - alpha) * one.mean + alpha * other.mean
    return mean, (1 - alpha) * one.variance.sqrt() + alpha * other.variance.sqrt()


class _Repair:
    """One merged network while it is corrected, layer by layer in the order of its calls."""

    def __init__(
        self,
        objective: Objective,
        point: Point,
        plan: Layout,
        chosen: Sequence[Layer],
        goals: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        self.objective, self.goals = objective, goals
        self.layers = {each.name: each for each in chosen}
        self.modules = dict(objective.module.named_modules())
        kept = ("running_mean", "running_var")
        tensors = tensors_of(objective, point)
        self.tensors = {name: each.clone() if name.endswith(kept) else each for name, each in tensors.items()}
        self.order = [each for each in plan.order if each in self.layers or self._tracks(each)]
        self.still: list[str] = []

    def done(self, parts: int) -> tuple[dict[str, Tensor], list[str]]:
        """Correct all layers, the examples cut into so many parts; return the tensors and what is to be said."""
        if parts == 1:
            self._in_one_pass()
        else:
            for name in self.order:
                self._alone(name, parts)
        unshifted = [name for name, each in self.layers.items() if not each.bias]
        notes = []
        if unshifted:
            notes.append(f"Scaled but not shifted, as they have no bias: {_some(unshifted)}.")
        if self.still:
            notes.append(f"Some units of the merged network do not vary and were not scaled: {_some(self.still)}.")
        return self.tensors, notes

    def _in_one_pass(self) -> None:
        factors: dict[str, tuple[Tensor, Tensor]] = {}

        def correct(layer: Layer) -> Any:
            def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
                pool = Pool(layer.axis)
                pool.add(output)
                gamma, shift = factors[layer.name] = self._factors(layer, pool.moments())
                wide = lambda each: _along(each.to(output.dtype), output.ndim, layer.axis)
                return output.mul_(wide(gamma)).add_(wide(shift))

            return hook

        def renew(name: str) -> Any:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                pool = Pool(1)
                pool.add(args[0])
                self._renew(name, pool)

            return hook

        hooks = [self.modules[name].register_forward_hook(correct(each)) for name, each in self.layers.items()]
        norms = [name for name in self.order if name not in self.layers]
        hooks += [self.modules[name].register_forward_pre_hook(renew(name)) for name in norms]
        with removed_after(hooks):
            run(self.objective, self.tensors, self.objective.inputs)
        for name, (gamma, shift) in factors.items():
            self._fuse(self.layers[name], gamma, shift)

    def _alone(self, name: str, parts: int) -> None:
        """Measure one layer over all parts and correct it; the layers before it are corrected already."""
        layer = self.layers.get(name)
        pool = Pool(layer.axis if layer else 1)

        def output_of(_module: nn.Module, _args: object, output: Tensor) -> None:
            pool.add(output)
            raise _EnoughError

        def input_of(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            pool.add(args[0])
            raise _EnoughError

        module = self.modules[name]
        hook: Any = module.register_forward_hook(output_of) if layer else module.register_forward_pre_hook(input_of)
        with removed_after([hook]):
            for part in self.objective.inputs.tensor_split(min(parts, len(self.objective.inputs))):
                try:
                    run(self.objective, self.tensors, part)
                except _EnoughError:
                    continue
        if layer is None:
            self._renew(name, pool)
        else:
            self._fuse(layer, *self._factors(layer, pool.moments()))

    def _factors(self, layer: Layer, found: Moments) -> tuple[Tensor, Tensor]:
        mean, deviation = self.goals[layer.name]
        still = found.variance <= STILL * deviation.square()
        if bool(still.any()):
            self.still.append(layer.name)
        gamma = torch.where(still, 1.0, deviation / torch.where(still, 1.0, found.variance).sqrt())
        shift = mean - gamma * found.mean
        return gamma, shift if layer.bias else torch.zeros_like(shift)

    def _fuse(self, layer: Layer, gamma: Tensor, shift: Tensor) -> None:
        weight, bias = (f"{layer.name}.{kind}".lstrip(".") for kind in ("weight", "bias"))
        held = self.tensors[weight]
        self.tensors[weight] = (held.double() * _along(gamma, held.ndim, layer.weight_axis)).to(held.dtype)
        if layer.bias:
            self.tensors[bias] = (self.tensors[bias].double() * gamma + shift).to(held.dtype)

    def _renew(self, name: str, pool: Pool) -> None:
        prefix = f"{name}." if name else ""
        self.tensors[f"{prefix}running_mean"].copy_(pool.moments().mean)
        self.tensors[f"{prefix}running_var"].copy_(pool.unbiased())

    def _tracks(self, name: str) -> bool:
        return getattr(self.modules[name], "running_mean", None) is not None


class _EnoughError(Exception):
    """What was to be measured has been; the rest of the pass is not needed."""


def _along(values: Tensor, dimensions: int, axis: int) -> Tensor:
    shape = [1] * dimensions
    shape[axis] = -1
    return values.view(shape)
