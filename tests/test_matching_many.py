"""Several networks at once: planted copies are all brought together, and no turn loses."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from matching_oracles import TICK, attention, heads_spec, mlp_spec, random_mlp

from probes.errors import ModelError
from probes.matching import distance_between, weight_matching
from probes.matching_many import matched_many
from probes.permutations import PermutationSpec, drawn, identity, permuted


def apart(tensors, spec: PermutationSpec, found) -> float:
    """The sum of the squared distances of all pairs."""
    moved = [permuted(each, spec, pi) for each, pi in zip(tensors, found, strict=True)]
    return sum(distance_between(one, other, spec) ** 2 for one, other in combinations(moved, 2))


@pytest.mark.parametrize("spec", [mlp_spec(6, 5), heads_spec(3, 4)], ids=["mlp", "heads"])
def test_planted_copies_are_brought_together(spec: PermutationSpec) -> None:
    first = random_mlp(0, 6, 5) if len(spec.permutations) == 2 else attention(0, 3, 4)
    copies = [first, *(permuted(first, spec, drawn(spec, seed)) for seed in range(3))]
    found = matched_many(copies, spec, tick=TICK)
    assert len(found) == 4
    for each, pi in zip(copies, found, strict=True):
        moved = permuted(each, spec, pi)
        assert all(torch.equal(moved[name], first[name]) for name in first)


def test_noisy_copies_of_a_network_that_is_not_there() -> None:
    """Each is noise away from one origin: together they are matched as planted, the first in its own place."""
    spec, origin = mlp_spec(12, 12), random_mlp(0, 12, 12)
    planted = [identity(spec), *(drawn(spec, seed) for seed in range(1, 5))]
    generator = torch.Generator().manual_seed(1)
    noisy = lambda: {k: v + 0.6 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in origin.items()}
    copies = [permuted(noisy(), spec, pi) for pi in planted]
    found = matched_many(copies, spec, tick=TICK)
    assert all(np.array_equal(pi, np.arange(12)) for pi in found[0].values())
    truth = [{name: np.argsort(pi) for name, pi in each.items()} for each in planted]
    assert apart(copies, spec, found) <= apart(copies, spec, truth) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_the_others_is_never_worse_than_the_first_alone(seed: int) -> None:
    spec = mlp_spec(7, 7, 7)
    tensors = [random_mlp(10 * seed + each, 7, 7, 7) for each in range(4)]
    pairwise = [identity(spec)] + [weight_matching(tensors[0], each, spec, tick=TICK).found for each in tensors[1:]]
    together = matched_many(tensors, spec, tick=TICK)
    assert apart(tensors, spec, together) < apart(tensors, spec, pairwise)
    again = matched_many(tensors, spec, tick=TICK)
    for one, other in zip(together, again, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_at_the_end_none_would_move() -> None:
    spec = mlp_spec(5, 5)
    tensors = [random_mlp(each, 5, 5) for each in range(3)]
    found = matched_many(tensors, spec, tick=TICK)
    moved = [permuted(each, spec, pi) for each, pi in zip(tensors, found, strict=True)]
    for place in range(3):
        mean = {k: torch.stack([each[k] for i, each in enumerate(moved) if i != place]).mean(0) for k in moved[0]}
        still = weight_matching(mean, moved[place], spec, restarts=1, start=identity(spec), tick=TICK)
        assert all(np.array_equal(pi, np.arange(5)) for pi in still.found.values())


def test_two_are_a_pair_and_one_is_refused() -> None:
    spec = mlp_spec(5, 5)
    tensors = [random_mlp(each, 5, 5) for each in range(2)]
    _, second = matched_many(tensors, spec, tick=TICK)
    pair = weight_matching(*tensors, spec, tick=TICK)
    assert all(np.array_equal(second[name], pi) for name, pi in pair.found.items())
    with pytest.raises(ModelError, match="1 checkpoint was given"):
        matched_many(tensors[:1], spec, tick=TICK)
