"""The straight-through matcher: the permutation is learned by what the midpoint's loss says.

Weights that are free to move stand for what B is matched to; they begin as A's. Each step matches B to them by weights,
takes the gradient of the loss halfway between A and the permuted B, and hands it to them as if they were the permuted
B (Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin, Algorithm 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.coordinate_ascent import Tick
from probes.extremes import Store
from probes.matching import Matching, distance_between, weight_matching
from probes.objective import Objective
from probes.permutations import Found, Indices, PermutationSpec, permuted
from probes.points import Point, at, between, point_from, tensors_of

MOMENTUM = 0.9
KEY = "straight-through-matching"
Kept = Mapping[str, NDArray[Any]]


@dataclass
class _Search:
    """Where the search stands: the free weights and their momentum, flat (P,), the permutation, the best so far."""

    free: Tensor
    speed: Tensor
    found: dict[str, Indices]
    best: dict[str, Indices]
    loss: float
    epoch: int = 0

    def kept(self) -> dict[str, NDArray[Any]]:
        """Return it as arrays."""
        head = {"free": self.free.cpu().numpy(), "speed": self.speed.cpu().numpy()}
        rest = {"loss": np.array(self.loss), "epoch": np.array(self.epoch)}
        permutations = {f"found/{name}": pi for name, pi in self.found.items()}
        return {**head, **rest, **permutations, **{f"best/{name}": pi for name, pi in self.best.items()}}

    def restore(self, arrays: Kept) -> None:
        """Undo `kept`."""
        for name in ("free", "speed"):
            here: Tensor = getattr(self, name)
            setattr(self, name, torch.as_tensor(np.array(arrays[name])).to(here))
        for name, kind in (("found", self.found), ("best", self.best)):
            kind.update({each: np.array(arrays[f"{name}/{each}"]) for each in kind})
        self.loss, self.epoch = float(arrays["loss"]), int(arrays["epoch"])


def straight_through(
    objective: Objective,
    point_a: Point,
    point_b: Point,
    spec: PermutationSpec,
    *,
    epochs: int = 5,
    learning_rate: float = 0.01,
    batch: int = 256,
    seed: int = 0,
    tick: Tick,
    store: Store | None = None,
) -> Matching:
    """Match b to a by the loss halfway between; begins at weight matching and is never worse than it.

    After every epoch the midpoint's loss over all examples decides which permutation is kept. store: keeps the state; a
    search that was cut off goes on from there. Raises ModelError (tensors do not fit), ObjectiveError (memory).
    """
    problem = _Problem(objective, point_a, point_b, spec)
    start = weight_matching(problem.a, problem.b, spec, seed=seed, tick=lambda share, doing: tick(0.2 * share, doing))
    zero = torch.zeros(objective.size, dtype=objective.dtype, device=objective.device)
    free = objective.flat([each.detach() for each in point_a.theta]).clone()
    search = _Search(free, zero, dict(start.found), dict(start.found), problem.loss(start.found))
    kept: Kept | None = store.load(KEY) if store else None
    if kept is not None:
        search.restore(kept)
    while search.epoch < epochs:
        _epoch(problem, search, learning_rate, batch, seed)
        if store:
            store.save(KEY, search.kept())
        tick(0.2 + 0.8 * search.epoch / epochs, f"epoch {search.epoch} of {epochs}, midpoint loss {search.loss:.4g}")
    distance = distance_between(problem.a, permuted(problem.b, spec, search.best), spec)
    words = (
        f"Straight-through: the midpoint's loss is {search.loss:.4g}, after weight matching alone it was "
        f"{problem.loss(start.found):.4g} ({len(objective.inputs)} examples)."
    )
    return replace(start, found=search.best, distance=distance, notes=(*start.notes, words))


class _Problem:
    """The pair, and the loss and the gradient halfway between a and the permuted b."""

    def __init__(self, objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec) -> None:
        self.objective, self.point_a, self.spec = objective, point_a, spec
        self.a, self.b = tensors_of(objective, point_a), tensors_of(objective, point_b)

    def middle(self, found: Found) -> Point:
        """Return the point halfway."""
        moved = point_from(self.objective, permuted(self.b, self.spec, found))
        return between(self.point_a, moved, 0.5)

    def loss(self, found: Found) -> float:
        """Return the midpoint's loss over all examples; infinite where it is not a number."""
        tally = at(self.objective, self.middle(found)).tallied(finite=False)
        loss = float(tally.losses.double().sum() / tally.counts.double().sum())
        return loss if math.isfinite(loss) else math.inf

    def gradient(self, found: Found, rows: list[int]) -> Tensor:
        """Return the gradient of the midpoint's loss on some examples by b's weights as permuted, flat (P,)."""
        return 0.5 * at(self.objective.chosen(rows), self.middle(found)).gradient()


def _epoch(problem: _Problem, search: _Search, rate: float, batch: int, seed: int) -> None:
    """Go once through the examples in an order that follows from seed and epoch; then judge what was found."""
    objective = problem.objective
    order = np.random.default_rng([seed, search.epoch]).permutation(len(objective.inputs))
    for first in range(0, len(order), batch):
        gradient = problem.gradient(search.found, order[first : first + batch].tolist())
        search.speed = MOMENTUM * search.speed + gradient
        search.free = search.free - rate * search.speed
        target = dict(zip(objective.names, objective.like_theta(search.free), strict=True))
        silent = lambda _share, _doing: None
        matched = weight_matching(
            {**problem.a, **target}, problem.b, problem.spec, restarts=1, seed=seed, start=search.found, tick=silent
        )
        search.found = dict(matched.found)
    search.epoch += 1
    loss = problem.loss(search.found)
    if loss < search.loss:
        search.loss, search.best = loss, dict(search.found)
