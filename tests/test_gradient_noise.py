"""The estimators of gradient noise against materialised gradients in float64, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn, gpt, mlp
from statistics_oracles import exactly, one_by_one, quiet
from torch import nn

from probes.errors import DataError, ObjectiveError
from probes.gradient_noise import Blocks, gradient_blocks, layers_of, noise
from probes.objective import Objective

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}


def left_out_one_by_one(G: np.ndarray, which: str) -> float:
    values = np.array([exactly(np.delete(G, row, 0))[which] for row in range(len(G))])
    return math.sqrt((len(G) - 1) / len(G) * ((values - values.mean()) ** 2).sum())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("ghost", [True, False])
def test_figures_and_their_errors_are_those_of_materialised_gradients(name, ghost) -> None:
    make, loss = NETS[name]
    objective = Objective.of(*make(), loss, dtype="float64", micro_batch=3)
    G, n = one_by_one(objective), len(objective.inputs)
    found = noise(gradient_blocks(objective, n, ghost=ghost, seed=0, tick=quiet))
    truth = exactly(G)
    assert found.raw == pytest.approx(truth["raw"], rel=1e-9)
    assert found.trace.value == pytest.approx(truth["trace"], rel=1e-9)
    assert found.squared.value == pytest.approx(truth["squared"], rel=1e-9)
    assert found.trace.stderr == pytest.approx(left_out_one_by_one(G, "trace"), rel=1e-6)
    assert found.squared.stderr == pytest.approx(left_out_one_by_one(G, "squared"), rel=1e-6)


def test_layers_add_up_and_each_is_that_of_its_own_gradients() -> None:
    objective = Objective.of(*mlp(), "cross_entropy", dtype="float64")
    blocks = gradient_blocks(objective, 5, ghost=True, seed=0, tick=quiet)
    layers = layers_of(objective.names)
    assert list(layers) == ["0", "2", "4"]
    assert layers_of(["weight", "a.b.weight", "a.b.bias", "a.scale"]) == {"weight": [0], "a.b": [1, 2], "a": [3]}
    whole = noise(blocks)
    each = {name: noise(blocks, columns) for name, columns in layers.items()}
    assert sum(one.trace.value for one in each.values()) == pytest.approx(whole.trace.value, rel=1e-12)
    G = one_by_one(objective)[:, : 6 * 9 + 9]
    assert each["0"].trace.value == pytest.approx(exactly(G)["trace"], rel=1e-9)
    assert each["0"].squared.value == pytest.approx(exactly(G)["squared"], rel=1e-9)


def test_unequal_blocks_are_a_one_way_analysis_of_variance() -> None:
    objective = Objective.of(*mlp(), "cross_entropy", dtype="float64")
    G = one_by_one(objective)
    found = noise(gradient_blocks(objective, 5, ghost=False, seed=3, tick=quiet))
    parts = np.array_split(np.random.default_rng(3).permutation(13), 5)
    between = sum(len(rows) * ((G[rows].mean(0) - G.mean(0)) ** 2).sum() for rows in parts)
    assert found.trace.value == pytest.approx(between / 4, rel=1e-9)
    first, second = (G[np.concatenate(some)].sum(0) for some in (parts[:3], parts[3:]))
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert found.half_cosine == pytest.approx(cosine, rel=1e-9)


def test_gradients_that_do_not_fit_into_memory_are_taken_again(monkeypatch) -> None:
    objective = Objective.of(*cnn(), "cross_entropy", dtype="float64")
    kept = gradient_blocks(objective, 4, ghost=True, seed=1, tick=quiet)
    monkeypatch.setattr("probes.gradient_noise.spare_bytes", lambda _device: 0)
    again = gradient_blocks(objective, 4, ghost=True, seed=1, tick=quiet)
    np.testing.assert_allclose(again.dots, kept.dots, rtol=1e-9)
    np.testing.assert_allclose(again.norms, kept.norms, rtol=1e-9)


def test_too_few_examples_are_refused() -> None:
    objective = Objective.of(nn.Linear(2, 2), batches(torch.randn(3, 2), torch.tensor([0, 1, 0])), "cross_entropy")
    with pytest.raises(DataError, match=r"3 examples.*at least 4"):
        gradient_blocks(objective, 8, ghost=True, seed=0, tick=quiet)


def blocks_from(G: np.ndarray, count: int, ghost: bool) -> Blocks:
    """Blocks of gradients (N, P) that are there, as one parameter tensor."""
    parts = np.array_split(np.arange(len(G)), count)
    sums = np.array([G[rows].sum(0) for rows in parts])
    squares = np.array([(G[rows] ** 2).sum() for rows in parts])[:, None] if ghost else None
    dots, norms = sums @ sums.sum(0), (sums**2).sum(1)
    return Blocks(
        np.array([len(rows) for rows in parts], float), norms[:, None], dots[:, None], squares, np.ones((3, 1))
    )


@pytest.mark.parametrize("ghost", [True, False])
def test_estimates_are_unbiased_and_two_standard_errors_cover_them(ghost) -> None:
    """Linear regression y = x w* + e at w: g = x (x (w - w*) - e), whose mean and covariance are known."""
    rng, delta, sigma, repeats = np.random.default_rng(0), np.array([0.4, -0.3, 0.2]), 0.5, 400
    size = delta @ delta
    fourth = (len(delta) + 2) * size  # E |x|^2 (x d)^2 of standard normal x
    trace = fourth + len(delta) * sigma**2 - size
    truth = {"trace": trace, "squared": size, "scale": trace / size}
    found = []
    for _ in range(repeats):
        x, e = rng.normal(size=(320, 3)), sigma * rng.normal(size=320)
        found.append(noise(blocks_from(x * (x @ delta - e)[:, None], 32, ghost)))
    for which, value in truth.items():
        values = np.array([getattr(each, which).value for each in found])
        errors = np.array([getattr(each, which).stderr for each in found])
        spread = values.std(ddof=1)
        bias = 0.03 * value if which == "scale" else 0.0  # a ratio of two estimates
        assert abs(values.mean() - value) < 4 * spread / math.sqrt(repeats) + bias
        assert 0.88 < (abs(values - value) < 2 * errors).mean() < 0.99
        assert math.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.15)


def test_batches_are_the_estimators_of_mccandlish_and_others() -> None:
    objective = Objective.of(*mlp(), "cross_entropy", dtype="float64").chosen(range(12))
    G = one_by_one(objective)
    found = noise(gradient_blocks(objective, 4, ghost=False, seed=2, tick=quiet))
    parts = np.random.default_rng(2).permutation(12).reshape(4, 3)
    small = np.mean([(G[rows].mean(0) ** 2).sum() for rows in parts])
    big = (G.mean(0) ** 2).sum()
    assert found.squared.value == pytest.approx((12 * big - 3 * small) / (12 - 3), rel=1e-9)
    assert found.trace.value == pytest.approx((small - big) / (1 / 3 - 1 / 12), rel=1e-9)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    module = nn.Linear(2, 1, bias=False)

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x):
            return self.inner(x).abs().sqrt()

    torch.nn.init.zeros_(module.weight)
    objective = Objective.of(Root(), batches(torch.ones(5, 2), torch.ones(5)), "mse")
    with pytest.raises(ObjectiveError, match="gradient is not finite"):
        gradient_blocks(objective, 5, ghost=False, seed=0, tick=quiet)
