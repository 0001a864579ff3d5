"""Full gradients: complete on real models, equal to explicit biases and to products module by module."""

from __future__ import annotations

import attribution_cases
import numpy as np
import pytest
import torch
from attribution_cases import case
from fullgrad_cases import explicit_terms, made
from real_nets import mnist, resnet20
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from probes.attribution import attribute, case_of
from probes.attribution.fullgrad import TOLERANCE, full_gradient
from probes.attribution.fullgrad_places import on_grid
from probes.attribution.fullgrad_units import SCORE, Term


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
