"""Products with the Hessian against dense float64 Hessians, and the refusal of wrong second derivatives."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn, dense_hessian, gpt, mlp
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from probes.curvature import HessianProduct
from probes.errors import CurvatureError
from probes.lanczos import random_vector
from probes.objective import Objective
from probes.self_check import check_curvature

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}


@cache
def dense(name: str) -> np.ndarray:
    return dense_hessian(*NETS[name][0]())


def rows(product: HessianProduct) -> np.ndarray:
    return torch.stack([product(each) for each in torch.eye(product.size, dtype=torch.float64)]).numpy()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("budget", [0, None])
def test_every_row_is_that_of_the_dense_hessian(name, budget) -> None:
    make, loss = NETS[name]
    net, data = make()
    product = HessianProduct(Objective.of(net, data, loss, dtype="float64", micro_batch=4), budget=budget)
    H = dense(name)
    np.testing.assert_allclose(rows(product), H, atol=1e-12 * np.abs(H).max() + 1e-14, rtol=1e-8)
    assert product.products == product.size
    assert (product.kept > 0) == (budget is None)


def test_float32_products_are_exact_to_rounding() -> None:
    net, data = gpt()
    v = random_vector(sum(each.numel() for each in net.parameters()), 0, 0)
    Hv = HessianProduct(Objective.of(net, data, "causal_lm"))(v.float()).double().numpy()
    expected = dense_hessian(net, data) @ v.numpy()
    assert np.linalg.norm(Hv - expected) < 1e-5 * np.linalg.norm(expected)


def test_graphs_are_kept_only_within_the_budget() -> None:
    net, data = mlp()
    objective = Objective.of(net, data, "cross_entropy", micro_batch=2)
    product = HessianProduct(objective)
    v = random_vector(objective.size, 0, 0)
    full = product(v)
    each = product._kept_bytes // product.kept
    some = HessianProduct(objective, budget=int(2.5 * each))
    torch.testing.assert_close(some(v), full)
    torch.testing.assert_close(some(v), full)
    assert product.kept == 7
    assert 1 <= some.kept <= 3


def test_unused_and_linear_parameters_have_zero_rows() -> None:
    class Spare(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.unused = nn.Parameter(torch.ones(2))

    objective = Objective.of(
        Spare(), batches(torch.randn(4, 3), torch.zeros(4).long()), "cross_entropy", dtype="float64"
    )
    H = rows(HessianProduct(objective))
    start = (
        objective.flat(
            [
                torch.full_like(each, float(name == "unused"))
                for name, each in zip(objective.names, objective.theta, strict=True)
            ]
        )
        .bool()
        .numpy()
    )
    assert not H[start].any()
    assert np.abs(H[~start]).max() > 0
    assert check_curvature(objective, HessianProduct(objective), 0) == ()


@pytest.mark.parametrize("name", NETS)
def test_right_models_pass_the_self_check(name) -> None:
    make, loss = NETS[name]
    objective = Objective.of(*make(), loss)
    assert check_curvature(objective, HessianProduct(objective), 0) == ()


def test_fused_attention_and_encoder_layers_pass() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.layer(x.unflatten(1, (-1, 8))).mean(1))

    objective = Objective.of(Encoder(), batches(torch.randn(5, 32), torch.tensor([0, 1, 2, 0, 1])), "cross_entropy")
    assert check_curvature(objective, HessianProduct(objective), 0) == ()


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


class _Detached(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x.detach() ** 2


class Cube(nn.Module):
    """x^3 through a custom function, a right or a wrong one."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Cube(_Once), ["`act` (Cube)", "once_differentiable", "`first."]),
        (Cube(_Detached), ["second derivative is wrong", "`act` (Cube)", "`first."]),
    ],
)
def test_wrong_second_derivatives_are_refused_by_name(layer, words) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(3, 2), layer

        def forward(self, x):
            return self.act(self.first(x))

    objective = Objective.of(Net(), batches(torch.randn(6, 3), torch.randint(2, (6,))), "cross_entropy")
    with pytest.raises(CurvatureError) as caught:
        check_curvature(objective, HessianProduct(objective), 0)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_operation_without_second_derivative_is_named() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.out = nn.EmbeddingBag(5, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.out(self.bag(ids).tanh())

    ids = torch.randint(5, (6, 3))
    objective = Objective.of(Bag(), batches(ids, torch.randint(2, (6,))), "cross_entropy")
    with pytest.raises(CurvatureError, match=r"`_embedding_bag.*no second derivative.*`bag` .EmbeddingBag"):
        check_curvature(objective, HessianProduct(objective), 0)


def test_a_silent_none_is_found() -> None:
    """A backward marked once_differentiable under a linear loss: autograd says None, the truth is 12."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.weight = Cube(_Once), nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return self.act(self.weight * x)

    class LinearLoss(Objective):
        def part_loss(self, theta, part):
            return self.outputs(theta, part).sum() / self.units

    objective = LinearLoss.of(Last(), batches(torch.ones(3, 1), torch.zeros(3, 1)), "mse")
    assert float(HessianProduct(objective)(torch.ones(1))) == 0
    with pytest.raises(CurvatureError, match=r"second derivative is wrong.*`act` .Cube"):
        check_curvature(objective, HessianProduct(objective), 0)


def test_a_kink_is_no_error() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 5))
    objective = Objective.of(net, batches(torch.randn(64, 20), torch.randint(5, (64,))), "cross_entropy")
    for seed in range(3):
        assert check_curvature(objective, HessianProduct(objective), seed) == ()


@pytest.mark.parametrize("seed", range(5))
def test_units_exactly_on_their_kink_are_no_error(seed: int) -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs = torch.rand(10, 12)
    inputs[:5] = 0  # blank, as the background of a picture
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.bias.zero_()
    objective = Objective.of(net, batches(inputs, torch.arange(10) % 3), "cross_entropy")
    assert check_curvature(objective, HessianProduct(objective), seed) == ()


def test_a_square_root_at_zero_is_refused() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return self.scale(x).norm(dim=1, keepdim=True).expand(-1, 2)

    net = Root()
    nn.init.zeros_(net.scale.weight)
    objective = Objective.of(net, batches(torch.ones(3, 2), torch.tensor([0, 1, 0])), "cross_entropy")
    with pytest.raises(CurvatureError, match=r"not finite|differ"):
        check_curvature(objective, HessianProduct(objective), 0)


def test_out_of_memory_in_a_product_halves_and_goes_on() -> None:
    class Hungry(nn.Linear):
        def forward(self, x):
            if len(x) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return functional.linear(x, self.weight, self.bias)

    x, y = torch.randn(13, 3), torch.randint(2, (13,))
    hungry = Objective.of(Hungry(3, 2), batches(x, y), "cross_entropy", dtype="float64", micro_batch=12)
    plain = nn.Linear(3, 2)
    plain.load_state_dict(hungry.module.state_dict())
    expected = rows(HessianProduct(Objective.of(plain, batches(x, y), "cross_entropy", dtype="float64")))
    np.testing.assert_allclose(rows(HessianProduct(hungry)), expected, atol=1e-12)
    assert hungry.micro_batch == 3
    assert "Out of memory" in hungry.caveats[0]
