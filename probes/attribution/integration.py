"""Integrals of gradients along straight paths, by Gauss and Legendre's rule, refined where it misses.

One rule over the whole path converges at once on smooth models, but slowly on ReLU networks, whose gradients jump. What
the score gains over any piece of the path is known exactly, so each piece tells its own error: the worst are halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from scipy.special import roots_legendre
from torch import Tensor

if TYPE_CHECKING:
    from probes.attribution.case import Case

MOST_STEPS = 1024
NODES = 2  # in a piece: exact for cubics, cheap where the gradient is constant but for a jump
LOOSE = 10.0  # errors of pieces may cancel, but their sizes should add up to no more than so many tolerances ...
_ENOUGH = MOST_STEPS // 4  # ... unless so many gradients were spent


@dataclass(frozen=True)
class Integral:
    """What the integral from one reference came to.

    values: (1, ...) float64. steps: nodes of the last rule. evaluations: gradients. variation: how far the score goes
    up and down on the way. local_error: the sizes of the errors of all pieces, added up (of one piece: its own).
    """

    values: Tensor
    steps: int
    evaluations: int
    variation: float
    local_error: float


@dataclass(frozen=True)
class _Pieces:
    """Pieces of a path: their ends (P, 2), the scores there (P, 2), integrals (P, ...) and errors (P,)."""

    ends: Tensor
    scores: Tensor
    integrals: Tensor
    errors: Tensor

    def chosen(self, at: Tensor) -> _Pieces:
        return _Pieces(self.ends[at], self.scores[at], self.integrals[at.to(self.integrals.device)], self.errors[at])

    def joined(self, other: _Pieces) -> _Pieces:
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("ends", "scores", "integrals", "errors"))
        return _Pieces(*(torch.cat(pair) for pair in pairs))


@lru_cache(maxsize=64)
def nodes_of(steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of Gauss and Legendre's rule on [0, 1]."""
    nodes, weights = roots_legendre(steps)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def whole(case: Case, features: Tensor, reference: Tensor, steps: int) -> Integral:
    """Integrate from a reference (1, ...) to features (1, ...) by one rule of so many steps.

    Scores and gradients at both ends are found in the same passes, and kept by the case.
    """
    alphas, weights = nodes_of(steps)
    away = features - reference
    total, variation = torch.zeros_like(features, dtype=torch.float64), 0.0
    ends = torch.cat([features, reference])
    for some, shares in zip(alphas.split(case.chunk()), weights.split(case.chunk()), strict=True):
        rows = torch.cat([reference + along(some, features) * away, ends])
        ends = ends[:0]
        scores, found = case.gradients(rows)
        if len(rows) > len(some):
            case.know(features, scores[-2], found[-2])
            case.know(reference, scores[-1], found[-1])
        parts = found[: len(some)].double() * away * along(shares, total)
        total += parts.sum(0, keepdim=True)
        variation += float(parts.flatten(1).sum(1).abs().sum())
    return Integral(total, steps, steps, variation, float("nan"))


def refined(case: Case, reference: Tensor, steps: int, allowed: float, most: int = MOST_STEPS) -> Integral:
    """Integrate to the case's features piece by piece, the worst pieces halved until the sum misses by `allowed`.

    steps: to begin with. allowed: in units of the score. most: gradients at most.
    """
    ends = torch.linspace(0, 1, max(steps // NODES, 1) + 1, dtype=torch.float64)
    scores = _scores(case, reference, ends)
    pieces = _evaluated(case, reference, _pairs(ends), _pairs(scores))
    spent = NODES * len(pieces.ends)
    while spent < most and not _done(pieces, allowed, spent):
        worst, rest = _split(pieces, min(spent, most - spent) // (2 * NODES))
        halves = _halved(case, reference, worst)
        spent += NODES * len(halves.ends)
        pieces = rest.joined(halves)
    variation = float((pieces.scores[:, 1] - pieces.scores[:, 0]).abs().sum())
    values, local = pieces.integrals.double().sum(0, keepdim=True), float(pieces.errors.abs().sum())
    return Integral(values, NODES * len(pieces.ends), spent, variation, local)


def along(numbers: Tensor, like: Tensor) -> Tensor:
    """Shape numbers (B,) so that they multiply rows (B, ...)."""
    return numbers.to(like).view(-1, *[1] * (like.ndim - 1))


def _done(pieces: _Pieces, allowed: float, spent: int) -> bool:
    missed, local = abs(float(pieces.errors.sum())), float(pieces.errors.abs().sum())
    return missed <= allowed and (local <= LOOSE * allowed or spent >= _ENOUGH)


def _split(pieces: _Pieces, most: int) -> tuple[_Pieces, _Pieces]:
    """Take the fewest pieces that make up half of the errors, `most` of them at most (but one)."""
    order = pieces.errors.abs().argsort(descending=True, stable=True)
    sizes = pieces.errors[order].abs().cumsum(0)
    count = int((sizes < sizes[-1] / 2).sum()) + 1
    count = max(1, min(count, most))
    return pieces.chosen(order[:count]), pieces.chosen(order[count:])


def _halved(case: Case, reference: Tensor, pieces: _Pieces) -> _Pieces:
    middles = pieces.ends.mean(1)
    scores = _scores(case, reference, middles)
    ends, known = pieces.ends, pieces.scores
    new_ends = torch.cat([torch.stack([ends[:, 0], middles], 1), torch.stack([middles, ends[:, 1]], 1)])
    new_scores = torch.cat([torch.stack([known[:, 0], scores], 1), torch.stack([scores, known[:, 1]], 1)])
    return _evaluated(case, reference, new_ends, new_scores)


def _evaluated(case: Case, reference: Tensor, ends: Tensor, scores: Tensor) -> _Pieces:
    nodes, weights = nodes_of(NODES)
    away = case.features - reference
    found = []
    for some in ends.split(max(case.chunk() // NODES, 1)):
        lengths = some[:, 1] - some[:, 0]
        alphas = (some[:, :1] + lengths[:, None] * nodes).flatten()
        shares = (lengths[:, None] * weights).flatten()
        slopes = case.gradients(reference + along(alphas, away) * away)[1]
        found.append((slopes * away * along(shares, away)).unflatten(0, (-1, NODES)).sum(1))
    integrals = torch.cat(found)
    sums = integrals.flatten(1).double().sum(1).cpu()
    return _Pieces(ends, scores, integrals, sums - (scores[:, 1] - scores[:, 0]))


def _scores(case: Case, reference: Tensor, places: Tensor) -> Tensor:
    return case.in_chunks(reference + along(places, case.features) * (case.features - reference)).double().cpu()


def _pairs(values: Tensor) -> Tensor:
    return torch.stack([values[:-1], values[1:]], 1)
