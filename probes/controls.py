"""Controls of matching: a permuted copy that must be found again exactly, and weights that know nothing of the other.

Without them a small barrier after matching may be the matcher's doing, and a large one its failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.batch_statistics import renewed
from probes.objective import Objective
from probes.permutations import Found, PermutationSpec, composed, displaced, drawn, permuted
from probes.points import Point, distance, point_from, tensors_of

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Planted:
    """How a permuted copy was found again.

    found_again: the share of units that are back in their place. distance: what is left between the copy and the
    original; units that are alike may be exchanged, and leave none. exact: whether it is 0.
    """

    found_again: float
    distance: float
    units: int

    @property
    def exact(self) -> bool:
        """Tell whether every tensor of the copy is again that of the original."""
        return self.distance == 0.0


def planted(
    objective: Objective, point: Point, spec: PermutationSpec, match: Callable[[Tensors, Tensors], Found], seed: int
) -> Planted:
    """Permute a copy at random and let `match(original, copy)` find it again."""
    original = tensors_of(objective, point)
    hidden = drawn(spec, seed)
    copy = permuted(original, spec, hidden)
    found = match(original, copy)
    back = point_from(objective, permuted(copy, spec, found))
    still = displaced(composed(spec, hidden, found))
    return Planted(1.0 - still, distance(point, back), sum(each.size for each in spec))


def noise_like(objective: Objective, point: Point, seed: int) -> Point:
    """Return a point that has learned nothing: each tensor drawn anew, normal with its own mean and deviation.

    So its norms are those of the point, which random initialisations need not have. The running statistics of BatchNorm
    are measured anew on the objective's examples.
    """
    generator = torch.Generator().manual_seed(seed)
    return renewed(objective, replace(point, theta=tuple(_noise(each, generator) for each in point.theta)))


def gain(before: float, after: float) -> float | None:
    """Return by what share matching shortens the squared distance; None where there was none."""
    return 1.0 - (after / before) ** 2 if before > 0 and math.isfinite(after) else None


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    values = tensor.detach().double().cpu()
    drawn_ = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return (values.mean() + values.std(correction=0) * drawn_).to(tensor.device, tensor.dtype)
