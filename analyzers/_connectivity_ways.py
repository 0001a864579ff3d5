"""Other ways between solutions: a trained curve, and all pairs of more than two."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import torch

from analyzers._connectivity_matching import by_weights
from analyzers._connectivity_run import Both, Reports, Run, part_of
from analyzers._connectivity_values import number, numbers, stage_values
from probes.curve_evaluation import summarised
from probes.curves import Curve, arclength, plane_coordinates, plane_points, straight_length
from probes.errors import ModelError
from probes.objective import Objective
from probes.planes import through
from probes.points import Point, between, tensors_of
from probes.surface import Goal, axis, surveyed

TRAINED, READ = 0.8, 0.9  # of the work for a curve: until it is trained, until it is read
PLANE, MARGIN = 31, 0.2  # points on each side of the plane of a curve, and the margin as a share of its extent
MATRIX_POINTS = 11


def curve(run: Run, tick: Reports) -> None:
    """Train a curve between the two as they are, and read it."""
    from probes.curve_training import trained

    asked = run.options
    kind: Any = asked.curve
    made = trained(
        run.objective, run.a, run.b, kind=kind, bends=asked.bends, epochs=asked.curve_epochs,
        learning_rate=asked.curve_learning_rate, seed=asked.seed,
        tick=part_of(tick, 0, TRAINED), store=run.tick,
    )  # fmt: skip
    run.doubt(*made.caveats)
    line, t = made.curve, np.linspace(0, 1, asked.curve_points | 1)
    part = part_of(tick, TRAINED, READ)
    both = run.kept("curve_points", lambda: run.read((line.at(float(each)) for each in t), len(t), part, "curve"))
    lengths, (places, aside) = arclength(line, t), plane_coordinates(line, t)
    values: dict[str, Any] = {
        "kind": asked.curve, "bends": asked.bends, "epochs": asked.curve_epochs,
        "learning_rate": asked.curve_learning_rate, "t": numbers(t), "arclength": numbers(lengths),
        "length": float(lengths[-1]), "straight_length": straight_length(line),
        "places": [numbers(each) for each in places], "aside": numbers(aside),
        "training_loss": numbers(_by_epoch(made.losses, asked.curve_epochs)),
    }  # fmt: skip
    for of, found, weights in (("", both.data, run.weights), ("test_", both.test, run.test_weights)):
        if found is not None:
            values |= {f"{of}{key}": each for key, each in stage_values(found, t, weights).items()}
            summary = asdict(summarised(found.losses, found.counts, t, lengths, weights))
            values[f"{of}summary"] = {key: _finite(each) for key, each in summary.items()}
    run.values["curve"] = values
    if asked.curve_plane:
        _plane(run, line, part_of(tick, READ, 1))
    for place, bend in enumerate(line.bends):
        flat = run.objective.flat([each.detach() for each in bend.theta])
        run.arrays[f"curve_bend_{place}"] = flat.cpu().numpy()


def _plane(run: Run, line: Curve, tick: Reports) -> None:
    """Evaluate the loss in the plane through the ends and the widest bend, in distance; few points, and a spline."""
    try:
        plane = through(*plane_points(line))
    except ModelError as error:
        run.doubt(f"The plane of the curve is not drawn: {error}")
        return
    places = np.array(run.values["curve"]["places"])
    low, high = places.min(0), places.max(0)
    margin = MARGIN * float((high - low).max())
    x, y = (axis(float(low[each]) - margin, float(high[each]) + margin, PLANE) for each in (0, 1))
    goal, seen = Goal(budget=PLANE * PLANE // 5), [0]

    def evaluate(at_x: float, at_y: float) -> tuple[float]:
        seen[0] += 1
        words = f"plane of the curve, point {seen[0]} of at most {goal.budget}"
        part = part_of(tick, (seen[0] - 1) / goal.budget, min(1.0, seen[0] / goal.budget))
        return (float(run.read([plane.at(at_x, at_y)], 1, part, words, tested=False).data.loss[0]),)

    *_, found = surveyed(evaluate, x, y, goal)
    run.values["curve"]["plane"] = {
        "x": numbers(x),
        "y": numbers(y),
        "error": number(found.error),
        "points": len(found.at),
    }
    run.arrays |= {"curve_plane": np.maximum(found.values, found.range[0]), "curve_plane_points": found.at}


def curve_of(run_objective: Objective, a: Point, b: Point, values: Any, arrays: Any) -> Curve:
    """Put the curve of a result together again."""
    bends = []
    for place in range(values["bends"]):
        flat = torch.as_tensor(np.array(arrays[f"curve_bend_{place}"])).to(run_objective.device, run_objective.dtype)
        buffers = between(a, b, (place + 1) / (values["bends"] + 1)).buffers
        bends.append(Point(tuple(run_objective.like_theta(flat)), buffers))
    return Curve(values["kind"], (a, b), tuple(bends))


def matrix(run: Run, tick: Reports) -> None:
    """Measure the barrier of every pair of checkpoints, as they are and after matching each pair by its weights."""
    names = [each.name for each in run.checkpoints]
    count, definition = len(names), run.options.definition
    pairs = list(combinations(range(count), 2))
    lambdas = np.linspace(0, 1, min(MATRIX_POINTS, len(run.lambdas)) | 1)
    found: dict[str, Any] = {
        f"{stage}{end}": [[0.0] * count for _ in names]
        for stage in ("naive", "matched")
        for end in ("", "_low", "_high")
    }
    for place, (i, j) in enumerate(pairs):
        part = part_of(tick, place / len(pairs), (place + 1) / len(pairs))
        for stage, both in _pair(run, i, j, lambdas, part).items():
            values = stage_values(both.data, lambdas, run.weights)
            for end in ("", "_low", "_high"):
                found[f"{stage}{end}"][i][j] = found[f"{stage}{end}"][j][i] = values[f"barrier{end}"][definition]
    run.values["matrix"] = {"checkpoints": names, "points": len(lambdas), "definition": definition, **found}


def _pair(run: Run, i: int, j: int, lambdas: np.ndarray[Any, Any], tick: Reports) -> dict[str, Both]:
    one, other = run.at(i), run.at(j)
    both: dict[str, Both] = {}
    words = f"pair {i + 1} and {j + 1}"

    def matched() -> Point:
        if (i, j) == (0, 1):
            return run.matched
        tensors = [tensors_of(run.objective, each) for each in (one, other)]
        return run.permuted(
            other, by_weights(run, tensors[0], tensors[1], lambda _s, doing: tick(0.1, f"{words}, {doing}"))
        )

    both["naive"] = run.line(f"pair_{i}_{j}_naive", (one, other), lambdas, part_of(tick, 0, 0.5), words, tested=False)
    kept = (one, matched())
    both["matched"] = run.line(f"pair_{i}_{j}_matched", kept, lambdas, part_of(tick, 0.5, 1), words, tested=False)
    return both


def _by_epoch(losses: np.ndarray[Any, Any], epochs: int) -> list[float]:
    return [float(each.mean()) for each in np.array_split(losses, epochs) if len(each)]


def _finite(value: Any) -> Any:
    return {key: number(each) for key, each in value.items()} if isinstance(value, dict) else number(value)
