"""Full gradients: complete on real models, equal to explicit biases and to products module by module."""

from __future__ import annotations

import re

import attribution_cases
import numpy as np
import pytest
import torch
from attribution_cases import case
from curvature_oracles import batches
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from probes.attribution import AttributionError, attribute, case_of
from probes.attribution.fullgrad import TOLERANCE, full_gradient
from probes.attribution.fullgrad_places import on_grid
from probes.attribution.fullgrad_units import SCORE, Term, split
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import recognise
from probes.objective import Objective, build_objective
from probes.specs import DataSpec, ModelSpec

MNIST_CNN = ModelSpec(
    "text",
    text="Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))",
)


def made(module, inputs, dtype="float64"):
    """A case of the first of these inputs."""
    data = batches(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return case_of(Objective.of(module, data, "cross_entropy", dtype=dtype, device="cpu"), 0)


def mnist(real, dtype="float32"):
    found = read_batches(DataSpec((str(real / "mnist"),), examples=8))
    checkpoint = read_checkpoint(real / "mnist-cnn" / "run1" / "epoch-200.pt")
    return build_objective(MNIST_CNN, checkpoint, found, "cross_entropy", device="cpu", dtype=dtype)


def resnet20(real, count=4):
    folder = real / "cifar10-resnet20"
    checkpoint = read_checkpoint(folder / "resnet20-12fca82f.th")
    files = (str(folder / "cifar10-train-1000.npz"),)
    data = read_batches(DataSpec(files, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), examples=count))
    return build_objective(recognise(checkpoint).spec, checkpoint, data, "cross_entropy", device="cpu")


def explicit_terms(module, features, target):
    """Gradient times explicit bias at every convolution, linear layer and batch norm, by hooks; the oracle."""
    outputs, handles = {}, []

    def keep(name, z):
        outputs[name] = z
        return z.clone()  # what comes next may change it in place

    for name, each in module.named_modules():
        if isinstance(each, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            handles.append(each.register_forward_hook(lambda _, __, z, name=name: keep(name, z)))
    x = features.clone().requires_grad_()
    score = module(x)[0, target]
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(score, [x, *outputs.values()])
    terms = {"input": (gradients[0] * x).detach()}
    for (name, z), g in zip(outputs.items(), gradients[1:], strict=True):
        bias = bias_of(module.get_submodule(name))
        if bias is not None:
            terms[name] = (g * (bias.view(1, -1, 1, 1) if z.ndim == 4 else bias)).detach()
    return score.item(), terms


def bias_of(layer):
    if isinstance(layer, nn.BatchNorm2d):
        return layer.bias - layer.running_mean * layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return layer.bias


def published_map(terms, size):
    """The map of the paper's authors: per image scaled sizes, enlarged, summed over channels, of pictures only."""
    total = 0.0
    for each in terms.values():
        if each.ndim == 4:
            sizes = each.abs() - each.abs().min()
            scaled = sizes / sizes.max()
            total = total + functional.interpolate(scaled, size=size, mode="bilinear", align_corners=True).sum(1)
    return total[0]


@pytest.mark.parametrize("make", [mnist, resnet20])
def test_real_networks_are_complete_and_equal_the_explicit_biases(make, real):
    objective = make(real)
    for row in range(4):
        one = case_of(objective, row)
        found = attribute(one, "fullgrad")
        score, terms = explicit_terms(objective.module, one.features, one.target.index)
        assert found.completeness_error < TOLERANCE
        assert found.score == pytest.approx(score, rel=1e-6)
        contributions = found.about["contributions"]
        assert list(contributions) == [name for name in contributions if name in terms]
        for name, each in terms.items():
            assert contributions.get(name, 0.0) == pytest.approx(float(each.sum()), abs=2e-5 * abs(score)), name
        wanted = published_map(terms, one.features.shape[2:])
        np.testing.assert_allclose(found.values[0], wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))


def test_the_input_and_bias_shares_are_those_of_a_linear_model():
    one = case("linear")
    found = attribute(one, "fullgrad")
    weight, bias = (each.detach()[one.target.index] for each in one.objective.theta)
    np.testing.assert_allclose(found.values, weight * one.features[0])
    assert found.about["contributions"]["0"] == pytest.approx(float(bias))
    assert found.about["bias_share"] == pytest.approx(float(bias) / one.score)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", attribution_cases.NETS)
def test_every_model_of_the_table_is_complete(name, dtype):
    one = case(name, 2, dtype=dtype)
    found = attribute(one, "fullgrad")
    rounding = 1e-12 if dtype == "float64" and name != "llama" else TOLERANCE  # its norms are in float32 anyway
    assert found.completeness_error < rounding
    assert sum(found.about["contributions"].values()) == pytest.approx(one.score, rel=rounding)
    assert sum(found.about["kinds"].values()) == pytest.approx(one.score, rel=rounding)
    assert found.values.shape == ((1, *one.shape[1:]) if one.kind == "image" else one.shape)
    assert np.isfinite(found.values).all() and np.abs(found.values).max() > 0


