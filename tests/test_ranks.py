"""Rank correlation and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test, spearmanr

from probes.ranks import rank_correlation


@pytest.mark.parametrize("count", [3, 5, 7, 12])
def test_rank_correlation_is_scipys(count: int) -> None:
    generator = np.random.default_rng(count)
    x = generator.integers(0, 8, count).astype(float)
    y = x + generator.integers(0, 6, count)
    found = rank_correlation(list(x), list(y))
    assert found is not None
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert (found.interval is None) == (count < 5)
    if found.interval:
        assert -1 <= found.interval[0] <= found.value <= found.interval[1] <= 1
    if count > 8:
        assert found.p is None
        return
    statistic = lambda each: spearmanr(each, y).statistic
    exact = permutation_test((x,), statistic, permutation_type="pairings", n_resamples=np.inf)
    scipys = np.mean(np.abs(exact.null_distribution) >= abs(found.value) - 1e-12)
    assert found.p == pytest.approx(scipys, abs=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of normal pairs with correlation r, Spearman's is 6/pi asin(r/2); 60 samples of 25."""
    generator, truth, covered = np.random.default_rng(1), 6 / np.pi * np.arcsin(0.3), 0
    for _ in range(60):
        x = generator.standard_normal(25)
        y = 0.6 * x + 0.8 * generator.standard_normal(25)
        found = rank_correlation(list(x), list(y))
        assert found is not None and found.interval is not None
        covered += found.interval[0] <= truth <= found.interval[1]
    assert covered >= 50


def test_no_correlation_where_there_is_none_to_have() -> None:
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
