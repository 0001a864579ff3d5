"""SmoothGrad, its squares and VarGrad: Captum on the same noise, closed forms, standard errors, resuming."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_cases import NETS, case, objective_of
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor

from probes.attribution import AttributionError, Case, Settings, Target, attribute, baselines, case_of, methods
from probes.attribution.methods import Method
from probes.attribution.smoothing import noise_of, sigma_of
from probes.strict import strict

KINDS = {"smoothgrad": "smoothgrad", "smoothgrad_squared": "smoothgrad_sq", "vargrad": "vargrad"}


def noises(found: Case, settings: Settings) -> Tensor:
    """The noise of every sample, one after the other."""
    return torch.cat([noise_of(found, settings, each) for each in range(settings.samples)])


def with_noise(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    """Let Captum's NoiseTunnel draw this noise; it draws all samples of an input together."""
    monkeypatch.setattr(torch, "normal", lambda mean, std: noise.reshape(std.shape))


@pytest.mark.parametrize("statistic", KINDS)
@pytest.mark.parametrize("over", ["gradient", "saliency", "input_x_gradient", "integrated_gradients"])
@pytest.mark.parametrize("name", ["cnn", "vit", "tabular"])
def test_each_equals_captums_noise_tunnel(
    name: str, over: str, statistic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case(name, 1)
    settings = Settings(samples=6, over=over, steps=8, seed=2)
    net, more = found.as_module(), {}
    engine = InputXGradient(net) if over == "input_x_gradient" else Saliency(net)
    if over == "integrated_gradients":
        engine = IntegratedGradients(net)
        more = {"baselines": baselines(found, "auto"), "n_steps": 8, "method": "gausslegendre"}
    elif over in ("gradient", "saliency"):
        more = {"abs": over == "saliency"}
    made = attribute(found, statistic, settings)
    noise = noises(found, settings)
    with_noise(monkeypatch, noise)
    with strict(found.module):
        x = found.features.clone().requires_grad_()
        expected = NoiseTunnel(engine).attribute(x, nt_type=KINDS[statistic], nt_samples=6, stdevs=1.0, **more)
    expected = expected.detach()[0].numpy()
    np.testing.assert_allclose(made.values, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_token_vectors_are_averaged_before_they_are_measured(name: str) -> None:
    found = case(name)
    settings = Settings(samples=7)
    noise = noises(found, settings)
    slopes = found.gradients(found.features + noise)[1]
    expected = {"smoothgrad": slopes.mean(0).norm(dim=-1), "smoothgrad_squared": (slopes**2).mean(0).sum(-1),
                "vargrad": slopes.var(0, correction=0).sum(-1)}  # fmt: skip
    for statistic, values in expected.items():
        np.testing.assert_allclose(attribute(found, statistic, settings).values, values.numpy(), rtol=1e-6)
    product = (slopes * (found.features + noise)).sum(-1)
    made = attribute(found, "smoothgrad", replace(settings, over="input_x_gradient"))
    np.testing.assert_allclose(made.values, product.mean(0).numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(made.stderr, product.std(0).numpy() / 7**0.5, rtol=1e-6)
    assert made.signed
    assert not attribute(found, "smoothgrad", settings).signed


def test_linear_models_have_a_closed_form() -> None:
    found = case("linear", 0, Target(2))
    w = found.objective.theta[0].detach()[2].numpy()
    made = {each: attribute(found, each, Settings(samples=9)) for each in KINDS}
    assert made["smoothgrad"].values == pytest.approx(w, abs=1e-12)
    assert made["smoothgrad_squared"].values == pytest.approx(w**2, abs=1e-12)
    assert made["vargrad"].values == pytest.approx(0 * w, abs=1e-12)
    assert made["smoothgrad"].stderr == pytest.approx(0 * w, abs=1e-7)
    assert made["smoothgrad"].badge.verdict == "ok"  # it equals the gradient, as it must
    settings = Settings(samples=400, over="input_x_gradient")
    product = attribute(found, "smoothgrad", settings)
    x, sigma = found.raw[0].numpy(), sigma_of(found, settings)[0].numpy()
    assert np.all(np.abs(product.values - w * x) < 4 * np.abs(w) * sigma / 20)
    assert product.stderr == pytest.approx(np.abs(w) * sigma / 20, rel=0.15)
    variance = attribute(found, "vargrad", settings)
    assert np.all(np.abs(variance.values - (w * sigma) ** 2) < 4 * variance.stderr)
    assert variance.stderr == pytest.approx((w * sigma) ** 2 * (2 / 400) ** 0.5, rel=0.3)


def test_the_noise_is_a_share_of_the_range() -> None:
    image, row, text = case("resnet20"), case("tabular"), case("bert")
    for found in (image, text):
        spread = float(found.features.max() - found.features.min())
        assert float(sigma_of(found, Settings())) == pytest.approx(0.15 * spread)
        drawn = noises(found, Settings(samples=30))
        assert float(drawn.std()) == pytest.approx(0.15 * spread, rel=0.05)
    columns = row.objective.inputs.amax(0) - row.objective.inputs.amin(0)
    assert sigma_of(row, Settings(noise=0.3))[0].tolist() == pytest.approx((0.3 * columns).tolist())


@pytest.mark.parametrize("name", NETS)
def test_every_statistic_runs_on_every_model_and_leaks_nothing(name: str) -> None:
    objective = objective_of(name)
    before, asked = objective.evaluate().loss, [each.requires_grad for each in objective.module.parameters()]
    for statistic in KINDS:
        found = case_of(objective, 0)
        made = attribute(found, statistic, Settings(samples=5))
        assert made.values.shape == found.shape == made.stderr.shape
        assert made.badge.verdict != "invalid" or statistic == "vargrad"
        assert made.about["over"] == "gradient"
    assert all(not each._forward_hooks and not each._backward_hooks for each in objective.module.modules())
    assert [each.requires_grad for each in objective.module.parameters()] == asked
    assert objective.evaluate().loss == before


def test_the_numbers_do_not_depend_on_the_chunk() -> None:
    whole, parts = case("cnn"), case("cnn")
    parts._kept["chunk"] = 3
    one, other = (attribute(each, "smoothgrad") for each in (whole, parts))
    np.testing.assert_allclose(one.values, other.values, atol=1e-12)
    np.testing.assert_allclose(one.stderr, other.stderr, atol=1e-12)


def test_any_other_method_can_be_smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes.attribution import smoothing
    from probes.attribution.gradients import METHODS

    plain = METHODS[2]
    known = {**methods(), "other": replace(plain, name="other"),
             "never": Method("never", "Never", "cam", plain.run, refuse=lambda _: "It never runs.")}  # fmt: skip
    monkeypatch.setattr(smoothing, "methods", lambda: known)
    for name in ("cnn", "bert"):
        found = case(name)
        settings = Settings(samples=4)
        direct = attribute(found, "smoothgrad", replace(settings, over=plain.name))
        loop = attribute(found, "smoothgrad", replace(settings, over="other"))
        np.testing.assert_allclose(loop.values, direct.values, rtol=1e-9, atol=1e-12)
        with pytest.raises(AttributionError, match="It never runs"):
            attribute(found, "smoothgrad", replace(settings, over="never"))
    for each in ("vargrad", "no such"):
        with pytest.raises(AttributionError, match=f"no method '{each}' to smooth"):
            attribute(case("cnn"), "smoothgrad", Settings(over=each))
    with pytest.raises(AttributionError, match="1 samples"):
        attribute(case("cnn"), "smoothgrad", Settings(samples=1))


def test_sampling_stops_at_the_tolerance_and_tells_its_error() -> None:
    told: list[str] = []
    made = attribute(
        case("cnn"), "smoothgrad", Settings(samples=400, tolerance=0.5), lambda _, doing: told.append(doing)
    )
    assert 10 <= made.about["samples"] < 400
    assert made.about["relative_stderr"] <= 0.5
    assert made.about["relative_stderr"] == pytest.approx(np.linalg.norm(made.stderr) / np.linalg.norm(made.values))
    assert "relative standard error" in told[-1]
    assert attribute(case("cnn"), "smoothgrad", Settings(samples=12)).about["samples"] == 12


class _Keeper:
    """A tick that keeps, and cancels after some calls."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        self.left = 10**9

    def __call__(self, share: float, doing: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def save(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        self.kept[key] = arrays

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        return self.kept.get(key)


def test_a_cancelled_run_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    found, settings, tick = case("tabular"), Settings(samples=100), _Keeper()
    whole = attribute(found, "smoothgrad", settings)
    tick.left = 1
    with pytest.raises(KeyboardInterrupt):
        attribute(found, "smoothgrad", settings, tick)
    tick.left = 10**9
    rows, real = [], Case.gradients
    monkeypatch.setattr(Case, "gradients", lambda self, features: rows.append(len(features)) or real(self, features))
    resumed = attribute(found, "smoothgrad", settings, tick)
    np.testing.assert_allclose(resumed.values, whole.values, atol=1e-12)
    assert 0 < sum(rows) < 100
    assert len(tick.kept) == 1
    attribute(found, "smoothgrad", replace(settings, seed=9), tick)
    assert len(tick.kept) == 2
