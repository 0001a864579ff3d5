"""Gradient statistics against closed forms, materialised gradients in float64, simulation and a measured step."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, gpt, mlp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from analyzers._base import Quiet
from analyzers.gradient_statistics import GradientStatistics, GradientStatisticsResult
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.data import read_batches
from probes.errors import DataError, ObjectiveError
from probes.gradient_noise import Blocks, gradient_blocks, layers_of, noise
from probes.objective import Objective, build_objective
from probes.specs import DataSpec, ModelSpec

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}


def quiet(_share: float, _doing: str) -> None:
    pass


def one_by_one(objective: Objective) -> np.ndarray:
    """(N, P) the gradient of each example's share in the mean loss, times N."""
    rows = []
    for row in range(len(objective.inputs)):
        share = objective.part_loss(objective.theta, slice(row, row + 1))
        found = torch.autograd.grad(share, objective.theta, allow_unused=True, materialize_grads=True)
        rows.append(objective.flat(list(found)).numpy() * len(objective.inputs))
    return np.array(rows)


def exactly(G: np.ndarray) -> dict[str, float]:
    """The unbiased figures from all gradients, by NumPy's own covariance."""
    trace = float(np.trace(np.cov(G.T)))
    raw = float((G.mean(0) ** 2).sum())
    squared = raw - trace / len(G)
    return {"trace": trace, "raw": raw, "squared": squared, "scale": trace / squared}


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


def a_run(folder: Path, module: nn.Module, states, data, loss="cross_entropy", **options):
    """An objective at the first of these states of a module, and the checkpoints of all."""
    checkpoints = []
    for step, state in enumerate(states):
        torch.save({"model": state, "step": 10 * step}, folder / f"step-{step}.pt")
        checkpoints.append(read_checkpoint(folder / f"step-{step}.pt"))

    def load(checkpoint: Checkpoint) -> nn.Module:
        other = copy.deepcopy(module)
        other.load_state_dict(checkpoint.load(), strict=False)
        return other

    objective = Objective.of(load(checkpoints[0]), data, loss, **options)
    objective.load = load
    return objective, tuple(checkpoints)


def regression(folder: Path, distances, count: int = 3000):
    """Squared error of linear regression y = x w* + e, at checkpoints w* + distance along the first axis."""
    torch.manual_seed(4)
    x = torch.randn(count, 4)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.5 * torch.randn(count)
    states = [{"weight": torch.tensor([[1.0 + each, -2.0, 0.5, 0.0]])} for each in distances]
    return a_run(folder, nn.Linear(4, 1, bias=False), states, batches(x, y), "mse")


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


def saved(folder: Path, module: nn.Module) -> Path:
    torch.save(module.state_dict(), folder / "x.pt")
    return folder / "x.pt"


def test_batches_are_the_estimators_of_mccandlish_and_others() -> None:
    objective = Objective.of(*mlp(), "cross_entropy", dtype="float64").chosen(range(12))
    G = one_by_one(objective)
    found = noise(gradient_blocks(objective, 4, ghost=False, seed=2, tick=quiet))
    parts = np.random.default_rng(2).permutation(12).reshape(4, 3)
    small = np.mean([(G[rows].mean(0) ** 2).sum() for rows in parts])
    big = (G.mean(0) ** 2).sum()
    assert found.squared.value == pytest.approx((12 * big - 3 * small) / (12 - 3), rel=1e-9)
    assert found.trace.value == pytest.approx((small - big) / (1 / 3 - 1 / 12), rel=1e-9)


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
    result = GradientStatistics().run(*regression(tmp_path, (0.0, 1.0), 500), Quiet())
    found = result.values
    assert found["noise_scale"][0] is found["noise_scale_stderr"][0] is found["adequate_batch"][0] is None
    assert found["noise_scale_at_least"][0] > 100
    assert found["noise_scale"][1] == pytest.approx(6, rel=0.5)
    assert found["noise_scale_at_least"][1] < found["noise_scale"][1]
    said = [each for each in result.caveats if "does not stand out" in each]
    assert len(said) == 1 and "At step 0 the" in said[0]
    assert any("type the real one" in each for each in result.caveats)
    names = [trace.name for trace in result.figures()["gradient_noise"].data]
    assert "noise scale at least" in names


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
    objective, (first, second, third) = a_run(tmp_path, module, states, data)
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
