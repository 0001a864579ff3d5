"""Full gradients where they cannot be complete, or hardly: refused in words, or repeated in float64; nothing leaks."""

from __future__ import annotations

import re

import pytest
import torch
from attribution_cases import case, traces
from fullgrad_cases import explicit_terms, made
from torch import nn

from probes.attribution import AttributionError, attribute
from probes.attribution.fullgrad import TOLERANCE, full_gradient
from probes.attribution.fullgrad_units import split


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient  # half of what it should be

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 3), function

    def forward(self, x):
        return self.function(self.linear(x))


def test_what_is_not_complete_is_refused_with_the_residual():
    one = made(Calls(WrongBackward.apply), torch.randn(2, 4), "float32")
    with pytest.raises(AttributionError, match=r"residual of .* Choose occlusion") as caught:
        attribute(one, "fullgrad")
    total, score = (
        float(each) for each in re.findall(r"add up to (\S+), but the score is (\S+):", str(caught.value))[0]
    )
    assert total == pytest.approx(score / 2, rel=1e-5) and score == pytest.approx(one.score, rel=1e-4)


def test_an_operation_without_forward_mode_is_refused():
    with pytest.raises(AttributionError, match="no forward-mode derivative"):
        attribute(made(Calls(NoForwardMode.apply), torch.randn(2, 4)), "fullgrad")


def test_a_change_in_place_whose_answer_is_thrown_away_is_refused():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.act = nn.Linear(4, 3), nn.Hardtanh(0.9, 1.0, inplace=True)

        def forward(self, x):
            h = self.linear(x) ** 2
            self.act(h)
            return h * 2

    with pytest.raises(AttributionError, match="in place"):
        attribute(made(Careless(), torch.randn(2, 4)), "fullgrad")


def test_residual_blocks_in_place_are_right():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.act(self.one(x))
            h = self.two(h)
            h += x
            return self.act(h)

    torch.manual_seed(3)
    one = made(nn.Sequential(nn.Linear(4, 4), Block(), Block(), nn.Linear(4, 3)), torch.randn(2, 4))
    contributions = full_gradient(one).contributions()
    _, terms = explicit_terms_of_vectors(one)
    assert contributions == {name: pytest.approx(value, abs=1e-12) for name, value in terms.items()}


def explicit_terms_of_vectors(one):
    module = one.module.double()
    score, terms = explicit_terms(module, one.features, one.target.index)
    return score, {name: float(each.sum()) for name, each in terms.items()}


def test_cancellation_in_float32_is_repeated_in_float64():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
    x = torch.rand(1, 300)
    with torch.no_grad():
        module[2].bias.add_(torch.full((2,), 1e4) - module(x)[0] - 1e4 + torch.tensor([1e-4, 0.0]))
    one = made(module, x, "float32")
    single = split(one.scores, one.module, one.features)
    assert single.residual / abs(single.score) > TOLERANCE
    found = attribute(one, "fullgrad")
    assert found.about["dtype"] == "float64" and found.completeness_error < TOLERANCE


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_recurrent_networks_are_complete(recurrent):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = recurrent(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.rnn(x.view(len(x), 3, 4))[0][:, -1])

    assert full_gradient(made(Last(), torch.randn(2, 12))).residual < 1e-12


def test_nothing_is_left_behind():
    for name in ("resnet20", "vit", "bert"):
        one = case(name)
        before = traces(one)
        attribute(one, "fullgrad")
        after = traces(one)
        assert before[:-1] == after[:-1] and torch.equal(before[-1], after[-1])
        assert torch.backends.mha.get_fastpath_enabled()
