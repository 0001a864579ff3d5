"""Norms of every example's gradient from what an operation took in and the gradient of what it gave out.

"Ghost norms": Goodfellow 2015 (arXiv:1510.01799) for linear layers, Li et al. 2022 (arXiv:2110.05679) for sequences,
Bu et al. 2022 (arXiv:2205.10683) for convolutions. B examples, T tokens each; d: gradients of outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 20  # numbers in a block of gradients that is held for a moment
BLOCK = 64  # tokens whose products are taken at once, both ways


def gram_is_less(tokens: int, inputs: int, outputs: int) -> bool:
    """Tell whether products between tokens cost less than the gradient of each example itself."""
    share = (1 + min(1.0, BLOCK / tokens)) / 2  # of the pairs, for their products are symmetric
    return tokens * (inputs + outputs) * share < inputs * outputs


def row_squares(each: Tensor) -> Tensor:
    """Return (B,) the sum of squares of each row of (B, ...)."""
    norms: Tensor = torch.linalg.vector_norm(each.flatten(1), dim=1)
    return norms.square()


def token_squares(a: Tensor, d: Tensor) -> Tensor:
    """Return (B,) ||sum_t d_t a_t'||^2 of inputs a (B, T, n) and output gradients d (B, T, m)."""
    tokens = a.shape[1]
    if tokens == 1:
        return row_squares(a) * row_squares(d)
    if gram_is_less(tokens, a.shape[2], d.shape[2]):
        return torch.cat([gram_squares(*pair) for pair in _pairs(a, d, tokens * tokens)])
    return torch.cat([row_squares(torch.bmm(d_.mT, a_)) for a_, d_ in _pairs(a, d, a.shape[2] * d.shape[2])])


def token_gradients(a: Tensor, d: Tensor) -> Tensor:
    """Return (B, m, n) sum_t d_t a_t'."""
    return torch.bmm(d.mT, a)


def lookup_squares(ids: Tensor, d: Tensor) -> Tensor:
    """Return (B,) sum_{t,s} [id_t = id_s] d_t.d_s of ids (B, T) and gradients d (B, T, m) of the rows looked up."""
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    span = ids.max() + 1
    keys, places = torch.unique(ids + span * rows, return_inverse=True)
    sums = d.new_zeros(len(keys), d.shape[2]).index_add_(0, places.flatten(), d.flatten(0, 1))
    return d.new_zeros(len(ids)).index_add_(0, keys // span, sums.square().sum(1))


def cross_products(a: Tensor, picked: Tensor, d: Tensor) -> Tensor:
    """Return (B,) <sum_s e_s a_s', sum_t 1[id_t] d_t'>: a tied weight's linear layer times its embedding.

    a: (B, S, n) inputs of the linear layer; picked: (B, S, T) its output gradients e at the ids; d: (B, T, n).
    """
    return inner(torch.bmm(a, d.mT), picked)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Return (B,) the inner product of each row of (B, ...)."""
    return (x * y).flatten(1).sum(1)


def gram_squares(a: Tensor, d: Tensor) -> Tensor:
    """Return (B,) sum_{t,s} (d_t.d_s)(a_t.a_s), which is ||sum_t d_t a_t'||^2; the pairs t > s count twice."""
    return _gram(a, d).clamp(min=0)


def _gram(a: Tensor, d: Tensor) -> Tensor:
    tokens = a.shape[1]
    if tokens < 2 * BLOCK:
        return inner(torch.bmm(a, a.mT), torch.bmm(d, d.mT))
    (a1, a2), (d1, d2) = (each.tensor_split(2, 1) for each in (a, d))
    return _gram(a1, d1) + _gram(a2, d2) + 2 * inner(torch.bmm(a1, a2.mT), torch.bmm(d1, d2.mT))


def _pairs(a: Tensor, d: Tensor, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, CHUNK // numbers)
    return zip(a.split(rows), d.split(rows), strict=True)
