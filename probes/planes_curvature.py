"""How a plane sees the Hessian: the plane of its eigenvectors, and which share of the curvature any plane holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.curvature import HessianProduct
from probes.errors import CurvatureError
from probes.extremes import Pair, Store, Wanted, converged, extremes, pairs
from probes.lanczos import ROUNDING, Lanczos, Symmetric, random_vector
from probes.memory import spare_bytes
from probes.objective import Objective
from probes.planes import Direction, Plane, Tick, spanned
from probes.points import Point, point_of
from probes.self_check import check_curvature
from probes.trace import Estimate, Remainder, frobenius_of

SKETCH = 12  # Lanczos steps where no eigenvalue is asked for: they take the outliers out of the estimate
SAMPLES = 8  # random vectors of the Frobenius norm
MOST = 120  # products for the eigenvalues
DRAWN_FROM = 60_000


@dataclass(frozen=True, eq=False)
class Curvature:
    """The Hessian at the centre of planes: products, the Krylov space that was searched, and its Frobenius norm.

    doubts: what the check of the second derivative left to say.
    """

    operator: Symmetric
    lanczos: Lanczos
    frobenius: Estimate
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """What a plane holds of the curvature.

    along: u'Hu and v'Hv for its two axes. residuals: |Hu - (u'Hu) u| and that of v. share: |U'HU|_F^2 / |H|_F^2 with
    U = (u, v), between 0 and 1 (for two eigenvectors: their squared eigenvalues in the sum of all squared eigenvalues);
    stderr: from the estimate of |H|_F; None where the Hessian is zero or there is nothing to tell it from.
    """

    along: tuple[float, float]
    residuals: tuple[float, float]
    share: float | None
    stderr: float | None


def curvature(
    objective: Objective, seed: int, store: Store, tick: Tick, *, top: int = 0, tolerance: float = 1e-4
) -> Curvature:
    """Run Lanczos for so many of the largest eigenvalues (0: a few steps) and estimate the Frobenius norm.

    The second derivative is checked first. A killed run goes on from what `store` kept. Raises CurvatureError: no
    (right) second derivative, or too little memory for the vectors.
    """
    wanted = Wanted(top or 2, 0, tolerance, MOST + 2 * top if top else SKETCH)
    _check_memory(objective, wanted)
    product, done = HessianProduct(objective), [0]
    doubts = check_curvature(objective, product, seed)
    usual = (10 + 4 * top if top else SKETCH) + SAMPLES

    def apply(v: Tensor) -> Tensor:
        done[0] += 1
        tick(done[0] / (done[0] + max(usual - done[0], 1)), "curvature at the centre")
        return product(v)

    operator = Symmetric(apply, objective.size, objective.device, objective.dtype)
    lanczos = extremes(operator, wanted, seed, store=store)
    remainder = Remainder(lanczos, np.zeros(0))
    kept = store.load("frobenius")
    samples = _samples(operator, remainder, seed) if kept is None else kept["samples"]
    store.save("frobenius", {"samples": samples})
    return Curvature(operator, lanczos, frobenius_of(remainder, samples, objective.dtype), doubts)


def held(found: Curvature, plane: Plane) -> Held:
    """Measure the curvature along a plane and its share of the whole; two products."""
    U = [torch.cat([each.reshape(-1) for each in axis.theta]) for axis in (plane.first, plane.second)]
    HU = [found.operator(u).double() for u in U]
    M = np.array([[float(u.double() @ Hv) for Hv in HU] for u in U])
    residuals = tuple(float((Hu - M[i, i] * u.double()).norm()) for i, (u, Hu) in enumerate(zip(U, HU, strict=True)))
    total, spread = found.frobenius.value, found.frobenius.stderr
    share = min(1.0, float((M**2).sum()) / total**2) if total > 0 else None
    stderr = 2 * share * spread / total if share is not None and spread is not None else None
    return Held((float(M[0, 0]), float(M[1, 1])), (residuals[0], residuals[1]), share, stderr)


def eigenplane(
    found: Curvature, objective: Objective, number: int, tolerance: float
) -> tuple[Plane, list[Pair], list[str]]:
    """Return the plane of the eigenvectors of the (2 number + 1)-th and the next largest eigenvalue, and these.

    The sentences name those that have not converged. Raises CurvatureError where there are no such eigenvalues.
    """
    ritz, rounding = found.lanczos.ritz(), ROUNDING[objective.dtype]
    order = np.arange(len(ritz.values))[::-1][2 * number : 2 * number + 2]
    if len(order) < 2:
        raise CurvatureError(
            f"The Hessian gave {len(ritz.values)} eigenvalues, too few for plane {number + 1}; ask for fewer planes."
        )
    good = converged(ritz, tolerance, rounding)
    doubts = [
        f"Eigenvalue {2 * number + 1 + i} ({ritz.values[place]:.4g}) has not converged after {found.lanczos.count} "
        f"products: its residual is {ritz.residuals[place]:.2g}, so that its axis is not quite an eigenvector."
        for i, place in enumerate(order)
        if not good[place]
    ]
    axes = [_direction(found, objective, ritz.vectors[:, place]) for place in order]
    return spanned(point_of(objective), axes[0], axes[1]), pairs(ritz, order, rounding), doubts


class Under:
    """A store whose keys all begin alike, so that two users of it do not meet."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays."""
        self._store.save(self._prefix + key, arrays)

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return what was kept."""
        return self._store.load(self._prefix + key)


def at_centre(objective: Objective, centre: Point) -> Objective:
    """Return the objective at the centre of a plane."""
    return objective.moved(centre.theta, centre.buffers)


def _samples(operator: Symmetric, remainder: Remainder, seed: int) -> NDArray[np.float64]:
    found = []
    for index in range(SAMPLES if remainder.left else 0):
        z = random_vector(operator.size, seed, DRAWN_FROM + index).sign().to(operator.device, operator.dtype)
        found.append(remainder.sample(z, operator(z)))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _direction(found: Curvature, objective: Objective, weights: NDArray[np.float64]) -> Direction:
    padded = np.zeros(found.lanczos.basis.count)
    padded[: len(weights)] = weights
    vector = found.lanczos.basis.combine(torch.from_numpy(padded))
    vector = vector if float(vector[vector.abs().argmax()]) > 0 else -vector
    return Direction(tuple(objective.like_theta(vector)))


def _check_memory(objective: Objective, wanted: Wanted) -> None:
    vectors = min(40 if wanted.max_products > SKETCH else SKETCH + 2, objective.size) + 6
    bytes_each = objective.size * torch.finfo(objective.dtype).bits // 8
    spare = spare_bytes(objective.device)
    if vectors * bytes_each > 0.8 * spare:
        raise CurvatureError(
            f"The curvature needs {vectors} vectors of {bytes_each / 1e9:.2g} GB each, but {spare / 1e9:.2g} GB are "
            "free."
        )
