"""Full gradients, exact for any model: the input's part, each unit's part, and their picture.

Suraj Srinivas and François Fleuret, "Full-gradient representation for neural network visualization", NeurIPS 2019;
for other operations than ReLU and batch norm see `fullgrad_units`. The parts must add up to the score to 1e-5 of it;
where they do not, even in float64, no map is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probes.attribution.errors import AttributionError
from probes.attribution.fullgrad_places import on_grid, on_tokens, picture
from probes.attribution.fullgrad_units import Split, split
from probes.attribution.maps import Map
from probes.attribution.methods import Method

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.methods import Settings, Tick

TOLERANCE = 1e-5
ELSEWHERE = (
    "{share:.0%} of the size of the parts has no place in the {features} (the head, pooled vectors, the score itself): "
    "it is in the decomposition, not in the map."
)


def full_gradient(case: Case) -> Split:
    """Split the score of a case over its input and the units of the model, complete to 1e-5 of the score.

    In float32 rounding may exceed that; then all is computed again in float64. Raises AttributionError with the
    residual where the parts do not add up, as where a layer's own backward is not its derivative.
    """
    found = split(case.scores, case.module, case.features)
    if incompleteness(found) > TOLERANCE and case.objective.dtype == torch.float32:
        double = _in_float64(case)
        found = split(double.scores, double.module, double.features)
    if not incompleteness(found) <= TOLERANCE:
        raise AttributionError(
            f"The parts of the full gradient add up to {found.total:.6g}, but the score is {found.score:.6g}: a "
            f"residual of {found.residual:.2g}, {incompleteness(found):.2g} of the score where {TOLERANCE:g} is "
            "allowed. Some layer's backward is not the derivative of its forward. Choose occlusion instead."
        )
    return found


def incompleteness(found: Split) -> float:
    """Return |sum of the parts - score| / |score|; of a score below 1e-6 of the parts' size, relative to that."""
    size = sum(map(abs, found.contributions().values()))
    scale = max(abs(found.score), 1e-6 * size)
    return found.residual / scale if scale else 0.0


def _run(case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  it has no settings
    tick(0.0, "full gradients: input and biases")
    found = full_gradient(case)
    values, notes = _shown(case, found)
    array = values.cpu().numpy().astype(np.float64)
    error = incompleteness(found)
    signed = case.kind != "image"
    return Map("fullgrad", array, signed, found.score, None, error, None, _about(case, found), notes)


def _shown(case: Case, found: Split) -> tuple[Tensor, tuple[str, ...]]:
    """Return what is drawn, and what to know about it."""
    if case.kind == "image":
        return picture(found)[None], _elsewhere(
            found, [on_grid(each, found.grids, _size(case)) for each in found.terms]
        )
    if case.kind == "table":
        return found.inputs[0], (
            "The biases of a table's model belong to no column: the map shows the input's part alone, and the "
            "decomposition shows the rest.",
        )
    tokens = [on_tokens(each, case.shape[0]) for each in found.terms]
    total = found.inputs[0].double().sum(-1) + sum(each for each in tokens if each is not None)
    arising = "Each part is shown at the token position where it arises, which deep in the model mixes many tokens."
    return total, (arising, *_elsewhere(found, tokens, "tokens"))


def _elsewhere(found: Split, places: list[Any], features: str = "image") -> tuple[str, ...]:
    sizes = [abs(each.total) for each in found.terms]
    whole = sum(sizes) + abs(float(found.inputs.double().sum()))
    lost = sum(size for size, place in zip(sizes, places, strict=True) if place is None)
    share = lost / whole if whole else 0.0
    return (ELSEWHERE.format(share=share, features=features),) if share > 0.01 else ()


def _about(case: Case, found: Split) -> Mapping[str, Any]:
    """Return the decomposition: of each unit, of each kind of module, the share of the biases, the class tokens."""
    contributions = found.contributions()
    sizes = [abs(each) for each in contributions.values()]
    return {
        "sum": found.total,
        "residual": found.residual,
        "contributions": contributions,
        "kinds": found.kinds(),
        "bias_share": 1 - contributions["input"] / found.score if found.score else None,
        "bias_share_of_size": 1 - sizes[0] / sum(sizes) if sum(sizes) else None,
        "prefix_tokens": _prefix(case, found),
        "dtype": str(found.inputs.dtype).removeprefix("torch."),
        "evaluations": 3,
    }


def _prefix(case: Case, found: Split) -> list[float]:
    """Return what arises at each token before the patches of an image (class token, registers): it is not drawn."""
    if case.kind != "image":
        return []
    placed = [on_grid(each, found.grids, _size(case)) for each in found.terms]
    rows = [each[1].double().sum(-1) for each in placed if each is not None and each[1] is not None]
    most = max((len(each) for each in rows), default=0)
    return [float(sum(each[at] for each in rows if at < len(each))) for at in range(most)]


def _size(case: Case) -> tuple[int, int]:
    return case.features.shape[2], case.features.shape[3]


def _in_float64(case: Case) -> Case:
    from probes.attribution.case import case_of

    return case_of(case.objective.chosen([case.row]).converted("float64"), 0, case.target)


METHODS = (
    Method("fullgrad", "Full gradients (input and biases)", "decomposition", _run, signed=False, complete=True),
)  # fmt: skip
