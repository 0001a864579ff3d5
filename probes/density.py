"""Spectral density: the converged eigenvalues exactly, stochastic Lanczos quadrature on their complement.

Source: Ubaru, Chen and Saad 2017 for the quadrature; taking the outliers out first keeps random vectors, which see
an outlier with weight 1/P only, from blurring it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.extremes import Pair, Wanted, converged, pairs
from probes.lanczos import ROUNDING, Basis, Floats, Lanczos, Ritz, Symmetric, random_vector

CLEARLY = 1e-3
COPIES = 12  # a multiple eigenvalue is followed up to so many copies beyond the first


@dataclass
class Outliers:
    """Converged eigenvalues with an orthonormal basis of their eigenvectors."""

    basis: Basis
    found: list[Pair]

    @property
    def values(self) -> Floats:
        """The eigenvalues, descending."""
        return np.array(sorted((each.value for each in self.found), reverse=True))


@dataclass(frozen=True)
class Quadrature:
    """What one random vector z sees of the complement: nodes, weights (they add up to 1), and z'Hz beyond Krylov."""

    nodes: Floats
    weights: Floats
    sample: tuple[float, float]


@dataclass(frozen=True)
class Mass:
    """How much of the spectrum is negative: of sum |eigenvalue|, and of the number of eigenvalues.

    An eigenvalue counts as negative below -CLEARLY of the largest |eigenvalue|: nearer to zero a quadrature cannot
    tell the sign.
    """

    share: float
    share_stderr: float | None
    count_share: float


def outliers_of(lanczos: Lanczos, operator: Symmetric, tolerance: float) -> Outliers:
    """Take all converged eigenpairs out of a Lanczos run."""
    outliers = Outliers(operator.basis(), [])
    if lanczos.count:
        ritz = lanczos.ritz()
        everything = lanczos.exhausted and lanczos.deflated is None
        good = np.full(lanczos.count, True) if everything else _good(ritz, tolerance, operator.dtype)
        add(outliers, lanczos, ritz, np.flatnonzero(good), operator.dtype)
    return outliers


