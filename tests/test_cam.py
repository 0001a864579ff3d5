"""Class-activation maps: equal to Captum's on convolutions, on the patch grid of transformers, refused in words."""

from __future__ import annotations

import copy

import captum.attr
import numpy as np
import pytest
import torch
import transformers
from attribution_cases import IMAGES, NETS, case
from curvature_oracles import batches
from family_nets import NETS as FAMILIES
from family_nets import _hub, perturbed, timm_vit, torchvision_vit
from torch import nn

from probes.attribution import AttributionError, Settings, attribute, case_of
from probes.attribution.cam import cam_layers, default_cam_layer, grad_cam, grad_cam_plus_plus
from probes.attribution.layer_outputs import evaluated
from probes.objective import Objective

CAMS = ("grad_cam", "grad_cam_plus_plus", "hires_cam")


def of_images(module, size=(16, 16), channels=3):
    torch.manual_seed(0)
    data = batches(torch.randn(2, channels, *size), torch.zeros(2, dtype=torch.int64))
    return case_of(Objective(perturbed(module).eval(), data, "cross_entropy", dtype="float64", device="cpu"), 0)


def swin(**more):
    return _hub("swin", "SwinForImageClassification", image_size=16, patch_size=2, embed_dim=6, depths=[1, 1],
                num_heads=[1, 2], window_size=2, num_labels=3, **more)  # fmt: skip


@pytest.mark.parametrize("name", ["cnn", "resnet20", "hub resnet", "convnext"])
@pytest.mark.parametrize("which", [-1, 0])
def test_grad_cam_equals_captum_on_convolutions(name, which):
    one = case(name)
    known = {name: shape for name, shape in cam_layers(one).items() if not name.endswith("encoder")}  # not mappings
    layer = [name for name, shape in known.items() if shape[2] == shape[3]][which]
    output, _, slopes = evaluated(one, layer, one.features)
    wrapped = one.as_module()
    oracle = captum.attr.LayerGradCam(wrapped, one.module.get_submodule(layer))
    known = oracle.attribute(one.features.clone().requires_grad_(), 0, relu_attributions=True)[0, 0]
    torch.testing.assert_close(grad_cam(output[0], slopes[0]).relu(), known.detach(), rtol=1e-9, atol=1e-12)
    if bool(known.any()):
        found = attribute(one, "grad_cam", Settings(layer=layer))
        shown = captum.attr.LayerAttribution.interpolate(known[None, None], one.shape[-2:], "bilinear")[0]
        np.testing.assert_allclose(found.values, shown.detach().numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.maximum(found.about["signed"], 0), known.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_hires_cam_equals_captums_gradient_times_activation():
    one = case("cnn")
    oracle = captum.attr.LayerGradientXActivation(one.as_module(), one.module.get_submodule("4"))
    known = oracle.attribute(one.features.clone().requires_grad_(), 0)[0].sum(0).detach().numpy()
    np.testing.assert_allclose(attribute(one, "hires_cam", Settings(layer="4")).about["signed"], known, rtol=1e-9)


def test_where_one_mean_and_one_linear_layer_follow_all_maps_are_those_of_the_class_weights():
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    one = of_images(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))
    weight = dict(zip(one.objective.names, one.objective.theta, strict=True))["4.weight"][one.target.index].detach()
    with torch.no_grad():
        conv = dict(zip(one.objective.names, one.objective.theta, strict=True))
        activations = torch.conv2d(one.features, conv["0.weight"], conv["0.bias"]).relu()[0]
    class_map = (weight[:, None, None] * activations).sum(0) / activations[0].numel()  # Zhou et al. (2016)
    for name in ("grad_cam", "hires_cam"):
        np.testing.assert_allclose(attribute(one, name, Settings(layer="1")).about["signed"], class_map, rtol=1e-9)


