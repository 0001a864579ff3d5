"""The gate before any comparison: a permutation of units must leave the function as it is.

In float64 with plain attention, on examples of the data and on disturbed ones, at the weights themselves and at
disturbed ones: units that happen to be equal, or dead on the data, cannot hide a wrong specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.breaking import first_broken_layer
from probes.errors import ModelError
from probes.objective import Objective
from probes.permutations import Found, PermutationSpec, drawn, permuted
from probes.points import Point, at, point_from, point_of, tensors_of
from probes.specification_fit import fitting, shapes_of
from probes.strict import strict

TOLERANCE = 1e-10
_DISTURBED = 0.3  # of a tensor's own standard deviation


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
    probe = _probe(objective, examples)
    held = {name: each.double() for name, each in tensors_of(objective, point).items()}
    error, scale = _compared(probe, held, spec, found)
    if error <= TOLERANCE:
        return Equivalence(error, scale, True)
    wrong = _breaking(probe, held, spec, found)
    alone = {name: found[name] for name in ([wrong] if wrong else found)}
    layer = first_broken_layer(_moved(probe, held), _moved(probe, permuted(held, spec, alone)))
    return Equivalence(error, scale, False, layer, wrong)


def check(
    objective: Objective, spec: PermutationSpec, seeds: Sequence[int] = (0, 1, 2), found: Found | None = None
) -> Equivalence:
    """Let random permutations, and a found one, through the gate; return the worst of them.

    found: what was matched, to be applied to the point at which the objective stands.

    Raises ModelError naming the permutation and the layer where the function changes, and by how much.
    """
    point, worst = point_of(objective), Equivalence(0.0, 0.0, True)
    trials = [(drawn(spec, seed), place) for seed in seeds for place in (point, _disturbed(objective, point, seed))]
    trials += [] if found is None else [(dict(found), point)]
    for each, place in trials:
        result = equivalence(objective, place, spec, each)
        if not result.passed:
            raise ModelError(_words(spec, result))
        worst = max(worst, result, key=lambda one: one.error)
    return worst


def _words(spec: PermutationSpec, result: Equivalence) -> str:
    which = f"permutation {result.permutation!r:.100}" if result.permutation else "permutations together"
    layer = f"the layer `{result.layer:.100}`" if result.layer else "the model itself, outside its layers"
    return (
        f"The specification ({spec.source}) is refused: its {which} must leave the function as it is, but outputs "
        f"change by {result.error:.2g} of the largest (at most {TOLERANCE:g} is rounding). The first that no longer "
        f"gives its outputs rearranged is {layer}. Correct the lines of this permutation, or delete them."
    )


def _probe(objective: Objective, examples: int) -> Objective:
    """Return the objective of a few examples in float64, and of as many disturbed ones."""
    probe = objective.subset(examples, "float64")
    rows = list(range(len(probe.inputs)))
    twice = probe.chosen(rows + rows)
    generator = torch.Generator().manual_seed(0)
    half, inputs = len(rows), twice.inputs.clone()
    if inputs.is_floating_point():
        noise = torch.randn(inputs[half:].shape, generator=generator, dtype=inputs.dtype)
        inputs[half:] += (noise * inputs.std().clamp_min(1e-3).cpu()).to(inputs.device)
    else:
        order = torch.randperm(inputs[half:].numel(), generator=generator)
        inputs[half:] = inputs[half:].reshape(-1)[order.to(inputs.device)].view_as(inputs[half:])
    twice.inputs = inputs
    return twice


def _moved(probe: Objective, tensors: dict[str, Tensor]) -> Objective:
    return at(probe, point_from(probe, tensors))


def _compared(probe: Objective, held: dict[str, Tensor], spec: PermutationSpec, found: Found) -> tuple[float, float]:
    before = _outputs(_moved(probe, held))
    after = _outputs(_moved(probe, permuted(held, spec, found)))
    scale = float(before.abs().max())
    if not np.isfinite(scale):
        raise ModelError(
            "Outputs are not finite in float64, so it cannot be tested whether permutations keep the function; "
            "check the checkpoint (diverged?) and the normalisation of the data."
        )
    change = float((after - before).abs().max())
    return (change / scale if scale > 0 else change) if np.isfinite(change) else float("inf"), scale


def _outputs(objective: Objective) -> Tensor:
    """Return the outputs of all examples, or their losses where the operator's own loss runs the model."""
    with torch.no_grad(), strict(objective.module):
        if objective.own is not None:
            return objective.tallied(finite=False).losses
        return torch.cat([objective.outputs(objective.theta, part) for part in objective.parts()])


def _breaking(probe: Objective, held: dict[str, Tensor], spec: PermutationSpec, found: Found) -> str:
    """Return the permutation that changes the function most when it acts alone, "" where none does."""
    errors = {name: _compared(probe, held, spec, {name: found[name]})[0] for name in found}
    worst = max(errors, key=lambda name: errors[name], default="")
    return worst if worst and errors[worst] > TOLERANCE else ""


def _disturbed(objective: Objective, point: Point, seed: int) -> Point:
    """Move weights and BatchNorm's statistics by noise, so that no two units are alike."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, each in tensors_of(objective, point).items():
        noise = torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.device)
        spread = float(each.double().std()) if each.numel() > 1 else 0.0
        if name in set(objective.names) or name.endswith("running_mean"):
            found[name] = each.double() + _DISTURBED * noise * (spread or 1.0)
        elif name.endswith("running_var"):
            found[name] = each.double() * torch.exp(_DISTURBED * noise)
        else:
            found[name] = each.double()
    return point_from(objective, found)
