"""RISE: the mean score of randomly masked examples, by what the mask showed (Petsiuk et al. 2018).

The paper's map is S = E[f(x * M) M] / p. Here it is S - E[f], which ranks alike, is 0 where a pixel says nothing, and
has a smaller error: masks come in pairs M and 1 - M, of which (f(M) - f(1 - M)) (M - 1/2) is an unbiased value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from probes.attribution.coalitions import Estimate, Floats, Scores, relative
from probes.attribution.maps import make_map
from probes.attribution.methods import Method
from probes.attribution.players import baseline_of, plan_of, refuse_single
from probes.attribution.sampling import Plan, State, added, mean_and_error, moments, sample

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.maps import Map
    from probes.attribution.methods import Settings, Tick

CELLS = 7  # a side
PAIRS = CELLS**2  # of masks, a round


def image_masks(random: np.random.Generator, count: int, height: int, width: int, cells: int = CELLS) -> Tensor:
    """Draw soft masks (count, 1, H, W): cells on with p = 1/2, enlarged bilinearly by one cell more, shifted at random.

    The shift is uniform over the pixels of a cell, along both axes.
    """
    tall, wide = -(-height // cells), -(-width // cells)
    grid = torch.from_numpy(random.random((count, 1, cells, cells)) < 0.5).float()
    size = ((cells + 1) * tall, (cells + 1) * wide)
    large = functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    down, right = random.integers(0, tall, count), random.integers(0, wide, count)
    cut = [each[:, i : i + height, j : j + width] for each, i, j in zip(large, down, right, strict=True)]
    return torch.stack(cut)


def feature_masks(random: np.random.Generator, count: int, features: int) -> Tensor:
    """Draw masks (count, F) of columns or tokens, each on with p = 1/2."""
    return torch.from_numpy(random.random((count, features)) < 0.5).float()


def rise(scores: Scores, x: Tensor, baseline: Tensor, plan: Plan, masks: Any, shape: tuple[int, ...]) -> Estimate:
    """Estimate S - E[f] for each place, with its standard error, from pairs of masks.

    masks: a source of randomness -> (n, ...) in [0, 1], broadcasting over x; of the map's `shape` (n, *shape) when
    reshaped. Where a mask is 0 the baseline shows.
    """

    def extend(state: State, number: int) -> State:
        mask = masks(plan.random(number)).to(x)
        low, high = scores(baseline + (x - baseline) * (1 - mask)), scores(baseline + (x - baseline) * mask)
        gain, half = (high - low).double(), mask.double().reshape(len(mask), -1) - 0.5
        total, squares = gain @ half, gain**2 @ half**2
        score = {"score": state["score"] + float((high + low).double().sum()) / 2}
        return {**added(state, _back(total, shape), _back(squares, shape), len(mask)), **score}

    first = {**moments(np.zeros(shape)), "score": np.zeros(1)}
    found = sample(plan, first, extend, lambda state: relative(*mean_and_error(state)))
    values, stderr = mean_and_error(found.state)
    count = int(found.state["count"][0])
    about = {"samples": found.rounds, "masks": 2 * count, "evaluations": 2 * count, "stopped": found.stopped}
    mean = float(found.state["score"][0]) / count
    return Estimate(values, stderr, {**about, "mean_score": mean, "relative_stderr": relative(values, stderr)})


def _back(values: Tensor, shape: tuple[int, ...]) -> Floats:
    return values.cpu().numpy().reshape(shape)


def _run(case: Case, settings: Settings, tick: Tick) -> Map:
    name, baseline = baseline_of(case, settings, "mean" if case.kind == "image" else "")
    plan = plan_of(case, "rise", settings, tick, (name, case.score_at(baseline)))
    if case.kind == "image":
        shape: tuple[int, ...] = (1, *case.shape[1:])
        masks = lambda random: image_masks(random, PAIRS, *case.shape[1:])
    else:
        shape, more = case.shape, (1,) * (case.features.ndim - 2)
        masks = lambda random: feature_masks(random, max(PAIRS, *shape), *shape).reshape(-1, *shape, *more)
    found = rise(case.in_chunks, case.features, baseline, plan, masks, shape)
    return make_map(
        case,
        "rise",
        torch.from_numpy(found.values),
        baseline_score=case.score_at(baseline),
        stderr=torch.from_numpy(found.stderr),
        about={"baseline": name, "cells": CELLS, "keep": 0.5, **found.about},
    )


METHODS = (Method("rise", "RISE", "perturbation", _run, sampled=True, refuse=refuse_single),)
