"""What is measured beside the lines: layers, pairs of units, controls, and the loss of chance."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from analyzers._connectivity_matching import by_weights
from analyzers._connectivity_run import Reports, Run, part_of
from analyzers._connectivity_values import number, numbers, stage_values
from probes.controls import gain, noise_like, planted
from probes.layer_match import LayerBarrier, Moved, layer_barriers, tensor_matches, variance_ratios
from probes.layer_moments import moments_at
from probes.losses import Tally, evaluation
from probes.points import between, distance, tensors_of
from probes.repair import repaired
from probes.unit_pairs import LIMIT, UnitPair, activities, unit_pairs

CONTROL_POINTS = 5
MOST_PAIRS = 200_000


def chance_loss(run: Run) -> float:
    """Return the loss of the best constant answer; for a loss of the operator's, that of a network of noise."""
    known = run.values.get("chance_loss")
    if known is not None:
        return float(known)
    data = run.lines["naive"].data
    counts, losses = torch.as_tensor(data.counts), torch.as_tensor(data.losses[0])
    found = evaluation(run.objective.loss, [Tally(counts, losses, None)], run.objective.targets).chance_loss
    if math.isnan(found):
        noise = noise_like(run.objective, run.b, run.options.seed)
        found = float(run.read([noise], 1, lambda _share, _doing: None, "noise", tested=False).data.loss[0])
    return found


def layers(run: Run, tick: Reports) -> None:
    """Compare the two layer by layer, and how much their average varies; pair the units of every permutation."""
    a, b, matched = run.a, run.b, run.matched
    rows = [asdict(each) for each in tensor_matches(run.objective, a, b, run.spec, run.found)]
    run.values["tensors"] = rows
    ends = moments_at(run.few, a), moments_at(run.few, matched)
    tick(0.5, "moments of the layers")
    middles = {"naive": run.renewed(between(a, b, 0.5)), "matched": run.renewed(between(a, matched, 0.5))}
    if "repaired" in run.values["loss"]:
        middles["repaired"] = run.middle or repaired(run.objective, a, matched, 0.5).point
    ratios = {stage: variance_ratios(moments_at(run.few, point), *ends) for stage, point in middles.items()}
    tick(0.9, "variance half-way")
    run.values |= {"variance_ratio": ratios, "looked_at": len(run.few.inputs)}
    _unit_pairs(run, part_of(tick, 0.9, 1))


def layer_barriers_step(run: Run, tick: Reports) -> None:
    """Move one layer at a time, before and after matching."""
    kept = run.values.setdefault("layer_barriers", {})
    for place, (stage, other) in enumerate((("naive", run.b), ("matched", run.matched))):
        part, statistics = part_of(tick, place / 2, (place + 1) / 2), run.objective if run.anew else None
        found = layer_barriers(run.objective, run.a, other, run.weights, part, statistics=statistics)
        kept[stage] = [_layer(each) for each in found]


def controls(run: Run, tick: Reports) -> None:
    """Find a permuted copy of the first again, and match noise that has the moments of the second."""
    first = lambda share, doing: tick(0.4 * share, f"control: permuted copy, {doing}")
    match = lambda one, other: by_weights(run, one, other, first)
    copy = planted(run.objective, run.a, run.spec, match, run.options.seed + 1)
    noise = noise_like(run.objective, run.b, run.options.seed + 2)
    second = lambda share, doing: tick(0.4 + 0.4 * share, f"control: noise, {doing}")
    tensors = [tensors_of(run.objective, each) for each in (run.a, noise)]
    moved = run.permuted(noise, by_weights(run, tensors[0], tensors[1], second))
    lambdas = np.linspace(0, 1, CONTROL_POINTS)
    reads: dict[str, Any] = {}
    for place, (stage, other) in enumerate((("naive", noise), ("matched", moved))):
        points = (between(run.a, other, float(each)) for each in lambdas)
        part = part_of(tick, 0.8 + 0.1 * place, 0.9 + 0.1 * place)
        reads[stage] = run.read(points, CONTROL_POINTS, part, "control: line to noise", tested=False).data
    before, after = distance(run.a, noise), distance(run.a, moved)
    run.values["controls"] = {
        "permuted_copy": {
            "found_again": copy.found_again, "distance": copy.distance, "units": copy.units, "exact": copy.exact,
        },
        "noise": {
            "distance_naive": before, "distance": after, "gain": gain(before, after),
            "loss": number(float(reads["naive"].loss[-1])),
            "barrier": {stage: stage_values(each, lambdas, run.weights)["barrier"] for stage, each in reads.items()},
        },
        "gain": gain(run.values["distance_naive"], run.values["distance"]),
    }  # fmt: skip
    if not copy.exact:
        run.doubt(
            f"A permuted copy of the first checkpoint was not found again (distance {copy.distance:.3g}): the matcher "
            "misses what is there, so that a barrier after matching says little."
        )


def _layer(found: LayerBarrier) -> dict[str, Any]:
    return {
        "layer": found.layer,
        "lambda": [*found.lambdas],
        "first": _moved(found.first),
        "second": _moved(found.second),
    }


def _moved(found: Moved) -> dict[str, Any]:
    high = found.barrier.git_rebasin
    return {
        "loss": numbers(found.loss),
        "barrier": high.value, "barrier_low": high.low, "barrier_high": high.high,
        "rise": found.rise.value, "rise_low": found.rise.low, "rise_high": found.rise.high,
    }  # fmt: skip


def _unit_pairs(run: Run, tick: Reports) -> None:
    """Pair the units of every permutation: cosines before and after, correlations; the worst ones as rows."""
    total = sum(each.size for each in run.spec)
    if total > MOST_PAIRS:
        run.doubt(f"The pairs of units are not listed: there are {total:,}, more than {MOST_PAIRS:,}.")
        return
    of = run.few, run.a, run.b, run.spec
    seen = activities(*of, run.found, tick)
    after = unit_pairs(*of, run.found, activities=seen, limit=total)
    before = {(each.permutation, each.first): each.cosine for each in unit_pairs(*of, {}, limit=total)}
    rows: dict[str, list[UnitPair]] = {}
    for each in after:
        rows.setdefault(each.permutation, []).append(each)
    for name, pairs in rows.items():
        kept = np.full((3, len(pairs)), np.nan)
        for each in pairs:
            known = (before[name, each.first], each.cosine, each.correlation)
            kept[:, each.first] = [np.nan if value is None else value for value in known]
        run.arrays[f"pairs_{name}"] = kept
    run.values["unit_pairs"] = [_listed(each) for pairs in rows.values() for each in pairs[:LIMIT]]


def _listed(pair: UnitPair) -> dict[str, Any]:
    return {key: list(each) if isinstance(each, tuple) else each for key, each in asdict(pair).items()}
