"""The gate before any comparison: a permutation of units must leave the function as it is.

In float64 with plain attention, on examples of the data and on disturbed ones, at the weights themselves and at
random ones: units that happen to be equal, or dead on the data, cannot hide a wrong specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.breaking import first_broken_layer
from probes.errors import ModelError
from probes.in_float64 import InFloat64
from probes.objective import Objective
from probes.permutations import Found, PermutationSpec, drawn, permuted
from probes.points import Point, at, point_from, point_of, tensors_of
from probes.specification_fit import fitting, shapes_of
from probes.strict import strict

TOLERANCE = 1e-10
_ELSEWHERE = 1e-7  # at random weights rounding may grow
_NOISE = 0.3  # of a tensor's own standard deviation, or absolute where it has none
_MORE = 2  # disturbed examples


@dataclass(frozen=True)
class Equivalence:
    """How far a permutation changes the function.

    error: largest change of an output, as a share of the largest output. scale: that output. layer, permutation: where
    it breaks and which one breaks it; "" where nothing does.
    """

    error: float
    scale: float
    passed: bool
    layer: str = ""
    permutation: str = ""


def equivalence(
    objective: Objective, point: Point, spec: PermutationSpec, found: Found, examples: int = 8
) -> Equivalence:
    """Compare the outputs at a point with those of the permuted point.

    Raises ModelError where the specification names what the model does not have, or outputs are not finite.
    """
    fitting(spec, shapes_of(objective))
    return _trial(_Place(_probe(objective, examples), point), spec, found)


def check(
    objective: Objective, spec: PermutationSpec, seeds: Sequence[int] = (0, 1, 2), found: Found | None = None
) -> Equivalence:
    """Let random permutations, and a found one, through the gate; return the worst of them at the weights themselves.

    found: what was matched, to be applied to the point at which the objective stands.

    Raises ModelError naming the permutation and the layer where the function changes, and by how much.
    """
    fitting(spec, shapes_of(objective))
    point, probe = point_of(objective), _probe(objective, 8)
    here = _Place(probe, point)
    trials = [(here, drawn(spec, seed)) for seed in seeds] + ([] if found is None else [(here, dict(found))])
    elsewhere = [place(objective, point, seed) for seed in seeds[:1] for place in (_disturbed, _redrawn)]
    trials += [(_Place(probe, each, here=False), drawn(spec, seeds[0])) for each in elsewhere]
    worst = Equivalence(0.0, 0.0, True)
    for place, each in trials:
        result = _trial(place, spec, each)
        if not result.passed:
            raise ModelError(_words(spec, result))
        worst = max(worst, result, key=lambda one: one.error) if place.here else worst
    return worst


class _Place:
    """A point with the outputs there, computed once; here: whether it is the user's own, which must be finite."""

    def __init__(self, probe: Objective, point: Point, *, here: bool = True) -> None:
        self.probe, self.here = probe, here
        self.held = {name: each.double() for name, each in tensors_of(probe, point).items()}
        self.outputs = _outputs(self.moved(self.held))
        self.scale = float(self.outputs.abs().max())
        if here and not np.isfinite(self.scale):
            raise ModelError(
                "Outputs are not finite in float64, so it cannot be tested whether permutations keep the function; "
                "check the checkpoint (diverged?) and the normalisation of the data."
            )

    def moved(self, tensors: dict[str, Tensor]) -> Objective:
        """Return the objective at other tensors."""
        return at(self.probe, point_from(self.probe, tensors))

    def error(self, spec: PermutationSpec, found: Found) -> float:
        """Return the largest change of an output, as a share of the largest output."""
        if not np.isfinite(self.scale):
            return 0.0
        change = float((_outputs(self.moved(permuted(self.held, spec, found))) - self.outputs).abs().max())
        return (change / self.scale if self.scale > 0 else change) if np.isfinite(change) else float("inf")


