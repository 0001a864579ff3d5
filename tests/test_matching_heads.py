"""Weight matching of heads, query heads and groups of channels, with what lies within them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matching_oracles import TICK, attention, everything, grouped_spec, heads_spec, product_of, units

from probes.assignment import solved
from probes.matching import distance_between, weight_matching
from probes.permutations import (
    PermutationSpec,
    composed,
    drawn,
    permuted,
)
from probes.unit_products import Clock


@pytest.mark.parametrize("seed", range(3))
def test_heads_with_what_lies_within_them_are_solved_exactly(seed: int) -> None:
    a, b, spec = attention(seed, 3, 2), attention(seed + 50, 3, 2), heads_spec(3, 2)
    only = PermutationSpec(tuple(each for each in spec if each.name != "stream"), "by hand")
    best = solved(a, b, only, only["heads"], Clock())
    every = [product_of(a, permuted(b, only, each)) for each in everything(only)]
    assert product_of(a, permuted(b, only, best.then)) == pytest.approx(max(every), rel=1e-12)
    assert best.gain == pytest.approx(max(every) - product_of(a, b), rel=1e-9)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_planted_heads_query_heads_and_orders_within_are_found(seed: int, group: int) -> None:
    a, spec = attention(seed, 4, 5, group), heads_spec(4, 5, group)
    planted = drawn(spec, seed)
    found = weight_matching(a, permuted(a, spec, planted), spec, seed=seed, tick=TICK)
    back = composed(spec, planted, found.found)
    assert found.distance == 0
    assert all(np.array_equal(pi, np.arange(len(pi))) for pi in back.values())


@pytest.mark.parametrize("seed", range(3))
def test_query_heads_and_orders_that_share_tensors_come_near_the_best(seed: int) -> None:
    a, b, spec = attention(seed, 2, 2, 2), attention(seed + 50, 2, 2, 2), heads_spec(2, 2, 2)
    only = PermutationSpec(tuple(each for each in spec if each.name != "stream"), "by hand")
    found = weight_matching(a, b, only, restarts=8, seed=seed, tick=TICK)
    every = [distance_between(a, permuted(b, only, each), only) for each in everything(only)]
    assert np.mean(np.array(every) < found.distance - 1e-9) < 0.01
    assert found.distance < distance_between(a, b, only)


def test_the_fixed_axes_find_a_noisy_copy_where_the_identity_is_stuck() -> None:
    """A stream with layers beside it: once these agree with a wrong order of the stream, they hold it there."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    layers = range(6)
    stream = [("table", 1), *((f"up{k}", 1) for k in layers), *((f"down{k}", 0) for k in layers)]
    beside = [units(f"layer{k}", 120, (f"up{k}", 0), (f"down{k}", 1)) for k in layers]
    spec = PermutationSpec((units("stream", 40, *stream), *beside), "by hand")
    a = (
        {"table": draw(25, 40)}
        | {f"up{k}": draw(120, 40) for k in layers}
        | {f"down{k}": draw(40, 120) for k in layers}
    )
    planted = drawn(spec, 1)
    b = permuted({name: each + 0.3 * draw(*each.shape) for name, each in a.items()}, spec, planted)
    found = weight_matching(a, b, spec, restarts=2, tick=TICK)
    assert [each.start for each in found.restarts] == ["fixed axes", "identity"]
    back = composed(spec, planted, found.found)
    assert all(np.array_equal(back[each.name], np.arange(each.size)) for each in spec)
    assert found.restarts[1].distance > 1.5 * found.distance
    assert found.agreement is not None and found.agreement < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_planted_groups_of_channels_are_found(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = {"one": torch.randn(12, 5, generator=generator), "two": torch.randn(6, 4, 3, generator=generator)}
    a["three"] = torch.randn(5, 6, generator=generator)
    spec = grouped_spec()
    planted = drawn(spec, seed)
    found = weight_matching(a, permuted(a, spec, planted), spec, tick=TICK)
    assert found.distance == 0
    back = composed(spec, planted, found.found)
    assert all(np.array_equal(pi, np.arange(len(pi))) for pi in back.values())
