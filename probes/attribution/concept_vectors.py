"""Concept activation vectors: linear classifiers between sets of activations, many at a time, by inner products alone.

The normal of a penalised classifier lies in the span of its examples, so that the inner products of all activations,
and those with the derivatives, are enough: the number of activations of a layer does not matter after that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Sets = NDArray[np.intp]  # (R, s) examples of each of R sets
HELD_OUT = 1 / 3  # share of each set by which a classifier's accuracy is judged
STEPS = 50  # of Newton's method; it needs a few


@dataclass(frozen=True, eq=False)
class Gram:
    """products: (n, n) of the activations of n examples. slopes: (C, n) of the derivatives of C examples with them."""

    products: Tensor
    slopes: Tensor
    penalty: float

    @classmethod
    def of(cls, activations: Tensor, derivatives: Tensor, penalty: float) -> Gram:
        """Take the inner products of activations (n, D) and derivatives (C, D)."""
        return cls((activations @ activations.mT).cpu(), (derivatives @ activations.mT).cpu(), penalty)

    def along(self, shown: Sets, against: Sets) -> tuple[Floats, Floats]:
        """Return (R,) the share of positive derivatives along the normal between each pair of sets, and their mean."""
        found = self.slopes @ self.normals(shown, against).mT
        return (found > 0).double().mean(0).numpy(), found.mean(0).numpy()

    def accuracy(self, shown: Sets, against: Sets) -> Floats:
        """Return (R,) the accuracy on a part of each pair of sets of a classifier that is fitted to the rest."""
        kept = shown.shape[1] - max(1, int(shown.shape[1] * HELD_OUT))
        normals = self.normals(shown[:, :kept], against[:, :kept])
        along = (normals @ self.products).numpy()
        of = lambda sets: np.take_along_axis(along, sets, 1)
        middle = (of(shown[:, :kept]).mean(1) + of(against[:, :kept]).mean(1))[:, None] / 2
        right = (of(shown[:, kept:]) > middle).mean(1) + (of(against[:, kept:]) < middle).mean(1)
        return np.asarray(right / 2)

    def normals(self, shown: Sets, against: Sets) -> Tensor:
        """Return (R, n) the weights of the examples in the unit normal between each pair of sets; zeros for none.

        Logistic regression with a free offset and penalty ||w||^2 / 2 beside the mean loss, activations centred and
        divided by their mean length; solved by Newton's method.
        """
        sets = torch.from_numpy(np.concatenate([shown, against], 1))
        inner = self.products[sets[:, :, None], sets[:, None, :]]
        inner = inner - inner.mean(1, keepdim=True)
        inner = inner - inner.mean(2, keepdim=True)
        length = inner.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().mean(1)
        scale = torch.where(length > 0, length, 1.0)[:, None, None].square()
        values, vectors = torch.linalg.eigh(inner / scale)
        kept = values > 1e-12 * values[:, -1:].clamp(min=1e-12)
        roots = torch.where(kept, values, 0.0).sqrt()
        labels = torch.cat([torch.ones(shown.shape[1]), torch.zeros(against.shape[1])]).double()
        beta = _logistic(vectors * roots[:, None, :], labels, self.penalty)[:, :-1]
        weights = (vectors @ torch.where(kept, beta / torch.where(kept, roots, 1.0), 0.0)[..., None])[..., 0]
        weights = weights - weights.mean(1, keepdim=True)
        size = (weights[:, None] @ inner @ weights[..., None])[:, 0].clamp(min=0).sqrt()
        weights = torch.where((size > 0) & (length > 0)[:, None], weights / torch.where(size > 0, size, 1.0), 0.0)
        return torch.zeros(len(sets), len(self.products), dtype=torch.float64).scatter_(1, sets, weights)


def cav(concept: Tensor, random: Tensor, penalty: float = 0.01) -> Tensor:
    """Return the unit normal (D,) between activations (n, D) and (m, D), towards the first; zeros for none."""
    x = torch.cat([concept, random]).double()
    gram = Gram.of(x, x[:1], penalty)
    shown, against = np.split(np.arange(len(x))[None], [len(concept)], 1)
    return gram.normals(shown, against)[0].to(x.device) @ x


def _logistic(z: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Return weights and, last, offset (R, r + 1) of logistic regressions on coordinates z (R, n, r)."""
    wide = torch.cat([z, torch.ones_like(z[..., :1])], 2)
    ridge = torch.full_like(wide[0, 0], penalty)
    ridge[-1] = 1e-10
    beta = torch.zeros_like(wide[:, 0])
    for _ in range(STEPS):
        p = torch.sigmoid((wide @ beta[..., None])[..., 0])
        slope = ((p - labels)[:, None] @ wide)[:, 0] / z.shape[1] + ridge * beta
        curvature = (wide.mT * (p * (1 - p))[:, None]) @ wide / z.shape[1] + torch.diag(ridge)
        step = torch.linalg.solve(curvature, slope)
        beta = beta - step
        if float(step.abs().max()) < 1e-10 * (1 + float(beta.abs().max())):
            break
    return beta
