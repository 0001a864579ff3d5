"""The inverse Fisher without the matrix: against the dense inverse, closed forms, and hand-made loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn, gpt, mlp
from influence_cases import NETS, Coupled, OnlyBackward, OnlyOnce, With, loops
from torch import nn

import probes.influence.inverse_fisher as module_of
from probes.errors import ObjectiveError
from probes.influence.inverse_fisher import fisher_gradients, influences, inverse_fisher, some_rows
from probes.influence.products import chosen_parameters
from probes.objective import Objective


@pytest.mark.parametrize("damping", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("m", [1, 7, 64])
def test_products_are_those_of_the_dense_inverse(damping, m) -> None:
    G = torch.randn(m, 40, dtype=torch.float64)
    dense = damping * torch.eye(40, dtype=torch.float64) + G.T @ G / m
    x = torch.randn(40, 3, dtype=torch.float64)
    found, exact = inverse_fisher(G, damping)(x), torch.linalg.solve(dense, x)
    assert float((found - exact).norm() / exact.norm()) < 1e-8
    assert float((found[:, 0] - inverse_fisher(G, damping)(x[:, 0])).abs().max()) < 1e-8 * float(exact.abs().max())


def test_products_in_pieces_are_the_same(monkeypatch) -> None:
    G, x = torch.randn(5, 33, dtype=torch.float64), torch.randn(33, dtype=torch.float64)
    whole = inverse_fisher(G, 0.1)(x)
    monkeypatch.setattr(module_of, "CHUNK", 20)
    torch.testing.assert_close(inverse_fisher(G, 0.1)(x), whole, rtol=1e-12, atol=1e-12)


def test_orthogonal_gradients_in_closed_form() -> None:
    """G = 2 I (3, 4): F = lam + 4/3 along three axes, lam along the fourth."""
    G = 2 * torch.eye(3, 4, dtype=torch.float64)
    found = inverse_fisher(G, 0.5, relative=True)
    assert found.damping == pytest.approx(0.5 * 4 / 3)
    exact = torch.tensor([1 / (2 / 3 + 4 / 3)] * 3 + [1.5], dtype=torch.float64)
    torch.testing.assert_close(found(torch.ones(4, dtype=torch.float64)), exact)
    assert found.directions == pytest.approx(3 * (4 / 3) / (4 / 3 + 2 / 3))


def test_what_has_no_inverse_is_refused() -> None:
    with pytest.raises(ObjectiveError, match=r"is 0; it must be above zero"):
        inverse_fisher(torch.zeros(3, 4), 0.1, relative=True)
    with pytest.raises(ObjectiveError, match="is -1; it must"):
        inverse_fisher(torch.randn(3, 4), -1.0)
    with pytest.raises(ObjectiveError, match="lost in rounding"):
        inverse_fisher(torch.ones(9, 4) * 1e6, 1e-30)


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_a_plain_loop(name) -> None:
    net, loss = NETS[name]
    module, data = net()
    objective = Objective.of(module, data, loss, dtype="float64", micro_batch=3)
    rows = [0, 2, 3, 4]
    found = fisher_gradients(objective, rows, chosen_parameters(objective))
    np.testing.assert_allclose(found.numpy(), loops(module, data, loss)[rows], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("function", [OnlyBackward, OnlyOnce])
def test_gradients_of_what_vmap_does_not_know_are_the_same(function) -> None:
    _, data = mlp()
    module = With(function)
    objective = Objective.of(module, data, "cross_entropy", dtype="float64")
    found = fisher_gradients(objective, [1, 5], chosen_parameters(objective))
    np.testing.assert_allclose(found.numpy(), loops(module, data, "cross_entropy")[[1, 5]], rtol=1e-8)


def test_gradients_that_do_not_fit_are_refused(monkeypatch) -> None:
    module, data = mlp()
    objective = Objective.of(module, data, "cross_entropy")
    monkeypatch.setattr(module_of, "spare_bytes", lambda _: 1000)
    with pytest.raises(ObjectiveError, match=r"13 gradients of 157 parameters need 0\.0 GiB"):
        fisher_gradients(objective, range(13), chosen_parameters(objective))


def test_influences_are_those_of_dense_matrices() -> None:
    module, data = cnn()
    objective = Objective.of(module, data, "cross_entropy", dtype="float64")
    places, H = chosen_parameters(objective), loops(module, data, "cross_entropy")
    fisher = inverse_fisher(fisher_gradients(objective, range(11), places), 0.3)
    dense = np.linalg.inv(0.3 * np.eye(H.shape[1]) + H.T @ H / 11)
    found = influences(objective, objective, [4, 9], places, fisher)
    np.testing.assert_allclose(found.values, H @ dense @ H[[4, 9]].T / 11, rtol=1e-8, atol=1e-10)


def test_influences_of_a_part_of_the_network_and_of_sequences() -> None:
    module, data = gpt()
    objective = Objective.of(module, data, "causal_lm", dtype="float64")
    places, H = chosen_parameters(objective, "last"), loops(module, data, "causal_lm")
    H = H[:, : objective.theta[0].numel()]
    assert objective.names[0] == "token.weight"
    fisher = inverse_fisher(fisher_gradients(objective, range(5), places), 0.1)
    dense = np.linalg.inv(0.1 * np.eye(H.shape[1]) + H.T @ H / 5)
    counts = (data.targets != -100).sum(1).numpy()
    own = H[1] * counts.mean() / counts[1]  # the mean over the tokens of sequence 1
    found = influences(objective, objective, [1], places, fisher)
    np.testing.assert_allclose(found.values[:, 0], H @ dense @ own / 5, rtol=1e-8)


def test_leaving_an_example_out_of_least_squares() -> None:
    """Of y = w x with unit noise, F at the optimum is near the curvature: the estimate is near the exact refit."""
    torch.manual_seed(4)
    x = torch.randn(400, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + torch.randn(400, 1) / 2**0.5
    fit = lambda keep: torch.linalg.lstsq(x[keep].double(), y[keep].double()).solution
    everything = torch.arange(400)
    w = fit(everything)
    net = nn.Linear(3, 1, bias=False)
    net.weight.data = w.T.float()
    test = batches(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.0]]))
    objective = Objective.of(net, batches(x, y), "mse", dtype="float64").with_test(test)
    places = chosen_parameters(objective)
    fisher = inverse_fisher(fisher_gradients(objective, range(400), places), 1e-6)
    found = influences(objective, objective.on_test(), [0], places, fisher).values[:, 0]
    loss = lambda w: float(w.sum() ** 2)
    exact = np.array([loss(fit(everything[everything != row])) - loss(w) for row in range(60)])
    slope = float(exact @ found[:60] / (found[:60] @ found[:60]))
    assert np.corrcoef(exact, found[:60])[0, 1] > 0.98
    assert 0.7 < slope < 1.4  # F is E[r^2 x x'] 4, the curvature 2 x x': equal for noise of variance 1/2


def test_rows_are_drawn_once_and_alike() -> None:
    assert some_rows(5, 9, 0) == [0, 1, 2, 3, 4]
    found = some_rows(1000, 50, 3)
    assert found == some_rows(1000, 50, 3) == sorted(set(found))
    assert len(found) == 50
    assert found != some_rows(1000, 50, 4)


def test_coupled_examples_are_refused_where_the_products_are_taken() -> None:
    objective = Objective.of(Coupled(), mlp()[1], "cross_entropy")
    places = chosen_parameters(objective)
    fisher = inverse_fisher(torch.randn(4, 21), 0.1)
    with pytest.raises(ObjectiveError, match="influence each other"):
        influences(objective, objective, [0], places, fisher)
