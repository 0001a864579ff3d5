"""Dropout stability of the two, and the path through half-networks that it makes."""

from __future__ import annotations

from typing import Any

import numpy as np

from analyzers._connectivity_run import Both, Reports, Run, part_of
from analyzers._connectivity_values import number, numbers, stage_values
from probes.dropout_path import DropoutPath, dropout_path
from probes.dropout_stability import DropoutStability, dropout_stability
from probes.errors import ModelError
from probes.points import Point

STABILITY = 0.8  # of the work
STEPS = 8  # points on each segment of the path


def dropout(run: Run, tick: Reports) -> None:
    """Thin both networks at random, all layers and one at a time; then walk the path through their halves."""
    ends = {"first": run.a, "second": run.b}
    for place, (name, point) in enumerate(ends.items()):
        found = _stability(run, point, part_of(tick, STABILITY * place / 2, STABILITY * (place + 1) / 2))
        if found is None:
            return
        run.values.setdefault("dropout", {})[name] = _told(found)
        run.doubt(*(f"Dropout stability: {each}" for each in found.notes))
    try:
        path = dropout_path(run.objective, run.a, run.b, run.spec, seed=run.options.seed)
    except ModelError as error:
        run.doubt(str(error))
        return
    part = part_of(tick, STABILITY, 1)
    run.values["dropout_path"] = _walked(run, path, run.kept("dropout_path", lambda: _read(run, path, part)))
    run.doubt(*path.notes)


def _stability(run: Run, point: Point, tick: Reports) -> DropoutStability | None:
    asked = run.options
    try:
        return dropout_stability(run.objective, point, run.spec, tick, draws=asked.dropout_draws, seed=asked.seed)
    except ModelError as error:
        run.doubt(str(error))
        return None


def _told(found: DropoutStability) -> dict[str, Any]:
    accuracies = found.accuracies
    return {
        "kept": [*found.kept],
        "loss": number(found.loss),
        "accuracy": number(found.accuracy),
        "epsilon": numbers(found.epsilon),
        "epsilon_stderr": numbers(found.stderr),
        "mean_accuracy": None if accuracies is None else numbers(accuracies.mean(1)),
        "draws": found.losses.shape[1],
        "layers": [*found.layers],
        "units": [*found.units],
        "layer_epsilon": [numbers(row) for row in found.layer_epsilon],
        "layer_epsilon_stderr": [numbers(row) for row in found.layer_stderr],
    }


def _read(run: Run, path: DropoutPath, tick: Reports) -> Both:
    """Read the path; BatchNorm keeps the statistics that move with its units."""
    return run.read(path.along(STEPS), path.count(STEPS), tick, "path through half-networks", anew=False)


def _walked(run: Run, path: DropoutPath, both: Both) -> dict[str, Any]:
    place = np.arange(path.count(STEPS)) / STEPS
    share = place / place[-1]
    told: dict[str, Any] = {"labels": [*path.labels], "segment": numbers(place)}
    for of, found, weights in (("", both.data, run.weights), ("test_", both.test, run.test_weights)):
        if found is not None:
            values = stage_values(found, share, weights)
            told |= {
                f"{of}{key}": each for key, each in values.items() if not key.startswith(("barrier", "accuracy_d"))
            }
    highest, ends = float(both.data.loss.max()), both.data.loss[[0, -1]]
    told |= {"highest": number(highest), "barrier": number(highest - float(ends.mean()))}
    return told
