"""Gradient statistics over checkpoints: closed forms, simulation, a measured step, and the real training run."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, gpt
from series_runs import a_run
from sklearn.datasets import load_digits
from statistics_oracles import exactly, one_by_one, regression, saved
from torch import nn
from torch.nn import functional

from analyzers._base import Quiet
from analyzers.gradient_statistics import GradientStatistics, GradientStatisticsResult
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.objective import Objective, build_objective
from probes.specs import DataSpec, ModelSpec


@pytest.mark.parametrize("method", ["ghost", "batches"])
def test_linear_regression_has_the_figures_of_its_closed_form(method, tmp_path) -> None:
    """g = 2 x (x d - e): mean 2 d, tr C = 4 ((p + 2) |d|^2 + p s^2 - |d|^2) for standard normal x, e ~ N(0, s^2)."""
    ask = GradientStatistics(method=method, theta=0.5, learning_rate=0.1, training_examples=500)
    found = ask.run(*regression(tmp_path, (1.0, 0.4)), Quiet()).values
    for place, distance in enumerate((1.0, 0.4)):
        trace = 4 * (5 * distance**2 + 4 * 0.25)
        truth = {
            "gradient_norm": 2 * distance,
            "gradient_squared": 4 * distance**2,
            "covariance_trace": trace,
            "noise_scale": trace / (4 * distance**2),
            "adequate_batch": trace / (0.25 * 4 * distance**2),
            "gap_growth": 0.1 * trace / 500,
        }
        for name, value in truth.items():
            stderr = found[f"{name}_stderr"][place]
            assert abs(found[name][place] - value) < 4 * stderr, name
            assert stderr < 0.25 * value, name
    assert found["gradient_norm_raw"][1] ** 2 == pytest.approx(
        found["gradient_squared"][1] + found["covariance_trace"][1] / 3000, rel=1e-6
    )


def test_both_methods_agree_within_their_errors_in_every_layer(tmp_path) -> None:
    torch.manual_seed(6)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 12), nn.Tanh(), nn.Linear(12, 3))
    objective = Objective.of(
        module, batches(torch.randn(600, 1, 8, 8) + 0.3, torch.randint(3, (600,)).clamp(max=1)), "cross_entropy"
    )
    objective.load = lambda _: module
    one = read_checkpoint(saved(tmp_path, module))
    ghost, small = (
        GradientStatistics(method=each).run(objective, (one,), Quiet()).values for each in ("ghost", "batches")
    )
    assert list(ghost["layers"]) == ["0", "3", "5"]
    pairs = [(ghost, small), *((ghost["layers"][name], small["layers"][name]) for name in ghost["layers"])]
    for this, that in pairs:
        for name in ("covariance_trace", "gradient_squared", "noise_scale"):
            both = math.hypot(this[f"{name}_stderr"][0], that[f"{name}_stderr"][0])
            assert abs(this[name][0] - that[name][0]) < 4 * both
        assert this["covariance_trace_stderr"][0] < that["covariance_trace_stderr"][0]


def test_a_batch_of_the_adequate_size_has_as_much_noise_as_was_asked(tmp_path) -> None:
    """Byrd and others: the mean of |g_batch - g|^2 is theta^2 |g|^2 at that size."""
    objective, checkpoints = regression(tmp_path, (0.7,), 4000)
    found = GradientStatistics(theta=0.8).run(objective, checkpoints, Quiet()).values
    size = found["adequate_batch"][0]
    G = one_by_one(objective.chosen(range(4000)))
    draw = np.random.default_rng(0)
    batch = round(size)
    errors = [float(((G[draw.integers(4000, size=batch)].mean(0) - G.mean(0)) ** 2).sum()) for _ in range(1500)]
    expected = 0.8**2 * found["gradient_norm"][0] ** 2 * size / batch
    assert np.mean(errors) == pytest.approx(expected, abs=4 * np.std(errors) / math.sqrt(1500) + 0.01 * expected)


def test_the_gap_grows_in_one_step_as_predicted(tmp_path) -> None:
    """Digits, softmax regression at parameters drawn beforehand: 300 random splits, one step on each training set."""
    found = load_digits()
    x = torch.tensor(found.data / 16)
    y = torch.tensor(found.target)
    torch.manual_seed(1)
    module = nn.Linear(64, 10).double()
    rate, size = 0.05, 50
    objective = Objective.of(module, batches(x.float(), y), "cross_entropy", dtype="float64")
    objective.load = lambda _: module
    ask = GradientStatistics(dtype="float64", learning_rate=rate, training_examples=size)
    values = ask.run(objective, (read_checkpoint(saved(tmp_path, module)),), Quiet()).values
    W, b = module.weight.detach(), module.bias.detach()
    growths = []
    for _ in range(300):
        order = torch.randperm(len(x))
        train, test = order[:size], order[size:]
        difference = (x[train] @ W.T + b).softmax(1) - functional.one_hot(y[train], 10)
        after = (W - rate * difference.T @ x[train] / size, b - rate * difference.mean(0))
        gap = [loss_of(*each, x[test], y[test]) - loss_of(*each, x[train], y[train]) for each in ((W, b), after)]
        growths.append(float(gap[1] - gap[0]))
    stderr = np.std(growths, ddof=1) / math.sqrt(len(growths))
    predicted = values["gap_growth"][0]
    assert stderr < 0.05 * predicted
    assert abs(np.mean(growths) - predicted) < 4 * math.hypot(stderr, values["gap_growth_stderr"][0])
    assert values["gap_growth"][0] == pytest.approx(rate * values["covariance_trace"][0] / size)


def loss_of(W, b, x, y):
    return functional.cross_entropy(x @ W.T + b, y)


def test_noise_alone_has_only_a_lower_bound_of_its_scale(tmp_path) -> None:
    result = GradientStatistics(theta=0.5).run(*regression(tmp_path, (0.0, 1.0), 500), Quiet())
    found = result.values
    assert found["adequate_batch_at_least"][0] == pytest.approx(4 * found["noise_scale_at_least"][0])
    assert found["noise_scale"][0] is found["noise_scale_stderr"][0] is found["adequate_batch"][0] is None
    assert found["noise_scale_at_least"][0] > 100
    assert found["noise_scale"][1] == pytest.approx(6, rel=0.5)
    assert found["noise_scale_at_least"][1] < found["noise_scale"][1]
    said = [each for each in result.caveats if "does not stand out" in each]
    assert len(said) == 1 and "At step 0 the" in said[0]
    assert any("type the real one" in each for each in result.caveats)
    names = [trace.name for trace in result.figures()["gradient_noise"].data]
    assert "noise scale at least" in names


def test_the_shares_of_the_noise_are_drawn_however_rough(tmp_path) -> None:
    drawn = GradientStatistics(blocks=4).run(*regression(tmp_path, (0.0,), 6), Quiet()).figures()["layers"]
    assert sum(next(trace.x for trace in drawn.data if trace.name == "of tr C")) == pytest.approx(100)


def test_halves_of_a_clear_gradient_agree(tmp_path) -> None:
    found = GradientStatistics().run(*regression(tmp_path, (3.0, 0.0)), Quiet()).values
    assert found["half_cosine"][0] > 0.95
    assert abs(found["half_cosine"][1]) < 0.95


class Unused(nn.Module):
    """A layer that the loss does not use, and parameters outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(3, 2)
        self.idle = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x * self.scale)


