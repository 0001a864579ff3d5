"""What flows through a layer along the straight path from a baseline to the example.

Conductance (Dhamdhere, Sundararajan and Yan 2019) of a unit y is the integral of dF/dy times dy along the path. Pieces
of the path are summed by the trapezoid rule in y, which needs no second derivative; where the layer cuts the net, each
piece tells its own error, since what the score gains over it is known, and the worst pieces are halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.attribution.case import Case as BaseCase
from probes.attribution.integration import LOOSE, MOST_STEPS, NODES, along, nodes_of
from probes.attribution.layer_outputs import evaluated, kept, replaced_output
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case

_HELD_BYTES = 2**29  # outputs and slopes kept along a path, at most
_MOST_NODES = 512  # of integrals whose sum is not known beforehand


@dataclass(frozen=True)
class Flow:
    """What an integral along one path came to. change: by the last refinement, or what the
    sum misses, as a share; NaN where not looked at."""

    values: Tensor
    evaluations: int
    change: float


@dataclass(frozen=True)
class _Nodes:
    """Places on the path, sorted (N,), and there the layer's outputs and slopes (N, ...) and the scores (N,)."""

    places: Tensor
    outputs: Tensor
    slopes: Tensor
    scores: Tensor

    def pieces(self) -> Tensor:
        return (self.slopes[1:] + self.slopes[:-1]) / 2 * self.outputs.diff(dim=0)

    def total(self) -> Tensor:
        return self.pieces().double().sum(0, keepdim=True)

    def errors(self) -> Tensor:
        return self.pieces().flatten(1).double().sum(1).cpu() - self.scores.double().cpu().diff()

    def middles(self) -> Tensor:
        return (self.places[1:] + self.places[:-1]) / 2


@dataclass(frozen=True)
class _Passing:
    """Pieces of the path: their ends (P, 2), what features give there (P, ...), the layer's conductance there (P,)."""

    ends: Tensor
    integrals: Tensor
    gains: Tensor
    evaluations: int

    def errors(self) -> Tensor:
        return self.integrals.flatten(1).double().sum(1).cpu() - self.gains

    def without(self, rows: Tensor) -> _Passing:
        left = torch.ones(len(self.ends), dtype=torch.bool)
        left[rows] = False
        return _Passing(self.ends[left], self.integrals[left.to(self.integrals.device)], self.gains[left], 0)

    def joined(self, more: _Passing) -> _Passing:
        pairs = ((getattr(self, part), getattr(more, part)) for part in ("ends", "integrals", "gains"))
        ends, integrals, gains = (torch.cat(pair) for pair in pairs)
        return _Passing(ends, integrals, gains, self.evaluations + more.evaluations)


@dataclass(frozen=True, eq=False)
class InnerCase(BaseCase):
    """A case whose features are the output of an inner layer: all else of the model sees the example as it is."""

    outer: Case | None = None
    layer: str = ""

    def outputs(self, features: Tensor) -> Tensor:
        """Run the model with the layer's output replaced by features (B, ...)."""
        if self.outer is None:
            raise ValueError("an inner case needs its outer case")
        with replaced_output(self.outer, self.layer, features):
            seen = self.outer.features
            return self.outer.outputs(seen.expand(len(features), *seen.shape[1:]))


def inner_case(case: Case, name: str) -> InnerCase:
    """Make the case of the score as a function of a layer's output."""
    output = evaluated(case, name, case.features)[0]
    return InnerCase(case.objective, case.kind, case.row, case.raw, output, case.target, outer=case, layer=name)


