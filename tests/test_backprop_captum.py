"""DeepLIFT, guided backpropagation and deconvolution against Captum: where it is right, and where it is not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import case, of_module
from backprop_cases import ZERO, Functional, pictured
from captum.attr import Deconvolution, DeepLift, DeepLiftShap, GuidedBackprop
from curvature_oracles import batches
from torch import Tensor, nn
from torch.nn import functional

from probes.attribution import Case, attribute, baselines, case_of
from probes.attribution.backprop import deep_lift
from probes.objective import Objective
from probes.strict import strict


def alike(one: nn.Module, other: nn.Module) -> tuple[Case, Case]:
    """Cases of two modules with the same parameters."""
    torch.manual_seed(1)
    first = pictured(one)
    other.load_state_dict({name: each.float() for name, each in first.module.state_dict().items()})
    data = batches(first.objective.inputs.float(), torch.zeros(4, dtype=torch.int64))
    return first, case_of(Objective.of(other, data, "cross_entropy", dtype="float64", device="cpu"), 0, first.target)


def captum(kind: Any, found: Case, *more: Any, **options: Any) -> np.ndarray:
    """What Captum itself says of a case."""
    with warnings.catch_warnings(), strict(found.module):
        warnings.simplefilter("ignore")
        features = found.features.detach().clone().requires_grad_()
        return kind(found.as_module()).attribute(features, *more, target=0, **options)[0].detach().numpy()


def apart(module: nn.Module) -> nn.Module:
    """The same chain with an operation before each max pool: beside another of its hooks Captum's pool rule is lost."""

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    steps = [[Same(), each, Same()] if isinstance(each, nn.MaxPool2d) else [each] for each in module]
    return nn.Sequential(*(each for step in steps for each in step))


@pytest.mark.parametrize("name", ["cnn", "tabular"])
def test_equal_to_captum_where_captum_is_right(name: str) -> None:
    for row in range(3):
        found = case(name, row)
        objective = Objective.of(apart(found.module), found.objective.batches, "cross_entropy", dtype="float64",
                                 device="cpu")  # fmt: skip
        twin = case_of(objective, row, found.target)
        reference, others = baselines(found, "zero"), baselines(found, "data", count=25)
        np.testing.assert_allclose(attribute(found, "deep_lift", ZERO).values, captum(DeepLift, twin, reference),
                                   rtol=1e-9, atol=1e-12)  # fmt: skip
        np.testing.assert_allclose(attribute(found, "deep_lift_shap").values, captum(DeepLiftShap, twin, others),
                                   rtol=1e-9, atol=1e-12)  # fmt: skip


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2)])
def test_captums_max_pools_beside_rectifiers_or_with_overlap_do_not_add_up_and_ours_do(pool: nn.Module) -> None:
    size = 4 * (5 if pool.kernel_size == 2 else 4) ** 2
    chain = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(size, 3))
    found = pictured(chain if pool.kernel_size == 2 else apart(chain))
    references = baselines(found, "random", count=5)
    wanted = (found.score - found.in_chunks(references)).numpy()
    theirs = np.array([captum(DeepLift, found, each).sum() for each in references.split(1)])
    assert (np.abs(theirs - wanted) > 0.05 * np.abs(wanted)).any()
    np.testing.assert_allclose(deep_lift(found, references)[0].flatten(1).sum(1), wanted, rtol=1e-10)


@pytest.mark.parametrize("name", ["cnn", "tabular", "hub resnet"])
@pytest.mark.parametrize(("method", "kind"), [("guided_backprop", GuidedBackprop), ("deconvolution", Deconvolution)])
def test_guided_maps_equal_captums_where_rectifiers_are_modules(name: str, method: str, kind: Any) -> None:
    for row in range(3):
        found = case(name, row)
        np.testing.assert_allclose(attribute(found, method).values, captum(kind, found), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("module", [nn.ELU(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.Softplus()])
def test_deep_lift_equals_captum_on_each_activation_that_captum_knows(module: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(4, 6), module, nn.Linear(6, 2))
    found = of_module(net, torch.randn(4, generator=torch.Generator().manual_seed(3)))
    wanted = captum(DeepLift, found, baselines(found, "zero"))
    np.testing.assert_allclose(attribute(found, "deep_lift", ZERO).values, wanted, rtol=1e-9)


ACTIVATIONS = {
    "functional": functional.relu,
    "method": lambda x: x.relu(),
    "clamp": lambda x: x.clamp(min=0),
    "in place": lambda x: functional.relu(x, inplace=True),
    "in place by position": lambda x: functional.relu(x, True),
    "in place without its answer": lambda x: (x.relu_(), x)[1],
    "reused module": nn.ReLU(),
    "reused module in place": nn.ReLU(inplace=True),
}


class Separate(Functional):
    """With a module of its own at each place, as Captum needs it."""

    def __init__(self) -> None:
        super().__init__(None, nn.MaxPool2d(2))
        self.one, self.two = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.one(self.first(x)) * 1.0)
        return self.head(self.two(self.second(x))[:, :, :2, :2].flatten(1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_however_a_rectifier_is_called_the_maps_are_captums_of_separate_modules(activation: str) -> None:
    modular, other = alike(Separate(), Functional(ACTIVATIONS[activation]))
    wanted = {
        "deep_lift": captum(DeepLift, modular, baselines(modular, "zero")),
        "guided_backprop": captum(GuidedBackprop, modular),
        "deconvolution": captum(Deconvolution, modular),
    }
    for name, values in wanted.items():
        made = attribute(other, name, ZERO)
        np.testing.assert_allclose(made.values, values, rtol=1e-9, atol=1e-14)
        assert made.badge.verdict == "ok", made.badge


def test_captum_itself_does_nothing_at_functional_rectifiers_and_fails_at_reused_ones() -> None:
    found = pictured(Functional(functional.relu))
    plain = attribute(found, "gradient").values
    np.testing.assert_allclose(captum(DeepLift, found, baselines(found, "zero")), plain * found.features[0].numpy())
    np.testing.assert_allclose(captum(GuidedBackprop, found), plain)
    with pytest.raises(RuntimeError, match="used more than once"):
        captum(DeepLift, pictured(Functional(nn.ReLU())), baselines(found, "zero"))
