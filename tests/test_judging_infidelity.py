"""Infidelity: Captum on the same perturbations, exact zero on linear models, what is shared and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_cases import case
from captum.metrics import infidelity as of_captum
from scipy import stats

from probes.attribution import AttributionError, attribute
from probes.attribution.judging import infidelity
from probes.attribution.judging.infidelity import replacements, shaken
from probes.attribution.judging.orders import default_baselines, reference
from probes.attribution.players import laid_out
from probes.strict import strict


def whole_map(found, values):
    """A map with a value for each number of the features, as Captum wants it; channels or vectors share evenly."""
    if found.embedding:
        return np.repeat(values[:, None] / found.features.shape[-1], found.features.shape[-1], 1)
    return np.broadcast_to(values / (found.shape[0] if values.shape != found.shape else 1), found.shape)


def captums(found, values, perturbed, perturbations, *, normalize):
    """What Captum gives of these perturbations."""
    attributions = torch.from_numpy(whole_map(found, values).copy())[None]
    with torch.no_grad(), strict(found.module):
        return float(of_captum(
            found.as_module(), lambda _: (perturbations, perturbed), found.features, attributions,
            n_perturb_samples=len(perturbed), normalize=normalize,
        ))  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("name", "shape"), [("cnn", None), ("resnet20", None), ("resnet20", (1, 16, 16)),
                                             ("tabular", None), ("bert", None), ("gpt2", None)])  # fmt: skip
def test_replacing_equals_captum(name: str, shape: tuple[int, ...] | None, normalize: bool) -> None:
    found = case(name, 1)
    values = np.random.default_rng(0).standard_normal(shape or found.shape)
    baseline = default_baselines(found)[0]
    made = infidelity(found, values, samples=12, normalize=normalize, seed=5)
    masks, _ = replacements(found, baseline, 12, 5)
    laid = found.shape[-2:] if found.kind == "image" else found.shape
    gone = torch.from_numpy(np.stack([laid_out(found, each.reshape(laid)) for each in masks]))
    perturbed = torch.where(gone, reference(found, baseline), found.features)
    perturbations = gone.expand(12, *found.features.shape[1:]).double()
    expected = captums(found, values, perturbed, perturbations, normalize=normalize)
    assert made.value == pytest.approx(expected, rel=1e-9)
    assert made.about["baseline"] == baseline and baseline in made.about["perturbation"]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", ["cnn", "resnet20", "tabular"])
def test_noise_equals_captum(name: str, normalize: bool) -> None:
    found = case(name)
    values = attribute(found, "gradient").values
    made = infidelity(found, values, kind="noise", noise=0.1, samples=9, normalize=normalize)
    drawn = torch.from_numpy(shaken(found, 0.1, 9, 0)[0])
    expected = captums(found, values, found.features - drawn, drawn, normalize=normalize)
    assert made.value == pytest.approx(expected, rel=1e-9)


def test_of_a_linear_model_the_right_map_has_none() -> None:
    found = case("linear")
    right = attribute(found, "integrated_gradients").values
    assert infidelity(found, right, normalize=False).value < 1e-24
    slope = attribute(found, "gradient").values
    assert infidelity(found, slope, kind="noise", normalize=False).value < 1e-24
    scaled = infidelity(found, -7 * right)
    assert scaled.value < 1e-24 and scaled.about["scale"] == pytest.approx(-1 / 7)
    assert scaled.about["unexplained"] < 1e-20
    assert infidelity(found, -7 * right, normalize=False).value > 1
    nothing = infidelity(found, np.zeros(6))
    assert nothing.about["unexplained"] == pytest.approx(1)


def test_the_standard_error_is_that_of_the_mean_of_the_squares() -> None:
    found = case("tabular")
    values = np.random.default_rng(1).standard_normal(6)
    masks, lost = replacements(found, "mean", 50, 0)
    squares = (masks @ values - lost) ** 2
    made = infidelity(found, values, samples=50, normalize=False)
    assert made.stderr == pytest.approx(stats.sem(squares))
    many = infidelity(found, values, samples=4000, normalize=False, seed=1)
    assert abs(made.value - many.value) < 4 * np.hypot(made.stderr, many.stderr)


def test_masks_are_squares_in_the_image_or_some_of_the_tokens_that_may_go() -> None:
    masks = replacements(case("cnn"), "mean", 999, 0)[0].reshape(999, 12, 12)
    sides = set()
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns) and len(rows) == len(columns) == np.ptp(rows) + 1
        sides.add(len(rows))
    assert sides == {2, 3, 4, 5, 6} and masks.any(0).all()
    found = case("bert")
    object.__setattr__(found, "special", (True, *[False] * 5, True))
    masks = replacements(found, "mean embedding", 60, 0)[0]
    assert not masks[:, [0, 6]].any() and set(masks.sum(1)) == {1, 2, 3, 4, 5}


def test_the_model_is_run_once_for_all_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("cnn")
    infidelity(found, np.ones(found.shape))
    monkeypatch.setattr(type(found), "in_chunks", lambda *_: pytest.fail("the model was run again"))
    infidelity(found, np.random.default_rng(0).standard_normal(found.shape))


def test_what_cannot_be_judged_is_refused() -> None:
    found = case("bert")
    with pytest.raises(AttributionError, match='choose the perturbation "replace"'):
        infidelity(found, np.ones(7), kind="noise")
    with pytest.raises(AttributionError, match="at least 2"):
        infidelity(found, np.ones(7), samples=1)
    with pytest.raises(AttributionError, match="not finite"):
        infidelity(found, np.full(7, np.inf))
