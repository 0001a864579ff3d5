"""The badge: each silent failure of attribution on real models is caught, and sound maps pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_cases import NETS, case
from captum.attr import DeepLift, GuidedBackprop, IntegratedGradients, LayerGradCam

from probes.attribution import Case, Map, Settings, attribute, badge_of, baselines, make_map
from probes.attribution.validity import is_singular
from probes.strict import strict

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning"),
]


def judged(found: Case, made: Map) -> Map:
    """A map with its badge."""
    with strict(found.module):
        return replace(made, badge=badge_of(found, made))


def deep_lift(found: Case) -> Map:
    """Captum's DeepLift from the zero baseline, as it is."""
    zero = torch.zeros_like(found.features)
    with strict(found.module):
        values = DeepLift(found.as_module()).attribute(found.features.clone().requires_grad_(), zero)
    return judged(found, make_map(found, "deep_lift", values, complete=True, baseline_score=found.score_at(zero)))


def guided(found: Case) -> Map:
    """Captum's guided backpropagation, as it is."""
    with strict(found.module):
        values = GuidedBackprop(found.as_module()).attribute(found.features.clone().requires_grad_())
    return judged(found, make_map(found, "guided_backprop", values))


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet20"])
def test_deep_lift_where_it_sees_no_activation(name: str) -> None:
    made = deep_lift(case(name, 1))
    assert made.badge.verdict == "invalid"
    assert any("equals input × gradient" in each for each in made.badge.reasons)


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet20"])
def test_guided_backpropagation_where_it_sees_no_activation(name: str) -> None:
    made = guided(case(name, 1))
    assert made.badge.verdict == "invalid"
    assert any("equals the plain gradient" in each for each in made.badge.reasons)


@pytest.mark.parametrize("name", ["hub resnet", "cnn", "tabular"])
def test_both_pass_where_they_work(name: str) -> None:
    found = case(name, 1)
    assert guided(found).badge.verdict == "ok"
    if name != "hub resnet" and name != "cnn":  # pooling of 0s is shared differently
        assert deep_lift(found).badge.verdict == "ok"


def test_both_are_right_on_a_linear_model_though_they_equal_the_gradient() -> None:
    found = case("linear", 1)
    assert guided(found).badge.verdict == "ok"
    assert deep_lift(found).badge.verdict == "ok"


def test_grad_cam_of_patch_tokens_has_the_wrong_layout() -> None:
    found = case("vit", 1)
    with strict(found.module):
        layer = found.module.get_submodule("vit.layers.1.layernorm_before")
        values = LayerGradCam(found.as_module(), layer).attribute(found.features.clone().requires_grad_())
    made = judged(found, make_map(found, "grad_cam", values))
    assert made.badge.verdict == "invalid"
    assert "the features that it should show have shape (3, 16, 16)" in made.badge.reasons[0]


def test_grad_cam_at_the_last_block_is_zero() -> None:
    found = case("vit", 1)
    with strict(found.module):
        slopes: list[torch.Tensor] = []
        layer = found.module.get_submodule("vit.layers.1")
        handle = layer.register_forward_hook(lambda _, __, output: (output.register_hook(slopes.append), output)[1])
        found.gradients(found.features)
        handle.remove()
    patches = slopes[0][:, 1:].sum(-1).reshape(1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    made = judged(found, make_map(found, "grad_cam", patches))
    assert made.badge.verdict == "invalid"
    assert "zero everywhere" in made.badge.reasons[0]


def test_the_trapezoid_of_captum_is_seen_by_its_residual() -> None:
    found = case("bert", 1)
    base = baselines(found, "pad")
    with strict(found.module):
        values = IntegratedGradients(found.as_module()).attribute(found.features, base, n_steps=20,
                                                                  method="riemann_trapezoid")  # fmt: skip
    made = judged(found, make_map(found, "trapezoid", values, complete=True, baseline_score=found.score_at(base)))
    assert made.completeness_error == pytest.approx(0.05, abs=0.005)
    assert made.badge.verdict == "doubtful"
    assert "miss it by 0.05" in made.badge.reasons[0]


@pytest.mark.parametrize("name", ["llama", "small llama"])
def test_zero_is_a_singular_baseline_of_rms_norm(name: str) -> None:
    found = case(name, 1)
    made = attribute(found, "integrated_gradients", Settings(baseline="zero", steps=64))
    assert made.badge.verdict != "ok"
    assert any("jumps right beside the baseline zero" in each for each in made.badge.reasons)


@pytest.mark.parametrize("name", NETS)
def test_only_zero_under_rms_norm_is_singular(name: str) -> None:
    for row in range(3):
        found = case(name, row)
        assert is_singular(found, torch.zeros_like(found.features)) == (name in ("llama", "small llama"))
        assert not is_singular(found, baselines(found, "auto"))
        assert not is_singular(found, baselines(found, "data", seed=row)[:1])


def test_values_that_are_not_finite() -> None:
    found = case("cnn")
    made = judged(found, make_map(found, "broken", found.features * float("nan")))
    assert made.badge.verdict == "invalid"
    assert "not finite" in made.badge.reasons[0]


@pytest.mark.parametrize("name", NETS)
def test_gradients_in_disguise_are_found_for_every_kind_of_features(name: str) -> None:
    found = case(name, 1)
    for method in ("gradient", "saliency", "input_x_gradient"):
        plain = attribute(found, method)
        assert plain.badge.verdict == "ok"
        disguised = judged(found, replace(plain, method="another"))
        assert (disguised.badge.verdict == "invalid") == (name != "linear")
        factors = 1 + 1e-3 * np.arange(plain.values.size).reshape(plain.values.shape)
        assert judged(found, replace(plain, method="another", values=plain.values * factors)).badge.verdict == "ok"
    given = attribute(found, "gradient")
    moved = replace(given, values=given.values + 1)
    verdict = (
        judged(found, replace(moved, method="another")).badge.verdict,
        badge_of(found, replace(moved, method="x"), moved).verdict,
    )
    assert verdict == ("ok", "ok" if name == "linear" else "invalid")


def test_completeness_is_judged_by_the_tolerance_that_was_asked() -> None:
    found = case("cnn", 1)
    for error, about, stderr, verdict in (
        (5e-3, {}, None, "ok"),
        (5e-3, {"tolerance": 1e-3}, None, "doubtful"),
        (0.05, {}, None, "doubtful"),
        (0.5, {}, None, "invalid"),
        (0.5, {}, np.ones(found.shape), "doubtful"),
        (float("inf"), {}, None, "invalid"),
    ):
        values = 1 + np.arange(144.0).reshape(1, 12, 12)
        made = Map("x", values, True, 1.0, None, error, stderr, about)
        assert badge_of(found, made).verdict == verdict