def test_grad_cam_plus_plus_is_the_formula_of_a_loop():
    torch.manual_seed(1)
    A, g = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    g[1, 0, 0] = 0  # 0 / 0 counts as 0
    expected = np.zeros((2, 4))
    for k in range(3):
        weight = 0.0
        for i in range(2):
            for j in range(4):
                slope = float(g[k, i, j])
                bent = 2 * slope**2 + float(A[k].sum()) * slope**3
                weight += (slope**2 / bent if bent else 0) * max(slope, 0)
        expected += weight * A[k].numpy()
    np.testing.assert_allclose(grad_cam_plus_plus(A, g), expected, rtol=1e-12)


def test_the_weights_of_grad_cam_plus_plus_are_derivatives_of_the_exponential():
    torch.manual_seed(2)
    A, w = torch.rand(18, dtype=torch.float64), torch.randn(18, dtype=torch.float64)

    def exponential(at):
        return torch.exp(w @ at)

    curved = torch.func.jacrev(torch.func.grad(exponential))
    first, second = torch.func.grad(exponential)(A), curved(A).diagonal()
    third = torch.einsum("iii->i", torch.func.jacrev(curved)(A))
    first, second, third, maps = (each.view(2, 3, 3) for each in (first, second, third, A))
    alpha = second / (2 * second + maps.sum((1, 2), keepdim=True) * third)
    expected = ((alpha * first.relu()).sum((1, 2), keepdim=True) * maps).sum(0) / exponential(A)
    torch.testing.assert_close(grad_cam_plus_plus(maps, w.view(2, 3, 3)), expected)  # less the factor exp(score)


TRANSFORMERS = {
    "hub vit": (FAMILIES["vit"], "vit.layers.1.layernorm_before", 1),
    "deit": (FAMILIES["deit"], "deit.layers.1.layernorm_before", 2),
    "timm": (timm_vit, "blocks.1.norm1", 1),
    "timm pooled": (lambda: timm_vit(reg_tokens=2, global_pool="avg"), None, 3),
    "torchvision": (torchvision_vit, "encoder.layers.encoder_layer_1.ln_1", 1),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("method", CAMS)
def test_maps_of_transformers_are_not_zero_and_have_the_patch_grid(name, method):
    make, layer, prefix = TRANSFORMERS[name]
    one = of_images(make())
    assert layer is None or default_cam_layer(one) == layer
    try:
        found = attribute(one, method)
    except AttributionError as error:  # some random model has no positive place
        assert "no place speaks for the target" in str(error)
        return
    assert found.badge.verdict == "ok"
    assert found.values.shape == (1, 16, 16)
    assert found.about["grid"] == [2, 2]
    assert found.about["prefix"] == prefix
    assert np.abs(found.values).max() > 0


def test_tokens_are_weighed_without_the_class_token():
    one = case("vit")
    layer = "vit.layers.1.layernorm_before"
    output, _, slopes = evaluated(one, layer, one.features)
    activations, gradients = output[0, 1:], slopes[0, 1:]
    expected = (activations @ gradients.mean(0)).reshape(2, 2)
    np.testing.assert_allclose(attribute(one, "grad_cam").about["signed"], expected, rtol=1e-9)


def test_a_grid_that_is_not_square_is_read_off_the_patches():
    config = transformers.ViTConfig(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
                                    image_size=(16, 24), patch_size=4, num_labels=3)  # fmt: skip
    from probes.hugging_face import _as_logits

    one = of_images(_as_logits(transformers.ViTForImageClassification(config)), (16, 24))
    found = attribute(one, "hires_cam")
    assert found.about["grid"] == [4, 6]
    assert found.values.shape == (1, 16, 24)
    output, _, slopes = evaluated(one, found.about["layer"], one.features)
    expected = (output * slopes)[0, 1:].sum(-1).reshape(4, 6)
    np.testing.assert_allclose(found.about["signed"], expected, rtol=1e-9)


def test_channels_last_and_outputs_that_are_tuples():
    one = of_images(swin())
    found = attribute(one, "hires_cam")
    assert found.badge.verdict == "ok" and found.about["grid"] == [4, 4]
    last = [name for name, shape in cam_layers(case("convnext")).items() if shape[1:] == (4, 4, 10)]
    assert last  # linear layers of ConvNeXt have their channels last
    assert attribute(case("convnext"), "hires_cam", Settings(layer=last[-1])).about["grid"] == [4, 4]

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).relu(), "something else"

    class First(nn.Module):
        def forward(self, pair):
            return pair[0].mean((2, 3))

    pair = of_images(nn.Sequential(Pair(), First()))
    shown = attribute(pair, "hires_cam", Settings(layer="0"))
    assert shown.about["grid"] == [14, 14] and shown.values.sum() != 0


