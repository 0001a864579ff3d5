"""Intervals of shares, of the calibration error, of a disagreement: closed forms, SciPy, how often they cover."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from analyzers import _predictions_statistics as statistics
from analyzers._predictions_statistics import disagreement, effective, mcnemar, paired, reliability, wilson


def binned(sure, right, bins: int = 10):
    """Counts, confidence and right answers of single predictions by bin, in a loop."""
    found = np.zeros((3, len(sure), bins))
    for row, (one, hit) in enumerate(zip(sure, right, strict=True)):
        place = next(place for place in range(bins) if one <= (place + 1) / bins)
        found[:, row, place] = 1, one, hit
    return found


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (3, 7), (9894, 10_000)])
def test_wilson_is_that_of_scipy(right: int, count: int) -> None:
    interval = binomtest(right, count).proportion_ci(method="wilson")
    assert [float(each) for each in wilson(right, count)] == pytest.approx([interval.low, interval.high])


def test_no_answers_have_no_interval() -> None:
    assert all(np.isnan(each) for each in wilson(0, 0))


def test_answers_in_clusters_are_worth_fewer() -> None:
    assert effective(0.25, math.sqrt(0.25 * 0.75 / 40), 9) == pytest.approx(40)
    assert effective(1.0, 0.0, 9) == 9


@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 5), (3, 9), (40, 25)])
def test_mcnemar_is_exact(left: int, right: int) -> None:
    count = left + right
    tail = sum(Fraction(math.comb(count, k), 2**count) for k in range(min(left, right) + 1))
    assert mcnemar(left, right) == pytest.approx(float(min(1, 2 * tail)))


def test_a_disagreement_counts_each_example_once() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    first, second = np.array([0, 1, 1, 0, 0, 2]), np.array([0, 0, 2, 0, 1, 2])
    found = disagreement(first, second, labels)
    assert (found.both_right, found.only_first, found.only_second, found.both_wrong) == (2, 1, 1, 2)
    assert found.differ == 3  # also 0 against 1 where it is a 2
    assert found.difference == 0 and found.p_value == 1.0
    assert found.difference_stderr == pytest.approx(math.sqrt(2) / 6)


def test_pairs_weigh_by_their_units() -> None:
    mean, stderr = paired(np.array([1.0, 2.0, np.nan]), np.array([2.0, 2.5, np.nan]), np.array([1.0, 3.0, 0.0]))
    assert mean == pytest.approx((1 + 3 * 0.5) / 4)
    sums = np.array([1 * (1 - mean), 3 * (0.5 - mean)])
    assert stderr == pytest.approx(math.sqrt((sums**2).sum() * 2) / 4)


def test_the_calibration_error_is_that_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    sure = draw.uniform(0.3, 1, 500)
    right = draw.uniform(size=500) < sure**2
    found = reliability(*binned(sure, right), seed=0)
    assert found is not None
    error = 0.0
    for place in range(10):
        inside = (sure > place / 10) & (sure <= (place + 1) / 10)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
            assert found.accuracy[place] == pytest.approx(right[inside].mean())
            interval = binomtest(int(right[inside].sum()), int(inside.sum())).proportion_ci(method="wilson")
            assert (found.low[place], found.high[place]) == pytest.approx((interval.low, interval.high))
    assert found.error == pytest.approx(error)
    assert found.overconfidence == pytest.approx(sure.mean() - right.mean())
    assert math.isnan(found.accuracy[0]) and found.counts[0] == 0


def test_without_probabilities_there_is_no_calibration() -> None:
    assert reliability(*np.zeros((3, 4, 10)), seed=0) is None


@pytest.mark.parametrize("power", [1.0, 1.2, 2.0])
def test_chance_is_taken_off_and_the_interval_covers_the_truth(power: float, monkeypatch) -> None:
    """Answers are right with probability c ** power at confidence c; the truth follows from very many examples."""
    monkeypatch.setattr(statistics, "DRAWS", 200)
    draw = np.random.default_rng(1)
    many = draw.uniform(0.5, 1, 400_000)
    places = np.ceil(many * 10).astype(int)
    gaps = np.bincount(places, many**power - many)
    truth = np.abs(gaps).sum() / len(many)
    raw, debiased, chance, covered = [], [], [], 0
    for seed in range(40):
        sure = draw.uniform(0.5, 1, 300)
        found = reliability(*binned(sure, draw.uniform(size=300) < sure**power), seed=seed)
        assert found is not None
        raw.append(found.error)
        debiased.append(found.debiased)
        covered += found.debiased_low - 1e-12 <= truth <= found.debiased_high
        chance.append(found.if_calibrated)
    if power == 1.0:
        assert np.mean(chance) == pytest.approx(np.mean(raw), abs=4 * np.std(raw) / math.sqrt(40))
        assert np.mean(debiased) < 0.75 * np.mean(raw)
    else:
        assert np.mean(debiased) == pytest.approx(truth, abs=4 * np.std(debiased) / math.sqrt(40))
    assert covered >= 30  # of 40: the nominal 95 % are 38; 86 % of 100 in the hardest case


def test_tokens_of_one_sequence_are_not_independent() -> None:
    """Sequences whose tokens are all right or all wrong are worth as many answers as there are sequences."""
    rows = np.arange(40) % 4 > 0
    counts = np.zeros((40, 10))
    counts[:, 7] = 25
    found = reliability(counts, 0.75 * counts, counts * rows[:, None], seed=0)
    assert found is not None
    worth = 40 * 39 / 40
    interval = [float(each) for each in wilson(0.75 * worth, worth)]
    assert [found.low[7], found.high[7]] == pytest.approx(interval)


def test_many_examples_are_drawn_in_blocks(monkeypatch) -> None:
    draw = np.random.default_rng(2)
    sure = draw.uniform(0.5, 1, 3000)
    given = binned(sure, draw.uniform(size=3000) < sure**2)
    whole = reliability(*given, seed=0)
    monkeypatch.setattr(statistics, "BLOCKS", 500)
    blocks = reliability(*given, seed=0)
    assert whole is not None and blocks is not None
    assert blocks.error == whole.error
    width = whole.high_error - whole.low_error
    assert blocks.high_error - blocks.low_error == pytest.approx(width, rel=0.25)
