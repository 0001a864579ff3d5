"""LRP: by matrices, against Captum, on merged batch norms and residual sums; conserved to the last bias, or refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attribution_cases import NETS, case, objective_of, of_module, settled
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule
from curvature_oracles import batches
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from probes.architecture.modules import CifarResNet
from probes.attribution import AttributionError, Case, attribute, case_of
from probes.attribution.lrp import METHODS, relevance
from probes.attribution.lrp_layers import Rules
from probes.objective import Objective

PLAIN = Rules(epsilon=0.0)
RUNS = ("cnn", "resnet20", "hub resnet", "tabular", "linear")


class Flat(nn.Module):
    """The chain `cnn` of the cases with the flattening in its forward: Captum has no rule for nn.Flatten."""

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        self.steps = nn.Sequential(*(each for each in chain if not isinstance(each, nn.Flatten)))

    def forward(self, x: Tensor) -> Tensor:
        for each in self.steps:
            x = each(x.flatten(1) if isinstance(each, nn.Linear) else x)
        return x


def of_images(module: nn.Module, inputs: Tensor) -> Case:
    data = batches(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return case_of(Objective.of(module, data, "cross_entropy", dtype="float64", device="cpu"), 0)


def copied(found: Case) -> nn.Module:
    """A copy of the case's model in its own dtype, with activations out of place."""
    module = copy.deepcopy(found.module).to(found.features.dtype)
    with torch.no_grad():
        for own, theta in zip(module.parameters(), found.objective.theta, strict=True):
            own.copy_(theta)
    for each in module.modules():
        if hasattr(each, "inplace"):
            each.inplace = False
    return module


