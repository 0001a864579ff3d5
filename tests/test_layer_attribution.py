"""Attributions of inner layers: complete where the layer cuts the net, equal to Captum's, closed on linear models."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from attribution_cases import NETS, TABLES, case, of_module
from scipy.special import roots_legendre
from torch import nn
from torch.autograd.functional import jacobian

from probes.attribution import AttributionError, Settings, attribute
from probes.attribution.baselines import baselines
from probes.attribution.layer_outputs import cuts, evaluated
from probes.attribution.layer_paths import conductance, through
from probes.attribution.layers import default_unit_layer, unit_layers

ALL = ("layer_conductance", "layer_integrated_gradients", "neuron_conductance")


class Smooth(nn.Module):
    """Three layers with tanh, and a path beside the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        y = torch.tanh(self.first(x))
        return self.last(y + torch.tanh(self.second(y)))


def smooth():
    return of_module(Smooth(), torch.linspace(-1, 2, 6), 1)


def reference_of(one):
    return baselines(one, "auto", seed=0)[:1]


def exact(one, layer: str, reference, steps: int = 64):
    """Conductance by its definition: dF/dy times dy/dalpha by the whole Jacobian, by Gauss and Legendre's rule."""
    nodes, weights = roots_legendre(steps)
    away, total = one.features - reference, 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        at = reference + node * away
        tangent = jacobian(lambda x: output(one, layer, x), at)[0, :, 0] @ away[0]
        total = total + weight * (evaluated(one, layer, at)[2] * tangent).detach()
    return total


def output(one, layer: str, x):
    kept = []
    handle = one.module.get_submodule(layer).register_forward_hook(lambda _, __, found: kept.append(found))
    one.scores(x)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("layer", ["first", "second", "last"])
