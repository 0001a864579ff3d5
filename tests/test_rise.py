"""RISE against the paper's sum on the same masks and the closed form of a linear model; errors that cover; resuming."""

from __future__ import annotations

import attribution_cases
import numpy as np
import pytest
import torch
from perturbation_cases import Cancelled, Keeping, interacting, plan, run

from probes.attribution import Settings
from probes.attribution import rise as rise_module
from probes.attribution.rise import feature_masks, image_masks, rise

KINDS = ["cnn", "resnet20", "vit", "bert", "gpt2", "tabular"]


def _linear(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, baseline = torch.randn(1, *shape, generator=generator), 0.3 * torch.randn(1, *shape, generator=generator)
    weight = torch.randn(shape, generator=generator)
    return x.double(), baseline.double(), weight.double()


def _enlarged(cells, size):
    """Weights (size, cells) of linear interpolation between the centres of cells, by the definition."""
    weights = np.zeros((size, cells))
    for i in range(size):
        at = (i + 0.5) * cells / size - 0.5
        low = int(np.floor(at))
        for cell, weight in ((low, low + 1 - at), (low + 1, at - low)):
            weights[i, min(max(cell, 0), cells - 1)] += weight
    return weights


def _covariance(height, width, cells):
    """Cov(M_i, M_j) over the cells' values (variance 1/4 each) and over all shifts."""
    tall, wide = -(-height // cells), -(-width // cells)
    down, right = _enlarged(cells, (cells + 1) * tall), _enlarged(cells, (cells + 1) * wide)
    total = np.zeros((height * width, height * width))
    for i in range(tall):
        for j in range(wide):
            weights = np.kron(down[i : i + height], right[j : j + width])
            total += weights @ weights.T / 4
    return total / (tall * wide)


@pytest.mark.parametrize(("height", "width", "cells"), [(6, 6, 3), (5, 8, 3)])
def test_of_a_linear_model_the_expectation_is_the_covariance_of_the_masks(height, width, cells):
    x, baseline, weight = _linear((2, height, width))
    scores = lambda z: (z * weight).flatten(1).sum(1) + 3.0
    masks = lambda random: image_masks(random, 40, height, width, cells)
    found = rise(scores, x, baseline, plan(100), masks, (1, height, width))
    slope = (weight * (x - baseline)[0]).sum(0).reshape(-1).numpy()
    expected = (_covariance(height, width, cells) @ slope / 0.5).reshape(1, height, width)
    z = (found.values - expected) / found.stderr
    assert np.abs(z).max() < 4
    assert found.about["mean_score"] == pytest.approx(float(scores((x + baseline) / 2)[0]))
    assert found.stderr.max() < 0.2 * np.abs(expected).max(), "the test could not fail"


def test_of_a_linear_model_of_columns_the_expectation_is_half_of_weight_times_difference():
    x, baseline, weight = _linear((6,))
    found = rise(lambda z: z @ weight, x, baseline, plan(100), lambda random: feature_masks(random, 50, 6), (6,))
    assert np.all(np.abs(found.values - (weight * (x - baseline)[0] / 2).numpy()) < 4 * found.stderr)


def test_it_is_the_sum_of_the_paper_less_the_mean_score():
    """S = sum f(x * M) M / (N p), on the very same masks and their complements."""
    x, baseline, _ = _linear((1, 9, 9))
    scores = interacting(81)
    masks = lambda random: image_masks(random, 30, 9, 9)
    found = rise(scores, x, baseline, plan(4), masks, (1, 9, 9))
    total, mean, count = np.zeros((1, 9, 9)), 0.0, 0
    for number in range(4):
        for mask in masks(plan(4).random(number)).double():
            for each in (mask, 1 - mask):
                score = float(scores(x * each + baseline * (1 - each))[0])
                total, mean, count = total + score * each.numpy(), mean + score, count + 1
    np.testing.assert_allclose(found.values, total / (count * 0.5) - mean / count, atol=1e-9)
    assert found.about["mean_score"] == pytest.approx(mean / count) and found.about["evaluations"] == count == 240


@pytest.mark.parametrize(("height", "width"), [(28, 28), (9, 14), (4, 32)])
def test_masks_are_cells_enlarged_and_shifted(height, width):
    drawn = image_masks(np.random.default_rng(0), 300, height, width).numpy()
    assert drawn.shape == (300, 1, height, width)
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert np.abs(drawn.mean(0) - 0.5).max() < 4.5 * 0.5 / 300**0.5
    again = np.random.default_rng(0)
    grid = (again.random((300, 1, 7, 7)) < 0.5)[5, 0]
    tall, wide = -(-height // 7), -(-width // 7)
    down, right = again.integers(0, tall, 300)[5], again.integers(0, wide, 300)[5]
    large = _enlarged(7, 8 * tall) @ grid @ _enlarged(7, 8 * wide).T
    np.testing.assert_allclose(drawn[5, 0], large[down : down + height, right : right + width], atol=1e-6)


def test_standard_errors_cover_the_expectation():
    x, baseline, weight = _linear((1, 6, 6))
    masks = lambda random: image_masks(random, 10, 6, 6, 3)
    scores = lambda z: (z * weight).flatten(1).sum(1)
    slope = (weight * (x - baseline)[0]).reshape(-1).numpy()
    expected = (_covariance(6, 6, 3) @ slope / 0.5).reshape(1, 6, 6)
    found = [rise(scores, x, baseline, plan(25, seed=seed), masks, (1, 6, 6)) for seed in range(150)]
    z = np.array([(each.values - expected) / each.stderr for each in found])
    assert 0.93 < float((np.abs(z) < 2).mean()) < 0.97
    assert np.abs(z.mean()) < 0.25 and z.std() == pytest.approx(1, abs=0.08)


def test_pairs_of_masks_have_a_smaller_error_than_the_sum_of_the_paper():
    x, baseline, weight = _linear((1, 6, 6))
    scores = lambda z: (z * weight).flatten(1).sum(1) + 3.0
    ours = [rise(scores, x, baseline, plan(5, seed=seed), _ten, (1, 6, 6)).values for seed in range(60)]
    theirs = []
    for seed in range(60):
        masks = image_masks(np.random.default_rng(seed), 100, 6, 6, 3).double()
        theirs.append(
            np.mean((scores(x * masks + baseline * (1 - masks))[:, None, None, None] * masks).numpy(), 0) / 0.5
        )
    assert np.var(ours, 0).mean() < 0.5 * np.var(theirs, 0).mean()


def _ten(random):
    return image_masks(random, 10, 6, 6, 3)


def test_it_finds_the_only_patch_that_counts():
    x, baseline = torch.ones(1, 3, 28, 28), torch.zeros(1, 3, 28, 28)
    scores = lambda z: torch.tanh(z[:, 1, 8:14, 16:22].mean((1, 2)) * 2)
    found = rise(scores, x, baseline, plan(20), lambda random: image_masks(random, 49, 28, 28), (1, 28, 28))
    row, column = np.unravel_index(found.values[0].argmax(), (28, 28))
    assert 8 <= row < 14 and 16 <= column < 22
    far = found.values[0, 20:, :8]
    assert np.abs(far).max() < 0.2 * found.values.max() and np.all(np.abs(far) < 5 * found.stderr[0, 20:, :8])


@pytest.mark.parametrize("name", KINDS)
def test_it_runs_on_every_kind(name):
    case = attribution_cases.case(name, dtype="float32")
    found = run(rise_module, case, "rise", Settings(samples=3))
    shape = (1, *case.shape[1:]) if case.kind == "image" else case.shape
    assert found.values.shape == found.stderr.shape == shape and np.all(found.stderr > 0)
    assert found.about["masks"] == found.about["evaluations"] == 3 * 2 * 49
    assert found.completeness_error is None


def test_images_are_masked_to_the_mean_colour_unless_another_baseline_is_asked_for():
    case = attribution_cases.case("resnet20")
    seen = []
    object.__setattr__(case, "in_chunks", lambda features: seen.append(features) or case.scores(features).detach())
    assert run(rise_module, case, "rise", Settings(samples=2)).about["baseline"] == "mean"
    colour = case.objective.inputs.mean((0, 2, 3))
    hidden = torch.isclose(seen[-1], colour[:, None, None].to(seen[-1])).all(1)
    shown = torch.isclose(seen[-1], case.features).all(1)
    assert 0.03 < float(hidden.double().mean()) < 0.5 and 0.03 < float(shown.double().mean()) < 0.5
    assert run(rise_module, case, "rise", Settings(samples=2, baseline="blur")).about["baseline"] == "blur"


def test_it_stops_at_the_tolerance_or_at_the_number():
    case = attribution_cases.case("cnn")
    loose, strict = (
        run(rise_module, case, "rise", Settings(samples=n, tolerance=t)) for n, t in ((90, 0.15), (11, 1e-9))
    )
    assert loose.about["stopped"] == "tolerance" and 10 < loose.about["samples"] < 90
    assert loose.about["relative_stderr"] <= 0.15
    assert (strict.about["stopped"], strict.about["samples"]) == ("samples", 11)


def test_a_cancelled_run_goes_on_from_the_stored_seed():
    case = attribution_cases.case("cnn")
    whole = run(rise_module, case, "rise", Settings(samples=7, seed=3))
    tick = Keeping(most=4)
    with pytest.raises(Cancelled):
        run(rise_module, case, "rise", Settings(samples=7, seed=3), tick)
    tick.most = 10**9
    resumed = run(rise_module, case, "rise", Settings(samples=7, seed=3), tick)
    np.testing.assert_array_equal(resumed.values, whole.values)
    np.testing.assert_array_equal(resumed.stderr, whole.stderr)
    assert len(tick.told) == 7
    further = run(rise_module, case, "rise", Settings(samples=9, seed=3), tick)
    assert len(tick.told) == 9 and further.about["masks"] == 9 * 98
    other = run(rise_module, attribution_cases.case("cnn", row=1), "rise", Settings(samples=7, seed=3), tick)
    assert len(tick.told) == 16 and not np.array_equal(other.values, whole.values)


def test_what_is_known_is_kept_while_it_runs(monkeypatch):
    monkeypatch.setattr("probes.attribution.sampling.SECONDS_BETWEEN_SAVES", 0.0)
    tick, rounds = Keeping(), []
    monkeypatch.setattr(tick, "save", lambda key, arrays: rounds.append(int(arrays["rounds"][0])))
    run(rise_module, attribution_cases.case("tabular"), "rise", Settings(samples=4), tick)
    assert rounds == [1, 2, 3, 4]