def _trial(place: _Place, spec: PermutationSpec, found: Found) -> Equivalence:
    _permuting(spec, found)
    error, limit = place.error(spec, found), TOLERANCE if place.here else _ELSEWHERE
    if error <= limit:
        return Equivalence(error, place.scale, True)
    errors = {name: place.error(spec, {name: found[name]}) for name in found}
    wrong = max(errors, key=lambda name: errors[name])
    wrong = wrong if errors[wrong] > limit else ""
    alone = {name: found[name] for name in ([wrong] if wrong else found)}
    layer = first_broken_layer(place.moved(place.held), place.moved(permuted(place.held, spec, alone)))
    return Equivalence(error, place.scale, False, layer, wrong)


def _permuting(spec: PermutationSpec, found: Found) -> None:
    sizes = {each.name: each.size for each in spec}
    for name, pi in found.items():
        if name not in sizes or not np.array_equal(np.sort(pi), np.arange(sizes[name])):
            raise ModelError(
                f"The permutation found for {name!r:.100} is none of {sizes.get(name, 0)} units of the specification; "
                "match again with this specification."
            )


def _words(spec: PermutationSpec, result: Equivalence) -> str:
    which = f"permutation {result.permutation!r:.100}" if result.permutation else "permutations together"
    layer = f"the layer `{result.layer:.100}`" if result.layer else "the model itself, outside its layers"
    return (
        f"The specification ({spec.source}) is refused: its {which} must leave the function as it is, but outputs "
        f"change by {result.error:.2g} of the largest (at most {TOLERANCE:g} is rounding). The first that no longer "
        f"gives its outputs rearranged is {layer}. Correct the lines of this permutation, or delete them."
    )


def _probe(objective: Objective, examples: int) -> Objective:
    """Return the objective of a few examples in float64, and of a few disturbed ones."""
    probe = objective.subset(examples, "float64")
    rows = list(range(len(probe.inputs)))
    more = rows[:_MORE]
    wide = probe.chosen(rows + more)
    generator = torch.Generator().manual_seed(0)
    inputs, last = wide.inputs.clone(), slice(len(rows), None)
    if inputs.is_floating_point():
        noise = torch.randn(inputs[last].shape, generator=generator, dtype=inputs.dtype)
        inputs[last] += noise.to(inputs.device) * inputs.std().clamp_min(1e-3)
    else:
        order = torch.randperm(inputs[last].numel(), generator=generator).to(inputs.device)
        inputs[last] = inputs[last].reshape(-1)[order].view_as(inputs[last])
    wide.inputs = inputs
    return wide


def _outputs(objective: Objective) -> Tensor:
    """Return the outputs of all examples, or their losses where the operator's own loss runs the model."""
    with torch.no_grad(), strict(objective.module), InFloat64():
        if objective.own is not None:
            losses: Tensor = objective.tallied(finite=False).losses
            return losses
        return torch.cat([objective.outputs(objective.theta, part) for part in objective.parts()])


def _disturbed(objective: Objective, point: Point, seed: int) -> Point:
    """Move weights and BatchNorm's statistics by noise, so that no two units are alike."""
    return _changed(objective, point, seed, lambda _, each, noise: each + _NOISE * noise * (_deviation(each) or 1.0))


def _redrawn(objective: Objective, point: Point, seed: int) -> Point:
    """Draw weights anew, so that no unit is dead."""

    def fresh(name: str, each: Tensor, noise: Tensor) -> Tensor:
        if each.ndim > 1:
            return noise * math.sqrt(2 * each.shape[0] / each.numel())
        return _NOISE * noise + (1.0 if name.endswith("weight") else 0.0)

    return _changed(objective, point, seed, fresh)


def _changed(objective: Objective, point: Point, seed: int, change: Callable[[str, Tensor, Tensor], Tensor]) -> Point:
    generator = torch.Generator().manual_seed(seed)
    theta = set(objective.names)
    found = {}
    for name, tensor in tensors_of(objective, point).items():
        each = tensor.double()
        noise = torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.device)
        if name in theta or name.endswith("running_mean"):
            found[name] = change(name, each, noise)
        else:
            found[name] = each * torch.exp(_NOISE * noise) if name.endswith("running_var") else each
    return point_from(objective, found)


def _deviation(tensor: Tensor) -> float:
    return float(tensor.std()) if tensor.numel() > 1 else 0.0
