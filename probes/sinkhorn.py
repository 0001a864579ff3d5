"""Sinkhorn matching: soft permutations, learned by gradients, hardened by linear assignment.

P = the doubly stochastic matrix next to exp(X / temperature) (Sinkhorn 1964), and its gradient by implicit
differentiation of the scaling that it converged to (Guerrero Pena et al. 2023, Re-basin via implicit Sinkhorn
differentiation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from probes.assignment import best_assignment
from probes.coordinate_ascent import Tick
from probes.errors import ModelError
from probes.matching import Matching, distance_between, weight_matching
from probes.objective import Objective
from probes.permutations import Found, Indices, Permutation, PermutationSpec, Use, composed, identity, permuted
from probes.points import Point, at, combined, point_from, tensors_of
from probes.unit_products import Tensors

Cost = Literal["l2", "cosine", "midpoint", "random"]
COSTS: tuple[Cost, ...] = ("l2", "cosine", "midpoint", "random")
LAMBDAS = (0.25, 0.5, 0.75)  # where the hard permutations of the cost "random" are judged
ROUNDS, TURNS, CLOSE = 40, 25, 1e-10


class Sinkhorn(torch.autograd.Function):
    """The Sinkhorn operator on log-weights (n, n), in float64; backwards by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        """Scale until rows and columns sum to one within 1e-10, or as near as a thousand turns come."""
        p = _scaled(logits.detach().double())
        ctx.save_for_backward(p)
        result: Tensor = p.to(logits.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return P * (G - x 1' - 1 y') where x and y keep the sums of rows and columns as they are."""
        (p,) = ctx.saved_tensors
        weighted = p * gradients[0].double()
        x, y = _potentials(p, weighted.sum(1), weighted.sum(0))
        result: Tensor = (weighted - p * x[:, None] - p * y).to(gradients[0].dtype)
        return result


def _scaled(log_p: Tensor) -> Tensor:
    """Scale rows and columns in turn, with a Newton step now and then: alone the turns are slow near permutations."""
    for _ in range(ROUNDS):
        for _ in range(TURNS):
            log_p = log_p - torch.logsumexp(log_p, 0, keepdim=True)
            rows = torch.logsumexp(log_p, 1, keepdim=True)
            log_p = log_p - rows
            if float(rows.abs().max()) < CLOSE:
                return log_p.exp()
        p = log_p.exp()
        x, y = _potentials(p, 1 - p.sum(1), 1 - p.sum(0))
        newton = log_p + x[:, None] + y
        log_p = newton if _astray(newton) < _astray(log_p) else log_p
    return log_p.exp()


def _astray(log_p: Tensor) -> float:
    """Return by how much the sum of a row or a column is off; infinite where it is not a number."""
    p = log_p.exp()
    found = max(float((p.sum(axis) - 1).abs().max()) for axis in (0, 1))
    return found if math.isfinite(found) else math.inf


def _potentials(p: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Solve x + P y = rows, P' x + y = columns for x and y (up to a constant between them)."""
    n = len(p)
    # The constant vector is in the kernel, as rows of P P' sum to one: its place is filled, the rest kept definite.
    system = torch.eye(n, dtype=p.dtype, device=p.device) * (1 + 1e-12) - p @ p.T + 1.0 / n
    x = torch.linalg.solve(system, rows - p @ columns)
    return x, columns - p.T @ x


def softly_permuted(tensors: Tensors, permutation: Permutation, p: Tensor) -> dict[str, Tensor]:
    """Mix the units of tensors: unit u of the result is the sum over v of p[u, v] times unit v."""
    moved = dict(tensors)
    for use in permutation.uses:
        if use.tensor in moved:
            moved[use.tensor] = _mixed(moved[use.tensor], use, p)
    return moved


def sinkhorn_matching(
    objective: Objective,
    point_a: Point,
    point_b: Point,
    spec: PermutationSpec,
    *,
    cost: Cost = "midpoint",
    iterations: int = 100,
    temperature: float = 1.0,
    learning_rate: float = 0.1,
    seed: int = 0,
    start: Found | None = None,
    tick: Tick,
) -> Matching:
    """Match b to a by soft permutations; begins at `start` or weight matching and is never worse in the cost.

    cost: squared distance to A ("l2"), 1 - cosine with A, the loss halfway, or at random places of the line. After each
    step the soft permutations are hardened, and the hard ones of least cost kept (for "random": the mean of the loss at
    1/4, 1/2 and 3/4). Permutations with others within their slots stay as weight matching has them, which the notes
    say. Raises ModelError where none is left, ObjectiveError (memory).
    """
    if cost not in COSTS:
        raise ValueError(f"cost is {cost!r}; give one of {', '.join(COSTS)}")
    soft = _free(spec)
    search = _Search(objective, point_a, point_b, spec, cost)
    matching = Matching(start or {}, 0.0, notes=spec.notes)
    if start is None:
        part = lambda share, doing: tick(0.2 * share, doing)
        matching = weight_matching(search.a, search.b, spec, seed=seed, tick=part)
    begun = permuted(search.b, spec, matching.found)
    steps = lambda share, doing: tick(0.2 + 0.8 * share, doing)
    then, words = _descended(search, begun, soft, _Plan(iterations, temperature, learning_rate, seed), steps)
    found = composed(spec, {**identity(spec), **matching.found}, then)
    distance = distance_between(search.a, permuted(search.b, spec, found), spec)
    return replace(matching, found=found, distance=distance, notes=(*matching.notes, words, *_held(spec, soft)))


@dataclass(frozen=True)
class _Plan:
    iterations: int
    temperature: float
    learning_rate: float
    seed: int


def _descended(
    search: _Search, begun: Tensors, soft: tuple[Permutation, ...], plan: _Plan, tick: Tick
) -> tuple[dict[str, Indices], str]:
    """Return the best hard permutations met on the way from where b begins, and what they cost."""
    still = identity(search.spec)
    best, opening = still, search.judged(begun)
    least, seen = opening, {_key(still)}
    logits = {each.name: _at_rest(each.size, plan.temperature, search.objective.device) for each in soft}
    adam = torch.optim.Adam(list(logits.values()), lr=plan.learning_rate)
    generator = np.random.default_rng(plan.seed)
    for step in range(plan.iterations):
        adam.zero_grad()
        search.descend(begun, soft, logits, plan.temperature, generator)
        adam.step()
        hard = still | {name: best_assignment(each.detach().cpu().numpy()) for name, each in logits.items()}
        if _key(hard) not in seen:
            seen.add(_key(hard))
            judged = search.judged(permuted(begun, search.spec, hard))
            best, least = (hard, judged) if judged < least else (best, least)
        tick((step + 1) / plan.iterations, f"step {step + 1} of {plan.iterations}, cost {least:.4g}")
    words = f"Sinkhorn ({search.cost}): cost {least:.4g}, at the start {opening:.4g}; {len(seen)} permutations judged."
    return best, words


def _at_rest(size: int, temperature: float, device: torch.device) -> Tensor:
    """Return logits that give every unit half of itself and the rest in equal parts to the others."""
    return (
        torch.eye(size, dtype=torch.float64, device=device) * temperature * math.log(max(size - 1, 2))
    ).requires_grad_()


class _Search:
    """The pair, and what a (soft or hard) permutation of b costs."""

    def __init__(self, objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, cost: Cost) -> None:
        self.objective, self.point_a, self.cost = objective, point_a, cost
        self.a, self.b = tensors_of(objective, point_a), tensors_of(objective, point_b)
        self.spec, self.names = spec, objective.names

    def judged(self, moved: Tensors) -> float:
        """Return the cost of hard permutations, over all examples where there is a loss."""
        if self.cost in ("l2", "cosine"):
            return float(self._apart(moved))
        places = (0.5,) if self.cost == "midpoint" else LAMBDAS
        losses = [self._loss(self._mixed(moved, place)) for place in places]
        return sum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.inf

    def descend(
        self,
        begun: Tensors,
        soft: tuple[Permutation, ...],
        logits: Mapping[str, Tensor],
        temperature: float,
        generator: np.random.Generator,
    ) -> None:
        """Add the gradient of the cost to the logits."""
        moved = dict(begun)
        for each in soft:
            moved = softly_permuted(moved, each, Sinkhorn.apply(logits[each.name] / temperature))  # type: ignore[no-untyped-call]
        if self.cost in ("l2", "cosine"):
            self._apart(moved).backward()
            return
        place = 0.5 if self.cost == "midpoint" else float(generator.uniform())
        still = {name: each.detach() for name, each in moved.items()}
        gradient = at(self.objective, self._mixed(still, place)).gradient()
        pieces = self.objective.like_theta(place * gradient)
        pairs = [(moved[name], piece) for name, piece in zip(self.names, pieces, strict=True)]
        pairs = [(tensor, piece) for tensor, piece in pairs if tensor.requires_grad]
        torch.autograd.backward([tensor for tensor, _ in pairs], [piece for _, piece in pairs])

    def _apart(self, moved: Tensors) -> Tensor:
        """Return the squared distance, relative to A's square, or one less the cosine; of the parameters."""
        ours = torch.cat([self.a[name].detach().double().reshape(-1) for name in self.names])
        theirs = torch.cat([moved[name].double().reshape(-1) for name in self.names])
        apart = (ours - theirs).square().sum() / ours.square().sum()
        return apart if self.cost == "l2" else 1 - nn.functional.cosine_similarity(ours, theirs, dim=0, eps=1e-30)

    def _mixed(self, moved: Tensors, place: float) -> Point:
        return combined((self.point_a, point_from(self.objective, moved)), (1 - place, place))

    def _loss(self, point: Point) -> float:
        tally = at(self.objective, point).tallied(finite=False)
        return float(tally.losses.double().sum() / tally.counts.double().sum())


def _mixed(tensor: Tensor, use: Use, p: Tensor) -> Tensor:
    rows = None if use.rows is None else torch.as_tensor(use.rows[1], device=tensor.device)
    whole = tensor if use.rows is None or rows is None else tensor.index_select(use.rows[0], rows)
    flat = whole.movedim(use.axis, 0)
    index = torch.as_tensor(use.index, device=tensor.device)
    mixed = torch.einsum("uv,v...->u...", p.to(tensor.dtype), flat[index])
    moved = flat.index_put((index,), mixed).movedim(0, use.axis)
    if use.rows is None or rows is None:
        return moved
    return tensor.index_copy(use.rows[0], rows, moved)


def _free(spec: PermutationSpec) -> tuple[Permutation, ...]:
    """Return the permutations that have none within them and lie within none; raise ModelError where there are none."""
    found = tuple(each for each in spec.outermost() if not each.inner)
    if not found:
        raise ModelError(
            "Every permutation of the model has others within its slots (attention heads), and soft ones have no "
            "slots; choose weight matching."
        )
    return found


def _held(spec: PermutationSpec, soft: tuple[Permutation, ...]) -> list[str]:
    names = {each.name for each in soft}
    held = [each.name for each in spec.outermost() if each.name not in names]
    if not held:
        return []
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    return [f"{', '.join(held[:3])}{more} have permutations within them and stay as weight matching has them."]


def _key(found: Found) -> bytes:
    return b"".join(np.ascontiguousarray(found[name]).tobytes() for name in sorted(found))
