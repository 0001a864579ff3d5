"""What does the loss do on the straight line from one checkpoint to another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from analyzers._base import (
    Analyzer,
    Result,
    Tick,
    micro_batch_option,
    option,
    precision_option,
    seed_option,
    times_option,
)
from analyzers._parts import Part

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.objective import Objective


LINE = 0.3  # of the progress, where slices follow


@dataclass(frozen=True)
class LossPathResult(Result):
    """Loss and accuracy along a line, with what stands beside it: checkpoints of the run, controls, planes."""

    def figures(self, log: bool = False) -> Mapping[str, go.Figure]:  # type: ignore[override]  # its view
        """Draw "loss", "accuracy", "controls" and the planes; log: the losses on a log axis."""
        from analyzers._loss_path_figures import draw

        drawn = draw(self.card, self.values, log=log)
        if self.values["planes"]:
            from analyzers._plane_figures import draw as draw_planes

            drawn |= draw_planes(self.values, self.arrays)
        return drawn

    def overlay(self, others: Sequence[Result], **view: Any) -> Mapping[str, go.Figure]:
        """Draw "loss_overlay" of several paths; raise ProbeError, naming what differs, when cards are not the same."""
        from analyzers._loss_path_figures import overlay

        return overlay([self, *others], **view)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return a row for each place behind "loss" and "accuracy", for each place of a control, each checkpoint."""
        from analyzers._loss_path_tables import tables

        found = tables(self.values)
        if self.values["planes"]:
            from analyzers._plane_figures import tables as plane_tables

            found |= plane_tables(self.values, self.arrays)
        return found


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
    plane: str = option(
        "none",
        "Two-dimensional slices",
        "random: filter-normalised directions; hessian: the leading eigenvectors; checkpoints: through three of them; "
        "trajectory: the principal components of all.",
        choices=("none", "random", "hessian", "checkpoints", "trajectory"),
    )
    planes: int = option(1, "Slices", "How many, each with other directions.", minimum=1, maximum=8)
    span: float = option(
        0.0,
        "Span of a slice",
        "Distance in weight space from the centre to the edge, or beyond the outermost checkpoint; 0 chooses.",
        minimum=0.0,
        maximum=1e6,
        advanced=True,
    )
    resolution: int = option(
        51, "Resolution of a slice", "Cells each way; at most a fifth of them are evaluated.",
        minimum=11, maximum=201, advanced=True,
    )  # fmt: skip
    budget: int = option(
        0, "Evaluations of a slice", "At most, of each; 0 takes a fifth of its cells.",
        minimum=0, maximum=40_401, advanced=True,
    )  # fmt: skip
    centre: str = option(
        "auto",
        "Centre of a slice",
        "Of the pair; auto: the second (the last in time for a trajectory; the first for slices through checkpoints).",
        choices=("auto", "first", "second"),
        advanced=True,
    )
    curvature: bool = option(
        True, "Curvature of a slice", "Estimate which share of the curvature a slice holds.", advanced=True
    )
    times: str = times_option()
    dtype: str = precision_option("float64 is slower.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option(
        "The resamples of the examples, the noise of the control and random slices are drawn from it."
    )

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
        places, until = grid(self.start, self.stop, self.points), 1.0 if self.plane == "none" else LINE
        asked = Asked(places, self.refine, self.batch_norm, self.controls, self.seed, (0.0, until))
        values: dict[str, Any] = {"checkpoints": [each.name for each in checkpoints[:2]]}
        values |= measured(asked, objective, line, checkpoints[2:], tick)
        values["planes"] = []
        doubts = tuple(caveats(objective, values, anew=self.batch_norm))
        result = LossPathResult(self.name, self._card(objective, checkpoints), values, {}, doubts)
        return result if self.plane == "none" else self._with_planes(result, objective, checkpoints, tick)

    def _with_planes(
        self, path: LossPathResult, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick
    ) -> LossPathResult:
        """Add slices to the result of a path; while they get finer, what is known of them is shown."""
        from analyzers._planes import PlaneOptions, Planes, measure_planes, plane_values
        from probes.errors import ProbeError

        def joined(found: Planes) -> LossPathResult:
            values, arrays, doubts = plane_values(found)
            caveats = tuple(dict.fromkeys((*path.caveats, *doubts)))
            return replace(path, values={**path.values, **values}, arrays=arrays, caveats=caveats)

        tick.show(path)
        options = PlaneOptions(
            planes=self.planes,
            span=self.span,
            resolution=self.resolution,
            budget=self.budget,
            batch_norm="auto" if self.batch_norm else "running",
            centre=self.centre,
            curvature=self.curvature,
            seed=self.seed,
            times=self.times,
        )
        show = lambda found: tick.show(joined(found))
        try:
            return joined(measure_planes(self.plane, objective, checkpoints, options, Part(tick, LINE, 1.0), show))
        except ProbeError as error:  # the path stands without its slices
            return replace(path, caveats=(*path.caveats, f"There are no slices: {error}"))

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
