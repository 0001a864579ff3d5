"""Agreement and scoreboard: SciPy and loops as oracles, intervals that cover, gains over null curves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from probes.attribution import AttributionError
from probes.attribution.judging import agreement, mean_interval, scoreboard
from probes.attribution.judging.intervals import bca


def examples(count: int = 12, size: int = 50) -> list[dict[str, np.ndarray]]:
    """Maps of three methods: two that are alike, one that is its own."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        base = random.standard_normal(size)
        found.append({"one": base, "two": base + 0.5 * random.standard_normal(size),
                      "three": random.standard_normal(size)})  # fmt: skip
    return found


def test_agreement_is_the_mean_of_scipys_rank_correlations() -> None:
    maps = examples()
    made = agreement(maps)
    assert made.methods == ("one", "two", "three")
    for i, a in enumerate(made.methods):
        for j, b in enumerate(made.methods):
            each = [stats.spearmanr(maps_of[a], maps_of[b])[0] for maps_of in maps]
            assert made.spearman.mean[i, j] == pytest.approx(np.mean(each))
    low, high = made.spearman.low, made.spearman.high
    np.testing.assert_allclose((np.diag(low), np.diag(high)), 1)
    assert low[0, 1] < made.spearman.mean[0, 1] < high[0, 1] and low[0, 1] > high[0, 2]
    each = [stats.spearmanr(maps_of["one"], maps_of["three"])[0] for maps_of in maps]
    expected = stats.bootstrap((each,), np.mean, method="percentile", n_resamples=20000, rng=0).confidence_interval
    np.testing.assert_allclose((low[0, 2], high[0, 2]), expected, atol=0.01)


def test_top_features_and_signs_are_those_of_a_loop() -> None:
    maps = examples()
    made = agreement(maps, top=0.2)
    overlaps, signs = [], []
    for each in maps:
        a, b = each["one"], each["two"]
        overlaps.append(len(set(np.argsort(-a)[:10]) & set(np.argsort(-b)[:10])) / 10)
        signs.append(np.mean(np.sign(a) == np.sign(b)))
    assert made.overlap.mean[0, 1] == pytest.approx(np.mean(overlaps)) and made.chance == pytest.approx(0.2)
    assert made.signs.mean[0, 1] == pytest.approx(np.mean(signs))
    assert made.overlap.low[0, 2] < 0.2 < made.overlap.high[0, 2] and made.overlap.low[0, 1] > 0.2


def test_zeros_and_unsigned_maps_say_nothing_about_signs() -> None:
    made = agreement([{"a": np.array([1.0, -1, 0, 2]), "b": np.array([1.0, 1, -3, 0]), "c": np.abs(np.ones(4))}])
    assert made.signs.mean[0, 1] == 0.5 and np.isnan(made.signs.mean[0, 2]) and np.isnan(made.signs.mean[2, 2])


def test_channels_are_added_special_tokens_left_out_and_missing_maps_skipped() -> None:
    picture = np.random.default_rng(0).standard_normal((3, 4, 4))
    assert agreement([{"a": picture, "b": picture.sum(0, keepdims=True)}]).spearman.mean[0, 1] == pytest.approx(1)
    tokens = {"a": np.array([9.0, 1, 2, 3]), "b": np.array([-9.0, 1, 2, 3])}
    made = agreement([tokens], special=[(True, False, False, False)])
    assert made.spearman.mean[0, 1] == pytest.approx(1) and agreement([tokens]).spearman.mean[0, 1] < 1
    maps = examples(4)
    missing = agreement([*maps, {"one": maps[0]["one"], "two": None}])
    np.testing.assert_array_equal(missing.spearman.n, [[5, 4, 4], [4, 4, 4], [4, 4, 4]])
    assert missing.spearman.mean[0, 1] == pytest.approx(agreement(maps).spearman.mean[0, 1])
    few = agreement(maps[:2])
    assert np.isnan(few.spearman.low).all() and np.isfinite(few.spearman.mean).all()
    with pytest.raises(AttributionError, match=r"\[3, 4\] features"):
        agreement([{"a": np.ones(3), "b": np.ones(4)}])
    with pytest.raises(AttributionError, match="no maps"):
        agreement([])


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_the_bca_interval_is_scipys(kind: str) -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal(15) if kind == "normal" else random.exponential(size=15)
    expected = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20000, rng=0).confidence_interval
    np.testing.assert_allclose(bca(values), expected, atol=0.03 * values.std())
    plain = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=0).confidence_interval
    assert kind == "normal" or plain.high < expected.high - 0.06 * values.std()  # so the test can tell them apart
    assert bca(values) == bca(values) and bca(np.ones(4)) == (1.0, 1.0)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = [low <= 0 <= high for low, high in (bca(random.standard_normal(20)) for _ in range(300))]
    assert 0.87 < np.mean(hits) < 0.99  # 95 %, less what twenty examples cost; four standard errors about it


