"""Gradients and integrated gradients: closed forms, Captum called directly, axioms, completeness on every model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_cases import NETS, case, objective_of, of_module
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn

from probes.attribution import (
    AttributionError,
    Case,
    Map,
    Settings,
    Target,
    attribute,
    baselines,
    case_of,
)
from probes.attribution.baselines import has_rms_norm
from probes.attribution.gradients import shap_draws
from probes.objective import Objective
from probes.strict import strict

GRADIENTS = ("gradient", "saliency", "input_x_gradient", "integrated_gradients", "gradient_shap")
ONE_RULE = Settings(steps=16, tolerance=float("inf"))


def shown(found: Case, values: Tensor, reduce: str) -> np.ndarray:
    """What a map should show of an attribution shaped like the features."""
    values = values.detach()[0]
    if found.embedding:
        values = values.sum(-1) if reduce == "sum" else values.norm(dim=-1)
    return values.numpy()


@pytest.mark.parametrize("name", NETS)
def test_each_equals_captum_called_directly(name: str) -> None:
    found = case(name, 1)
    net, x = found.as_module(), found.features
    with strict(found.module):
        saliency = shown(found, Saliency(net).attribute(x.clone().requires_grad_()), "l2")
        signed = shown(found, Saliency(net).attribute(x.clone().requires_grad_(), abs=False), "l2")
        product = shown(found, InputXGradient(net).attribute(x.clone().requires_grad_()), "sum")
        engine, base = IntegratedGradients(net), baselines(found, "auto")
        path = shown(
            found, engine.attribute(x, base, n_steps=16, method="gausslegendre", internal_batch_size=16), "sum"
        )
    pairs = {"saliency": saliency, "gradient": signed, "input_x_gradient": product, "integrated_gradients": path}
    for method, expected in pairs.items():
        ours = attribute(found, method, ONE_RULE).values
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["cnn", "bert", "tabular"])
def test_gradient_shap_equals_captum_on_the_same_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = case(name, 1)
    settings = Settings(samples=6, seed=3)
    references, places = shap_draws(found, settings, 6)
    inside = GradientShap(found.as_module())
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: places.numpy()[:size])
    drawn = iter(range(100))
    monkeypatch.setattr(np.random, "choice", lambda count, size: np.array([next(drawn) for _ in range(size)]) % count)
    with strict(found.module):
        expected = inside.attribute(found.features, references[:6], n_samples=6, stdevs=0.0)
    found_map = attribute(found, "gradient_shap", settings)
    np.testing.assert_allclose(found_map.values, shown(found, expected, "sum"), rtol=1e-6, atol=1e-8)
    assert found_map.about["baseline"] == "data"


def test_linear_models_have_a_closed_form() -> None:
    found = case("linear", 2, Target(1))
    w, x = found.objective.theta[0].detach()[1].numpy(), found.raw[0].numpy()
    mean = found.objective.inputs.mean(0).numpy()
    expected = {"gradient": w, "saliency": np.abs(w), "input_x_gradient": w * x, "integrated_gradients": w * (x - mean)}
    for method, values in expected.items():
        assert attribute(found, method).values == pytest.approx(values, abs=1e-12)
    references, _ = shap_draws(found, Settings(), 25)
    shap = attribute(found, "gradient_shap")
    drawn = references[torch.arange(25) % len(references)].numpy()
    assert shap.values == pytest.approx((w * (x - drawn)).mean(0), abs=1e-12)
    assert shap.stderr == pytest.approx((w * (x - drawn)).std(0, ddof=1) / 5, abs=1e-12)
    assert shap.baseline_score == pytest.approx(float(found.in_chunks(torch.from_numpy(drawn)).mean()))


class _Doubled(nn.Module):
    """The same function as `tabular`, written with twice the hidden units and scaled weights."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        first, second, last = (net[at] for at in (0, 2, 4))
        self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 8)
        self.c = last
        with torch.no_grad():
            self.a.weight.copy_(torch.cat([4 * first.weight, 4 * first.weight]))
            self.a.bias.copy_(torch.cat([4 * first.bias, 4 * first.bias]))
            self.b.weight.copy_(torch.cat([second.weight / 16, 3 * second.weight / 16], 1))
            self.b.bias.copy_(second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def test_functionally_equal_nets_give_equal_maps() -> None:
    objective = objective_of("tabular")
    twin = Objective(_Doubled(objective.module), objective.batches, "cross_entropy", dtype="float64", device="cpu")
    for method in GRADIENTS:
        one, other = (attribute(case_of(each, 3), method) for each in (objective, twin))
        np.testing.assert_allclose(one.values, other.values, rtol=1e-5, atol=1e-8)
        assert one.score == pytest.approx(other.score, rel=1e-5)


def test_a_saturated_relu_has_no_gradient_but_an_integral() -> None:
    class Saturated(nn.Module):  # 1 - relu(1 - x), flat beyond 1
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.one - (self.one - x[:, :1]).relu()).repeat(1, 2)

    found = of_module(Saturated(), torch.tensor([2.0]))
    assert attribute(found, "gradient").values.tolist() == [0]
    assert attribute(found, "gradient").badge.verdict == "invalid"
    whole = attribute(found, "integrated_gradients", Settings(baseline="zero"))
    assert whole.values == pytest.approx([1], rel=1e-3)
    assert whole.completeness_error <= 1e-3