def test_layers_that_are_written_to_in_place_are_read_as_they_were():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers)
    twin = copy.deepcopy(model)
    twin[2] = nn.ReLU(inplace=True)
    apart, inplace = of_images(model), of_images(twin)
    for layer in ("1", "2"):
        maps = [attribute(one, "hires_cam", Settings(layer=layer)).values for one in (apart, inplace)]
        np.testing.assert_array_equal(*maps)
    assert not np.array_equal(
        evaluated(inplace, "1", inplace.features)[0], evaluated(inplace, "2", inplace.features)[0]
    )


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", CAMS)
def test_every_net_runs_or_refuses_in_words(name, method):
    one = case(name)
    if name in IMAGES:
        assert attribute(one, method).badge.verdict != "invalid"
        return
    with pytest.raises(AttributionError, match="choose integrated_gradients"):
        attribute(one, method)


def test_refusals_name_what_is_wrong_and_what_there_is():
    vit, cnn = case("vit"), case("cnn")
    with pytest.raises(AttributionError, match=r"reaches 0% of the places.*layernorm_before"):
        attribute(vit, "grad_cam", Settings(layer="vit.layers.1"))
    with pytest.raises(AttributionError, match="is not in the model"):
        attribute(cnn, "grad_cam", Settings(layer="nowhere"))
    with pytest.raises(AttributionError, match=r"no places on the image. Choose one of 0, 1, 2, 4, 5"):
        attribute(cnn, "grad_cam", Settings(layer="7"))
    relu = nn.ReLU()
    reused = of_images(
        nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(576, 3))
    )
    with pytest.raises(AttributionError, match="runs 2 times"):
        attribute(reused, "grad_cam", Settings(layer="1"))
    assert "1" not in cam_layers(reused)
    flat = of_images(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)))
    with pytest.raises(AttributionError, match="No layer that runs once"):
        attribute(flat, "grad_cam")


def test_where_nothing_speaks_for_the_class_the_map_is_refused_and_not_zero():
    head = nn.Linear(4, 2)
    one = of_images(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))
    weights = dict(zip(one.objective.names, one.objective.theta, strict=True))["4.weight"]
    with torch.no_grad():
        weights.copy_(-weights.abs())
    with pytest.raises(AttributionError, match="no place speaks for the target"):
        attribute(one, "grad_cam", Settings(layer="1"))
    assert (attribute(one, "hires_cam", Settings(layer="1")).values < 0).all()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_leaks(fails):
    one = case("vit")
    before = one.outputs(one.features)
    if fails:
        with pytest.raises(AttributionError):
            attribute(one, "grad_cam", Settings(layer="vit.layers.1"))
        with pytest.raises(RuntimeError, match="stop"), Stopping(one):
            evaluated(one, "vit.layers.0", one.features)
    else:
        attribute(one, "grad_cam")
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in one.module.modules())
    assert not one.module.training
    torch.testing.assert_close(one.outputs(one.features), before, rtol=0, atol=0)


class Stopping:
    def __init__(self, one):
        def stop(*_):
            raise RuntimeError("stop")

        self.handle = one.module.get_submodule("classifier").register_forward_hook(stop)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()
