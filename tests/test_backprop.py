"""DeepLIFT, guided backpropagation, deconvolution: by hand, against Captum, and where Captum silently does nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_cases import NETS, case, left_as_it_was, objective_of, of_module, settled
from backprop_cases import ZERO, Functional, pictured
from curvature_oracles import batches
from torch import Tensor, nn
from torch.nn import functional

from probes.attribution import AttributionError, Settings, attribute, baselines, case_of
from probes.attribution.backprop import METHODS, deep_lift
from probes.attribution.methods import methods
from probes.objective import Objective

RECTIFIED = ("cnn", "resnet20", "hub resnet", "tabular")


UNRULED = ("vit", "convnext", "bert", "gpt2", "llama", "small gpt", "small llama")


class Tokens(nn.Module):
    """Token vectors, a rectifier at each token, their mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(functional.relu(self.inner(self.table(ids))).transpose(0, 1).mean(0))


def saturated() -> nn.Module:
    """f(x) = 1 - max(1 - x, 0): at x = 2 its gradient is zero, though it rose from 0 to 1."""

    class Saturated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.one - functional.relu(self.one - x)).repeat(1, 2)

    return Saturated()


def test_the_saturated_rectifier_by_hand() -> None:
    found = of_module(saturated(), torch.tensor([2.0]))
    made = attribute(found, "deep_lift", ZERO)
    assert attribute(found, "gradient").values.tolist() == [0.0]
    assert made.values.tolist() == pytest.approx([1.0])
    assert (made.score, made.baseline_score, made.completeness_error) == pytest.approx((1.0, 0.0, 0.0))


def test_the_rescale_rule_by_hand() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 2.0]]))
        module[0].bias.copy_(torch.tensor([-1.0, 1.0]))
        module[2].weight.copy_(torch.tensor([[3.0, 5.0], [0.0, 0.0]]))
    found = of_module(module, torch.tensor([2.0, 1.0]))
    # inner: (2, 1) at the example, (-1, 1) at zero: the first multiplier is (2 - 0) / (2 + 1), the second 1 by gradient
    wanted = [2 * (3 * 2 / 3 * 1 + 5 * 1 * -1), 1 * (3 * 2 / 3 * 1 + 5 * 1 * 2)]
    assert attribute(found, "deep_lift", ZERO).values.tolist() == pytest.approx(wanted)


def test_a_max_pool_by_hand_where_the_place_of_the_maximum_changes() -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.scale * functional.max_pool1d(x[:, None], 3, stride=1)[:, 0]).sum(1, keepdim=True).repeat(1, 2)

    found = of_module(Pool(), torch.tensor([1.0, 5.0, 2.0, 0.0]))
    reference = torch.tensor([[4.0, 0.0, 1.0, 3.0]], dtype=torch.float64)
    # windows: 4 -> 5 and 3 -> 5, both gained by the second number; nothing was lost
    assert deep_lift(found, reference)[0][0].tolist() == pytest.approx([0, 3, 0, 0])
    reference = torch.tensor([[9.0, 0.0, 1.0, 3.0]], dtype=torch.float64)  # 9 -> 5 is lost by the first number
    assert deep_lift(found, reference)[0][0].tolist() == pytest.approx([-4, 2, 0, 0])


def test_guided_backprop_and_deconvolution_by_hand() -> None:
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 1.0], [-4.0, 1.0]]))
        module[2].weight.copy_(torch.tensor([[1.0, -2.0, 5.0], [0.0, 0.0, 0.0]]))
    found = of_module(module, torch.tensor([1.0, 1.0]))  # inner: 3, 4, -3; gradients that arrive: 1, -2, 5
    assert attribute(found, "gradient").values.tolist() == pytest.approx([1 - 6, 2 - 2])
    assert attribute(found, "guided_backprop").values.tolist() == pytest.approx([1, 2])
    assert attribute(found, "deconvolution").values.tolist() == pytest.approx([1 - 20, 2 + 5])


