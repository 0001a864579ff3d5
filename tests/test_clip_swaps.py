"""What the scores of words are tested by: other images, swapped words, intervals."""

from __future__ import annotations

import numpy as np
import pytest

from probes.attribution import AttributionError, clip, clip_null
from probes.dataset.examples import Caption, Word
from probes.objective import Objective


def test_other_images_have_another_picture_and_another_caption() -> None:
    images, texts = [b"a", b"b", b"b", b"c", b"d"], ["x", "x", "y", "z", "z"]
    found = clip_null.other_images(images, texts, 10, 0)
    assert [sorted(each.tolist()) for each in found] == [[2, 3, 4], [3, 4], [0, 3, 4], [0, 1, 2], [0, 1, 2]]
    assert [len(each) for each in clip_null.other_images(images, texts, 1, 0)] == [1] * 5
    assert [len(each) for each in clip_null.other_images([b"a", b"a"], ["x", "y"], 3, 0)] == [0, 0]


def test_a_swapped_word_stands_behind_the_same_word_elsewhere() -> None:
    def caption(*texts: str) -> Caption:
        return Caption(" ".join(texts), tuple(Word(each, place + 1, place + 2) for place, each in enumerate(texts)))

    captions = [caption("a", "red", "cat"), caption("a", "blue", "cat"), caption("a", "red", "dog")]
    ids = np.array([[0, 10, 11, 12, 1], [0, 10, 13, 12, 1], [0, 10, 11, 14, 1]])
    tokens = {"red": 11, "blue": 13, "cat": 12, "dog": 14}
    behind = {"red": {"blue"}, "blue": {"red"}, "cat": {"dog"}, "dog": {"cat"}}
    for seed in range(6):
        for each in clip_null.swaps(ids, captions, 12, seed):
            old = captions[each.row].words[each.place].text
            assert each.text in behind[old] or old in ("cat", "dog")  # behind "blue" stands one word only
            line = ids[each.row].tolist()
            line[each.place + 1] = tokens[each.text]
            assert list(each.ids) == line and each.words[each.place].text == each.text
    assert clip_null.swaps(ids, captions, 4, 0) == []
    assert clip_null.swaps(ids[:1], captions[:1], 12, 0) == []


def test_a_swap_moves_the_words_behind_it() -> None:
    long = Caption("big dog", (Word("big", 1, 3), Word("dog", 3, 4)))
    short = Caption("red cat", (Word("red", 1, 2), Word("cat", 2, 3)))
    ids = np.array([[0, 5, 6, 7, 1], [0, 8, 9, 1, 1]])
    for seed in range(6):
        for each in clip_null.swaps(ids, [long, short], 12, seed):
            assert each.ids[-1] == 1 and each.ids.count(1) == 1
            assert each.words[-1].end == len(each.ids) - 1
            assert len(each.words) == 2 and each.words[1].first == each.words[0].end


def test_intervals_and_shares() -> None:
    assert clip_null.binomial_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert clip_null.binomial_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    low, high = clip_null.binomial_interval(7, 20)
    from scipy.stats import binom

    assert (binom.sf(6, 20, low), binom.cdf(7, 20, high)) == pytest.approx((0.025, 0.025))
    found = clip_null.beats(np.array([1.0, 0.0]), [np.array([0.0, 1.0, 2.0, 0.5]), np.array([])])
    assert found[0] == 0.625 and np.isnan(found[1])
    mean, low, high = clip_null.mean_with_interval(np.arange(100.0), 0)
    spread = 1.96 * np.arange(100.0).std() / 10
    assert mean == 49.5 and (low, high) == pytest.approx((49.5 - spread, 49.5 + spread), rel=0.1)
    assert clip_null.ratio_with_interval(np.array([1, 0]), np.array([3, 1]), 0)[0] == 0.25


def test_what_is_no_pair_is_refused() -> None:
    from curvature_oracles import mlp

    with pytest.raises(AttributionError, match="needs a CLIP model and images with captions"):
        clip.captions_of(Objective.of(*mlp(), "cross_entropy", device="cpu"))
