"""Lanczos with full reorthogonalisation: both ends of the spectrum of a symmetric operator, with error bounds.

Sources: Paige 1971; Parlett, The Symmetric Eigenvalue Problem (1998), sections 4.5, 11.7 and 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Operator = Callable[[Tensor], Tensor]
TRIES = 20  # random vectors, before the complement counts as empty
BLOCK = 32  # basis vectors are allocated in blocks of this many
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}  # of the largest |eigenvalue|: less than this is zero


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs of the operator from m steps.

    values: (m,) ascending; vectors: (m, m), column i in the coordinates of the basis; residuals: (m,) the norms
    |Hv - value v|; bounds: (m,) of the error of each value, min(r, r^2 / gap to the next value).
    """

    values: Floats
    vectors: Floats
    residuals: Floats

    @property
    def bounds(self) -> Floats:
        """Bound the error of each value: within r there is an eigenvalue, and r^2 / gap is sharper if it is alone."""
        gaps = np.full(len(self.values), np.inf)
        steps = np.diff(self.values)
        gaps[:-1] = steps
        gaps[1:] = np.minimum(gaps[1:], steps)
        with np.errstate(divide="ignore", invalid="ignore"):
            sharp = np.where(gaps > 0, self.residuals**2 / gaps, np.inf)
        return np.minimum(self.residuals, sharp)

    @property
    def scale(self) -> float:
        """The largest |value|: a lower bound of the operator's norm."""
        return float(np.abs(self.values).max(initial=0.0))


@dataclass(frozen=True)
class Symmetric:
    """A symmetric operator v -> H v on flat vectors (size,) of one device and dtype."""

    apply: Operator
    size: int
    device: torch.device
    dtype: torch.dtype

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""
        return self.apply(v)

    def basis(self) -> Basis:
        """Return an empty basis of its space."""
        return Basis(self.size, self.device, self.dtype)


def random_vector(size: int, seed: int, index: int) -> Tensor:
    """Draw a standard normal vector (size,) float64 on the CPU: it depends on seed and index only."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % (1 << 63))
    return torch.randn(size, generator=generator, dtype=torch.float64)


class Basis:
    """Orthonormal vectors (P,), in blocks that grow."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.device, self.dtype = size, device, dtype
        self.count = 0
        self._blocks: list[Tensor] = []

    def __getitem__(self, index: int) -> Tensor:
        """Return one vector, a view."""
        return self._blocks[index // BLOCK][index % BLOCK]

    def append(self, vector: Tensor) -> None:
        """Add a vector that is orthonormal to the others."""
        if self.count == BLOCK * len(self._blocks):
            self._blocks.append(torch.empty(BLOCK, self.size, device=self.device, dtype=self.dtype))
        self._blocks[-1][self.count % BLOCK] = vector
        self.count += 1

    def filled(self) -> Iterator[Tensor]:
        """Yield the vectors in matrices (n, P), n <= BLOCK."""
        for i, block in enumerate(self._blocks):
            yield block[: self.count - i * BLOCK]

    def dot(self, vector: Tensor) -> Tensor:
        """Return Q v, (count,)."""
        parts = [block @ vector for block in self.filled()]
        return torch.cat(parts) if parts else vector.new_zeros(0)

    def combine(self, weights: Tensor) -> Tensor:
        """Return weights' Q: (P,) for weights (count,), (k, P) for (count, k)."""
        weights = weights.to(self.device, self.dtype)
        parts = [block.T @ piece for block, piece in zip(self.filled(), weights.split(BLOCK), strict=True)]
        total: Tensor = sum(parts[1:], start=parts[0])
        return total if weights.ndim == 1 else total.T

    def remove_from(self, vector: Tensor) -> Tensor:
        """Project a vector onto the complement of the basis: classical Gram-Schmidt, twice, in place."""
        for _ in range(2):
            for block in self.filled():
                vector -= block.T @ (block @ vector)
        return vector


class Lanczos:
    """A growing Krylov space of a symmetric operator, in the complement of `deflated` when given.

    fresh(i) returns the i-th random vector (P,): the start, and a new one whenever the space is invariant, so that
    a multiple eigenvalue or a small matrix is no obstacle. `exhausted` means that the space is the whole one.
    """

    def __init__(
        self, operator: Operator, basis: Basis, fresh: Callable[[int], Tensor], deflated: Basis | None = None
    ) -> None:
        self.operator, self.basis, self.deflated = operator, basis, deflated
        self._fresh, self._drawn = fresh, 0
        self.alpha: list[float] = []
        self.beta: list[float] = []  # beta[i] joins vectors i and i + 1; the last one the space and what is left
        if basis.count == 0:
            self._append_fresh()

    @property
    def count(self) -> int:
        """How many products were taken: the dimension m of the space."""
        return len(self.alpha)

    @property
    def exhausted(self) -> bool:
        """Is there no direction left outside of the space?"""
        return self.basis.count == self.count

    def step(self, product: Tensor | None = None) -> None:
        """Take one product, or use the given one of the next basis vector."""
        if self.exhausted:
            raise ValueError("the Krylov space is the whole space already")
        q = self.basis[self.count]
        w = self.operator(q).clone() if product is None else product.clone()
        self.alpha.append(float(q.double() @ w.double()))
        if self.deflated is not None:
            self.deflated.remove_from(w)
        self.basis.remove_from(w)
        beta = float(w.double().norm())
        if beta > self._negligible() and self._room():
            self.beta.append(beta)
            self.basis.append(w / beta)
        else:
            self.beta.append(0.0)
            self._append_fresh()

    def ritz(self) -> Ritz:
        """Return the eigenpairs of T and their residual norms."""
        T = np.diag(self.alpha) + np.diag(self.beta[:-1], 1) + np.diag(self.beta[:-1], -1)
        values, vectors = np.linalg.eigh(T)
        return Ritz(values, vectors, np.abs(vectors[-1]) * self.beta[-1])

    def restore(self, vectors: NDArray[Any], alpha: Floats, beta: Floats, drawn: int) -> None:
        """Go on from what an earlier attempt kept."""
        for row in vectors[self.basis.count :]:
            self.basis.append(torch.from_numpy(row).to(self.basis.device, self.basis.dtype))
        self.alpha, self.beta, self._drawn = alpha.tolist(), beta.tolist(), drawn

    @property
    def drawn(self) -> int:
        """How many random vectors were drawn."""
        return self._drawn

    def _negligible(self) -> float:
        largest = max(map(abs, (*self.alpha, *self.beta)), default=0.0)
        return ROUNDING[self.basis.dtype] * largest

    def _room(self) -> int:
        taken = self.basis.count + (self.deflated.count if self.deflated is not None else 0)
        return self.basis.size - taken

    def _append_fresh(self) -> None:
        """Continue with a random vector orthogonal to all so far, unless none is left."""
        for _ in range(TRIES if self._room() else 0):
            w = self._fresh(self._drawn).to(self.basis.device, self.basis.dtype)
            self._drawn += 1
            w = w / w.norm()
            if self.deflated is not None:
                self.deflated.remove_from(w)
            self.basis.remove_from(w)
            if float(w.norm()) > 1e-3 / self.basis.size**0.5:
                w = w / w.norm()
                if self.deflated is not None:
                    self.deflated.remove_from(w)
                w = self.basis.remove_from(w)
                self.basis.append(w / w.norm())
                return
