"""LRP: by matrices, against Captum, on merged batch norms and residual sums; conserved to the last bias, or refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from attribution_cases import NETS, case, left_as_it_was, objective_of, of_module, settled
from curvature_oracles import batches
from lrp_cases import PLAIN, by_matrices, of_images
from torch import Tensor, nn
from torch.nn import functional

from probes.attribution import AttributionError, attribute, case_of
from probes.attribution.lrp import METHODS, relevance
from probes.objective import Objective

RUNS = ("cnn", "resnet20", "hub resnet", "tabular", "linear")


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
    left_as_it_was(found, METHODS)


def test_one_map_is_the_same_alone_and_among_others() -> None:
    objective = objective_of("cnn")
    one = attribute(case_of(objective, 2), "lrp_composite").values
    np.testing.assert_allclose(one, attribute(case_of(objective.chosen([2]), 0), "lrp_composite").values, rtol=1e-12)