def test_a_layer_without_a_gradient_is_no_trouble(tmp_path) -> None:
    module = Unused()
    data = batches(torch.randn(30, 3), torch.randint(2, (30,)))
    result = GradientStatistics(method="batches", blocks=10).run(
        *a_run(tmp_path, module, [module.state_dict()], data), Quiet()
    )
    idle = result.values["layers"]["idle"]
    assert list(result.values["layers"]) == ["scale", "head", "idle"]
    assert [result.values["layers"][name]["parameters"] for name in ("scale", "head", "idle")] == [3, 8, 8]
    assert (idle["covariance_trace"], idle["noise_scale"], idle["half_cosine"]) == ([0.0], [None], [None])
    assert any("come from 10 blocks" in each for each in result.caveats)
    json.dumps(result.to_json(), allow_nan=False)
    result.figures()


def test_checkpoints_in_the_order_of_time_go_on_after_a_kill(tmp_path) -> None:
    module, data = cnn()
    states = [copy.deepcopy(module.state_dict())]
    for _ in range(2):
        states.append({k: v + 0.1 * torch.randn_like(v) if v.is_floating_point() else v for k, v in states[-1].items()})
    objective, (first, second, third) = a_run(tmp_path, module, states, data, every=10)
    ask = GradientStatistics(blocks=4, method="batches")
    whole = Notes()
    ordered = ask.run(objective, (first, second, third), whole)
    assert whole.shares == sorted(whole.shares)
    stopped = Notes(stop_after=len(whole.shares) // 2)
    with pytest.raises(KeyboardInterrupt):
        ask.run(objective, (first, second, third), stopped)
    assert list(stopped.kept) == ["checkpoint_0"]
    tick = Notes()
    tick.kept = stopped.kept
    again = ask.run(objective.at(third), (third, second, first), Notes())
    resumed = ask.run(objective, (first, second, third), tick)
    assert len(tick.shares) < len(whole.shares)
    assert resumed.to_json() == ordered.to_json()
    assert again.values == ordered.values
    assert ordered.values["times"] == [0.0, 10.0, 20.0]
    assert ordered.values["unit"] == "step"


def test_a_language_model_counts_sequences(tmp_path) -> None:
    module, data = gpt()
    data = batches(torch.randint(7, (24, 6)), torch.randint(7, (24, 6)))
    objective, checkpoints = a_run(tmp_path, module, [module.state_dict()], data, "causal_lm")
    found = GradientStatistics(blocks=24, dtype="float64").run(objective, checkpoints, Quiet())
    G = one_by_one(objective.converted("float64"))
    assert found.values["covariance_trace"][0] == pytest.approx(exactly(G)["trace"], rel=1e-7)
    assert found.values["training_examples"] == 24
    assert list(found.values["layers"])[:2] == ["token", "position"]


def test_a_result_is_saved_read_and_drawn_with_nothing_taken_for_markup(tmp_path) -> None:
    objective, checkpoints = regression(tmp_path, (1.0, 0.5), 200)
    objective.about["model"] = "<b>net</b>"
    found = GradientStatistics().run(
        objective, tuple(replace(each, name=f"<i>{each.name}") for each in checkpoints), Quiet()
    )
    found.save(tmp_path / "result")
    again = GradientStatisticsResult.read(tmp_path / "result")
    assert again.to_json() == found.to_json()
    figures = again.figures()
    assert set(figures) == {"gradient_noise", "layers", "gap_growth"}
    for figure in figures.values():
        text = figure.to_json()
        assert not any(each in text for each in ("<b>net", "\\u003cb\\u003enet", "<i>step", "\\u003ci\\u003estep"))
        assert figure.layout.template.layout.colorway
        axes = [getattr(figure.layout, name) for name in figure.layout if name.startswith(("xaxis", "yaxis"))]
        assert all(axis.title.text for axis in axes)
    tables = again.tables()
    assert len(tables["gradient_noise"]) == 2 and len(tables["layers"]) == 2 and len(tables["gap_growth"]) == 2
    assert tables["layers"]["noise_scale"].tolist() == found.values["noise_scale"]


MNIST_CNN = ModelSpec(
    "text",
    text="Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))",
)


def test_the_real_training_run(real) -> None:
    checkpoints = tuple(read_checkpoint(real / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt") for epoch in (200, 0))
    data = read_batches(DataSpec((str(real / "mnist"),), examples=200))
    objective = build_objective(MNIST_CNN, checkpoints[0], data, "cross_entropy", device="cpu")
    found = GradientStatistics(blocks=20).run(objective, checkpoints, Quiet())
    values = found.values
    assert values["times"] == [0.0, 200.0]
    assert list(values["layers"]) == ["0", "3", "7"]
    for name in ("covariance_trace", "gradient_squared"):
        parts = np.array([each[name] for each in values["layers"].values()])
        np.testing.assert_allclose(parts.sum(0), values[name], rtol=1e-4, atol=1e-4)
    at_start = objective.at(checkpoints[1])
    assert values["gradient_norm_raw"][0] == pytest.approx(float(at_start.gradient().norm()), rel=1e-4)
    assert values["noise_scale"][0] == pytest.approx(126, rel=0.5)
    json.dumps(found.to_json(), allow_nan=False)