def implicit(one, name):
    """<df/dz, u(h) - J h> of one module taken as one unit, by torch.func.jvp of that module alone."""
    kept = {}

    def keep(_, args, output):
        kept["h"], kept["z"] = args[0], output[0] if isinstance(output, tuple) else output

    module = one.module
    unit = module.get_submodule(name)
    handle = unit.register_forward_hook(keep)
    x = one.features.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        score = one.scores(x)
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept["z"])
        h = kept["h"].detach()
        run = lambda value: unit(value)[0] if isinstance(unit(value), tuple) else unit(value)
        z, product = torch.func.jvp(run, (h,), (h,))
    return (gradient * (z - product)).sum().item()


def test_parts_of_a_transformer_add_up_to_the_product_of_the_whole_part():
    one = case("vit")
    for parameter, theta in zip(dict(one.module.named_parameters()).values(), one.objective.theta, strict=True):
        parameter.data = theta.detach().clone()  # the oracle calls single modules, outside of the objective
    contributions = full_gradient(one).contributions()
    parts = [name for name, each in one.module.named_modules() if type(each).__name__ in ("ViTAttention", "ViTMLP")]
    assert len(parts) >= 4
    for name in [*parts, "vit.layernorm", "classifier"]:
        inside = [
            value for unit, value in contributions.items() if unit == name or unit.startswith((f"{name}.", f"{name} "))
        ]
        assert sum(inside) == pytest.approx(implicit(one, name), rel=1e-9, abs=1e-12), name
    assert any("own operations" in name for name in contributions)  # softmax attention is a function, not a module


class Disordered(nn.Module):
    """Registered in another order than it runs in, one layer used twice, functional activations."""

    def __init__(self):
        super().__init__()
        self.last, self.twice, self.first = nn.Linear(5, 3), nn.Linear(5, 5), nn.Linear(4, 5)
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x):
        h = functional.gelu(self.first(x)) + self.shift
        return self.last(torch.tanh(self.twice(h)) + self.twice(h * h))


def test_order_reuse_and_functions_between_modules_do_not_matter():
    found = full_gradient(made(Disordered(), torch.randn(3, 4)))
    contributions = found.contributions()
    assert found.residual < 1e-12 * abs(found.score)
    assert set(contributions) == {"input", "first", "Disordered (own operations)", "twice", "last"}
    own = [each for each in found.terms if each.unit == "twice"]
    assert len(own) == 2  # both calls


def test_closed_form_of_a_square():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x):
            return self.scale * x * x

    one = made(Square(), torch.tensor([[3.0, 5.0]]))
    assert one.target.index == 1
    contributions = full_gradient(one).contributions()
    assert contributions == {"input": pytest.approx(100.0), "Square": pytest.approx(-50.0)}


def test_tokens_and_the_rest_add_up_to_the_score():
    for name in ("bert", "gpt2"):
        one = case(name)
        found, parts = attribute(one, "fullgrad"), full_gradient(one)
        tokens = one.shape[0]
        rest = sum(each.total for each in parts.terms if each.values.ndim != 3 or each.values.shape[1] != tokens)
        assert found.signed and found.values.sum() + rest == pytest.approx(one.score, rel=1e-9)


def test_the_logarithm_of_a_probability_is_a_part():
    one = case("gpt2")
    contributions = full_gradient(one).contributions()
    x = one.features.clone().requires_grad_()
    logits = one.logits(x)[0]
    score = torch.log_softmax(logits, -1)[one.target.index]
    (gradient,) = torch.autograd.grad(score, logits)
    assert contributions[SCORE] == pytest.approx((score - gradient @ logits).item())


def test_the_class_token_is_kept_apart():
    one = case("vit")
    found = attribute(one, "fullgrad")
    (first,) = found.about["prefix_tokens"]
    tokens = [each for each in full_gradient(one).terms if each.values.ndim == 3]
    assert first == pytest.approx(sum(float(each.values[0, 0].sum()) for each in tokens))


