"""Planes through weight space: random ones, those through checkpoints, principal ones; coordinates are distances.

A plane has an origin and two orthonormal directions, so that (x, y) lies sqrt(x^2 + y^2) from the origin, in the units
of the weights. Sources: filter normalisation, Li et al. 2018; the plane through three points, Garipov et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from probes.errors import ModelError
from probes.lanczos import random_vector
from probes.objective import Objective
from probes.points import Point

Floats = NDArray[np.float64]
Tick = Callable[[float, str], None]
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
DRAWN_FROM = 50_000  # numbers of random vectors that no other analysis of the same seed draws
LEVEL = 1e-4  # a triangle whose height is less than this share of its side is a line


@dataclass(frozen=True, eq=False)
class Direction:
    """A displacement of all weights; buffers that it does not name stay where they are."""

    theta: tuple[Tensor, ...]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Plane:
    """centre + x first + y second; the parameters of the two directions are orthonormal."""

    centre: Point
    first: Direction
    second: Direction

    def at(self, x: float, y: float) -> Point:
        """Return the point at these coordinates; at (0, 0) it is the centre itself."""
        if x == 0 and y == 0:
            return self.centre
        theta = zip(self.centre.theta, self.first.theta, self.second.theta, strict=True)
        buffers = dict(self.centre.buffers)
        for step, direction in ((x, self.first), (y, self.second)):
            buffers |= {name: buffers[name] + step * each for name, each in direction.buffers.items()}
        return Point(tuple(torch.add(c, u, alpha=x).add_(v, alpha=y) for c, u, v in theta), buffers)


@dataclass(frozen=True)
class Place:
    """Where a point lies as a plane sees it: coordinates, and its distance from the plane."""

    x: float
    y: float
    off: float

    @property
    def squared(self) -> tuple[float, float]:
        """The squared distance from the centre: within the plane, and in all."""
        inside = self.x**2 + self.y**2
        return inside, inside + self.off**2


@dataclass(frozen=True, eq=False)
class RandomPlane:
    """A plane spanned by two filter-normalised directions.

    length: of each of them before it was made a unit vector, that of all filters of the centre together (the two
    lengths agree). cosine: between them, before the second was made orthogonal to the first. still: names of the
    parameters that do not move.
    """

    plane: Plane
    length: float
    cosine: float
    still: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Principal:
    """The plane of two principal components; shares: of the squared distances from the centre, all components."""

    plane: Plane
    shares: tuple[float, ...]


def difference(point: Point, origin: Point) -> Direction:
    """Return the displacement from the origin to the point, its floating-point buffers too."""
    theta = tuple(a - b for a, b in zip(point.theta, origin.theta, strict=True))
    return Direction(theta, {name: each - origin.buffers[name] for name, each in point.buffers.items()})


def inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the inner product of two lists of tensors, summed in float64."""
    return sum(float(a.double().flatten() @ b.double().flatten()) for a, b in zip(one, other, strict=True))


def projected(plane: Plane, point: Point) -> Place:
    """Project a point onto the plane; buffers do not count."""
    offset = difference(point, plane.centre).theta
    x, y = inner(offset, plane.first.theta), inner(offset, plane.second.theta)
    rest = zip(offset, plane.first.theta, plane.second.theta, strict=True)
    off = sum(float((d.double() - x * u.double() - y * v.double()).square().sum()) for d, u, v in rest)
    return Place(x, y, math.sqrt(off))


def spanned(centre: Point, one: Direction, other: Direction) -> Plane:
    """Return the plane of two displacements, the first along its x axis; raise ModelError where they are parallel."""
    length, before = _norm(one), _norm(other)
    if not (math.isfinite(length) and math.isfinite(before)):
        raise ModelError("The weights of a checkpoint are not finite: no plane goes through it.")
    first = _scaled(one, 1 / length) if length else one
    second = _combined((other, first), (1.0, -inner(other.theta, first.theta)))
    second = _combined((second, first), (1.0, -inner(second.theta, first.theta)))  # twice is enough
    height = _norm(second)
    if not length or height <= LEVEL * before:
        raise ModelError(
            "The points lie on one line (or are equal), so that there is no plane through them: choose another "
            "checkpoint, or a random plane."
        )
    return Plane(centre, first, _scaled(second, 1 / height))


def through(first: Point, second: Point, third: Point) -> Plane:
    """Return the plane through three points: first at the origin, second on the positive x axis, third above that.

    Buffers (running statistics) move along, so that each of the points has its own. Raises ModelError where they lie on
    a line.
    """
    _check_alike(first, second, third)
    return spanned(first, difference(second, first), difference(third, first))


def random_plane(objective: Objective, centre: Point, seed: int, index: int = 0) -> RandomPlane:
    """Return the plane of two random directions, each filter of each scaled to the norm of the filter at the centre.

    A filter is what makes one output channel: a row of a linear layer or of a table of embeddings, one kernel stack of
    a convolution. Biases and the parameters of norm layers do not move. The draw depends on seed and index only.
    """
    one, other = (
        filter_normalised(objective, centre, random_vector(objective.size, seed, DRAWN_FROM + 2 * index + i))
        for i in (0, 1)
    )
    length = _norm(one)
    if not length:
        raise ModelError("The model has no filters that are not zero: a random plane has nothing to move.")
    cosine = inner(one.theta, other.theta) / (length * _norm(other))
    still = tuple(name for name, each in zip(objective.names, one.theta, strict=True) if not bool(each.any()))
    return RandomPlane(spanned(centre, one, other), length, cosine, still)