def conductance(case: Case, name: str, reference: Tensor, steps: int, tolerance: float, *, closed: bool) -> Flow:
    """Return the conductance of every entry of a layer's output from a reference (1, ...); values (1, ...) float64.

    steps: pieces to begin with. closed: the layer cuts the net, so pieces are halved until the sum misses the
    difference of the scores by no more than the tolerance, a share of it; else all are halved until the values change
    by no more than ten such shares of their size.
    """
    nodes = _at(case, name, reference, torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    most = max(steps + 1, min(MOST_STEPS, _HELD_BYTES // max(2 * nodes.outputs[0].nbytes, 1)))
    if not closed:
        return _halved_until_still(case, name, reference, nodes, tolerance, most)
    allowed = tolerance * abs(float(nodes.scores[-1] - nodes.scores[0]))
    while len(nodes.places) < most and not _done(nodes.errors(), allowed):
        worst = _worst(nodes.errors(), most - len(nodes.places))
        nodes = _joined(nodes, _at(case, name, reference, nodes.middles()[worst]))
    return Flow(nodes.total(), len(nodes.places), float("nan"))


def through(case: Case, name: str, reference: Tensor, steps: int, tolerance: float, pick: Tensor | None) -> Flow:
    """Return what each feature gives to the score through a layer's entries, or those that pick (1, ...) marks.

    values (1, ...) float64 shaped like the features. On every piece of the path the features must add up to the
    conductance of the picked entries: the worst pieces are halved until the sum misses it by the tolerance, a share.
    """
    ends = torch.linspace(0, 1, max(steps // NODES, 1) + 1, dtype=torch.float64)
    pieces = _passing(case, name, reference, torch.stack([ends[:-1], ends[1:]], 1), pick)
    most = min(MOST_STEPS, NODES * _HELD_BYTES // max(case.features.nbytes, 1))
    spent = pieces.evaluations
    while not _done(pieces.errors(), tolerance * float(pieces.gains.abs().sum())) and spent + 5 <= most:
        worst = _worst(pieces.errors(), (most - spent) // 5)  # halves have 2 nodes each, and a pair of them 3 ends
        ends = pieces.ends[worst]
        middles = ends.mean(1)
        halves = torch.stack([torch.cat([ends[:, 0], middles]), torch.cat([middles, ends[:, 1]])], 1)
        more = _passing(case, name, reference, halves, pick)
        pieces, spent = pieces.without(worst).joined(more), spent + more.evaluations
    missed = abs(float(pieces.errors().sum())) / max(float(pieces.gains.abs().sum()), 1e-300)
    return Flow(pieces.integrals.double().sum(0, keepdim=True), spent, missed)


def _halved_until_still(case: Case, name: str, reference: Tensor, nodes: _Nodes, tolerance: float, most: int) -> Flow:
    total, change = nodes.total(), float("nan")
    while 2 * len(nodes.places) - 1 <= min(most, _MOST_NODES):
        nodes = _joined(nodes, _at(case, name, reference, nodes.middles()))
        before, total = total, nodes.total()
        change = _share(total - before, total)
        if change <= LOOSE * tolerance:
            break
    return Flow(total, len(nodes.places), change)


def _share(change: Tensor, total: Tensor) -> float:
    return float(change.abs().sum()) / max(float(total.abs().sum()), 1e-300)


def _done(errors: Tensor, allowed: float) -> bool:
    return abs(float(errors.sum())) <= allowed and float(errors.abs().sum()) <= LOOSE * allowed


def _worst(errors: Tensor, most: int) -> Tensor:
    """Return the fewest pieces that make up half of the errors, `most` of them at most (but one)."""
    order = errors.abs().argsort(descending=True, stable=True)
    sizes = errors[order].abs().cumsum(0)
    return order[: max(1, min(int((sizes < sizes[-1] / 2).sum()) + 1, most))]


def _at(case: Case, name: str, reference: Tensor, places: Tensor) -> _Nodes:
    away = case.features - reference
    found = [evaluated(case, name, reference + along(some, away) * away) for some in places.split(case.chunk())]
    outputs, scores, slopes = (torch.cat([each[part] for each in found]) for part in range(3))
    return _Nodes(places, outputs, slopes, scores)


def _joined(nodes: _Nodes, more: _Nodes) -> _Nodes:
    order = torch.cat([nodes.places, more.places]).argsort()
    pairs = ((getattr(nodes, part), getattr(more, part)) for part in ("places", "outputs", "slopes", "scores"))
    return _Nodes(*(torch.cat(pair)[order.to(pair[0].device)] for pair in pairs))


def _passing(case: Case, name: str, reference: Tensor, ends: Tensor, pick: Tensor | None) -> _Passing:
    places, inverse = ends.unique(return_inverse=True)
    at = _at(case, name, reference, places)
    first, last = (inverse[:, side].to(at.outputs.device) for side in (0, 1))
    gains = (at.slopes[first] + at.slopes[last]) / 2 * (at.outputs[last] - at.outputs[first])
    gains = (gains if pick is None else gains * pick).flatten(1).double().sum(1).cpu()
    nodes, weights = nodes_of(NODES)
    away, lengths, found = case.features - reference, ends[:, 1] - ends[:, 0], []
    for some, long in zip(*(each.split(max(case.chunk() // NODES, 1)) for each in (ends[:, :1], lengths)), strict=True):
        alphas, shares = (some + long[:, None] * nodes).flatten(), (long[:, None] * weights).flatten()
        slopes = _slopes_through(case, name, reference + along(alphas, away) * away, pick)
        found.append((slopes * away * along(shares, away)).unflatten(0, (-1, NODES)).sum(1))
    return _Passing(ends, torch.cat(found), gains, NODES * len(ends) + len(places))


def _slopes_through(case: Case, name: str, features: Tensor, pick: Tensor | None) -> Tensor:
    """Return the gradients of the score by the features by way of the layer's picked entries alone."""
    features = features.detach().requires_grad_()
    with torch.enable_grad(), strict(case.module), kept(case, name) as found:
        scores = case.scores(features)
        (slopes,) = torch.autograd.grad(scores.sum(), found[0], retain_graph=True)
        passing = slopes.detach() * found[0] if pick is None else slopes.detach() * found[0] * pick
        (result,) = torch.autograd.grad(passing.sum(), features, allow_unused=True, materialize_grads=True)
    return result
