"""What does the loss do on the straight line from one checkpoint to another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from analyzers._base import Analyzer, Result, Tick, micro_batch_option, option, precision_option, seed_option

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.objective import Objective


@dataclass(frozen=True)
class LossPathResult(Result):
    """Loss and accuracy along a line, with what stands beside it: checkpoints of the run, controls, planes."""

    def figures(self, log: bool = False) -> Mapping[str, go.Figure]:  # type: ignore[override]  # its view
        """Draw "loss", "accuracy", "controls" and the planes; log: the losses on a log axis."""
        from analyzers._loss_path_figures import draw

        return draw(self.card, self.values, log=log)

    def overlay(self, others: Sequence[Result], **view: Any) -> Mapping[str, go.Figure]:
        """Draw "loss_overlay" of several paths; raise ProbeError, naming what differs, when cards are not the same."""
        from analyzers._loss_path_figures import overlay

        return overlay([self, *others], **view)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return a row for each place behind "loss" and "accuracy", for each place of a control, each checkpoint."""
        from analyzers._loss_path_tables import tables

        return tables(self.values)


@dataclass(frozen=True)
class LossPath(Analyzer):
    """Loss and accuracy over alpha between two checkpoints, with Delta, bands, projections and controls."""

    name: ClassVar[str] = "loss_path"
    title: ClassVar[str] = "Loss path"
    question: ClassVar[str] = "What does the loss do on the straight line from one checkpoint to another?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = LossPathResult
    roles: ClassVar[tuple[str, ...]] = ("From", "To", "Checkpoints on the way")
    uses_test: ClassVar[bool] = True

    start: float = option(
        -0.25, "First alpha", "0 is the first checkpoint; below 0 lies before it.", minimum=-5.0, maximum=0.0
    )
    stop: float = option(
        1.25, "Last alpha", "1 is the second checkpoint; above 1 lies beyond it.", minimum=1.0, maximum=5.0
    )
    points: int = option(
        25, "Places", "Evenly spread over the line, 0 and 1 among them.", minimum=5, maximum=1001
    )  # fmt: skip
    refine: int = option(
        25, "Further places", "At most, put where the loss bends; none where straight lines are near enough.",
        minimum=0, maximum=1000,
    )  # fmt: skip
    batch_norm: bool = option(
        True,
        "Measure BatchNorm anew",
        "At each place, on all examples of the data; the curve with the statistics as interpolated is drawn beside it.",
    )
    controls: bool = option(
        True, "Controls", "The same path from Gaussian noise and from zeros instead of the first checkpoint."
    )
    dtype: str = precision_option("float64 is slower.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The resamples of the examples and the noise of the control are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> LossPathResult:
        """Walk the line from the first checkpoint to the second; the others are projected on it.

        Raises DataError (fewer than two checkpoints, the same weights twice), ModelError (not the same tensors) or
        ObjectiveError (out of memory). A loss that is not finite is left out, and named.
        """
        from analyzers._loss_path_measure import Asked, caveats, measured
        from probes.errors import DataError
        from probes.lines import Line, grid
        from probes.points import point_of

        if len(checkpoints) < 2:
            raise DataError("A path goes from one checkpoint to another: give two; further ones are projected on it.")
        objective = objective.converted(self.dtype, self.micro_batch)
        line = Line(point_of(objective), point_of(objective.at(checkpoints[1])))
        places = grid(self.start, self.stop, self.points)
        asked = Asked(places, self.refine, self.batch_norm, self.controls, self.seed, (0.0, 1.0))
        values = {"checkpoints": [each.name for each in checkpoints[:2]]}
        values |= measured(asked, objective, line, checkpoints[2:], tick)
        doubts = caveats(objective, values, anew=self.batch_norm)
        return LossPathResult(self.name, self._card(objective, checkpoints), values, {}, tuple(doubts))

    def _card(self, objective: Objective, checkpoints: tuple[Checkpoint, ...]) -> dict[str, Any]:
        from probes.batch_statistics import has_batch_norm

        test = objective.on_test()
        card = objective.card() | {"seed": self.seed}
        if has_batch_norm(objective):
            words = "measured anew at each place" if self.batch_norm else "as interpolated"
            card["mode"] = f"eval: BatchNorm statistics {words}, dropout off"
        one, other = checkpoints[:2]
        return card | {
            "test_examples": len(test.batches) if test else None,
            "test_examples_sha256": test.batches.sha256 if test else None,
            "checkpoint": {"name": f"{one.name} to {other.name}", "sha256": one.sha256, "to_sha256": other.sha256},
        }
