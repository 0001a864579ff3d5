"""Barriers and REPAIR on the two real runs: the figures measured elsewhere, with a weight matching written here."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from probes.barriers import accuracy_drop, barrier
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.layer_match import variance_ratios
from probes.layer_moments import moments_at
from probes.models import recognise
from probes.objective import Objective, build_objective
from probes.paths import Readings, read, readings, resamples
from probes.permutations import Permutation, PermutationSpec, Use, permuted
from probes.points import Point, between, distance, point_from, point_of, tensors_of
from probes.repair import repaired
from probes.specs import DataSpec

QUARTERS = (0.25, 0.5, 0.75)


@cache
def real_pair(real: Path) -> tuple[Objective, Point, Point]:
    one, two = (read_checkpoint(real / "mnist-cnn" / run / "epoch-200.pt") for run in ("run1", "run2"))
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    data = read_batches(DataSpec(tuple(str(real / "mnist" / each) for each in names), examples=10_000))
    spec = recognise(one).spec
    assert spec is not None
    objective = build_objective(spec, one, data, "cross_entropy", micro_batch=250)
    return objective, point_of(objective), point_of(objective.at(two))


def cnn_spec() -> PermutationSpec:
    """The channels of both convolutions; in the linear layer each has its 25 pixels."""
    one = lambda size: np.arange(size)[:, None]
    first = (Use("0.weight", 0, one(32)), Use("0.bias", 0, one(32)), Use("3.weight", 1, one(32)))
    pixels = np.arange(1600).reshape(64, 25)
    second = (Use("3.weight", 0, one(64)), Use("3.bias", 0, one(64)), Use("7.weight", 1, pixels))
    return PermutationSpec((Permutation("first", 32, first), Permutation("second", 64, second)), "by hand")


def matched_by_hand(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], seed: int) -> dict[str, np.ndarray]:
    """Coordinate ascent in float64: unit u of A against unit v of B, weights in, bias, weights out."""
    A, B = ({name: each.double().numpy() for name, each in held.items()} for held in (a, b))
    pi = [np.arange(32), np.arange(64)]
    generator, before = np.random.default_rng(seed), None
    while before is None or any((x != y).any() for x, y in zip(pi, before, strict=True)):
        before = list(pi)
        for which in generator.permutation(2):
            if which == 0:
                gain = A["0.weight"].reshape(32, -1) @ B["0.weight"].reshape(32, -1).T
                gain += np.outer(A["0.bias"], B["0.bias"])
                gain += np.einsum("oixy,ojxy->ij", A["3.weight"], B["3.weight"][pi[1]])
            else:
                gain = np.einsum("oixy,pixy->op", A["3.weight"], B["3.weight"][:, pi[0]])
                gain += np.outer(A["3.bias"], B["3.bias"])
                shape = (10, 64, 25)
                gain += np.einsum("ciy,cjy->ij", A["7.weight"].reshape(shape), B["7.weight"].reshape(shape))
            pi[which] = linear_sum_assignment(gain, maximize=True)[1]
    return {"first": pi[0], "second": pi[1]}


@cache
def matched(real: Path) -> Point:
    objective, a, b = real_pair(real)
    tensors = tensors_of(objective, a), tensors_of(objective, b)
    found = [matched_by_hand(*tensors, seed) for seed in range(5)]
    assert all((found[0][name] == each[name]).all() for each in found for name in each), "one permutation, five seeds"
    return point_from(objective, permuted(tensors[1], cnn_spec(), found[0]))


@cache
def ends(real: Path) -> Readings:
    objective, a, b = real_pair(real)
    return read(objective, a).with_more(read(objective, b))


def curve(real: Path, other: Point) -> Readings:
    objective, a, _ = real_pair(real)
    inside = readings(objective, [between(a, other, each) for each in QUARTERS], 3, lambda _share, _doing: None)
    return ends(real).with_more(inside).taken([0, 2, 3, 4, 1])


def test_the_naive_path_and_its_barrier(real: Path) -> None:
    found, weights = curve(real, real_pair(real)[2]), resamples(10_000, seed=0, draws=200)
    assert found.accuracy is not None
    assert found.loss.round(4).tolist() == [0.0332, 0.1048, 0.7228, 0.1316, 0.0331]
    assert (100 * found.accuracy).round(2).tolist() == [98.94, 98.16, 77.11, 97.75, 98.87]
    high, drop = barrier(found, (0, *QUARTERS, 1), weights), accuracy_drop(found, (0, *QUARTERS, 1), weights)
    for each in (high.git_rebasin, high.entezari, high.midpoint):
        assert round(each.value, 3) == 0.690 and each.at == 0.5
        assert 0.67 < each.low < 0.69 < each.high < 0.71
    assert round(drop.midpoint.value, 4) == round((0.9894 + 0.9887) / 2 - 0.7711, 4)


def test_the_matched_path_and_its_barrier(real: Path) -> None:
    _, a, _ = real_pair(real)
    other = matched(real)
    assert round(distance(a, other), 4) == 4.9958
    found = curve(real, other)
    assert found.accuracy is not None
    assert found.loss[1:4].round(4).tolist() == [0.0339, 0.0350, 0.0341]
    assert (100 * found.accuracy)[1:4].round(2).tolist() == [98.94, 98.86, 98.89]
    high = barrier(found, (0, *QUARTERS, 1), resamples(10_000, seed=0, draws=200))
    assert round(high.git_rebasin.value, 4) == 0.0018
    assert high.git_rebasin.low < 0.0018 < high.git_rebasin.high < 0.01


def test_repair_at_the_midpoint(real: Path) -> None:
    objective, a, b = real_pair(real)
    few = objective.chosen(range(2000))
    mine = moments_at(few, a)
    for other, percent in ((b, 79.0), (matched(real), 98.5)):
        theirs = moments_at(few, other)
        found = repaired(few, a, other, 0.5, moments=(mine, theirs))
        assert found.layers == ("0", "3") and not found.notes
        accuracy = read(few, found.point).accuracy
        assert accuracy is not None and round(100 * accuracy[0], 2) == percent
        at = [
            moments_at(objective.chosen(range(200)), each) for each in (a, other, between(a, other, 0.5), found.point)
        ]
        before, after = (variance_ratios(each, *at[:2]) for each in at[2:])
        assert before["3"] < (0.35 if other is b else 0.9) and after["3"] > before["3"]
        assert after["0"] == pytest.approx(1, abs=0.3)
