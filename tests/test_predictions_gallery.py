"""Rows for a gallery: each filter against a loop over the examples, sorted and paged."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers._gallery import FILTERS, SORTS, choose, is_wrong, page_of, shown_place
from probes.errors import DataError

LABEL = np.array([0, 0, 1, 1, 2, 2, 2])
FIRST, SECOND = np.array([0, 1, 1, 0, 2, 1, 2]), np.array([0, 0, 1, 0, 1, 1, 2])


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    prediction = np.array([FIRST, SECOND])
    found = {name: draw.uniform(size=(2, 7)) for name in ("loss", "gap", "margin", "entropy", "probability")}
    return {
        "label": LABEL, "prediction": prediction, "right": (prediction == LABEL).astype(float),
        "label_probability": draw.uniform(size=(2, 7)), **found,
    }  # fmt: skip


def test_wrong_ones_are_in_the_order_of_the_data(arrays) -> None:
    assert choose(arrays, "wrong").rows == tuple(row for row in range(7) if SECOND[row] != LABEL[row]) == (3, 4, 5)
    assert choose(arrays, "wrong", checkpoint=0).rows == (1, 3, 5)
    assert choose(arrays, "wrong", checkpoint=-2).rows == (1, 3, 5)
    assert choose(arrays, "all").rows == tuple(range(7))
    assert choose(arrays, "all", ascending=False).rows == tuple(range(6, -1, -1))


def test_surely_wrong_and_uncertain(arrays) -> None:
    loss, gap = arrays["loss"][1], arrays["gap"][1]
    assert list(choose(arrays, "surely wrong").rows) == sorted([3, 4, 5], key=lambda row: -loss[row])
    assert list(choose(arrays, "uncertain").rows) == sorted(range(7), key=lambda row: gap[row])
    arrays["gap"][1, 2] = np.nan
    assert 2 not in choose(arrays, "uncertain").rows


def test_classes_and_pairs(arrays) -> None:
    loss = arrays["loss"][1]
    assert list(choose(arrays, "class", label=2).rows) == sorted([4, 5, 6], key=lambda row: -loss[row])
    assert list(choose(arrays, "pair", label=2, predicted=1).rows) == sorted([4, 5], key=lambda row: -loss[row])
    assert choose(arrays, "pair", label=0, predicted=2).rows == ()
    with pytest.raises(DataError, match="'pair' needs a label and a predicted class"):
        choose(arrays, "pair", label=0)
    with pytest.raises(DataError, match="'class' needs a label"):
        choose(arrays, "class")


def test_disagreements_the_largest_change_first(arrays) -> None:
    change = np.abs(arrays["label_probability"][1] - arrays["label_probability"][0])
    assert list(choose(arrays, "disagreement").rows) == sorted([1, 4], key=lambda row: -change[row])
    assert choose(arrays, "disagreement", checkpoint=0, other=0).rows == ()


def test_found_by_others_in_their_order_and_at_random(arrays) -> None:
    assert choose(arrays, "found", found=[5, 2, 9, 5, -1, 0]).rows == (5, 2, 0)
    one, again, other = (choose(arrays, "random", seed=seed).rows for seed in (3, 3, 4))
    assert one == again != other
    assert sorted(one) == list(range(7))


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("ascending", [None, True, False])
def test_sorted_by_any_number(arrays, sort: str, ascending: bool | None) -> None:
    key = np.arange(7) if sort == "row" else arrays[sort][1]
    up = not SORTS[sort] if ascending is None else ascending
    rows = choose(arrays, "all", sort=sort, ascending=ascending).rows
    assert list(rows) == sorted(range(7), key=lambda row: key[row] if up else -key[row])


def test_unknown_numbers_come_last(arrays) -> None:
    arrays["loss"][1, 0] = np.nan
    for ascending in (True, False):
        assert choose(arrays, "all", sort="loss", ascending=ascending).rows[-1] == 0


def test_pages_hold_all_rows_once(arrays) -> None:
    pages = [choose(arrays, "uncertain", page=page, count=3) for page in range(3)]
    assert [len(each.rows) for each in pages] == [3, 3, 1]
    assert {(each.total, each.pages) for each in pages} == {(7, 3)}
    assert tuple(row for each in pages for row in each.rows) == choose(arrays, "uncertain").rows
    assert choose(arrays, "uncertain", page=99, count=3).rows == pages[2].rows
    empty = choose(arrays, "found", found=[], count=3)
    assert (empty.rows, empty.total, empty.pages) == ((), 0, 1)
    assert page_of(choose(arrays, "uncertain").rows, pages[1].rows[2], 3) == 1


def test_what_is_not_known_is_refused(arrays) -> None:
    with pytest.raises(DataError, match="no filter 'worst'; choose all, wrong"):
        choose(arrays, "worst")
    with pytest.raises(DataError, match="cannot be sorted by 'id'"):
        choose(arrays, sort="id")
    with pytest.raises(DataError, match=r"no checkpoint 2; the result has 2 \(0 to 1\)"):
        choose(arrays, checkpoint=2)


def test_nothing_is_wrong_about_values(arrays) -> None:
    arrays |= {"label": LABEL.astype(float), "prediction": arrays["prediction"].astype(float)}
    arrays["right"][:] = np.nan
    assert not is_wrong(arrays).any()
    assert choose(arrays, "wrong").rows == ()
    assert choose(arrays, "surely wrong").total == 7  # the highest losses of all


def test_one_wrong_answer_of_several_is_enough(arrays) -> None:
    arrays |= {"label": np.full(7, -1), "prediction": np.full((2, 7), -1)}
    arrays["right"][:] = [1, 0.5, 1, 1, 0, np.nan, 1]
    assert choose(arrays, "wrong").rows == (1, 4)


def test_rows_that_are_shown_are_found(arrays) -> None:
    assert shown_place({**arrays, "shown_rows": np.array([1, 4, 6])}, 4) == 1
    assert shown_place({**arrays, "shown_rows": np.array([1, 4, 6])}, 5) is None
    assert shown_place({**arrays, "shown_rows": np.array([1, 4, 6])}, 9) is None
    assert shown_place(arrays, 0) is None


def test_every_filter_works_and_is_named(arrays) -> None:
    for name, words in FILTERS.items():
        assert words
        assert choose(arrays, name, label=2, predicted=1, found=[1]).pages == 1
