"""The moments of alignment and their errors, the pole of GWA, the best checkpoint, and AUROC with its error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kurtosis
from sklearn.metrics import roc_auc_score

from analyzers._alignment_statistics import Moments, auroc, best_of, moments


def test_bimodal_alignment_is_at_the_pole_and_flagged() -> None:
    rng = np.random.default_rng(0)
    for minority, flagged in ((0.0, False), (0.3, True), (0.4, True)):
        signs = np.where(rng.random(4000) < minority, -1, 1)
        gamma = 0.05 * signs + 0.012 * rng.normal(size=4000)
        found = moments(gamma, 0)
        assert found.undefined == flagged
        assert found.kurtosis == pytest.approx(kurtosis(gamma))
        assert (abs(kurtosis(gamma) + 1.2) < 0.5) <= flagged
        assert (found.gwa_stderr is None) <= flagged
    below = moments(np.tile([-1.0, 1.0, 1.0], 50), 0)
    assert below.kurtosis is not None
    assert below.kurtosis < -1.2
    assert below.undefined


def test_bootstrap_errors_are_those_of_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    draw = lambda: rng.gamma(6.0, size=1500) * 0.01
    many = [draw() for _ in range(300)]
    spread = {"kurtosis": np.std([kurtosis(each) for each in many])}
    spread["gwa"] = np.std([each.mean() / (kurtosis(each) + 1.2) for each in many])
    found = [moments(draw(), seed) for seed in range(8)]
    for key, truth in spread.items():
        errors = [getattr(each, f"{key}_stderr") for each in found]
        assert 0.5 < np.median(errors) / truth < 1.6
    for each in found:
        assert each.gwa_interval is not None
        assert each.gwa_interval[0] < each.gwa < each.gwa_interval[1]  # type: ignore[operator]


def test_moments_of_what_has_none() -> None:
    assert moments(np.full(3, np.nan), 0) == Moments()
    still = moments(np.full(50, 0.1), 0)
    assert (still.mean, still.kurtosis, still.gwa, still.undefined) == (pytest.approx(0.1), None, None, True)
    one = moments(np.array([0.2, np.nan]), 0)
    assert (one.n, one.mean_stderr, one.gwa) == (1, None, None)
    two = moments(np.array([0.2, 0.3]), 0)
    assert (two.kurtosis, two.undefined) == (pytest.approx(-2), True)


def of(gwa: float | None, undefined: bool = False, resampled: Any = (0.0,)) -> Moments:
    return Moments(9, 0.1, gwa=gwa, undefined=undefined, resampled=np.asarray(resampled, float))


def test_the_best_is_the_highest_once_a_tenth_of_the_run_is_over() -> None:
    labels, times = ("a", "b", "c", "d"), (0.0, 9.0, 10.0, 100.0)
    best, said = best_of([of(9), of(8), of(2, resampled=[1, 3]), of(1, resampled=[2, 2])], times, labels)
    assert best == {"index": 2, "time": 10.0, "gwa": 2, "share": 0.5}
    assert "highest at c, and so it is in 50 % of the resamples" in said
    assert "2 of 4 checkpoints" in said
    best, _ = best_of([of(9), of(8), of(2, True), of(1)], times, labels)
    assert best is not None
    assert best["index"] == 3
    best, said = best_of([of(9), of(8), of(2, True), of(None, True)], times, labels)
    assert (best, said) == (None, "GWA is undefined at every checkpoint from c on.")
    assert best_of([of(9)], (5.0,), ("a",))[0] is None


def test_auroc_is_that_of_scikit_learn_and_its_error_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(2)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        positive = rng.random(300) < 0.2
        return (rng.normal(size=300) + 1.5 * positive).round(1), positive

    samples = [draw() for _ in range(200)]
    found = [auroc(*each) for each in samples]
    np.testing.assert_allclose([one for one, _ in found], [roc_auc_score(y, x) for x, y in samples], rtol=1e-12)
    spread = np.std([one for one, _ in found])
    assert np.mean([error for _, error in found]) == pytest.approx(spread, rel=0.25)
    assert auroc(np.array([3.0, 4, 1, 2]), np.array([True, True, False, False])) == (1.0, 0.0)
