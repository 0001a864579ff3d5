"""LRP against Captum and input times gradient; residual sums and norms, where the rules must conserve."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from attribution_cases import case, of_module, settled
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule
from lrp_cases import PLAIN, by_matrices, copied, of_images
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from probes.architecture.modules import CifarResNet
from probes.attribution import Case, attribute, case_of
from probes.attribution.lrp import relevance
from probes.attribution.lrp_layers import Rules
from probes.objective import Objective


class Flat(nn.Module):
    """The chain `cnn` of the cases with the flattening in its forward: Captum has no rule for nn.Flatten."""

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        self.steps = nn.Sequential(*(each for each in chain if not isinstance(each, nn.Flatten)))

    def forward(self, x: Tensor) -> Tensor:
        for each in self.steps:
            x = each(x.flatten(1) if isinstance(each, nn.Linear) else x)
        return x


@pytest.mark.parametrize("epsilon", [1e-9, 0.03])
@pytest.mark.parametrize("name", ["cnn", "tabular"])
def test_equal_to_captum_where_captum_has_rules(name: str, epsilon: float) -> None:
    for row in range(2):
        found = case(name, row)
        module = copied(found)
        net = Flat(module) if name == "cnn" else module
        layers = [each for each in net.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        for each in layers:
            each.rule = EpsilonRule(1e-15 if each is layers[-1] else epsilon)
        values, _ = relevance(found, Rules(epsilon=0.0, absolute=epsilon))
        np.testing.assert_allclose(values[0], theirs(net, found), rtol=1e-6, atol=1e-9)


def test_equal_to_captums_gamma_rule_on_inputs_and_biases_where_the_two_agree() -> None:
    found = case("cnn")  # pixels in [0, 1]; captum leaves biases as they are, so there are none
    with torch.no_grad():
        for each in found.objective.theta:
            if each.ndim == 1:
                each.zero_()
    net = Flat(copied(found))
    for each in net.modules():
        if isinstance(each, nn.Conv2d):
            each.rule = GammaRule(0.25)
    values, book = relevance(found, Rules(epsilon=0.0, gamma=0.25))
    np.testing.assert_allclose(values[0], theirs(net, found), rtol=1e-5, atol=1e-9)
    assert float(values.sum()) == pytest.approx(found.score)  # nothing keeps anything
    assert (book.by_biases, book.by_epsilon) == pytest.approx((0, 0), abs=1e-12)


def theirs(net: nn.Module, found: Case) -> np.ndarray:
    """What Captum itself says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LRP(net).attribute(found.features.clone(), target=found.target.index)[0].detach().numpy()


@pytest.mark.parametrize("name", ["cnn", "resnet20", "hub resnet", "tabular"])
def test_without_damping_it_is_input_times_gradient_on_rectified_models(name: str) -> None:
    found = case(name, 1)
    values, book = relevance(found, PLAIN)
    np.testing.assert_allclose(values[0], attribute(found, "input_x_gradient").values, rtol=1e-8, atol=1e-13)
    assert book.by_epsilon == 0


def bare(module: nn.Module) -> nn.Module:
    """The same model with nothing that adds a constant."""
    with torch.no_grad():
        for each in module.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.running_mean.zero_()
            if getattr(each, "bias", None) is not None:
                each.bias.zero_()
    return module


@pytest.mark.parametrize("option", ["A", "B"])
def test_residual_sums_conserve_relevance_exactly_where_there_are_no_biases(option: str) -> None:
    torch.manual_seed(0)
    net = bare(settled(CifarResNet(8, option, classes=3, width=4), 0))
    found = of_images(net, torch.randn(2, 3, 12, 12))
    for rules in (PLAIN, Rules(epsilon=0.0, gamma=0.25)):
        values, book = relevance(found, rules)
        assert float(values.sum()) == pytest.approx(found.score, rel=1e-10)
        assert (book.by_biases, book.by_epsilon) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("name", ["lrp_epsilon", "lrp_composite"])
def test_batch_norm_is_merged_with_the_layer_before_it(name: str) -> None:
    torch.manual_seed(0)
    net = settled(CifarResNet(8, "A", classes=3, width=4), 0).eval()
    fused = copy.deepcopy(net)
    for each in fused.modules():
        for at in ("1", "2"):
            if hasattr(each, f"conv{at}"):
                norm = getattr(each, f"bn{at}")
                setattr(each, f"conv{at}", fuse_conv_bn_eval(getattr(each, f"conv{at}").double(), norm.double()))
                setattr(each, f"bn{at}", nn.Identity())
    inputs = torch.randn(2, 3, 12, 12)
    one, other = of_images(net, inputs), of_images(fused, inputs)
    np.testing.assert_allclose(attribute(one, name).values, attribute(other, name).values, rtol=1e-6, atol=1e-9)
    assert [each["layer"] for each in attribute(one, name).about["rules"]] == ["conv2d + batch_norm"] * 7 + ["linear"]


def test_norms_behind_linear_layers_and_alone_are_affine_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    for each in (net[0], net[2]):
        each.running_mean.normal_()
        each.running_var.uniform_(0.5, 2)
    found = of_module(net, torch.randn(4))
    made = attribute(found, "lrp_epsilon")
    assert [each["layer"] for each in made.about["rules"]] == ["batch_norm", "linear + batch_norm", "linear"]
    scale = (net[2].weight / (net[2].running_var + net[2].eps).sqrt()).detach()
    merged = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        first = net[0].weight / (net[0].running_var + net[0].eps).sqrt()
        merged[0].weight.copy_(torch.diag(first))
        merged[0].bias.copy_(net[0].bias - first * net[0].running_mean)
        merged[1].weight.copy_(scale[:, None] * net[1].weight)
        merged[1].bias.copy_(scale * (net[1].bias - net[2].running_mean) + net[2].bias)
        merged[3].load_state_dict(net[4].state_dict())
    chain = case_of(Objective(merged, found.objective.batches, "cross_entropy", dtype="float64", device="cpu"), 0,
                    found.target)  # fmt: skip
    np.testing.assert_allclose(made.values, by_matrices(chain, 0.25), rtol=1e-5)


def test_captum_itself_does_not_conserve_relevance_at_residual_sums_and_ours_does() -> None:
    torch.manual_seed(0)
    found = of_images(bare(CifarResNet(8, "A", classes=3, width=4)), torch.randn(2, 3, 12, 12))
    assert abs(theirs(copied(found), found).sum() - found.score) > 0.5 * abs(found.score)
    assert float(relevance(found, Rules(epsilon=0.0, absolute=1e-9))[0].sum()) == pytest.approx(found.score, rel=1e-4)
