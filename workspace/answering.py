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
    last checkpoint of a training run, both of a pair, the only one otherwise. Raises ProbeError.
    """
    if not analyzer.needs_objective:
        nothing: Any = None
        return analyzer.run(nothing, checkpoints, tick)
    objective = objective_at(checkpoints[0])
    doubts: list[str] = []
    for each in _judged(analyzer, checkpoints):
        at = objective if each is checkpoints[0] else objective.at(each)
        gate = judge(at.evaluate(lambda share, doing: tick(0.05 * share, doing)), each, objective.batches)
        said(gate)
        doubts += gate.caveats
    result = analyzer.run(objective, checkpoints, tick)
    return replace(result, caveats=tuple(dict.fromkeys((*result.caveats, *doubts))))


def _judged(analyzer: Analyzer, checkpoints: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
    if analyzer.series:
        return (checkpoints[series(checkpoints, getattr(analyzer, "times", "")).order[-1]],)
    if analyzer.several:
        return checkpoints if len(checkpoints) < 3 else checkpoints[-1:]
    return checkpoints[:2] if analyzer.roles else checkpoints[:1]