@pytest.mark.parametrize("name", ["deep_lift", "deep_lift_shap"])
def test_a_linear_model_has_a_closed_form(name: str) -> None:
    found = case("linear", 1)
    weight = found.objective.theta[0].detach()[found.target.index]
    others = [row for row in range(len(found.objective.inputs)) if row != 1]
    reference = found.objective.inputs.mean(0) if name == "deep_lift" else found.objective.inputs[others].mean(0)
    made = attribute(found, name)
    np.testing.assert_allclose(made.values, weight * (found.features[0] - reference), rtol=1e-12)
    if name == "deep_lift_shap":
        spread = (weight * found.objective.inputs[others]).std(0) / len(others) ** 0.5
        np.testing.assert_allclose(made.stderr, spread, rtol=1e-12)


SMOOTH = {
    "gelu": functional.gelu, "gelu tanh": nn.GELU("tanh"), "silu": functional.silu, "tanh": torch.tanh,
    "sigmoid": lambda x: x.sigmoid(), "silu in place": lambda x: functional.silu(x, inplace=True),
    "mish": functional.mish, "elu in place": lambda x: functional.elu_(x), "softplus": functional.softplus,
    "selu": functional.selu, "relu6": functional.relu6, "hard swish": functional.hardswish,
    "prelu": lambda x: functional.prelu(x, torch.tensor([0.3], dtype=x.dtype)),
    "added to in place": lambda x: (lambda y: (torch.tanh(y), y.add_(1.0))[0])(x * 1),
}  # fmt: skip


@pytest.mark.parametrize("activation", SMOOTH)
def test_deep_lift_adds_up_for_every_function_of_one_number(activation: str) -> None:
    found = pictured(Functional(SMOOTH[activation]))
    for name in ("zero", "mean", "blur", "data", "zero+mean"):
        made = attribute(found, "deep_lift", Settings(baseline=name))
        assert made.completeness_error < 1e-9 and made.badge.verdict == "ok"


def test_one_hidden_layer_of_gelu_in_closed_form() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    found = of_module(net, torch.randn(4, generator=torch.Generator().manual_seed(3)))
    first, bias, second, _ = (each.detach() for each in found.objective.theta)
    x = found.features[0]
    inner = first @ x + bias
    slopes = (functional.gelu(inner) - functional.gelu(bias)) / (inner - bias)
    np.testing.assert_allclose(attribute(found, "deep_lift", ZERO).values, x * ((second[0] * slopes) @ first))


POOLS = {
    "overlapping": lambda x: functional.max_pool2d(x, 3, stride=2, padding=1, dilation=1)[:, :, :4, :4],
    "adaptive": lambda x: functional.adaptive_max_pool2d(x, 4),
    "dilated": lambda x: functional.max_pool2d(x, 2, stride=1, dilation=2)[:, :, :4, :4],
    "three axes": lambda x: functional.max_pool3d(x, (1, 2, 2)),
    "average": lambda x: functional.avg_pool2d(x, 2),
}


@pytest.mark.parametrize("pool", POOLS)
def test_deep_lift_adds_up_for_every_pool(pool: str) -> None:
    found = pictured(Functional(functional.relu, POOLS[pool]))
    made = attribute(found, "deep_lift", Settings(baseline="mean"))
    assert made.completeness_error < 1e-9 and made.badge.verdict == "ok"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NETS)
def test_each_method_runs_on_each_model_or_says_in_words_why_not(name: str, dtype: str) -> None:
    found = case(name, 1, dtype=dtype)
    for method in METHODS:
        if method.refuse(found):
            with pytest.raises(AttributionError, match=r"this model has|This model has no ReLU.*choose gradient"):
                attribute(found, method.name)
            assert name in UNRULED or (name == "linear" and "deep" not in method.name)
        else:
            made = attribute(found, method.name)
            assert made.badge.verdict == "ok", made.badge
            assert made.values.shape == found.shape
            assert name not in UNRULED
            if method.complete:
                assert made.completeness_error < (1e-10 if dtype == "float64" else 1e-3)


@pytest.mark.parametrize("name", UNRULED)
def test_the_refusals_name_what_is_in_the_way_and_what_to_choose(name: str) -> None:
    found = case(name)
    for method in METHODS:
        reason = method.refuse(found)
        assert "integrated gradients" in reason
        assert "layer norm" in reason or "multiplied with each other" in reason
        if name in ("vit", "convnext") and method.name in ("guided_backprop", "deconvolution"):
            assert "GELU" in reason


