"""Trace and Frobenius norm: exact on the Krylov space that Lanczos left, by random vectors on what remains.

This is Hutch++ (Meyer et al. 2021) with the Krylov basis Q as its sketch: tr H = tr Q'HQ + tr (I-QQ')H(I-QQ'), the
first exactly, the second by Hutchinson; because HQ is known from the Lanczos recurrence, a sample costs one product,
and that may be the first product of a quadrature run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.lanczos import ROUNDING, Floats, Lanczos


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error (None: no sample to tell it from)."""

    value: float
    stderr: float | None


class Remainder:
    """What H does outside of the Krylov space of a finished Lanczos run.

    copies: eigenvalues found later, whose eigenvectors are orthogonal to that space (copies of multiple ones).
    """

    def __init__(self, lanczos: Lanczos, copies: Floats) -> None:
        self._lanczos = lanczos
        count, T = lanczos.count, np.zeros((lanczos.basis.count, lanczos.count))
        T[range(count), range(count)] = lanczos.alpha
        for i, beta in enumerate(lanczos.beta[: count - 1]):
            T[i, i + 1] = T[i + 1, i] = beta
        if lanczos.basis.count > count:
            T[count, count - 1] = lanczos.beta[-1]
        self._T = T
        self.inside = float(sum(lanczos.alpha) + copies.sum())
        self.inside_squared = float((T**2).sum() + (copies**2).sum())
        self.left = lanczos.basis.size - count - len(copies)

    def sample(self, z: Tensor, Hz: Tensor) -> tuple[float, float]:
        """Return y'Hy and |Hy|^2 for y = (I - QQ')z, given z and Hz, without another product."""
        basis, count = self._lanczos.basis, self._lanczos.count
        coordinates = basis.dot(z)
        coordinates[count:] = 0  # the vector that came last is not in the space yet
        y = z - basis.combine(coordinates)
        image = torch.from_numpy(self._T) @ coordinates[:count].double().cpu()
        Hy = (Hz - basis.combine(image)).double()
        return float(y.double() @ Hy), float(Hy @ Hy)


def trace_of(remainder: Remainder, samples: Floats, dtype: torch.dtype) -> Estimate:
    """Join the exact part and samples (n, 2) to the trace."""
    return _joined(remainder.inside, samples[:, 0], remainder, dtype, math.sqrt(remainder.inside_squared))


def frobenius_of(remainder: Remainder, samples: Floats, dtype: torch.dtype) -> Estimate:
    """Join the exact part and samples (n, 2) to the Frobenius norm."""
    squared = _joined(remainder.inside_squared, samples[:, 1], remainder, dtype, remainder.inside_squared)
    norm = math.sqrt(max(squared.value, 0.0))
    stderr = squared.stderr / (2 * norm) if squared.stderr is not None and norm > 0 else squared.stderr
    return Estimate(norm, stderr)


def _joined(inside: float, outside: Floats, remainder: Remainder, dtype: torch.dtype, scale: float) -> Estimate:
    rounding = 0.1 * ROUNDING[dtype] * scale * math.sqrt(remainder.left + 1)
    if remainder.left == 0:
        return Estimate(inside, 10 * rounding)
    count = len(outside)
    if count < 2:
        return Estimate(inside + float(outside.sum()) if count else inside, None)
    return Estimate(inside + float(outside.mean()), math.hypot(outside.std(ddof=1) / math.sqrt(count), rounding))