@pytest.mark.parametrize(
    ("shape", "layout", "grids", "expected"),
    [
        ((1, 3, 4, 6), "first", (), (3, 4, 6)),
        ((1, 4, 6, 3), "last", (), (3, 4, 6)),
        ((1, 4, 6, 3), "", ((4, 6),), (3, 4, 6)),
        ((1, 3, 4, 6), "", ((4, 6),), (3, 4, 6)),
        ((1, 3, 25, 25), "", ((4, 6),), None),  # attention weights
        ((1, 25, 3), "", ((8, 12), (4, 6)), (3, 4, 6)),
        ((1, 24, 3), "", ((8, 12),), (3, 4, 6)),  # no such picture: the proportions of the image
        ((4, 6, 3), "", ((4, 6),), None),  # windows
        ((1, 7), "", ((4, 6),), None),
        ((1, 7, 1, 1), "first", ((1, 1),), None),
    ],
)
def test_places_of_all_layouts(shape, layout, grids, expected):
    found = on_grid(Term("u", "U", False, layout, torch.rand(shape)), grids, (16, 24))
    assert (None if found is None else tuple(found[0].shape)) == expected


def test_rows_of_patches_become_the_rows_of_the_picture():
    values = torch.arange(25.0).view(1, 25, 1)
    found = on_grid(Term("u", "U", False, "", values), ((4, 6),), (16, 24))
    assert torch.equal(found[0][0], torch.arange(1.0, 25.0).view(4, 6)) and torch.equal(found[1], torch.zeros(1, 1))


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient  # half of what it should be

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 3), function

    def forward(self, x):
        return self.function(self.linear(x))


def test_what_is_not_complete_is_refused_with_the_residual():
    one = made(Calls(WrongBackward.apply), torch.randn(2, 4), "float32")
    with pytest.raises(AttributionError, match=r"residual of .* Choose occlusion") as caught:
        attribute(one, "fullgrad")
    total, score = (
        float(each) for each in re.findall(r"add up to (\S+), but the score is (\S+):", str(caught.value))[0]
    )
    assert total == pytest.approx(score / 2, rel=1e-5) and score == pytest.approx(one.score, rel=1e-4)


def test_an_operation_without_forward_mode_is_refused():
    with pytest.raises(AttributionError, match="no forward-mode derivative"):
        attribute(made(Calls(NoForwardMode.apply), torch.randn(2, 4)), "fullgrad")


def test_a_change_in_place_whose_answer_is_thrown_away_is_refused():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.act = nn.Linear(4, 3), nn.Hardtanh(0.9, 1.0, inplace=True)

        def forward(self, x):
            h = self.linear(x) ** 2
            self.act(h)
            return h * 2

    with pytest.raises(AttributionError, match="in place"):
        attribute(made(Careless(), torch.randn(2, 4)), "fullgrad")


def test_residual_blocks_in_place_are_right():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.act(self.one(x))
            h = self.two(h)
            h += x
            return self.act(h)

    torch.manual_seed(3)
    one = made(nn.Sequential(nn.Linear(4, 4), Block(), Block(), nn.Linear(4, 3)), torch.randn(2, 4))
    contributions = full_gradient(one).contributions()
    _, terms = explicit_terms_of_vectors(one)
    assert contributions == {name: pytest.approx(value, abs=1e-12) for name, value in terms.items()}


def explicit_terms_of_vectors(one):
    module = one.module.double()
    score, terms = explicit_terms(module, one.features, one.target.index)
    return score, {name: float(each.sum()) for name, each in terms.items()}


def test_cancellation_in_float32_is_repeated_in_float64():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
    x = torch.rand(1, 300)
    with torch.no_grad():
        module[2].bias.add_(torch.full((2,), 1e4) - module(x)[0] - 1e4 + torch.tensor([1e-4, 0.0]))
    one = made(module, x, "float32")
    single = split(one.scores, one.module, one.features)
    assert single.residual / abs(single.score) > TOLERANCE
    found = attribute(one, "fullgrad")
    assert found.about["dtype"] == "float64" and found.completeness_error < TOLERANCE


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_recurrent_networks_are_complete(recurrent):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = recurrent(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.rnn(x.view(len(x), 3, 4))[0][:, -1])

    assert full_gradient(made(Last(), torch.randn(2, 12))).residual < 1e-12


def test_nothing_is_left_behind():
    for name in ("resnet20", "vit", "bert"):
        one = case(name)
        before = traces(one)
        attribute(one, "fullgrad")
        after = traces(one)
        assert before[:-1] == after[:-1] and torch.equal(before[-1], after[-1])
        assert torch.backends.mha.get_fastpath_enabled()


def traces(one):
    """Hooks, modes, requires_grad and outputs: what a method must leave as it was."""
    modules = list(one.module.modules())
    hooks = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) + len(each._backward_hooks) for each in modules)
    modes = [each.training for each in modules]
    needs = [each.requires_grad for each in [*one.module.parameters(), *one.objective.theta]]
    gradients = [each.grad is None for each in [*one.module.parameters(), *one.objective.theta]]
    return hooks, modes, needs, gradients, one.scores(one.features).detach()
