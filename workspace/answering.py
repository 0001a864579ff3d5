"""An analyzer asked: with its objective where it needs one, and with what the gate has to say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from analyzers._base import Analyzer, Result, Tick
from probes.checkpoint import Checkpoint
from probes.gate import Gate, judge
from probes.objective import Objective
from probes.series import series


def answered(
    analyzer: Analyzer,
    checkpoints: tuple[Checkpoint, ...],
    objective_at: Callable[[Checkpoint], Objective],
    tick: Tick,
    said: Callable[[Gate], None] = lambda _gate: None,
) -> Result:
    """Run an analyzer; its result carries the doubts of the gate. said: is told the gate's verdict before it runs.

    objective_at: makes the objective at a checkpoint; not asked where the analyzer needs none. The gate judges the
    last checkpoint of a training run, and the only one otherwise. Raises ProbeError.
    """
    if not analyzer.needs_objective:
        nothing: Any = None
        return analyzer.run(nothing, checkpoints, tick)
    objective = objective_at(checkpoints[0])
    last = _last(analyzer, checkpoints)
    judged = objective if last is checkpoints[0] else objective.at(last)
    gate = judge(judged.evaluate(lambda share, doing: tick(0.05 * share, doing)), last, objective.batches)
    said(gate)
    result = analyzer.run(objective, checkpoints, tick)
    return replace(result, caveats=(*result.caveats, *gate.caveats))


def _last(analyzer: Analyzer, checkpoints: tuple[Checkpoint, ...]) -> Checkpoint:
    if not analyzer.series:
        return checkpoints[0]
    return checkpoints[series(checkpoints, getattr(analyzer, "times", "")).order[-1]]
