"""Shapley values against sums over all orders, closed forms and Captum; standard errors that cover; resuming."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import attribution_cases
import numpy as np
import pytest
import torch
from captum.attr import KernelShap, ShapleyValueSampling
from perturbation_cases import Cancelled, Counting, Keeping, game, interacting, plan, run

from probes.attribution import AttributionError, Settings, baselines, shapley
from probes.attribution.coalitions import all_coalitions, fitted
from probes.attribution.players import cells_or_single, players_of
from probes.attribution.sampling import added, mean_and_error, moments
from probes.attribution.shapley import constrained, exact, gains, kernel, kernel_weights, orders, pairs, sampled

KINDS = ["cnn", "resnet20", "vit", "bert", "gpt2", "tabular"]


def _by_orders(played):
    """Average over all P! orders what each feature adds when it comes; by the definition."""
    total = np.zeros(played.count)
    for order in permutations(range(played.count)):
        x = played.baseline.clone()
        before = float(played.scores(x))
        for i in order:
            x[0, i] = played.x[0, i]
            after = float(played.scores(x))
            total[i] += after - before
            before = after
    return total / factorial(played.count)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_exact_values_equal_the_mean_over_all_orders(count):
    played = game(count)
    np.testing.assert_allclose(exact(played).values, _by_orders(played), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["exact_shapley", "shapley_sampling", "kernel_shap"])
def test_of_a_linear_model_every_value_is_weight_times_difference(method):
    case = attribution_cases.case("linear")
    weight = case.objective.theta[0][case.target.index].detach()
    found = run(shapley, case, method, Settings(samples=5))
    np.testing.assert_allclose(found.values, (weight * (case.features - baselines(case, "mean")))[0], rtol=1e-8)


def test_a_product_is_shared_equally_and_a_feature_that_does_nothing_gets_nothing():
    played = game(3, lambda x: x[:, 0] * x[:, 1])
    played.x[:], played.baseline[:] = torch.tensor([2.0, 3.0, 5.0]), 0.0
    for found in (exact(played), sampled(played, plan(4)), kernel(played, plan(4))):
        np.testing.assert_allclose(found.values, [3.0, 3.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_kernel_shap_over_all_coalitions_is_exact(count):
    played = game(count)
    found = kernel(played, plan(50))
    assert found.about["stopped"] == "exact" and found.stderr is None
    np.testing.assert_allclose(found.values, exact(played).values, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ["exact_shapley", "shapley_sampling", "kernel_shap"])
def test_values_add_up_to_the_difference_of_the_scores(name, method):
    case = attribution_cases.case(name, dtype="float32")
    found = run(shapley, case, method, Settings(samples=3))
    assert found.completeness_error < 1e-9
    assert found.values.sum() == pytest.approx(case.score - case.score_at(baselines(case, "auto")))
    assert found.values.shape == case.shape


@pytest.mark.parametrize("name", KINDS)
def test_sampling_equals_captum_with_the_same_orders(name):
    case = attribution_cases.case(name)
    players = players_of(case, Settings(), cells_or_single)
    drawn = plan(3)
    captum = ShapleyValueSampling(case.scores)
    captum.permutation_generator = lambda *_: [each for i in range(3) for each in orders(drawn, i, players.game.count)]
    mask = players.game.labels.expand_as(case.features[0])[None].contiguous()
    asked = {"baselines": players.game.baseline, "feature_mask": mask, "perturbations_per_eval": 16}
    with torch.no_grad():
        theirs = captum.attribute(case.features, **asked)[0]
    theirs = (theirs[:, 0] if case.embedding else theirs).numpy()
    sizes = np.bincount(players.segments.labels.reshape(-1))[players.segments.labels]
    sizes = sizes * case.shape[0] if case.kind == "image" else sizes
    ours = players.spread(sampled(players.game, drawn).values)
    np.testing.assert_allclose(ours, theirs / sizes, rtol=1e-4, atol=3e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["cnn", "bert", "tabular"])
def test_kernel_shap_equals_captum_with_the_same_coalitions(name):
    case = attribution_cases.case(name)
    players = players_of(case, Settings(window=0), lambda case, settings: cells_or_single(case, settings))
    played = players.game
    kept = np.concatenate([pairs(np.random.default_rng(i), played.count) for i in range(6)])
    rows = [np.ones(played.count, bool), np.zeros(played.count, bool), *kept]

    def drawn(*_, **__):
        yield from (torch.from_numpy(row[None].astype(int)) for row in rows)

    captum = KernelShap(case.scores)
    captum.perturb_func = drawn
    mask = played.labels.expand_as(case.features[0])[None].contiguous()
    with torch.no_grad():
        theirs = captum.attribute(case.features, baselines=played.baseline, feature_mask=mask, n_samples=len(rows),
                                  return_input_shape=False)  # fmt: skip
    ours = constrained(played, kept, played(kept), np.ones(len(kept)))[0]
    np.testing.assert_allclose(ours, theirs[0], atol=2e-3 * np.abs(ours).max())


def test_the_constrained_fit_equals_lagrange_multipliers():
    played = game(6)
    kept = np.concatenate([pairs(np.random.default_rng(i), 6) for i in range(3)])
    weights = np.random.default_rng(1).random(len(kept)) + 0.1
    a, b = (kept * weights[:, None]).T @ kept, (kept * weights[:, None]).T @ (played(kept) - played.empty)
    system = np.block([[a, np.ones((6, 1))], [np.ones((1, 6)), np.zeros((1, 1))]])
    expected = np.linalg.solve(system, np.append(b, played.full - played.empty))[:6]
    np.testing.assert_allclose(constrained(played, kept, played(kept), weights)[0], expected, rtol=1e-9)


def test_the_kernel_is_the_chance_of_a_drawn_coalition():
    kept = all_coalitions(5)[1:-1]
    expected = kernel_weights(kept) / kernel_weights(kept).sum()
    drawn = np.concatenate([pairs(np.random.default_rng(i), 5) for i in range(4000)])
    found = np.bincount(drawn @ (1 << np.arange(5)), minlength=32)[1:-1] / len(drawn)
    error = np.sqrt(2 * expected * (1 - expected) / len(drawn))  # two of a pair count as one
    assert np.all(np.abs(found - expected) < 4.5 * error)


def test_prefixes_follow_the_order():
    played = game(4, lambda x: (x * torch.tensor([1.0, 10, 100, 1000], dtype=torch.float64)).sum(1))
    steps = gains(played, [2, 0, 3, 1])
    np.testing.assert_allclose(
        steps, (played.x - played.baseline)[0].numpy() * np.array([1.0, 10, 100, 1000]), rtol=1e-9
    )
    first, second = orders(plan(), 3, 9)
    assert sorted(first) == list(range(9)) and second == first[::-1] != orders(plan(), 4, 9)[0]


@pytest.mark.parametrize(("method", "least"), [(sampled, 0.9), (kernel, 0.88)])
def test_standard_errors_cover_the_truth(method, least):
    """Over 150 seeds, 9 values each: two standard errors should cover 95 %, less a little for few rounds."""
    played = game(9)
    truth = exact(played).values
    found = [method(played, plan(25, seed=seed)) for seed in range(150)]
    assert all(each.about["stopped"] == "samples" for each in found)
    z = np.array([(each.values - truth) / each.stderr for each in found])
    covered = float((np.abs(z) < 2).mean())
    assert least < covered < 0.985, covered
    mean = np.mean([each.values for each in found], 0)
    spread = np.std([each.values for each in found], 0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(mean - truth) < 4.5 * spread), "biased"
    stated = np.sqrt(np.mean([each.stderr**2 for each in found], 0))
    np.testing.assert_allclose(stated, spread * np.sqrt(len(found)), rtol=0.25)


def test_pairs_of_orders_have_a_smaller_error_than_single_orders():
    played = game(9)
    truth = exact(played).values
    rng = np.random.default_rng(0)
    single = [np.mean([gains(played, rng.permutation(9).tolist()) for _ in range(20)], 0) for _ in range(100)]
    paired = [sampled(played, plan(10, seed=seed)).values for seed in range(100)]
    error = lambda found: float(np.mean((np.array(found) - truth) ** 2))
    assert error(paired) < 0.9 * error(single)


@pytest.mark.parametrize("method", [sampled, kernel])
def test_sampling_stops_at_the_tolerance_or_at_the_number(method):
    played = game(14)
    loose, strict = method(played, plan(200, tolerance=0.03)), method(played, plan(15, tolerance=1e-9))
    assert loose.about["stopped"] == "tolerance" and 10 <= loose.about["samples"] < 200
    assert loose.about["relative_stderr"] <= 0.03
    assert strict.about["stopped"] == "samples" and strict.about["samples"] == 15
    tighter = method(played, plan(200, tolerance=0.015))
    assert tighter.about["samples"] > loose.about["samples"]


@pytest.mark.parametrize("method", ["shapley_sampling", "kernel_shap"])
def test_a_cancelled_run_goes_on_where_it_was(method):
    case = attribution_cases.case("resnet20")
    counting = Counting(case.in_chunks)
    object.__setattr__(case, "in_chunks", counting)
    whole = run(shapley, case, method, Settings(samples=8))
    alone, counting.count = counting.count, 0
    tick = Keeping(most=5)
    with pytest.raises(Cancelled):
        run(shapley, case, method, Settings(samples=8), tick)
    assert [float(each["rounds"][0]) for each in tick.kept.values()] == [5]
    tick.most = 10**9
    resumed = run(shapley, case, method, Settings(samples=8), tick)
    assert alone <= counting.count < 1.2 * alone, "five of eight rounds are not run again"
    measured = 1  # row, whose memory says how many fit at once; its score is kept
    assert resumed.about == whole.about and alone + measured == whole.about["evaluations"]
    np.testing.assert_array_equal(resumed.values, whole.values)
    np.testing.assert_array_equal(resumed.stderr, whole.stderr)
    assert len(tick.told) == 8, "five rounds, then three"
    other = Keeping()
    other.kept = tick.kept
    again = run(shapley, case, method, Settings(samples=8), other)
    assert not other.told and np.array_equal(again.values, whole.values)
    run(shapley, case, method, Settings(samples=8, seed=1), other)
    assert len(other.told) == 8, "what was kept under another seed is not taken"


def test_progress_shows_the_running_standard_error():
    tick = Keeping()
    run(shapley, attribution_cases.case("tabular"), "shapley_sampling", Settings(samples=12), tick)
    shares, told = zip(*tick.told, strict=True)
    assert shares == pytest.approx(np.arange(1, 13) / 12)
    assert "12 of 12 rounds, relative standard error 0." in told[-1] and "error" not in told[0]


def test_rounds_are_run_together_and_nothing_twice():
    counting = Counting(interacting(5))
    calls = []
    played = game(5, lambda x: calls.append(len(x)) or counting(x), block=256)
    sampled(played, plan(20))
    assert counting.count == played.evaluations <= 32 and len(calls) <= 4


def test_too_many_features_for_exact_values_are_refused_in_words():
    exactly = shapley.METHODS[0]
    wide = attribution_cases.case("tabular")
    object.__setattr__(wide, "features", torch.zeros(1, 11))
    assert "Choose Shapley value sampling" in exactly.refuse(wide)
    with pytest.raises(AttributionError, match="give 36"):
        run(shapley, attribution_cases.case("cnn"), "exact_shapley", Settings(window=2))
    assert run(shapley, attribution_cases.case("cnn"), "exact_shapley").about["players"] == 9


def test_long_texts_are_cut_into_spans_for_exact_values():
    case = attribution_cases.case("bert")
    from probes.attribution.players import few

    found = few(case, Settings(), 3)
    assert found.count == 3 and found.unit == "spans of 3 tokens"


def test_weighted_least_squares_and_its_error_equal_statistics_of_groups():
    """With a constant alone the fit is the weighted mean, and the error that of the means of independent groups."""
    random = np.random.default_rng(0)
    y, cluster = random.normal(size=40), np.arange(40) // 2
    beta, covariance = fitted(np.ones((40, 1)), y, np.ones(40), cluster)
    means = y.reshape(20, 2).mean(1)
    assert beta[0] == pytest.approx(means.mean())
    assert covariance[0, 0] == pytest.approx(means.var(ddof=1) / 20)


def test_the_error_of_a_mean_is_that_of_statistics():
    values = np.random.default_rng(0).normal(3, 2, (4, 5))
    state = moments(np.zeros(5))
    for row in values:
        state = added(state, row, row**2, 1)
    mean, stderr = mean_and_error(state)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(stderr, values.std(0, ddof=1) / 2)
    assert np.isinf(mean_and_error(added(moments(np.zeros(5)), values[0], values[0] ** 2, 1))[1]).all()
