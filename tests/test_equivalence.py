"""The gate: specifications that keep the function pass, wrong ones are refused with the layer that shows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import tracing_nets as nets
from torch import nn

from probes.equivalence import check, equivalence
from probes.errors import ModelError
from probes.permutations import Permutation, PermutationSpec, Use, drawn, identity
from probes.points import point_of
from probes.tracing import traced


class Blocks(nn.Module):
    """Two convolutions with BatchNorm, flattened into an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x)))


grey = torch.rand(12, 1, 6, 6)


def without(spec: PermutationSpec, name: str, tensor: str) -> PermutationSpec:
    """Leave a use out."""
    changed = [
        replace(each, uses=tuple(use for use in each.uses if use.tensor != tensor)) if each.name == name else each
        for each in spec
    ]
    return PermutationSpec(tuple(changed), "edited")


def test_a_right_specification_passes_and_says_how_exactly() -> None:
    objective = nets.objective_of(Blocks(), grey)
    spec = traced(objective)
    result = check(objective, spec, found=drawn(spec, 5))
    assert result.passed and 0 < result.error < 1e-13 and result.layer == result.permutation == ""
    with torch.no_grad():
        largest = objective.module.double()(grey.double()[torch.linspace(0, 11, 8).round().long()]).abs().max()
    alone = equivalence(objective, point_of(objective), spec, identity(spec))
    assert alone.error == 0 and alone.scale >= float(largest) * (1 - 1e-12)  # of disturbed examples too


@pytest.mark.parametrize(
    ("name", "tensor", "layer"),
    [
        ("one.0", "two.0.weight", "two.0"),  # a consumer is left out
        ("one.0", "one.1.running_mean", "one.1"),
        ("one.0", "one.1.running_var", "one.1"),
        ("one.0", "one.1.weight", "one.1"),
        ("one.0", "one.0.bias", "one.0"),
        ("two.0", "head.weight", "head"),
    ],
)
def test_a_use_left_out_is_refused_with_its_layer(name: str, tensor: str, layer: str) -> None:
    objective = nets.objective_of(Blocks(), grey)
    wrong = without(traced(objective), name, tensor)
    found = equivalence(objective, point_of(objective), wrong, drawn(wrong, 0))
    assert not found.passed and found.error > 1e-3 and (found.permutation, found.layer) == (name, layer)
    with pytest.raises(ModelError, match=rf"(?s)permutation '{name}'.*the layer `{layer}`"):
        check(objective, wrong)


def test_blocks_of_a_flattened_map_in_the_wrong_order_are_refused() -> None:
    objective = nets.objective_of(Blocks(), grey)
    spec = traced(objective)
    uses = [
        replace(use, index=np.arange(20).reshape(4, 5).T.copy()) if use.tensor == "head.weight" else use
        for use in spec["two.0"].uses
    ]
    wrong = PermutationSpec((spec["one.0"], replace(spec["two.0"], uses=tuple(uses))), "edited")
    with pytest.raises(ModelError, match=r"permutation 'two.0'.*layer `head`"):
        check(objective, wrong)


def test_a_padded_channel_that_moves_freely_is_refused() -> None:
    objective = nets.objective_of(nets.OptionA(), grey)
    spec = traced(objective)
    every = np.arange(8)[:, None]
    uses = tuple(
        Use(name, axis, every) for name, axis in (("second.3.weight", 0), ("second.3.bias", 0), ("head.weight", 1))
    )
    wrong = PermutationSpec((Permutation("free", 8, uses),), "edited")
    assert check(objective, spec).passed
    with pytest.raises(ModelError, match=r"permutation 'free'.*layer `head`"):
        check(objective, wrong)


def test_heads_ignored_by_queries_and_keys_are_refused() -> None:
    objective = nets.objective_of(nets.Written(), torch.randint(0, 11, (12, 5)))
    across = np.stack([np.arange(8), np.arange(8) + 8], axis=1)
    wrong = PermutationSpec(
        (Permutation("qk", 8, (Use("qkv.weight", 0, across), Use("qkv.bias", 0, across))),), "edited"
    )
    with pytest.raises(ModelError, match=r"permutation 'qk'.*layer `out`"):
        check(objective, wrong)


def test_units_that_are_equal_at_the_start_do_not_hide_a_wrong_specification() -> None:
    """BatchNorm as it is made: all channels alike; and units that are dead on the data."""
    objective = nets.objective_of(Blocks(), grey)
    spec = traced(objective)
    with torch.no_grad():
        for name, each in objective.module.named_parameters():
            if name.startswith("one.1"):
                each.fill_(1.0 if name.endswith("weight") else -50.0)
        objective.module.one[1].running_mean.zero_()
        objective.module.one[1].running_var.fill_(1.0)
    alike = nets.Objective.of(objective.module, objective.batches, "cross_entropy", micro_batch=4)
    wrong = without(spec, "one.0", "one.1.running_mean")
    assert equivalence(alike, point_of(alike), wrong, drawn(wrong, 0)).passed  # it hides here
    with pytest.raises(ModelError, match=r"layer `one.1`"):
        check(alike, wrong)


def test_a_found_permutation_that_is_none_is_refused() -> None:
    objective = nets.objective_of(Blocks(), grey)
    spec = traced(objective)
    twice = {**identity(spec), "one.0": np.array([0, 0, 1, 2])}
    with pytest.raises(ModelError, match=r"permutation found for 'one.0' is none"):
        check(objective, spec, found=twice)
    with pytest.raises(ModelError, match=r"permutation found for 'other'"):
        check(objective, spec, found={"other": np.arange(3)})


@pytest.mark.parametrize(
    ("use", "size", "words"),
    [
        (Use("nowhere", 0, np.arange(4)[:, None]), 4, "there is no tensor 'nowhere'"),
        (Use("head.bias", 1, np.arange(3)[:, None]), 3, "'head.bias' has 1 axes, no axis 1"),
        (Use("one.0.weight", 0, np.arange(5)[:, None]), 5, "no position 4: its size is 4"),
        (Use("one.0.weight", 0, np.zeros((2, 1), dtype=int)), 2, "a position is given twice"),
        (Use("one.0.weight", 0, np.arange(3)[:, None]), 4, "positions for 3 units, but there are 4"),
        (Use("two.0.weight", 1, np.arange(4)[:, None], (0, np.array([9]))), 4, "no position 9"),
    ],
)
def test_a_specification_of_another_model_is_refused_in_words(use: Use, size: int, words: str) -> None:
    objective = nets.objective_of(Blocks(), grey)
    with pytest.raises(ModelError, match=words):
        check(objective, PermutationSpec((Permutation("p", size, (use,)),), "edited"))


def test_weights_that_are_not_finite_are_told_apart_from_a_wrong_specification() -> None:
    objective = nets.objective_of(Blocks(), grey)
    spec = traced(objective)
    with torch.no_grad():
        objective.theta[0].fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite"):
        check(objective, spec)
