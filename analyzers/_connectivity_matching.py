"""The gate and the matchers: permutations must leave the function as it is, before a barrier is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from analyzers._connectivity_run import Reports, Run, part_of
from analyzers._connectivity_values import number
from probes.errors import ModelError
from probes.permutations import Found, PermutationSpec, displaced
from probes.points import Point, at, between, distance, tensors_of

if TYPE_CHECKING:
    from probes.matching import Matching

GATE, MATCHED = 0.1, 0.9  # shares of the work of this step that are done after the first check, and after the matching
EPOCHS, ITERATIONS = 5, 100  # of the matchers that follow a gradient
WORDS = {
    "weights": "weight matching",
    "activations": "activation matching",
    "straight-through": "weight matching, then the straight-through matcher",
    "sinkhorn": "weight matching, then Sinkhorn matching",
}
CHOSEN_BY_LOSS = (WORDS["straight-through"], WORDS["sinkhorn"])


def match(run: Run, tick: Reports) -> None:
    """Check random permutations of the specification, match, and check the permutation that was found.

    Raises ModelError, naming the layer, where one of them changes the function.
    """
    from probes.equivalence import check

    tick(0.0, "checking random permutations")
    seeds = tuple(run.options.seed + each for each in range(3))
    drawn = check(run.objective, run.spec, seeds=seeds)
    kept = run.tick.load("matching")
    if kept is None:
        kept = _chosen(run, part_of(tick, GATE, MATCHED))
        run.tick.save("matching", kept)
    run.found = {each.name: np.asarray(kept[f"permutation_{each.name}"], dtype=np.int64) for each in run.spec}
    tick(MATCHED, "checking the permutation that was found")
    found = check(at(run.objective, run.b), run.spec, seeds=(), found=run.found)
    run.arrays |= {f"permutation_{name}": each for name, each in run.found.items()}
    run.values |= {
        **_told(run, kept),
        "distance": distance(run.a, run.matched),
        "distance_naive": distance(run.a, run.b),
        "displaced": displaced(run.found),
        "equivalence_error": max(found.error, drawn.error),
        "equivalence": {"random": drawn.error, "found": found.error, "scale": number(found.scale), "seeds": [*seeds]},
    }
    run.doubt(*map(str, kept["notes"]), *_doubts(run))


def by_weights(
    run: Run, one: Mapping[str, Tensor], other: Mapping[str, Tensor], tick: Reports, restarts: int = 0
) -> Found:
    """Match tensors by weights alone, with as many restarts as the options say unless told otherwise."""
    from probes.matching import weight_matching

    count = restarts or run.options.restarts
    return weight_matching(one, other, run.spec, restarts=count, seed=run.options.seed, tick=tick).found


def _chosen(run: Run, tick: Reports) -> dict[str, Any]:
    """Match as the options ask; of all matchers the one with the lowest loss half-way. Return arrays to keep."""
    asked = run.options.matcher
    names = list(WORDS) if asked == "best of all" else [asked]
    tried: list[tuple[str, Matching, float]] = []
    for place, name in enumerate(names):
        try:
            found = _matching(run, name, part_of(tick, place / len(names), (place + 1) / len(names)))
        except ModelError as error:
            if len(names) == 1:
                raise
            run.doubt(f"Not tried, {WORDS[name]}: {error}")
            continue
        tried.append((name, found, _half_way(run, found) if len(names) > 1 else 0.0))
    name, best, _ = min(tried, key=lambda each: each[2])
    rows = [(each.distance, each.agreement, each.sweeps) for each in best.restarts]
    rows = rows or [(best.distance, 1.0, max(best.sweeps, 1))]
    others = [(WORDS[each], found.distance, loss) for each, found, loss in tried]
    return {
        **{f"permutation_{key}": np.asarray(each) for key, each in best.found.items()},
        "name": np.array(name),
        "restarts": np.array(rows, dtype=np.float64),
        "starts": np.array([each.start for each in best.restarts] or ["given"]),
        "agreements": np.array([best.agreements.get(each.name, np.nan) for each in run.spec]),
        "notes": np.array([*best.notes], dtype=np.str_),
        "tried": np.array([each for each, _, _ in others]),
        "tried_numbers": np.array([[far, loss] for _, far, loss in others]),
    }


def _matching(run: Run, name: str, tick: Reports) -> Matching:
    from probes.matching import weight_matching

    one, other, seed = run.a, run.b, run.options.seed
    if name == "activations":
        from probes.matching_activations import activation_matching

        return activation_matching(run.objective, one, other, run.spec, tick)
    if name == "straight-through":
        from probes.straight_through import straight_through

        return straight_through(
            run.objective, one, other, run.spec, epochs=EPOCHS, seed=seed, tick=tick, store=run.tick
        )
    if name == "sinkhorn":
        from probes.sinkhorn import sinkhorn_matching

        return sinkhorn_matching(
            run.objective, one, other, run.spec, cost="midpoint", iterations=ITERATIONS, seed=seed, tick=tick
        )
    a, b = tensors_of(run.objective, one), tensors_of(run.objective, other)
    return weight_matching(a, b, run.spec, restarts=run.options.restarts, seed=seed, tick=tick)


def _half_way(run: Run, found: Matching) -> float:
    middle: Point = between(run.a, run.permuted(run.b, found.found), 0.5)
    both = run.read([middle], 1, lambda _share, _doing: None, "half-way", tested=False)
    loss = float(both.data.loss[0])
    return loss if np.isfinite(loss) else np.inf


def _told(run: Run, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the result says of the matching."""
    tried = zip(kept["tried"], kept["tried_numbers"].tolist(), strict=True)
    rows = zip(kept["restarts"].tolist(), kept["starts"], strict=True)
    return {
        "matcher": WORDS[str(kept["name"])],
        "matchers": [
            {"matcher": str(name), "distance": far, "loss_half_way": number(loss) if len(kept["tried"]) > 1 else None}
            for name, (far, loss) in tried
        ],
        "restarts": [
            {"distance": far, "agreement": agreed, "sweeps": int(sweeps), "start": str(start)}
            for (far, agreed, sweeps), start in rows
        ],
        "permutations": _permutations(run.spec, run.found, kept["agreements"].tolist()),
    }


def _permutations(spec: PermutationSpec, found: Found, agreements: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "permutation": each.name, "kind": each.kind, "units": each.size, "agreement": number(agreed),
            "displaced": float((found[each.name] != np.arange(each.size)).mean()),
        }
        for each, agreed in zip(spec, agreements, strict=True)
    ]  # fmt: skip


def _doubts(run: Run) -> list[str]:
    """Say what the restarts leave open."""
    rows = run.values["restarts"]
    least = min(each["agreement"] for each in rows)
    doubts = []
    if len(rows) > 1 and least < 0.9:
        doubts.append(
            f"The restarts of the matching do not agree: one places only {100 * least:.3g} % of the units as the best "
            "one does. Another permutation may give a lower barrier; more restarts may find it."
        )
    if run.values["matcher"] == WORDS["weights"] and len(rows) == 1:
        doubts.append("The matching was tried once: how far it depends on its start is not known.")
    return doubts
