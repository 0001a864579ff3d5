"""Groups of examples that rise and fall: their sizes, null groups, p-values, correlation, and the model's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from torch import nn

from probes.objective import Objective
from probes.opposing import answers, correlation, group_size, groups_of, p_value, random_groups, share_of_top


def test_groups_by_size_of_change() -> None:
    changes = np.array([0.0, 3.0, -1.0, 0.5, -4.0, 0.5, 0.0, -0.5])
    found = groups_of(changes, 3)
    assert found.rising.tolist() == [1, 3, 5]
    assert found.falling.tolist() == [4, 2, 7]
    assert share_of_top(changes) == pytest.approx(4 / 9.5)
    assert share_of_top(np.r_[np.full(150, 1.0), np.full(50, -3.0)]) == pytest.approx(6 / 300)
    assert share_of_top(np.zeros(4)) == 0
    normal = np.random.default_rng(0).normal(size=200_000)
    assert share_of_top(normal) == pytest.approx(0.0363, abs=0.001)


@pytest.mark.parametrize(("count", "asked", "size"), [(20_000, 0, 200), (1000, 0, 32), (40, 0, 10), (40, 20, 20)])
def test_the_size_of_a_group(count, asked, size) -> None:
    assert group_size(count, asked) == size


def test_random_groups_share_no_example_and_are_all_drawn_alike() -> None:
    drawn = random_groups(20, 4, 2000, (1, 2))
    assert all(len({*each.rising, *each.falling}) == 8 for each in drawn)
    counts = np.bincount(np.concatenate([each.rising for each in drawn]), minlength=20)
    assert abs(counts - 400).max() < 4 * np.sqrt(400 * 0.8)
    assert random_groups(20, 4, 1, (1, 2))[0].rising.tolist() == drawn[0].rising.tolist()
    assert random_groups(20, 4, 1, (1, 3))[0].rising.tolist() != drawn[0].rising.tolist()


def test_the_p_value_counts_what_was_found_among_the_null() -> None:
    null = np.array([-0.5, 0.0, 0.5, 1.0])
    assert [p_value(each, null) for each in (-0.6, -0.5, 0.2, 1.0)] == [1 / 5, 2 / 5, 3 / 5, 5 / 5]


def test_correlation_leaves_out_the_pair_that_chose_the_groups() -> None:
    draw = np.random.default_rng(0)
    losses = draw.normal(size=(6, 30)).cumsum(0)
    groups, *null = random_groups(30, 5, 4, (0,))
    found = correlation(losses, groups, null, 3)
    changes = np.diff(losses, axis=0)[[0, 1, 2, 4]]
    expected = np.corrcoef(changes[:, groups.rising].mean(1), changes[:, groups.falling].mean(1))[0, 1]
    assert found.value == pytest.approx(expected)
    assert (found.changes, len(found.null)) == (4, 3)
    assert correlation(losses[:4], groups, null, 0) is None
    assert correlation(np.ones((6, 30)), groups, null, 0) is None


@pytest.mark.parametrize(
    ("outputs", "loss", "targets", "expected"),
    [
        (1, "mse", torch.zeros(9), lambda out: out[:, 0].tolist()),
        (1, "bce_with_logits", torch.arange(9) % 2, lambda out: (out[:, 0] > 0).int().tolist()),
        (3, "mse", torch.arange(9) % 3, lambda out: out.argmax(1).tolist()),
        (3, "mse", torch.zeros(9, 3), lambda out: [None] * 9),
        (3, "cross_entropy", torch.arange(9) % 3, lambda out: out.argmax(1).tolist()),
    ],
)
def test_what_the_model_says_of_an_example(outputs, loss, targets, expected) -> None:
    module, x = nn.Linear(4, outputs), torch.randn(9, 4)
    found = answers(Objective.of(module, batches(x, targets), loss, dtype="float64", micro_batch=2), [*range(9)][::-1])
    said = zip([each[0] for each in found], expected(module(x).detach())[::-1], strict=True)
    assert all(one is other or one == pytest.approx(other, rel=1e-5) for one, other in said)
    assert [each[1] is not None for each in found] == [loss == "cross_entropy"] * 9