def test_few_examples_have_no_interval_and_infinite_ones_are_counted() -> None:
    assert mean_interval([1.0, 3.0]).mean == 2 and mean_interval([1.0, 3.0]).low is None
    found = mean_interval([1.0, 2.0, 3.0, float("inf")])
    assert (found.mean, found.n, found.left_out) == (2.0, 3, 1) and found.low is not None
    assert mean_interval([]).mean is None


def rows() -> list[dict[str, object]]:
    """Twelve examples: a good method, one that is as good as random, and one that refuses sometimes."""
    random = np.random.default_rng(0)
    found: list[dict[str, object]] = []
    for i in range(12):
        null = {"random_insertion_auc": 0.5 + 0.2 * random.standard_normal(), "random_deletion_auc": 0.5}
        found.append({"method": "good", "title": "Good", "badge": "ok", **null,
                      "insertion_auc": null["random_insertion_auc"] + 0.1 + 0.02 * random.standard_normal(),
                      "deletion_auc": 0.4 + 0.05 * random.standard_normal(), "infidelity": 1.0 + i})  # fmt: skip
        found.append({"method": "null", "badge": "ok", **null, "deletion_auc": 0.5 + 0.05 * random.standard_normal(),
                      "insertion_auc": null["random_insertion_auc"] + 0.05 * random.standard_normal()})  # fmt: skip
        badge = "refused" if i % 2 else "doubtful"
        found.append({"method": "shy", "badge": badge, "insertion_auc": None if i % 2 else 0.3})
    return found


def test_the_scoreboard_says_who_beats_random_orders() -> None:
    board = scoreboard(rows())
    good, null, shy = board.standings
    assert good.above("insertion_auc") and good.above("deletion_auc") and good.title == "Good" and good.n == 12
    gains = [each["insertion_auc"] - each["random_insertion_auc"] for each in rows() if each["method"] == "good"]
    assert good.gains["random"]["insertion_auc"] == mean_interval(gains)
    lost = [0.5 - each["deletion_auc"] for each in rows() if each["method"] == "good"]
    assert good.gains["random"]["deletion_auc"].mean == pytest.approx(np.mean(lost)) and np.mean(lost) > 0
    assert null.above("insertion_auc") is False and null.above("deletion_auc") is False
    assert (shy.n, shy.refused, shy.title) == (6, 6, "shy") and shy.above("insertion_auc") is None
    assert shy.metrics["insertion_auc"].mean == pytest.approx(0.3) and shy.metrics["deletion_auc"].mean is None
    assert good.above("insertion_auc", "edge") is None
    # paired: the examples differ by far more than the gain, so the means alone could not tell
    both = good.metrics["insertion_auc"], null.metrics["insertion_auc"]
    assert both[0].low < both[1].high


def test_the_scoreboard_is_json() -> None:
    found = json.loads(json.dumps(scoreboard(rows()).to_json(), allow_nan=False))
    assert found[0]["method"] == "good" and found[0]["above"]["random"] == {"insertion_auc": True, "deletion_auc": True}
    assert set(found[0]["infidelity"]) == {"mean", "low", "high", "n", "left_out"}
    assert scoreboard(rows(), seed=1).standings[0].metrics["infidelity"].mean == found[0]["infidelity"]["mean"]
    assert "BCa" in scoreboard([]).words and scoreboard([]).standings == ()
