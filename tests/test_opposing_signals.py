"""Opposing signals against autograd loops, a case by hand, and digits at the edge of stability."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from opposing_runs import FEW, NETS, constructed, larger
from series_runs import a_run, moved
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from analyzers._base import Quiet
from analyzers.opposing_signals import OpposingSignals, OpposingSignalsResult
from probes.objective import Objective
from probes.opposing import random_groups


def each_loss(module: nn.Module, data) -> Tensor:
    """(N,) float64 losses, sums over the tokens of a sequence, by cross_entropy itself."""
    x = data.inputs.double() if data.inputs.is_floating_point() else data.inputs
    out = module(x)
    if out.ndim == 2:
        return functional.cross_entropy(out, data.targets, reduction="none")
    return functional.cross_entropy(out.mT, data.targets, reduction="none", ignore_index=-100).sum(1)


def each_gradient(module: nn.Module, data) -> np.ndarray:
    rows = []
    for loss in each_loss(module, data):
        found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        rows.append(torch.cat([each.reshape(-1) for each in found]).numpy())
    return np.array(rows)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("name", NETS)
def test_an_objective_of_chosen_examples_and_the_loss_of_each(name) -> None:
    module, data = larger(NETS[name][0])
    objective = Objective.of(module, data, NETS[name][1], dtype="float64", micro_batch=4)
    expected = each_loss(module.double().eval(), data)
    np.testing.assert_allclose(objective.example_losses(), expected.detach(), rtol=1e-10)
    rows = [7, 2, 2, 20]
    chosen = objective.chosen(rows)
    np.testing.assert_allclose(chosen.example_losses(), expected[rows].detach(), rtol=1e-10)
    G = each_gradient(module, data)
    np.testing.assert_allclose(chosen.gradient() * chosen.units, G[rows].sum(0), rtol=1e-8, atol=1e-10)
    assert len(objective.inputs) == 23
    np.testing.assert_allclose(objective.gradient() * objective.units, G.sum(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_everything_agrees_with_gradients_taken_one_by_one(name, tmp_path) -> None:
    module, data = larger(NETS[name][0])
    states = moved(module, 3)
    objective, checkpoints = a_run(tmp_path, module, states, data, NETS[name][1], micro_batch=5)
    found = replace(FEW, group=4, pair=2, listed=3).run(objective, checkpoints, Quiet())
    losses, gradients, thetas = [], [], []
    for state in states:
        module.load_state_dict(state)
        module = module.double().eval()
        losses.append(each_loss(module, data).detach().numpy())
        gradients.append(each_gradient(module, data))
        thetas.append(torch.cat([each.reshape(-1) for each in module.parameters()]).detach().numpy())
    counts = (data.targets != -100).reshape(23, -1).sum(1).numpy()
    for pair in (0, 1):
        d, G = losses[pair + 1] - losses[pair], gradients[pair]
        order = np.argsort(d)
        step = thetas[pair + 1] - thetas[pair]
        step /= np.linalg.norm(step)

        def compared(up, down, G=G, step=step):
            one, other = G[up].sum(0) / counts[up].sum(), G[down].sum(0) / counts[down].sum()
            return cosine(one, other), cosine(one - one @ step * step, other - other @ step * step), one, other

        whole = np.linalg.norm(G.sum(0)) / counts.sum()
        cos, beside, up, down = compared(order[-4:], order[:4])
        values = {key: each[pair] for key, each in found.values.items() if isinstance(each, list) and len(each) == 2}
        assert values["cosine"] == pytest.approx(cos, abs=1e-9)
        assert values["cosine_beside_step"] == pytest.approx(beside, abs=1e-9)
        assert values["ratio_rising"] == pytest.approx(np.linalg.norm(up) / whole, rel=1e-9)
        assert values["ratio_falling"] == pytest.approx(np.linalg.norm(down) / whole, rel=1e-9)
        assert values["gradient_norm"] == pytest.approx(whole, rel=1e-9)
        assert values["share_of_top_1_percent"] == pytest.approx(np.abs(d).max() / np.abs(d).sum(), rel=1e-9)
        null = [compared(each.rising, each.falling) for each in random_groups(23, 4, 10, (0, pair))]
        np.testing.assert_allclose(found.arrays["null_cosines"][pair], [each[0] for each in null], atol=1e-9)
        np.testing.assert_allclose(found.arrays["null_beside"][pair], [each[1] for each in null], atol=1e-9)
        assert values["cosine_p_value"] == pytest.approx((sum(each[0] <= cos for each in null) + 1) / 11)
        low, high = np.quantile([each[0] for each in null], [0.025, 0.975])
        assert (values["cosine_null_low"], values["cosine_null_high"]) == pytest.approx((low, high))
    ids = [f"example {row}" for row in (*order[::-1][:3], *order[:3])]
    assert [each["id"] for each in found.values["examples"]] == ids
    rows = found.values["examples"]
    assert [each["rise"] for each in rows] == pytest.approx([d[int(each["id"][8:])] for each in rows], abs=1e-12)
    mean = [losses[time][order[-4:]].sum() / counts[order[-4:]].sum() for time in range(3)]
    assert found.values["loss_rising"] == pytest.approx(mean, rel=1e-9)
    assert found.values["loss"] == pytest.approx([each.sum() / counts.sum() for each in losses], rel=1e-9)


def test_a_case_worked_out_by_hand(tmp_path) -> None:
    found = replace(FEW, group=4, listed=10).run(*constructed(tmp_path), Quiet()).values
    assert found["cosine"] == pytest.approx([-6 / np.sqrt(8 * 5)])
    assert found["cosine_beside_step"] == pytest.approx([-1.0])
    assert found["ratio_rising"] == pytest.approx([np.sqrt(8) / 0.25])
    assert found["ratio_falling"] == pytest.approx([np.sqrt(5) / 0.25])
    assert found["share_of_top_1_percent"] == pytest.approx([0.21 / (4 * 0.21 + 4 * 0.19)])
    assert (found["rose"], found["fell"]) == ([4], [4])
    assert found["loss_rising"] == pytest.approx([1.0, 1.21])
    assert found["loss_falling"] == pytest.approx([1.0, 0.81])
    assert found["correlation"] is None
    assert [each["group"] for each in found["examples"]] == ["rising"] * 4 + ["falling"] * 4
    first = found["examples"][0]
    assert first["rise"] == pytest.approx(0.21)
    assert (first["label"], first["prediction"], first["margin"], first["text"]) == (-1.0, 0.0, None, None)
    assert first["prediction_after"] == pytest.approx(0.1)


def test_where_nothing_changes_there_is_no_number_and_no_warning(tmp_path) -> None:
    x, y = torch.zeros(9, 2), torch.zeros(9)
    states = [{"weight": torch.tensor([[w, 0.0]])} for w in (0.0, 0.1)]
    objective, checkpoints = a_run(tmp_path, nn.Linear(2, 1, bias=False), states, batches(x, y), "mse")
    found = FEW.run(objective, checkpoints, Quiet())
    json.dumps(found.to_json(), allow_nan=False)
    assert found.values["cosine"] == found.values["cosine_p_value"] == found.values["ratio_rising"] == [None]
    assert any("Only 0 of the 2 examples of the rising group rose" in each for each in found.caveats)
    assert set(found.figures()) == {"opposition", "loss_change", "groups"}


@cache
def descent(rate: float) -> tuple[nn.Module, list, Tensor, Tensor]:
    """Full-batch gradient descent on the squared error of 300 digits: steps 200 to 207."""
    torch.manual_seed(0)
    found = load_digits()
    x, y = torch.tensor(found.data[:300] / 16, dtype=torch.float32), torch.tensor(found.target[:300])
    module, states = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)), []
    for _ in range(208):
        states.append(copy.deepcopy(module.state_dict()))
        loss = functional.mse_loss(module(x), functional.one_hot(y, 10).float())
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for each, g in zip(module.parameters(), gradients, strict=True):
                each -= rate * g
    return module, states[-8:], x, y


def descended(folder: Path, rate: float) -> OpposingSignalsResult:
    module, states, x, y = descent(rate)
    objective, checkpoints = a_run(folder, module, states, batches(x, y), "mse")
    return OpposingSignals(group=6, null_groups=40, dtype="float64").run(objective, checkpoints, Quiet())


def test_at_the_edge_of_stability_the_extremes_oppose_far_beyond_random_groups(tmp_path) -> None:
    found = descended(tmp_path, 2.0)
    values = found.values
    assert max(values["cosine"]) < -0.75
    assert min(values["cosine_null_low"]) > -0.5
    assert values["cosine_p_value"] == pytest.approx([1 / 41] * 7)
    assert max(values["cosine_beside_step"]) < -0.5
    assert values["correlation"] < -0.95
    assert values["correlation_changes"] == 6
    swing = np.diff(values["loss_rising"])
    assert (swing[:-1] * swing[1:] < 0).all()
    assert not any("single steps" in each for each in found.caveats)


def test_where_a_small_step_lowers_nearly_every_loss_there_is_no_opposition(tmp_path) -> None:
    found = descended(tmp_path, 0.1)
    values = found.values
    assert (np.array(values["cosine"]) > np.array(values["cosine_null_low"])).all()
    assert min(values["cosine_p_value"]) > 0.05
    assert any("of the 6 examples of the rising group rose" in each for each in found.caveats)
