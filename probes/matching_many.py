"""Several networks matched at once: each in turn to the mean of the others, until none moves.

Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin, Algorithm 3 (MergeMany). The sum of the inner products of all pairs
rises in every step, so it ends. The permutations fit together: from the first to the second to the third is from the
first to the third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from probes.coordinate_ascent import Tick
from probes.errors import ModelError
from probes.matching import weight_matching
from probes.permutations import Found, PermutationSpec, composed, identity, inverse, permuted
from probes.unit_products import Tensors

ROUNDS = 50


def matched_many(
    tensors: Sequence[Mapping[str, Tensor]], spec: PermutationSpec, *, seed: int = 0, tick: Tick
) -> tuple[Found, ...]:
    """Return a permutation for each network that brings all of them together; the first stays as it is.

    tensors: of each network by name, as `tensors_of` gives them. Begins with every network matched to the first. Raises
    ModelError where there are fewer than two, or their tensors do not fit.
    """
    if len(tensors) < 2:
        raise ModelError(f"{len(tensors)} checkpoint was given; matching to the mean takes two or more.")
    found = [identity(spec)]
    for number, each in enumerate(tensors[1:], start=1):
        report = lambda share, doing, number=number: tick(0.5 * (number - 1 + share) / (len(tensors) - 1), doing)
        found.append(dict(weight_matching(tensors[0], each, spec, seed=seed, tick=report).found))
    if len(tensors) > 2:
        _round_and_round(tensors, spec, found, seed, lambda share, doing: tick(0.5 + 0.5 * share, doing))
    undo = inverse(spec, found[0])
    tick(1.0, "matched")
    return tuple(composed(spec, each, undo) for each in found)


def _round_and_round(
    tensors: Sequence[Tensors], spec: PermutationSpec, found: list[dict[str, np.ndarray]], seed: int, tick: Tick
) -> None:
    """Match each to the mean of the others in random order, until a round moves none; writes to `found`."""
    moved = [permuted(each, spec, pi) for each, pi in zip(tensors, found, strict=True)]
    generator = np.random.default_rng(seed)
    for number in range(ROUNDS):
        still = True
        for place in generator.permutation(len(tensors)):
            others = [each for index, each in enumerate(moved) if index != place]
            mean = {name: _mean([each[name] for each in others]) for name in moved[place]}
            silent = lambda _share, _doing: None
            best = weight_matching(mean, tensors[place], spec, restarts=1, seed=seed, start=found[place], tick=silent)
            if any(not np.array_equal(best.found[name], pi) for name, pi in found[place].items()):
                found[place], still = dict(best.found), False
                moved[place] = permuted(tensors[place], spec, best.found)
        tick((number + 1) / ROUNDS, f"to the mean of the others, round {number + 1}")
        if still:
            return


def _mean(tensors: list[Tensor]) -> Tensor:
    """Return the mean in float64; of whole numbers the first."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    return sum((each.double() for each in tensors[1:]), tensors[0].double()) / len(tensors)
