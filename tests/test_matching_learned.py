"""Matchers that learn: straight-through and Sinkhorn, against finite differences, unrolled scaling and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from matching_oracles import TICK, everything, heads_spec, mlp_spec, rows
from torch import Tensor, nn

from probes.errors import ModelError
from probes.matching import weight_matching
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, Use, composed, drawn, permuted
from probes.points import Point, point_from, point_of, tensors_of
from probes.sinkhorn import COSTS, Sinkhorn, sinkhorn_matching, softly_permuted
from probes.straight_through import straight_through


def unrolled(logits: Tensor, count: int = 400) -> Tensor:
    p = logits.exp()
    for _ in range(count):
        p = p / p.sum(0, keepdim=True)
        p = p / p.sum(1, keepdim=True)
    return p


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_sinkhorn_and_its_gradient_are_those_of_the_unrolled_scaling(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    p, truth = Sinkhorn.apply(one), unrolled(other)
    torch.testing.assert_close(p, truth, rtol=1e-8, atol=1e-9)
    for axis in (0, 1):
        torch.testing.assert_close(p.detach().sum(axis), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-9)
    (p * weights).sum().backward()
    (truth * weights).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-8)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Sinkhorn.apply, (logits,), eps=1e-5, atol=1e-6)


def test_next_to_a_permutation_the_gradient_is_finite_and_vanishes() -> None:
    logits = (60 * torch.eye(4, dtype=torch.float64)[[2, 0, 3, 1]]).requires_grad_()
    p = Sinkhorn.apply(logits)
    (p * torch.arange(16.0, dtype=torch.float64).reshape(4, 4)).sum().backward()
    assert torch.isfinite(logits.grad).all() and float(logits.grad.abs().max()) < 1e-9


def test_a_soft_permutation_that_is_hard_permutes() -> None:
    """Slots, rows of another axis, two axes of a tensor: as `permuted` has it."""
    torch.manual_seed(0)
    tensors = {"w": torch.randn(4, 12), "g": torch.randn(5, 4, 2), "t": torch.randn(4, 4)}
    uses = (
        Use("w", 1, np.array([[0, 6, 4], [1, 7, 5], [2, 8, 9], [3, 10, 11]])),
        Use("g", 1, rows(4), rows=(0, np.array([1, 3]))),
        Use("t", 0, rows(4)),
        Use("t", 1, rows(4)),
    )
    spec = PermutationSpec((Permutation("p", 4, uses),), "by hand")
    pi = np.array([2, 0, 3, 1])
    hard = torch.eye(4)[torch.as_tensor(pi)]
    soft, truth = softly_permuted(tensors, spec["p"], hard), permuted(tensors, spec, {"p": pi})
    for name in tensors:
        torch.testing.assert_close(soft[name], truth[name])


def pair(width: int = 8, seeds: tuple[int, int] = (1, 2)) -> tuple[Objective, Point, Point, PermutationSpec]:
    """Two small nets trained on the digits, their first 400 examples."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.from_numpy(digits.data[:400]).float() / 16, torch.from_numpy(digits.target[:400]).long()
    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(20):
            for part in torch.randperm(400).split(100):
                adam.zero_grad()
                nn.functional.cross_entropy(net(x[part]), y[part]).backward()
                adam.step()
        nets.append(net)
    objective = Objective.of(nets[0], batches(x, y), "cross_entropy", dtype="float64", device="cpu")
    other = {name: each.detach().double() for name, each in nets[1].named_parameters()}
    return objective, point_of(objective), point_from(objective, other), mlp_spec(width, width, step=2)


def midpoint_loss(objective: Objective, a: Point, b: Point, spec: PermutationSpec, found: Any) -> float:
    one, two = tensors_of(objective, a), permuted(tensors_of(objective, b), spec, found)
    mixed = {name: (one[name] + two[name]) / 2 for name in one}
    with torch.no_grad():
        logits = torch.func.functional_call(objective.module, mixed, (objective.inputs,))
        return float(nn.functional.cross_entropy(logits, objective.targets))


def test_straight_through_lowers_the_midpoint_loss_and_keeps_the_best_over_all_examples() -> None:
    objective, a, b, spec = pair()
    before = weight_matching(tensors_of(objective, a), tensors_of(objective, b), spec, tick=TICK)
    after = straight_through(objective, a, b, spec, epochs=8, learning_rate=0.05, batch=100, tick=TICK)
    losses = [midpoint_loss(objective, a, b, spec, each.found) for each in (before, after)]
    assert losses[1] < losses[0]
    assert after.distance > before.distance, "weight matching is the nearest; what is gained costs distance"
    assert f"loss is {losses[1]:.4g}, after weight matching alone it was {losses[0]:.4g}" in after.notes[-1]


def test_one_straight_through_step_is_the_one_written_out() -> None:
    objective, a, b, spec = pair()
    ours, theirs = tensors_of(objective, a), tensors_of(objective, b)
    found = weight_matching(ours, theirs, spec, tick=TICK).found
    free = {name: each.detach().clone().requires_grad_() for name, each in ours.items()}
    moved = permuted(theirs, spec, found)
    passed = {name: free[name] + (moved[name] - free[name]).detach() for name in free}
    middle = {name: (ours[name].detach() + passed[name]) / 2 for name in free}
    logits = torch.func.functional_call(objective.module, middle, (objective.inputs,))
    nn.functional.cross_entropy(logits, objective.targets).backward()
    stepped = {name: (each - 0.7 * each.grad).detach() for name, each in free.items()}
    truth = weight_matching(stepped, theirs, spec, restarts=1, start=found, tick=TICK).found
    loss = midpoint_loss(objective, a, b, spec, truth)
    best = truth if loss < midpoint_loss(objective, a, b, spec, found) else found
    assert any(not np.array_equal(truth[name], found[name]) for name in truth), "a step that moves something"
    got = straight_through(objective, a, b, spec, epochs=1, learning_rate=0.7, batch=1000, tick=TICK)
    assert all(np.array_equal(got.found[name], best[name]) for name in best)