def filter_normalised(objective: Objective, centre: Point, vector: Tensor) -> Direction:
    """Scale every filter of a flat vector (P,) to the norm of the centre's; zero for biases and norm parameters."""
    found = []
    for name, weights, drawn in zip(objective.names, centre.theta, objective.like_theta(vector), strict=True):
        drawn = drawn.to(weights.device)
        norms = [filter_norms(objective.module, name, each.double()) for each in (weights, drawn)]
        if norms[0] is None or norms[1] is None:
            found.append(torch.zeros_like(weights))
        else:
            found.append((drawn * (norms[0] / norms[1].clamp_min(1e-300))).to(weights.dtype))
    return Direction(tuple(found))


def filter_norms(module: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    """Return the norm of each filter of a parameter, to be broadcast over it; None where it has no filters."""
    home, _, leaf = name.rpartition(".")
    owner = module.get_submodule(home)
    norm = isinstance(owner, NORMS) or "norm" in type(owner).__name__.lower()
    if tensor.ndim < 2 or norm or "bias" in leaf:
        return None
    if isinstance(owner, _ConvTransposeNd):  # (inputs, outputs / groups, ...)
        grouped = tensor.reshape(owner.groups, -1, *tensor.shape[1:])
        axes = [axis for axis in range(grouped.ndim) if axis not in (0, 2)]
        norms = vector_norm(grouped, dim=axes, keepdim=True).expand(-1, grouped.shape[1], *[-1] * (tensor.ndim - 1))
        reshaped: Tensor = norms.reshape(tensor.shape[0], tensor.shape[1], *[1] * (tensor.ndim - 2))
        return reshaped
    axis = _output_axis(owner, tensor)
    found: Tensor = vector_norm(tensor, dim=[each for each in range(tensor.ndim) if each != axis], keepdim=True)
    return found


def principal(centre: Point, points: Sequence[Point], number: int = 0) -> Principal:
    """Return the plane of components 2 number + 1 and 2 number + 2 of the points' displacements from the centre.

    The components are those of the displacements as they are, not about their mean: the centre stays at the origin.
    Raises ModelError where the points span less than that.
    """
    _check_alike(centre, *points)
    offsets = [difference(each, centre) for each in points]
    gram = np.array([[inner(one.theta, other.theta) for other in offsets] for one in offsets])
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    last = 2 * number + 1
    if len(values) <= last or not values[last] > LEVEL**2 * values[0]:
        raise ModelError(
            f"The {len(points) + 1} checkpoints span fewer than {last + 1} directions about the centre: give more "
            "checkpoints, or choose a random plane."
        )
    pair = [_combined(offsets, _signed(vectors[:, each]) / math.sqrt(values[each])) for each in (last - 1, last)]
    return Principal(spanned(centre, *pair), tuple((values / values.sum()).tolist()))


def _output_axis(owner: nn.Module, tensor: Tensor) -> int | None:
    """Name the axis that counts filters; None where the whole tensor is one."""
    if type(owner).__name__ == "Conv1D" and hasattr(owner, "nf"):  # transformers' GPT-2: (inputs, outputs)
        return 1
    if type(owner).__module__.startswith("torch.nn.modules") and not isinstance(owner, CONTAINERS):
        return 0
    long = [axis for axis, side in enumerate(tensor.shape) if side > 1]
    return long[0] if len(long) > 1 else None


def _signed(weights: Floats) -> Floats:
    """Fix the sign that an eigenvector leaves open."""
    return weights if weights[np.abs(weights).argmax()] > 0 else -weights


def _norm(direction: Direction) -> float:
    return math.sqrt(inner(direction.theta, direction.theta))


def _scaled(direction: Direction, factor: float) -> Direction:
    return _combined((direction,), (factor,))


def _combined(directions: Sequence[Direction], weights: Sequence[float] | Floats) -> Direction:
    parts = list(zip(directions, map(float, weights), strict=True))
    theta = [_sum([(each.theta[index], weight) for each, weight in parts]) for index in range(len(directions[0].theta))]
    names = directions[0].buffers
    return Direction(
        tuple(theta), {name: _sum([(each.buffers[name], weight) for each, weight in parts]) for name in names}
    )


def _sum(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    first, weight = parts[0]
    total = first * weight
    for each, more in parts[1:]:
        total.add_(each, alpha=more)
    return total


def _check_alike(first: Point, *others: Point) -> None:
    shapes = [each.shape for each in first.theta]
    for other in others:
        if [each.shape for each in other.theta] != shapes or other.buffers.keys() != first.buffers.keys():
            raise ModelError("The checkpoints do not have the same tensors; choose those of one model.")