@pytest.mark.parametrize("name", ["llama", "small llama"])
def test_decoders_with_rms_norm_are_never_compared_with_zero_unasked(name: str) -> None:
    found = case(name)
    assert has_rms_norm(found)
    made = attribute(found, "integrated_gradients")
    assert made.about["baseline"] == "mean embedding"
    assert made.badge.verdict == "ok"


@pytest.mark.parametrize("name", NETS)
def test_shap_adds_up_in_expectation(name: str) -> None:
    found = case(name, 1)
    made = attribute(found, "gradient_shap", Settings(samples=200))
    total = made.values.sum()
    with strict(found.module):
        references, places = shap_draws(found, Settings(samples=200), 200)
    difference = made.score - made.baseline_score
    at = places.view(-1, *[1] * (found.features.ndim - 1))
    chosen = references[torch.arange(200) % len(references)]
    away = found.features - chosen
    sums = (found.gradients(chosen + at * away)[1] * away).flatten(1).sum(1)
    assert abs(total - difference) < 4 * float(sums.std()) / 200**0.5 + 1e-9
    assert made.completeness_error == pytest.approx(abs(total - difference) / abs(difference), rel=1e-6)


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("name", NETS)
def test_nothing_leaks_and_the_same_seed_gives_the_same_map(name: str, method: str) -> None:
    objective = objective_of(name)
    asked = [each.requires_grad for each in objective.module.parameters()]
    before = objective.evaluate().loss
    settings = Settings(steps=4, tolerance=1.0, samples=4)
    one, other = (attribute(case_of(objective, 1), method, settings) for _ in range(2))
    assert np.array_equal(one.values, other.values)
    assert one.values.shape == case_of(objective, 1).shape
    assert all(not each._forward_hooks and not each._backward_hooks for each in objective.module.modules())
    assert all(not each.training for each in objective.module.modules())
    assert [each.requires_grad for each in objective.module.parameters()] == asked
    assert all(each.grad is None for each in (*objective.module.parameters(), *objective.theta))
    assert objective.evaluate().loss == before


def test_the_map_of_a_row_does_not_depend_on_the_other_rows() -> None:
    objective = objective_of("resnet20")
    alone = objective.chosen([2])
    for method in ("gradient", "input_x_gradient", "integrated_gradients"):
        together = attribute(case_of(objective, 2), method, ONE_RULE)
        assert np.allclose(together.values, attribute(case_of(alone, 0), method, ONE_RULE).values, atol=1e-12)


def test_the_plain_gradient_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("cnn")
    found.plain()
    calls, real = [], Case.gradients
    monkeypatch.setattr(Case, "gradients", lambda self, features: calls.append(1) or real(self, features))
    maps: list[Map] = [attribute(found, each) for each in ("gradient", "saliency", "input_x_gradient")]
    assert not calls
    assert np.array_equal(np.abs(maps[0].values), maps[1].values)


def test_silly_settings_are_refused_in_words() -> None:
    found = case("linear")
    for method, settings, words in (
        ("integrated_gradients", Settings(steps=0), "0 steps"),
        ("gradient_shap", Settings(samples=1), "1 samples"),
        ("integrated_gradients", Settings(baseline="zero+black"), "no baseline 'black'"),
        ("guided", Settings(), "no method 'guided'"),
    ):
        with pytest.raises(AttributionError, match=words):
            attribute(found, method, settings)