def dense(layer: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A layer at one input as inputs, matrix and bias, all flat."""
    weight = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0].flatten(), x).flatten(1)
    bias = layer(torch.zeros_like(x)[None])[0].flatten()
    return x.flatten().detach().numpy(), weight.numpy(), bias.detach().numpy()


def one_layer(R: np.ndarray, x: np.ndarray, W: np.ndarray, b: np.ndarray, epsilon: float, gamma: float) -> np.ndarray:
    """Relevance below one layer, contribution by contribution, as the papers write the rules."""
    parts, below = W * x[None], np.zeros_like(x)
    for part, bias, r in zip(parts, b, R, strict=True):
        z = part.sum() + bias
        if r == 0:
            continue
        if gamma:
            more = (part > 0) if z > 0 else (part < 0)
            weighed = part * (1 + gamma * more)
            bias = bias * (1 + gamma * ((bias > 0) if z > 0 else (bias < 0)))
            below += weighed / (weighed.sum() + bias) * r
        else:
            below += part / (z + epsilon * (1 if z >= 0 else -1)) * r
    return below


def by_matrices(found: Case, share: float, gamma: float = 0.0) -> np.ndarray:
    """LRP of a chain by explicit matrices: relevance, not gradients, from the last layer down."""
    chain, x, steps = copied(found), found.features[0], []
    for each in chain:
        steps.append((each, x))
        x = each(x[None])[0].detach()
    R = np.where(np.arange(len(x)) == found.target.index, x.numpy(), 0.0)
    last = True
    for each, given in reversed(steps):
        if isinstance(each, nn.Linear | nn.Conv2d | nn.AvgPool2d):
            x, W, b = dense(each, given)
            epsilon = 0.0 if last or isinstance(each, nn.AvgPool2d) else share * np.sqrt(np.mean((W @ x + b) ** 2))
            R = one_layer(R, x, W, b, epsilon, gamma if isinstance(each, nn.Conv2d) else 0.0)
            last = False
    return R.reshape(found.features.shape[1:])


def test_a_linear_model_is_divided_by_share_and_the_bias_keeps_its_own() -> None:
    found = case("linear", 1)
    made = attribute(found, "lrp_epsilon")
    weight, bias = (each.detach()[found.target.index] for each in found.objective.theta)
    np.testing.assert_allclose(made.values, weight * found.features[0], rtol=1e-12)
    assert made.about["kept_by_biases"] == pytest.approx(float(bias))
    assert made.about["kept_by_epsilon"] == 0
    assert made.completeness_error is None  # not promised: biases keep their share


def test_two_layers_by_hand() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 3.0], [-1.0, 0.0]]))
        module[0].bias.copy_(torch.tensor([-1.0, 0.0]))
        module[2].weight.copy_(torch.tensor([[2.0, 5.0], [0.0, 0.0]]))
        module[2].bias.copy_(torch.tensor([4.0, 0.0]))
    found = of_module(module, torch.tensor([1.0, 2.0]))  # inner: 6 and -1; score 2 * 6 + 4 = 16, of which 12 go on
    epsilon = 0.25 * (37 / 2) ** 0.5
    made = attribute(found, "lrp_epsilon")
    assert made.values.tolist() == pytest.approx([12 * 1 / (6 + epsilon), 12 * 6 / (6 + epsilon)])
    assert made.about["kept_by_biases"] == pytest.approx(4 + 12 * -1 / (6 + epsilon))
    assert made.about["kept_by_epsilon"] == pytest.approx(12 * epsilon / (6 + epsilon))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu in place": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU, "tanh": nn.Tanh,
    "silu": nn.SiLU, "leaky": lambda: nn.LeakyReLU(0.1), "elu": nn.ELU, "relu6": nn.ReLU6,
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_perceptrons_equal_the_matrices(activation: str) -> None:
    torch.manual_seed(0)
    make = ACTIVATIONS[activation]
    net = nn.Sequential(nn.Linear(4, 7), make(), nn.Linear(7, 5), make(), nn.Linear(5, 3))
    found = of_module(settled(net, 0), torch.randn(4), 1)
    made = attribute(found, "lrp_epsilon")
    np.testing.assert_allclose(made.values, by_matrices(found, 0.25), rtol=1e-9)
    assert made.badge.verdict == "ok"


@pytest.mark.parametrize(("name", "gamma"), [("lrp_epsilon", 0.0), ("lrp_composite", 0.25)])
def test_convolutions_equal_the_matrices_whatever_the_signs_of_their_inputs(name: str, gamma: float) -> None:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 4, 2, padding=1), nn.Conv2d(4, 4, 1))
    head = (nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
    net = nn.Sequential(*convolutions, *head)
    found = of_images(settled(net, 0), torch.randn(2, 2, 8, 8))
    made = attribute(found, name)
    np.testing.assert_allclose(made.values, by_matrices(found, 0.25, gamma), rtol=1e-8, atol=1e-14)
    words = [each["rule"] for each in made.about["rules"]]
    assert words[:3] == ["γ = 0.25"] * 3 if gamma else words[0].startswith("ε = ")
    assert words[-1] == "by share (ε = 0)"


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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NETS)
def test_each_method_runs_on_each_model_or_says_in_words_why_not(name: str, dtype: str) -> None:
    found = case(name, 1, dtype=dtype)
    for method in METHODS:
        if method.refuse(found):
            with pytest.raises(AttributionError, match=r"this model has.*(integrated gradients|LRP-ε) instead"):
                attribute(found, method.name)
            assert name not in RUNS or (method.name == "lrp_composite" and name in ("tabular", "linear"))
            continue
        made = attribute(found, method.name)
        about = made.about
        assert name in RUNS
        assert made.badge.verdict == "ok" and made.values.shape == found.shape
        total = about["sum"] + about["kept_by_biases"] + about["kept_by_epsilon"]
        assert total == pytest.approx(found.score, rel=1e-9 if dtype == "float64" else 1e-4)
        assert about["conservation_error"] < (1e-9 if dtype == "float64" else 1e-4)
        assert made.completeness_error is None and "biases keep" in made.notes[0]


def test_what_is_kept_is_listed_layer_by_layer() -> None:
    made = attribute(case("resnet20"), "lrp_epsilon")
    rules = made.about["rules"]
    assert len(rules) == 20
    assert sum(each["by_bias"] for each in rules) == pytest.approx(made.about["kept_by_biases"])
    assert sum(each["by_epsilon"] for each in rules) == pytest.approx(made.about["kept_by_epsilon"])


def test_constants_added_between_layers_keep_their_share() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 6, bias=False), nn.Linear(8, 2, bias=False)
            self.more = nn.Parameter(torch.ones(1, 2))

        def forward(self, x: Tensor) -> Tensor:
            x = (x - 0.5) / 0.25
            x += 0.1
            x = functional.relu(1.5 - self.first(x))
            return self.head(torch.cat([self.more.expand(len(x), -1), x], 1))

    torch.manual_seed(0)
    found = of_module(Shifted(), torch.randn(4))
    values, book = relevance(found, PLAIN)
    np.testing.assert_allclose(values[0], attribute(found, "input_x_gradient").values)
    assert abs(book.by_biases) > 0.01
    assert float(values.sum()) + book.by_biases == pytest.approx(found.score, rel=1e-12)


def test_a_rectifier_in_disguise_has_the_rectifiers_relevance() -> None:
    class Disguised(nn.Module):
        def __init__(self, hidden: bool) -> None:
            super().__init__()
            self.inner, self.head, self.hidden = nn.Linear(4, 9), nn.Linear(9, 2), hidden

        def forward(self, x: Tensor) -> Tensor:
            inner = self.inner(x)
            return self.head(inner * (inner > 0) if self.hidden else functional.relu(inner))

    torch.manual_seed(0)
    plain, row = Disguised(False), torch.randn(4)
    hidden = Disguised(True)
    hidden.load_state_dict(plain.state_dict())
    one, other = of_module(plain, row), of_module(hidden, row)
    np.testing.assert_allclose(attribute(one, "lrp_epsilon").values, attribute(other, "lrp_epsilon").values)


def test_text_is_explained_by_token_vectors() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 3)
            self.places = nn.Parameter(torch.randn(1, 5, 6))

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(functional.gelu(self.inner(self.table(ids) + self.places)).mean(1))

    torch.manual_seed(0)
    data = batches(torch.randint(1, 11, (4, 5)), torch.zeros(4, dtype=torch.int64))
    made = attribute(case_of(Objective.of(Tokens(), data, "cross_entropy", dtype="float64", device="cpu"), 0),
                     "lrp_epsilon")  # fmt: skip
    assert made.values.shape == (5,) and made.signed and made.badge.verdict == "ok"
    assert made.about["conservation_error"] < 1e-12


WITHOUT = {"sigmoid": nn.Sigmoid(), "softplus": nn.Softplus(), "layer norm": nn.LayerNorm(6), "softmax": nn.Softmax(-1)}


@pytest.mark.parametrize(("words", "module"), WITHOUT.items())
def test_what_has_no_rule_is_named(words: str, module: nn.Module) -> None:
    found = of_module(nn.Sequential(nn.Linear(4, 6), module, nn.Linear(6, 2)), torch.ones(4))
    with pytest.raises(AttributionError, match=rf"this model has {words}.*integrated gradients"):
        attribute(found, "lrp_epsilon")


def test_what_is_hidden_or_not_conserved_is_refused() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(functional.tanhshrink(x))

    with pytest.raises(AttributionError, match=r"tanh of this model runs in a fused.*integrated gradients"):
        attribute(of_module(Fused(), torch.ones(4)), "lrp_epsilon")

    class Doubled(Fused):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            if x.requires_grad:
                x.register_hook(lambda gradient: 2 * gradient)
            return self.gru(x)

    with pytest.raises(AttributionError, match=r"miss the score.*integrated gradients"):
        attribute(of_module(Doubled(), torch.ones(4)), "lrp_epsilon")


@pytest.mark.parametrize("name", ["resnet20", "hub resnet", "cnn", "tabular"])
def test_nothing_of_the_model_is_changed(name: str) -> None:
    found = case(name)
    module = found.module
    before = found.logits(found.features)
    state = {key: each.clone() for key, each in module.state_dict().items()}
    held = [(each.training, len(each._forward_hooks), len(each._backward_hooks), len(each._forward_pre_hooks))
            for each in module.modules()]  # fmt: skip
    needs = [each.requires_grad for each in module.parameters()]
    for method in METHODS:
        if not method.refuse(found):
            attribute(found, method.name)
    assert held == [(each.training, len(each._forward_hooks), len(each._backward_hooks), len(each._forward_pre_hooks))
                    for each in module.modules()]  # fmt: skip
    assert needs == [each.requires_grad for each in module.parameters()]
    assert all(torch.equal(each, state[key]) for key, each in module.state_dict().items())
    assert torch.equal(found.logits(found.features), before)


def test_captum_itself_does_not_conserve_relevance_at_residual_sums_and_ours_does() -> None:
    torch.manual_seed(0)
    found = of_images(bare(CifarResNet(8, "A", classes=3, width=4)), torch.randn(2, 3, 12, 12))
    assert abs(theirs(copied(found), found).sum() - found.score) > 0.5 * abs(found.score)
    assert float(relevance(found, Rules(epsilon=0.0, absolute=1e-9))[0].sum()) == pytest.approx(found.score, rel=1e-4)


def test_one_map_is_the_same_alone_and_among_others() -> None:
    objective = objective_of("cnn")
    one = attribute(case_of(objective, 2), "lrp_composite").values
    np.testing.assert_allclose(one, attribute(case_of(objective.chosen([2]), 0), "lrp_composite").values, rtol=1e-12)
