"""Points in the space of all weights: parameters and running statistics together, moved between and combined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.errors import ModelError
from probes.objective import Objective


@dataclass(frozen=True)
class Point:
    """Weights and what belongs to them.

    theta: the parameters in the order of `Objective.names`. buffers: the floating-point buffers by name.
    """

    theta: tuple[Tensor, ...]
    buffers: Mapping[str, Tensor]


def point_of(objective: Objective) -> Point:
    """Return where an objective stands, detached; nothing is copied."""
    names = {name for name, _ in objective.module.named_buffers()}
    floating = {name: each for name, each in objective.constants.items() if each.is_floating_point()}
    buffers = {name: each for name, each in floating.items() if name in names}
    return Point(tuple(each.detach() for each in objective.theta), buffers)


def combined(points: Sequence[Point], weights: Sequence[float]) -> Point:
    """Return the weighted sum of points, parameters and buffers alike; raise ModelError where these do not match."""
    first = points[0]
    for other in points[1:]:
        _check(first, other)
    theta = tuple(_mixed(each, weights) for each in zip(*(point.theta for point in points), strict=True))
    buffers = {name: _mixed([each.buffers[name] for each in points], weights) for name in first.buffers}
    return Point(theta, buffers)


def between(one: Point, other: Point, alpha: float) -> Point:
    """Return (1 - alpha) one + alpha other; alpha below 0 or above 1 lies beyond them."""
    return combined((one, other), (1.0 - alpha, alpha))


def at(objective: Objective, point: Point) -> Objective:
    """Return the objective at a point, its test data with it."""
    return objective.moved(point.theta, point.buffers)


def distance(one: Point, other: Point) -> float:
    """Return the Euclidean distance of the parameters, summed in float64; buffers do not count."""
    _check(one, other)
    pairs = zip(one.theta, other.theta, strict=True)
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in pairs))


def tensors_of(objective: Objective, point: Point) -> dict[str, Tensor]:
    """Return parameters and floating-point buffers by name; nothing is copied."""
    return {**dict(zip(objective.names, point.theta, strict=True)), **point.buffers}


def point_from(objective: Objective, tensors: Mapping[str, Tensor]) -> Point:
    """Undo `tensors_of`."""
    theta = tuple(tensors[name] for name in objective.names)
    return Point(theta, {name: each for name, each in tensors.items() if name not in set(objective.names)})


def _mixed(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Add tensors up; elements that are infinite in the first (masks) stay as they are where all agree."""
    total = torch.zeros_like(tensors[0])
    for each, weight in zip(tensors, weights, strict=True):
        if weight != 0:
            total = torch.add(total, each, alpha=weight)
    if bool(torch.isnan(total).any()):
        same = torch.stack([each == tensors[0] for each in tensors]).all(0)
        total = torch.where(same & tensors[0].isinf(), tensors[0], total)
    return total


def _check(one: Point, other: Point) -> None:
    shapes = ([each.shape for each in point.theta] for point in (one, other))
    if next(shapes) != next(shapes) or one.buffers.keys() != other.buffers.keys():
        raise ModelError("The checkpoints do not have the same tensors; choose two of the same model.")
