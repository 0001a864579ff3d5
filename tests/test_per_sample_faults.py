"""Gradients of single examples where no rule covers the model, where a rule is wrong, and where nothing is right."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn, gpt
from gradient_oracles import objective_of, same
from torch import Tensor, nn
from torch.nn import functional

from probes.errors import ObjectiveError
from probes.objective import Objective
from probes.own_loss import OwnLoss
from probes.per_sample import per_example


class Contracted(nn.Module):
    """A layer whose weight goes into einsum, which no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", self.first(x).tanh(), self.out.weight) + self.out.bias


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w, (d * x).sum(0)


class Hidden(nn.Module):
    """A parameter that goes where nobody can follow it: into a function of its own, which torch.func refuses, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(4, 3), nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        return _Double.apply(self.first(x), self.scale)


class Recurrent(nn.Module):
    """An LSTM, whose weights go into one large function."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Routed(nn.Linear):
    """A layer for each example, by its contents: other steps for several examples than for one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(
            [super(Routed, self).forward(each) * (2 if float(each.detach().sum()) > 0 else 1) for each in x]
        )


@pytest.mark.parametrize(
    ("net", "shape", "fallback", "doubtful"),
    [
        (Contracted(), (4,), {"out.weight"}, False),
        (Hidden(), (4,), {"scale"}, True),
        (Recurrent(), (3, 4), {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}, False),
        (Routed(4, 3), (4,), {"weight", "bias"}, False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_no_rule_covers_is_taken_one_example_at_a_time_and_named(net, shape, fallback, doubtful) -> None:
    x, y = torch.randn(8, *shape), torch.randint(3, (8,))
    shares: list[float] = []
    found = per_example(objective_of(net, x, y), lambda share, doing: shares.append(share))
    same(found, net, x, y)
    assert set(found.fallback) == fallback
    assert bool(found.doubts) == doubtful
    assert all("`scale`" in each and "autograd" in each for each in found.doubts)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_rule_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes import ghost_ledger

    monkeypatch.setattr(ghost_ledger.ghost_norms, "lookup_squares", lambda ids, d: d.square().sum((1, 2)))
    net, data = gpt()
    found = per_example(Objective.of(net, data, "causal_lm", dtype="float64", micro_batch=2))
    same(found, net, data.inputs, data.targets)
    assert found.fallback == ("token.weight",)
    assert "`token.weight`" in found.doubts[0]


class Mixing(nn.Linear):
    """A model in which every example sees the others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0) / 2)


@pytest.mark.parametrize(
    "net",
    [Mixing(4, 3), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))],
    ids=["mean", "norm"],
)
def test_examples_that_influence_each_other_are_refused(net: nn.Module) -> None:
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(ObjectiveError, match=r"influence each other|by itself"):
        per_example(objective_of(net, x, y))


def test_a_loss_without_gradient_is_refused() -> None:
    class Cut(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(ObjectiveError, match=r"does not depend on any parameter"):
        per_example(objective_of(Cut(4, 3), torch.randn(5, 4), torch.randint(3, (5,))))


def test_gradients_that_are_not_finite_are_refused_by_name() -> None:
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square().sum(1, keepdim=True).sqrt().expand(-1, 3) * torch.arange(3)

    x = torch.randn(5, 4)
    x[3] = 0
    with pytest.raises(ObjectiveError, match=r"example 3 by `weight` is not finite"):
        per_example(objective_of(Root(4, 3, bias=False), x, torch.randint(3, (5,))))


def test_a_single_example() -> None:
    net, x, y = nn.Linear(4, 3), torch.randn(1, 4), torch.tensor([1])
    found = per_example(objective_of(net, x, y))
    same(found, net, x, y)
    assert found.fallback == ()


def test_the_loss_of_the_operator() -> None:
    net, x, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(7, 4), torch.randint(3, (7,))
    own = OwnLoss(lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]))
    objective = Objective(copy.deepcopy(net), batches(x, y), "operator", own=own, dtype="float64", micro_batch=3)
    found = per_example(objective)
    same(found, net, x, y)
    built_in = per_example(objective_of(net, x, y))
    np.testing.assert_allclose(found.losses, built_in.losses, rtol=1e-12)


def test_out_of_memory_halves_and_goes_on() -> None:
    class Hungry(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    net, x, y = Hungry(4, 3), torch.randn(13, 4), torch.randint(3, (13,))
    objective = objective_of(net, x, y, micro_batch=12)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(net.state_dict())
    same(per_example(objective), plain, x, y)
    assert objective.micro_batch == 3
    assert "Out of memory" in objective.caveats[0]


def test_nothing_is_left_behind() -> None:
    net, data = cnn()
    objective = Objective.of(net, data, "cross_entropy")
    before = [each.detach().clone() for each in objective.theta]
    per_example(objective)
    assert all(torch.equal(each, old) and each.grad is None for each, old in zip(objective.theta, before, strict=True))
    assert all(not each._forward_hooks and not each._backward_hooks for each in objective.module.modules())