class Cut:
    """A tick that keeps arrays and is cut off at an epoch."""

    def __init__(self, at: str) -> None:
        self.at, self.kept, self.epochs = at, {}, 0

    def __call__(self, share: float, doing: str) -> None:
        self.epochs += doing.startswith("epoch")
        if self.at and doing.startswith(self.at):
            self.at = ""
            raise KeyboardInterrupt

    def save(self, key: str, arrays: Any) -> None:
        self.kept[key] = {name: np.array(each) for name, each in arrays.items()}

    def load(self, key: str) -> Any:
        return self.kept.get(key)


def test_straight_through_goes_on_where_it_was_cut_off() -> None:
    objective, a, b, spec = pair()
    options: dict[str, Any] = {"epochs": 4, "learning_rate": 0.05, "batch": 100}
    whole = straight_through(objective, a, b, spec, tick=TICK, **options)
    tick = Cut("epoch 2")
    with pytest.raises(KeyboardInterrupt):
        straight_through(objective, a, b, spec, tick=tick, store=tick, **options)
    tick.epochs = 0
    again = straight_through(objective, a, b, spec, tick=tick, store=tick, **options)
    assert tick.epochs == 2 and again.notes == whole.notes
    assert all(np.array_equal(again.found[name], whole.found[name]) for name in whole.found)


@pytest.mark.parametrize("cost", ["l2", "cosine"])
def test_sinkhorn_finds_a_planted_permutation_without_weight_matching(cost: Any) -> None:
    objective, a, _, spec = pair()
    ours = tensors_of(objective, a)
    planted = drawn(spec, 3)
    b = point_from(objective, permuted(ours, spec, planted))
    nothing: dict[str, Any] = {}
    found = sinkhorn_matching(
        objective, a, b, spec, cost=cost, iterations=80, temperature=0.5, start=nothing, tick=TICK
    )
    assert found.distance == 0
    assert all(np.array_equal(pi, np.arange(8)) for pi in composed(spec, planted, found.found).values())


@pytest.mark.parametrize("cost", COSTS)
def test_sinkhorn_is_never_worse_than_weight_matching(cost: Any) -> None:
    objective, a, b, spec = pair()
    before = weight_matching(tensors_of(objective, a), tensors_of(objective, b), spec, tick=TICK)
    after = sinkhorn_matching(objective, a, b, spec, cost=cost, iterations=40, tick=TICK)
    again = sinkhorn_matching(objective, a, b, spec, cost=cost, iterations=40, tick=TICK)
    assert again.notes == after.notes and f"Sinkhorn ({cost})" in after.notes[-1]
    if cost in ("l2", "cosine"):
        assert after.distance <= before.distance + 1e-12
    if cost == "midpoint":
        losses = [midpoint_loss(objective, a, b, spec, each.found) for each in (before, after)]
        assert losses[1] < losses[0]
        assert f"cost {losses[1]:.4g}, at the start {losses[0]:.4g}" in after.notes[-1]


def test_the_midpoint_gradient_is_that_of_plain_autograd() -> None:
    from probes.sinkhorn import _free, _Search

    objective, a, b, spec = pair()
    search = _Search(objective, a, b, spec, "midpoint")
    torch.manual_seed(0)
    logits = {each.name: torch.randn(8, 8, dtype=torch.float64, requires_grad=True) for each in spec}
    search.descend(search.b, _free(spec), logits, 0.8, np.random.default_rng(0))
    plain = {name: each.detach().clone().requires_grad_() for name, each in logits.items()}
    moved = {name: each.detach() for name, each in search.b.items()}
    first, second = (unrolled(plain[name] / 0.8) for name in ("p0", "p1"))
    moved |= {"0.weight": first @ moved["0.weight"], "0.bias": first @ moved["0.bias"]}
    moved |= {"2.weight": second @ moved["2.weight"] @ first.T, "2.bias": second @ moved["2.bias"]}
    moved |= {"4.weight": moved["4.weight"] @ second.T}
    mixed = {name: (search.a[name].detach() + moved[name]) / 2 for name in moved}
    logits_out = torch.func.functional_call(objective.module, mixed, (objective.inputs,))
    nn.functional.cross_entropy(logits_out, objective.targets).backward()
    for name, each in logits.items():
        torch.testing.assert_close(each.grad, plain[name].grad, rtol=1e-6, atol=1e-9)


def test_permutations_with_others_within_are_held_or_refused() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, shape in {"q": (6, 6), "k": (6, 6), "v": (6, 6), "o": (6, 6), "e": (9, 6)}.items():
                self.register_parameter(name, nn.Parameter(torch.randn(shape)))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.q @ self.k @ self.v @ self.o @ self.e.T

    data = batches(torch.randn(5, 6), torch.randint(9, (5,)))
    objectives = [Objective.of(Attention(), data, "cross_entropy", device="cpu") for _ in range(2)]
    points, spec = [point_of(each) for each in objectives], heads_spec(3, 2)
    found = sinkhorn_matching(objectives[0], *points, spec, cost="l2", iterations=3, tick=TICK)
    assert found.notes[-1] == "heads have permutations within them and stay as weight matching has them."
    only = PermutationSpec(tuple(each for each in spec if each.name != "stream"), "by hand")
    with pytest.raises(ModelError, match="choose weight matching"):
        sinkhorn_matching(objectives[0], *points, only, cost="l2", iterations=3, tick=TICK)
    assert len(everything(mlp_spec(2, 2))) == 4