def test_conductance_is_its_definition(layer):
    one = smooth()
    reference = reference_of(one)
    found = conductance(one, layer, reference, 32, 1e-7, closed=cuts(one, layer))
    torch.testing.assert_close(found.values, exact(one, layer, reference), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", ["first", "second"])
def test_conductance_equals_captums(layer):
    one = smooth()
    reference = reference_of(one)
    oracle = captum.attr.LayerConductance(one.as_module(), one.module.get_submodule(layer))
    known = oracle.attribute(one.features, reference, target=0, n_steps=2000, method="gausslegendre").detach()
    found = conductance(one, layer, reference, 256, 1e-7, closed=cuts(one, layer)).values
    torch.testing.assert_close(found, known, rtol=0, atol=2e-3 * float(known.abs().max()))


@pytest.mark.parametrize(("name", "near"), [("cnn", 0.02), ("tabular", 0.01), ("smooth", 1e-3)])
def test_neuron_conductance_equals_captums(name, near):
    one = smooth() if name == "smooth" else case(name)
    layer = {"cnn": "3", "tabular": "1", "smooth": "second"}[name]
    output, _, slopes = evaluated(one, layer, one.features)
    unit = tuple(int(each) for each in np.unravel_index(int((output * slopes).abs().argmax()), output.shape)[1:])
    found = attribute(one, "neuron_conductance", Settings(layer=f"{layer}:{','.join(map(str, unit))}", tolerance=1e-4))
    oracle = captum.attr.NeuronConductance(one.as_module(), one.module.get_submodule(layer))
    known = oracle.attribute(one.features, unit, reference_of(one), target=0, n_steps=1000, method="gausslegendre",
                             internal_batch_size=250)[0].detach().numpy()  # fmt: skip
    np.testing.assert_allclose(found.values, known, rtol=0, atol=near * np.abs(known).max())


@pytest.mark.parametrize("name", ["cnn", "vit", "small gpt"])
def test_integrated_gradients_of_a_layer_equal_captums(name):
    one = case(name)
    layer = default_unit_layer(one)
    found = attribute(one, "layer_integrated_gradients", Settings(layer=layer, tolerance=1.0))
    module, reference = one.as_module(), reference_of(one)
    oracle = captum.attr.LayerIntegratedGradients(module, one.module.get_submodule(layer))
    known = oracle.attribute(one.features, reference, target=0, n_steps=32, method="gausslegendre").detach()
    units = known[0].sum((1, 2)) if name == "cnn" else known[0].sum(0)
    np.testing.assert_allclose(found.about["units"], units, rtol=1e-7, atol=1e-12)
    shown = known.sum(-1)[0] if name == "small gpt" else None
    if shown is not None:
        np.testing.assert_allclose(found.values, shown, rtol=1e-7, atol=1e-12)
    else:
        assert found.values.sum() + found.about["outside"] == pytest.approx(float(known.sum()), rel=1e-6)


def test_closed_form_on_the_linear_model():
    one = case("linear")
    theta = dict(zip(one.objective.names, one.objective.theta, strict=True))
    weight = theta["0.weight"].detach()[one.target.index].numpy()
    away = (one.features - reference_of(one))[0].numpy()
    for method in ("layer_conductance", "neuron_conductance"):
        found = attribute(one, method)
        np.testing.assert_allclose(found.values, weight * away, rtol=1e-9, atol=1e-12)
        units = np.zeros(3)
        units[one.target.index] = weight @ away
        if method == "layer_conductance":
            np.testing.assert_allclose(found.about["units"], units, rtol=1e-9, atol=1e-12)


def test_two_linear_layers_share_the_score_by_their_weights():
    torch.manual_seed(1)
    one = of_module(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.tensor([1.0, -2.0, 0.5, 3.0]), 1)
    first, last = (dict(zip(one.objective.names, one.objective.theta, strict=True))[f"{at}.weight"].detach()
                   for at in (0, 1))  # fmt: skip
    away = (one.features - reference_of(one))[0]
    found = attribute(one, "layer_conductance", Settings(layer="0"))
    np.testing.assert_allclose(found.about["units"], last[1] * (first @ away), rtol=1e-9)
    np.testing.assert_allclose(found.values, (last[1] @ first) * away, rtol=1e-9)
    neuron = attribute(one, "neuron_conductance", Settings(layer="0:2"))
    np.testing.assert_allclose(neuron.values, last[1, 2] * first[2] * away, rtol=1e-9)
    assert neuron.values.sum() == pytest.approx(found.about["units"][2])


@pytest.mark.parametrize("name", ["cnn", "tabular", "vit", "bert", "small llama"])
def test_conductance_adds_up_at_every_layer_that_cuts_the_net(name):
    one = case(name)
    difference = one.score - one.score_at(reference_of(one))
    tried = [layer for layer, shape in unit_layers(one).items() if len(shape) < 4 or name == "cnn"]
    closed = [layer for layer in tried if cuts(one, layer)][-5:]
    assert closed
    for layer in closed:
        flow = conductance(one, layer, reference_of(one), 32, 2e-3, closed=True)
        assert float(flow.values.sum()) == pytest.approx(difference, rel=2e-3), layer


def test_layers_beside_others_are_said_not_to_add_up():
    found = attribute(smooth(), "layer_conductance", Settings(layer="second"))
    assert found.completeness_error is None and not found.about["cuts"]
    assert any("add up" in note for note in found.notes)
    difference = found.score - found.baseline_score
    assert abs(sum(found.about["units"]) - difference) > 0.1 * abs(difference)
    assert found.values.sum() == pytest.approx(sum(found.about["units"]), rel=2e-2)  # what passes through all units
    whole = attribute(smooth(), "layer_conductance", Settings(layer="first"))
    assert whole.completeness_error < 1e-3 and whole.about["cuts"]


@pytest.mark.parametrize("name", ["cnn", "small gpt", "vit"])
def test_units_of_neuron_conductance_are_those_of_layer_conductance(name):
    one = case(name)
    layer, reference = default_unit_layer(one), reference_of(one)
    units = attribute(one, "layer_conductance", Settings(tolerance=1e-4)).about["units"]
    size = max(map(abs, units))
    for unit in np.argsort(np.abs(units))[-2:]:
        found = attribute(one, "neuron_conductance", Settings(layer=f"{layer}:{unit}", tolerance=1e-3))
        assert float(found.values.sum()) == pytest.approx(units[unit], abs=5e-3 * size)
    chosen = attribute(one, "neuron_conductance")
    assert int(chosen.about["unit"]) == int(np.abs(units).argmax())
    whole = through(one, layer, reference, 32, 1e-3, None)
    difference = one.score - one.score_at(reference)
    assert float(whole.values.sum()) == pytest.approx(difference, rel=5e-3)


def test_places_on_the_image_keep_their_amounts_and_the_class_token_is_told_apart():
    one = case("vit")
    found = attribute(one, "layer_conductance", Settings(layer="vit.layers.0"))
    flow = conductance(one, "vit.layers.0", reference_of(one), 32, 1e-3, closed=True)
    rows = flow.values[0].sum(-1)
    assert found.about["outside"] == pytest.approx(float(rows[0]))
    quarters = found.values[0].reshape(2, 8, 2, 8)
    assert quarters.sum() == pytest.approx(float(rows[1:].sum()))
    assert found.completeness_error < 1e-3
    assert found.about["grid"] == [2, 2]
    text = attribute(case("small gpt"), "layer_conductance")
    assert text.values.shape == (7,) and text.values.sum() == pytest.approx(sum(text.about["units"]))


@pytest.mark.parametrize("name", NETS)
def test_every_net_runs_or_refuses_in_words(name):
    one = case(name, dtype="float32")
    for method in ALL:
        if method == "layer_integrated_gradients" and name in TABLES:
            with pytest.raises(AttributionError, match="choose layer_conductance"):
                attribute(one, method)
            continue
        found = attribute(one, method, Settings(steps=16, tolerance=1e-2))
        assert found.badge.verdict != "invalid", (method, found.badge)
        assert found.values.shape[-2:] == one.shape[-2:]


def test_refusals_name_what_is_wrong():
    one = case("cnn")
    for method in ALL:
        with pytest.raises(AttributionError, match="is not in the model"):
            attribute(one, method, Settings(layer="nowhere"))
    with pytest.raises(AttributionError, match="has no places on the input"):
        attribute(one, "layer_integrated_gradients", Settings(layer="7"))
    with pytest.raises(AttributionError, match="has no unit 99"):
        attribute(one, "neuron_conductance", Settings(layer="0:99"))
    with pytest.raises(AttributionError, match="is no number"):
        attribute(one, "neuron_conductance", Settings(layer="0:x"))
    with pytest.raises(AttributionError, match="0 steps"):
        attribute(one, "layer_conductance", Settings(steps=0))
    relu = nn.ReLU()
    reused = of_module(nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2)), torch.ones(4))
    for method in ("layer_conductance", "neuron_conductance"):
        with pytest.raises(AttributionError, match="runs 2 times"):
            attribute(reused, method, Settings(layer="1"))
    dead = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        dead[2].weight[:, 1] = 0
    with pytest.raises(AttributionError, match="Nothing flows"):
        attribute(of_module(dead, torch.ones(4)), "neuron_conductance", Settings(layer="1:1"))


@pytest.mark.parametrize("method", ALL)
def test_nothing_leaks(method):
    one = case("vit")
    before = one.outputs(one.features)
    grads = [each.requires_grad for each in one.module.parameters()]
    attribute(one, method, Settings(steps=4, tolerance=1.0))
    target = "vit.layers.0" + (":1" if method == "neuron_conductance" else "")
    handle = one.module.get_submodule("classifier").register_forward_hook(_stop)
    with pytest.raises(RuntimeError, match="stop"):
        attribute(one, method, Settings(layer=target, baseline="blur"))
    handle.remove()
    assert not any(each._forward_hooks or each._forward_pre_hooks or each.training for each in one.module.modules())
    assert [each.requires_grad for each in one.module.parameters()] == grads
    torch.testing.assert_close(one.outputs(one.features), before, rtol=0, atol=0)


def _stop(*_):
    raise RuntimeError("stop")
