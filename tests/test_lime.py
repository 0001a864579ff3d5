"""LIME against scikit-learn, Captum with the same coalitions, and the fit over all coalitions."""

from __future__ import annotations

import attribution_cases
import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from captum.attr import Lime
from perturbation_cases import Cancelled, Keeping, game, interacting, plan, run
from sklearn.linear_model import LinearRegression

from probes.attribution import Settings, baselines
from probes.attribution import lime as lime_module
from probes.attribution.coalitions import all_coalitions
from probes.attribution.lime import lime, local, nearness, pairs
from probes.attribution.players import players_of, regions_or_single

KINDS = ["cnn", "resnet20", "bert", "gpt2", "tabular"]


def _over_all(played):
    kept = all_coalitions(played.count)
    fitted = LinearRegression().fit(kept, played(kept), sample_weight=nearness(kept))
    return fitted.coef_


def test_of_a_linear_model_the_coefficients_are_weight_times_difference():
    case = attribution_cases.case("linear")
    weight = case.objective.theta[0][case.target.index].detach()
    found = run(lime_module, case, "lime")
    np.testing.assert_allclose(found.values, (weight * (case.features - baselines(case, "mean")))[0], rtol=1e-8)
    assert found.about["r2"] == pytest.approx(1.0) and not found.notes
    assert found.about["intercept"] == pytest.approx(case.score_at(baselines(case, "mean")))


def test_the_fit_equals_scikit_learn():
    played = game(8)
    kept = np.concatenate([pairs(np.random.default_rng(i), 8) for i in range(5)])
    fitted = LinearRegression().fit(kept, played(kept), sample_weight=nearness(kept))
    values, _, about = local(kept, played(kept))
    np.testing.assert_allclose(values, fitted.coef_, rtol=1e-9)
    assert about["intercept"] == pytest.approx(fitted.intercept_)
    assert about["r2"] == pytest.approx(fitted.score(kept, played(kept), sample_weight=nearness(kept)))


@pytest.mark.parametrize("name", ["cnn", "bert", "tabular"])
def test_it_equals_captum_with_the_same_coalitions_and_kernel(name):
    case = attribution_cases.case(name)
    players = players_of(case, Settings(), regions_or_single)
    played = players.game
    kept = np.concatenate([pairs(np.random.default_rng(i), played.count) for i in range(6)])

    def drawn(*_, **__):
        yield from (torch.from_numpy(row[None].astype(int)) for row in kept)

    weight = lambda _, __, row, **___: float(nearness(row.numpy())[0])
    captum = Lime(case.scores, SkLearnLinearRegression(), similarity_func=weight, perturb_func=drawn)
    mask = played.labels.expand_as(case.features[0])[None].contiguous()
    with torch.no_grad():
        theirs = captum.attribute(case.features, baselines=played.baseline, feature_mask=mask, n_samples=len(kept),
                                  return_input_shape=False)[0].numpy()  # fmt: skip
    np.testing.assert_allclose(local(kept, played(kept))[0], theirs, atol=1e-3 * np.abs(theirs).max())


def test_nearness_is_the_kernel_of_the_cosine_distance():
    kept = all_coalitions(5)[1:].astype(float)
    cosine = kept @ np.ones(5) / np.sqrt((kept**2).sum(1) * 5)
    np.testing.assert_allclose(nearness(kept.astype(bool)), np.exp(-((1 - cosine) ** 2) / 0.25**2), rtol=1e-9)
    assert nearness(np.ones((1, 5), bool))[0] == 1


def test_standard_errors_cover_the_fit_over_all_coalitions():
    """The truth is the weighted fit over all 2^P coalitions, to which the sampled one tends."""
    played = game(9)
    truth = _over_all(played)
    found = [lime(played, plan(25, seed=seed)) for seed in range(120)]
    z = np.array([(each.values - truth) / each.stderr for each in found])
    covered = float((np.abs(z) < 2).mean())
    assert 0.88 < covered < 0.985, covered
    errors = np.sqrt(np.mean([(each.values - truth) ** 2 for each in found], 0))
    np.testing.assert_allclose(np.sqrt(np.mean([each.stderr**2 for each in found], 0)), errors, rtol=0.25)


def test_the_error_is_the_sandwich_over_pairs():
    played = game(4)
    kept = np.concatenate([pairs(np.random.default_rng(i), 4) for i in range(5)])
    values, stderr, about = local(kept, played(kept))
    design, weights = np.concatenate([np.ones((40, 1)), kept], 1), nearness(kept)
    rest = played(kept) - design @ np.array([about["intercept"], *values])
    bread = np.linalg.inv(sum(w * np.outer(row, row) for w, row in zip(weights, design, strict=True)))
    meat = np.zeros((5, 5))
    for i in range(0, 40, 2):
        pull = sum(weights[j] * rest[j] * design[j] for j in (i, i + 1))
        meat += np.outer(pull, pull)
    expected = np.sqrt(np.diag(bread @ meat @ bread) * 20 / (20 - 5))[1:]
    np.testing.assert_allclose(stderr, expected, rtol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_it_runs_on_every_kind_and_shares_the_value_of_a_segment(name):
    case = attribution_cases.case(name, dtype="float32")
    found = run(lime_module, case, "lime", Settings(samples=4))
    assert found.values.shape == found.stderr.shape == case.shape
    assert found.completeness_error is None and found.about["coalitions"] == 8 * found.about["players"]
    played = players_of(case, Settings(), regions_or_single).game
    values, _, _ = local(_drawn(case, 4), played(_drawn(case, 4)))
    assert found.values.sum() == pytest.approx(values.sum(), rel=1e-4, abs=1e-7)


def _drawn(case, samples):
    """Draw again what a run draws."""
    count = players_of(case, Settings(), regions_or_single).game.count
    return np.concatenate([pairs(np.random.default_rng([0, i]), count) for i in range(samples)])


def test_a_linear_model_that_does_not_fit_is_doubted():
    parity = lambda x: torch.prod(torch.sign(x - 0.5), 1)
    played = game(6, parity)
    played.x[:], played.baseline[:] = 1.0, 0.0
    r2 = lime(played, plan(10)).about["r2"]
    assert r2 < 0.5 and "choose other segments" in lime_module._doubts(r2)[0]
    assert lime(game(6, interacting(6)), plan(10)).about["r2"] > 0.5


def test_it_stops_at_the_tolerance_or_at_the_number():
    loose, strict = lime(game(9), plan(300, tolerance=0.05)), lime(game(9), plan(12, tolerance=1e-9))
    assert loose.about["stopped"] == "tolerance" and loose.about["relative_stderr"] <= 0.05
    assert (strict.about["stopped"], strict.about["samples"]) == ("samples", 12)


def test_a_cancelled_run_goes_on_where_it_was():
    case = attribution_cases.case("cnn")
    whole = run(lime_module, case, "lime", Settings(samples=6))
    tick = Keeping(most=4)
    with pytest.raises(Cancelled):
        run(lime_module, case, "lime", Settings(samples=6), tick)
    tick.most = 10**9
    resumed = run(lime_module, case, "lime", Settings(samples=6), tick)
    np.testing.assert_array_equal(resumed.values, whole.values)
    assert len(tick.told) == 6