def test_real_networks_add_up(real) -> None:
    from real_nets import mnist, resnet20

    for objective in (mnist(real), resnet20(real)):
        for row in range(2):
            made = attribute(case_of(objective, row), "deep_lift")
            assert made.completeness_error < 1e-4 and made.badge.verdict == "ok"


@pytest.mark.parametrize("name", ["resnet20", "hub resnet", "cnn", "tabular", "bert"])
def test_nothing_of_the_model_is_changed(name: str) -> None:
    found = case(name)
    left_as_it_was(found, METHODS)
    assert not found.features.requires_grad


def test_text_is_explained_by_token_vectors_whatever_axis_is_the_batch() -> None:
    torch.manual_seed(0)
    ids = torch.randint(1, 11, (4, 5))
    data = batches(ids, torch.zeros(4, dtype=torch.int64))
    found = case_of(Objective.of(Tokens(), data, "cross_entropy", dtype="float64", device="cpu"), 0)
    made = attribute(found, "deep_lift", ZERO)
    first, bias, second, _ = (each.detach() for each in found.objective.theta[1:])
    inner = found.features[0] @ first.T + bias
    slopes = (inner.relu() - bias.relu()) / (inner - bias)
    wanted = ((slopes * second[found.target.index]) @ first * found.features[0]).sum(1) / 5
    np.testing.assert_allclose(made.values, wanted, rtol=1e-10)
    assert attribute(found, "deep_lift_shap").completeness_error < 1e-10
    shown = attribute(found, "guided_backprop")
    assert shown.values.shape == (5,) and not shown.signed and shown.badge.verdict == "ok"


def test_references_are_averaged_and_each_is_complete() -> None:
    found = case("tabular")
    references = baselines(found, "data", count=4)
    each = deep_lift(found, references)[0]
    np.testing.assert_allclose(each.sum(1), found.score - found.in_chunks(references), rtol=1e-10)
    np.testing.assert_allclose(each[2:3], deep_lift(found, references[2:3])[0], rtol=1e-12)
    found._kept["chunk"] = 4  # one reference at a time
    np.testing.assert_allclose(deep_lift(found, references)[0], each, rtol=1e-12)
    with pytest.raises(AttributionError, match="0 references; give 1 or more"):
        attribute(found, "deep_lift_shap", Settings(samples=0))


def test_a_rectifier_in_disguise_is_found_out() -> None:
    class Disguised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 9), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            inner = self.inner(x)
            return self.head(inner * (inner > 0))

    torch.manual_seed(0)
    found = of_module(settled(Disguised(), 0), torch.randn(4))
    with pytest.raises(AttributionError, match=r"looks linear to autograd.*integrated gradients"):
        attribute(found, "deep_lift", ZERO)
    with pytest.raises(AttributionError, match="has no ReLU"):
        attribute(found, "guided_backprop")


def test_a_fused_function_and_another_path_at_the_baseline_are_refused() -> None:
    fused = pictured(Functional(functional.tanhshrink))  # torch computes a tanh within it
    with pytest.raises(AttributionError, match=r"tanh.*fused or compiled.*integrated gradients"):
        attribute(fused, "deep_lift", ZERO)

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.relu(x) if float(x.detach().abs().sum()) > 0 else x)

    with pytest.raises(AttributionError, match=r"other operations on the baseline.*integrated gradients"):
        attribute(of_module(Chooses(), torch.ones(4)), "deep_lift", ZERO)


def test_batch_statistics_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 2))
    reason = methods()["deep_lift"].refuse(pictured(net))
    assert "statistics of the activations" in reason and "integrated gradients" in reason


def test_one_map_is_the_same_alone_and_among_others() -> None:
    objective = objective_of("cnn")
    one = attribute(case_of(objective, 2), "deep_lift").values
    alone = attribute(case_of(objective.chosen([2]), 0), "deep_lift").values
    np.testing.assert_allclose(one, alone, rtol=1e-12)