def add(outliers: Outliers, lanczos: Lanczos, ritz: Ritz, which: np.ndarray, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    """Add the chosen eigenpairs of a run (its basis vectors 0..m-1)."""
    weights = np.zeros((lanczos.basis.count, len(which)))
    weights[: lanczos.count] = ritz.vectors[:, which]
    for column in torch.from_numpy(weights).T:
        vector = outliers.basis.remove_from(lanczos.basis.combine(column))
        outliers.basis.append(vector / vector.norm())
    outliers.found.extend(pairs(ritz, which, ROUNDING[dtype]))


def find_copies(
    operator: Symmetric, outliers: Outliers, wanted: Wanted, seed: int, steps: int, limit: tuple[float, float]
) -> tuple[int, bool]:
    """Look in the complement for eigenvalues beyond the smallest top and the largest bottom one; add them.

    A Krylov space holds one vector of a multiple eigenvalue only; another random start in the complement of what was
    found holds the next. limit: (largest bottom, smallest top) eigenvalue reported. Returns the products spent and
    whether the search ended by itself (nothing more lies beyond the limit).
    """
    spent = 0
    for copy in range(COPIES):
        fresh = lambda index, copy=copy: random_vector(operator.size, seed, 10_000 + 100 * copy + index)
        run = Lanczos(operator, operator.basis(), fresh, outliers.basis)
        while not run.exhausted and run.count < steps:
            run.step()
        while not run.exhausted and run.count < wanted.max_products and _unclear(run, limit, wanted, operator):
            run.step()
        spent += run.count
        if not run.count:
            return spent, True
        ritz = run.ritz()
        beyond = _beyond(ritz, limit, wanted.tolerance)
        if not beyond.any():
            return spent, True
        good = beyond & _good(ritz, wanted.tolerance, operator.dtype)
        if not good.any():
            return spent, False
        add(outliers, run, ritz, np.flatnonzero(good), operator.dtype)
    return spent, False


def to_arrays(outliers: Outliers, first: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Return the outliers from number `first` on as arrays that can be kept."""
    rows = [outliers.basis[i].cpu().numpy() for i in range(first, outliers.basis.count)]
    numbers = [(each.value, each.bound, each.residual) for each in outliers.found[first:]]
    return {"rows": np.array(rows), "pairs": np.array(numbers).reshape(-1, 3)}


def from_arrays(outliers: Outliers, arrays: Mapping[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    """Add outliers that were kept."""
    for row, numbers in zip(arrays["rows"], arrays["pairs"].tolist(), strict=True):
        outliers.basis.append(torch.from_numpy(row).to(outliers.basis.device, outliers.basis.dtype))
        outliers.found.append(Pair(*numbers))


def quadrature(
    operator: Symmetric,
    outliers: Outliers,
    z: Tensor,
    steps: int,
    sample: Callable[[Tensor, Tensor], tuple[float, float]],
) -> Quadrature:
    """Run `steps` Lanczos steps from the random vector z in the complement; the first product also gives a sample."""
    z = z.to(operator.device, operator.dtype)
    start = outliers.basis.remove_from(z.clone())
    if float(start.norm()) <= 1e-4 * float(z.norm()):
        return Quadrature(np.zeros(0), np.zeros(0), (0.0, 0.0))
    Hs = operator(start)
    moved = sample(start, Hs)
    if steps < 2:
        return Quadrature(np.zeros(0), np.zeros(0), moved)
    fresh = lambda index: start if not index else random_vector(operator.size, 0, index)
    run = Lanczos(operator, operator.basis(), fresh, outliers.basis)
    run.step(Hs / start.norm())
    while run.count < steps and not run.exhausted and run.beta[-1] > 0:
        run.step()
    ritz = run.ritz()
    return Quadrature(ritz.values, ritz.vectors[0] ** 2, moved)


def negative_mass(outliers: Floats, runs: list[Quadrature], size: int) -> Mass:
    """Return the share of sum |eigenvalue| that is negative (its spread over the runs), and of the eigenvalues."""
    drawn = [run for run in runs if len(run.nodes)]
    limit = -CLEARLY * max(np.abs(places).max(initial=0.0) for places in (outliers, *(run.nodes for run in drawn)))
    minus, mass, count = np.abs(outliers[outliers < 0]).sum(), np.abs(outliers).sum(), (outliers < limit).sum()
    rest = size - len(outliers)
    if not drawn:
        return Mass(float(minus / mass) if mass else 0.0, 0.0 if not rest else None, float(count) / max(size, 1))
    shares, counts = [], []
    for run in drawn:
        low = run.nodes < 0
        total = mass + rest * float((run.weights * np.abs(run.nodes)).sum())
        shares.append((minus + rest * float(-(run.weights * run.nodes)[low].sum())) / total if total else 0.0)
        counts.append((count + rest * float(run.weights[run.nodes < limit].sum())) / size)
    stderr = float(np.std(shares, ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else None
    return Mass(float(np.mean(shares)), stderr, float(np.mean(counts)))


def _good(ritz: Ritz, tolerance: float, dtype: torch.dtype) -> np.ndarray:  # type: ignore[type-arg]
    return converged(ritz, tolerance, ROUNDING[dtype])


def _beyond(ritz: Ritz, limit: tuple[float, float], tolerance: float) -> np.ndarray:  # type: ignore[type-arg]
    slack = tolerance * np.abs(ritz.values)
    return (ritz.values > limit[1] + slack) | (ritz.values < limit[0] - slack)


def _unclear(run: Lanczos, limit: tuple[float, float], wanted: Wanted, operator: Symmetric) -> bool:
    """Does some value lie beyond the limit without having converged?"""
    ritz = run.ritz()
    beyond = _beyond(ritz, limit, wanted.tolerance)
    return bool((beyond & ~_good(ritz, wanted.tolerance, operator.dtype)).any())
