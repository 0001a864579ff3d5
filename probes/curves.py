"""Curves through weight space between two solutions: Bezier curves and polygonal chains with any number of bends.

A curve is phi(t) = sum_j c_j(t) w_j over its nodes w_0 ... w_(n-1): one end, the bends, the other end. Lengths and
places in the plane follow from the products of the nodes' differences, so that no point has to be made for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from probes.points import Point, between, combined

Kind = Literal["bezier", "polygonal"]
Floats = NDArray[np.float64]
_STRETCH = 2**20  # weights that are copied to float64 at a time


def coefficients(kind: Kind, nodes: int, t: float) -> Floats:
    """Return c_j(t) of each of n nodes, (n,); they are not negative and add up to 1.

    Bezier: C(n-1, j) t^j (1-t)^(n-1-j). Polygonal chain: max(0, 1 - |t (n-1) - j|). t in [0, 1], else ValueError.
    Source: Garipov, Izmailov, Podoprikhin, Vetrov, Wilson (2018), "Loss Surfaces, Mode Connectivity, and Fast
    Ensembling of DNNs".
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t is {t}; a curve runs from 0 to 1")
    if kind not in get_args(Kind) or nodes < 2:
        raise ValueError(f"there is no curve {kind!r} of {nodes} nodes")
    last, places = nodes - 1, np.arange(nodes)
    if kind == "polygonal":
        return np.maximum(0.0, 1.0 - np.abs(t * last - places))  # type: ignore[no-any-return]
    many = np.array([math.comb(last, place) for place in places], dtype=np.float64)
    return many * t**places * (1 - t) ** (last - places)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Curve:
    """A curve between two points. bends: the nodes between the ends, in order; one or more."""

    kind: Kind
    ends: tuple[Point, Point]
    bends: tuple[Point, ...]

    @property
    def nodes(self) -> tuple[Point, ...]:
        """Return ends and bends in the order of t."""
        return (self.ends[0], *self.bends, self.ends[1])

    def coefficients(self, t: Sequence[float] | Floats) -> Floats:
        """Return the weight of each node at each t, (K, n)."""
        return np.stack([coefficients(self.kind, len(self.nodes), float(each)) for each in t])

    def at(self, t: float) -> Point:
        """Return phi(t): parameters and running statistics alike; at 0 and 1 the ends themselves."""
        weights = coefficients(self.kind, len(self.nodes), t)
        kept = [(point, float(weight)) for point, weight in zip(self.nodes, weights, strict=True) if weight]
        if len(kept) == 1:
            return kept[0][0]
        return combined([point for point, _ in kept], [weight for _, weight in kept])

    @cached_property
    def products(self) -> Floats:
        """Return <w_i - w_0, w_j - w_0> of the parameters of all nodes, (n, n), summed in float64."""
        found = torch.zeros(len(self.nodes), len(self.nodes), dtype=torch.float64)
        for tensors in zip(*(each.theta for each in self.nodes), strict=True):
            for pieces in zip(*(each.reshape(-1).split(_STRETCH) for each in tensors), strict=True):
                rows = torch.stack([each.double() - pieces[0].double() for each in pieces])
                found += (rows @ rows.T).cpu()
        return found.numpy()


def straight(kind: Kind, one: Point, other: Point, bends: int) -> Curve:
    """Return the straight line as a curve, its bends at even distances."""
    if bends < 1:
        raise ValueError(f"{bends} bends; a curve has one or more")
    return Curve(kind, (one, other), tuple(between(one, other, (j + 1) / (bends + 1)) for j in range(bends)))


def arclength(curve: Curve, t: Sequence[float] | Floats) -> Floats:
    """Return the length of the curve up to each t (ascending), (K,): the sum of the chords between them."""
    steps = np.diff(curve.coefficients(t), axis=0)
    squares = np.einsum("ki,ij,kj->k", steps, curve.products, steps)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(np.maximum(squares, 0.0)))])


def straight_length(curve: Curve) -> float:
    """Return the distance of the ends."""
    return math.sqrt(curve.products[-1, -1])


def widest_bend(curve: Curve) -> int:
    """Return the number of the bend that lies furthest from the straight line between the ends."""
    return int(np.argmax(_heights(curve.products)[1:-1]))


def plane_points(curve: Curve) -> tuple[Point, Point, Point]:
    """Return the points that span the curve's plane, for `probes.planes.through`: the two ends, and the widest bend."""
    return (*curve.ends, curve.bends[widest_bend(curve)])


def plane_coordinates(curve: Curve, t: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Return where the curve runs in its plane, (K, 2), and how far outside of it, (K,), all in distance.

    The first end is the origin, the second lies on the first axis, the widest bend above it. A curve of one bend stays
    in its plane. Where all bends lie on the straight line there is no second axis, and its coordinate is 0.
    """
    gram, weights = curve.products, curve.coefficients(t)
    bend = 1 + widest_bend(curve)
    width, height = math.sqrt(gram[-1, -1]), _heights(gram)[bend]
    along = gram[:, -1] / width if width else np.zeros(len(gram))
    aside = (gram[:, bend] - along * along[bend]) / height if height else np.zeros(len(gram))
    places = weights @ np.stack([along, aside], axis=1)
    squares = np.einsum("ki,ij,kj->k", weights, gram, weights) - np.square(places).sum(1)
    rounding = 1e-12 * gram.diagonal().max()
    return places, np.sqrt(np.where(squares > rounding, squares, 0.0))


def _heights(gram: Floats) -> Floats:
    """Return the distance of each node from the line through the ends, (n,); 0 within rounding."""
    squares, width = gram.diagonal(), gram[-1, -1]
    over = squares - (np.square(gram[:, -1]) / width if width else 0.0)
    return np.sqrt(np.where(over > 1e-12 * squares.max(), over, 0.0))  # type: ignore[no-any-return]
