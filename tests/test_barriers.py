"""The three definitions of a barrier by hand, their intervals against known spreads, and losses that overflow."""

from __future__ import annotations

import numpy as np
import pytest

from probes.barriers import Barrier, accuracy_drop, barrier, barriers, lambdas, rise
from probes.paths import Readings, resamples


def flat(curve: list[float], right: list[float] | None = None, count: int = 6) -> Readings:
    """Every example has the mean's value: resampling changes nothing."""
    losses = np.repeat(np.array(curve)[:, None], count, 1)
    hits = None if right is None else np.repeat(np.array(right)[:, None], count, 1)
    return Readings(losses, hits, np.ones(count))


def test_the_three_definitions_differ_where_the_ends_do() -> None:
    found = barrier(flat([1.0, 2.5, 2.6, 4.0, 3.0]), [0, 0.25, 0.5, 0.75, 1], resamples(6, seed=0))
    assert (found.git_rebasin.value, found.git_rebasin.at) == (pytest.approx(2.0), 0.75)
    assert (found.entezari.value, found.entezari.at) == (pytest.approx(4.0 - 2.5), 0.75)
    assert (found.midpoint.value, found.midpoint.at) == (pytest.approx(0.6), 0.5)
    for each in (found.git_rebasin, found.entezari, found.midpoint):
        assert (each.low, each.high) == (pytest.approx(each.value), pytest.approx(each.value))
    below = barrier(flat([1.0, 1.2, 1.4, 2.0, 3.0]), [0, 0.25, 0.5, 0.75, 1], resamples(6, seed=0))
    assert below.entezari.value == 0 and below.git_rebasin.value == 1 and below.midpoint.value == pytest.approx(-0.6)


def test_accuracy_falls_instead() -> None:
    data = flat([1, 1, 1], [0.9, 0.2, 0.7])
    found = accuracy_drop(data, [0, 0.5, 1], resamples(6, seed=0))
    assert found is not None
    assert found.git_rebasin.value == pytest.approx(0.6) and found.entezari.value == pytest.approx(0.6)
    assert barriers(data, [0, 0.5, 1], resamples(6, seed=0)).accuracy == found
    assert accuracy_drop(flat([1, 1, 1]), [0, 0.5, 1], resamples(6, seed=0)) is None


def test_units_weigh_not_examples() -> None:
    losses, counts = np.array([[1.0, 3.0], [4.0, 4.0], [1.0, 3.0]]), np.array([1.0, 3.0])
    found = barrier(Readings(losses, None, counts), [0, 0.5, 1], resamples(2, seed=0))
    assert found.midpoint.value == pytest.approx(8 / 4 - 4 / 4)


def test_the_interval_is_that_of_a_difference_and_covers_as_often_as_it_says() -> None:
    """What examples share at all points drops out: difficulty 100 times the noise of the difference."""
    generator = np.random.default_rng(0)
    covered, widths = 0, []
    for seed in range(100):
        hard = 10 * generator.normal(size=200)
        losses = hard + 0.1 * generator.normal(size=(3, 200)) + np.array([[0.0], [1.0], [0.0]])
        each = barrier(Readings(losses, None, np.ones(200)), [0, 0.5, 1], resamples(200, seed)).midpoint
        covered += each.low <= 1.0 <= each.high
        widths.append(each.high - each.low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.1 * np.sqrt(1.5 / 200), rel=0.05)
    assert 88 <= covered <= 100


def test_the_maximum_is_taken_in_each_resample() -> None:
    """Two equal maxima: brute force over the resamples, which no fixed place gives."""
    generator = np.random.default_rng(1)
    losses = generator.normal(size=(5, 40)) + np.array([0, 3, 3, 3, 0])[:, None]
    weights = resamples(40, seed=2, draws=300)
    found = barrier(Readings(losses, None, np.ones(40)), lambdas(5), weights).git_rebasin
    drawn = []
    for row in weights.astype(int):
        curve = np.repeat(losses, row, axis=1).mean(1)
        drawn.append(max(curve) - (curve[0] + curve[-1]) / 2)
    np.testing.assert_allclose((found.low, found.high), np.percentile(drawn, [2.5, 97.5]))


def test_a_loss_that_overflows_is_a_word_and_no_number() -> None:
    found: Barrier = barrier(flat([1, np.inf, 2, 1, 1]), lambdas(5), resamples(6, seed=0))
    assert found.git_rebasin.value is None and found.entezari.low is None
    assert found.midpoint.value == pytest.approx(1.0)
    assert "not finite at lambda = 0.25" in found.word
    middle = barrier(flat([1, 1, np.nan, 1, 1]), lambdas(5), resamples(6, seed=0))
    assert middle.midpoint.value is None and rise(flat([1, np.nan]), [0, 1], resamples(6, seed=0)).value is None


def test_the_rise_above_the_first_end() -> None:
    found = rise(flat([2.0, 1.0, 5.0]), [0, 0.5, 1], resamples(6, seed=0))
    assert (found.value, found.at) == (3.0, 1.0)


def test_the_points_hold_the_quarters() -> None:
    assert len(lambdas()) == 25 and {0.0, 0.25, 0.5, 0.75, 1.0} <= set(lambdas().tolist())
    with pytest.raises(ValueError, match=r"0\.5"):
        barrier(flat([1, 1]), [0, 1], resamples(6, seed=0))
