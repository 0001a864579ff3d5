"""Permutations applied, composed and undone, outer and inner ones, along blocks, slots and rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probes.permutations import (
    Permutation,
    PermutationSpec,
    Use,
    composed,
    displaced,
    drawn,
    identity,
    inverse,
    permuted,
)


def spec() -> PermutationSpec:
    """Three heads of four rows each, their rows, and a block of columns; a free permutation within some rows."""
    blocks = np.arange(12).reshape(3, 4)
    heads = Permutation(
        "heads", 3, (Use("q", 0, blocks), Use("o", 1, blocks)), "heads", tuple((f"h{slot}",) for slot in range(3))
    )
    within = [
        Permutation(f"h{slot}", 4, (Use("q", 0, row[:, None]), Use("o", 1, row[:, None])), "within a head")
        for slot, row in enumerate(blocks)
    ]
    rows = Permutation("group", 5, (Use("w", 1, np.arange(5)[:, None], rows=(0, np.array([1, 2]))),))
    return PermutationSpec((heads, *within, rows), "by hand")


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"q": torch.randn(12, 6), "o": torch.randn(6, 12), "w": torch.randn(4, 5)}


def test_units_go_where_pi_says() -> None:
    held = tensors()
    moved = permuted(held, spec(), {"heads": np.array([2, 0, 1]), "h0": np.array([3, 2, 1, 0])})
    assert torch.equal(moved["q"], held["q"][[11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(moved["o"] @ moved["q"], held["o"] @ held["q"])
    only = permuted(held, spec(), {"group": np.array([1, 2, 3, 4, 0])})["w"]
    assert torch.equal(only[[0, 3]], held["w"][[0, 3]])
    assert torch.equal(only[[1, 2]], held["w"][[1, 2]][:, [1, 2, 3, 4, 0]])


@pytest.mark.parametrize("seed", range(4))
def test_composed_is_one_after_the_other_and_inverse_undoes(seed: int) -> None:
    plan, held = spec(), tensors()
    first, then = drawn(plan, seed), drawn(plan, seed + 100)
    twice = permuted(permuted(held, plan, first), plan, then)
    once = permuted(held, plan, composed(plan, first, then))
    back = permuted(permuted(held, plan, first), plan, inverse(plan, first))
    for name in held:
        assert torch.equal(twice[name], once[name])
        assert torch.equal(back[name], held[name])
    assert displaced(identity(plan)) == 0 < displaced(first)
