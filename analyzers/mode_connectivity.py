"""Do two solutions lie in one basin: as they are, after a permutation of units, after REPAIR, or along a curve?"""

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
    from probes.points import Point


@dataclass(frozen=True)
class ModeConnectivityResult(Result):
    """The lines, barriers and verdict of a pair, with what was asked for besides: curve, dropout, soups, matrix."""

    def figures(self, layer: str = "") -> Mapping[str, go.Figure]:  # type: ignore[override]  # its view
        """Draw what the result holds; layer: whose matched units "unit_pairs" shows (the first where not named)."""
        from analyzers._connectivity_figures import draw

        return draw(self.card, self.values, self.arrays, layer)

    def overlay(self, others: Sequence[Result], **_view: Any) -> Mapping[str, go.Figure]:
        """Draw "loss" and "accuracy" along the lines of several pairs; raise ProbeError where the cards differ."""
        from analyzers._connectivity_figures import overlay

        return overlay([self, *others])

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return the numbers behind the figures, the evidence of the verdict, and the specification."""
        from analyzers._connectivity_tables import tables

        return tables(self.values, self.arrays)


@dataclass(frozen=True)
class ModeConnectivity(Analyzer):
    """Barriers between two checkpoints before and after matching and REPAIR, curves between them, and a verdict."""

    name: ClassVar[str] = "mode_connectivity"
    title: ClassVar[str] = "Mode connectivity"
    question: ClassVar[str] = "Do two solutions lie in one basin, once their units are put in the same order?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = ModeConnectivityResult
    roles: ClassVar[tuple[str, ...]] = ("First", "Second", "Further checkpoints")
    uses_test: ClassVar[bool] = True

    matcher: str = option(
        "weights", "Matching by",
        "weights: nearest weights, no data; activations: units that answer alike; straight-through and sinkhorn: by "
        "gradients of the loss, much slower; best of all: the one with the lowest loss half-way.",
        choices=("weights", "activations", "straight-through", "sinkhorn", "best of all"),
    )  # fmt: skip
    restarts: int = option(
        5, "Restarts", "Of weight matching, each in another order of layers; the nearest is kept.",
        minimum=1, maximum=1000,
    )  # fmt: skip
    repair: bool = option(
        True, "REPAIR", "Also give the units half-way the mean and deviation that those of the ends have."
    )
    points: int = option(
        25, "Points on the line", "An even number is raised by one, so that the midpoint is among them.",
        minimum=3, maximum=501,
    )  # fmt: skip
    batch_norm: str = option(
        "measured anew", "BatchNorm statistics",
        "On the lines and the curve: measured anew at every point, or as interpolated. Lines of both kinds are kept.",
        choices=("measured anew", "as interpolated"),
    )  # fmt: skip
    definition: str = option(
        "git_rebasin", "Barrier for the verdict",
        "git_rebasin: highest loss above the mean of the ends; entezari: above the straight line between their losses; "
        "midpoint: half-way. All three are shown.",
        choices=("git_rebasin", "entezari", "midpoint"), advanced=True,
    )  # fmt: skip
    threshold: float = option(
        0.02, "A barrier up to this counts as none",
        "As a share of the way from the mean loss of the two to the loss of chance.", minimum=0.0, maximum=1.0,
    )  # fmt: skip
    specification: str = option(
        "", "Permutations", "Which units may be exchanged, as a table; empty derives it from the model.", advanced=True
    )
    curve: str = option(
        "none", "Curve", "Train a curve of low loss between the two as they are; it goes on where it was stopped.",
        choices=("none", "bezier", "polygonal"),
    )  # fmt: skip
    bends: int = option(1, "Bends", "Of the curve, between its ends.", minimum=1, maximum=20)
    curve_epochs: int = option(10, "Epochs of the curve", "Passes over the data.", minimum=1, maximum=10_000)
    curve_learning_rate: float = option(
        0.01, "Learning rate of the curve", "Of the first half of the steps; it then falls to a hundredth.",
        minimum=1e-8, maximum=10.0,
    )  # fmt: skip
    curve_points: int = option(
        61, "Points on the curve", "An even number is raised by one.", minimum=3, maximum=501, advanced=True
    )
    curve_plane: bool = option(
        False, "Plane of the curve", "Draw the loss in the plane through the ends and the widest bend; some 190 points."
    )
    dropout_draws: int = option(
        0, "Draws of dropout stability",
        "How often units are dropped at random for each share kept; 0 leaves dropout stability out.",
        minimum=0, maximum=1000,
    )  # fmt: skip
    layer_barriers: bool = option(
        False, "Barrier of each layer", "Interpolate one layer at a time, before and after matching."
    )
    soup: bool = option(
        False, "Soups", "Average all checkpoints, and greedily those that help, before and after matching."
    )
    controls: bool = option(
        True, "Controls", "Match a permuted copy of the first, and noise with the moments of the second."
    )
    dtype: str = precision_option("Of the losses; matching and the check of the permutation count in float64.")
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("Restarts, resamples, curve, dropout and controls are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> ModeConnectivityResult:
        """Match, check, measure and judge; more than two checkpoints add a matrix of all pairs.

        Raises ModelError (no permutations are known, or they change the function: the layer is named), DataError (fewer
        than two checkpoints), ObjectiveError (memory).
        """
        from analyzers._connectivity_steps import steps

        return steps(self, objective, checkpoints, tick)

    @classmethod
    def merges(cls, result: Result) -> Mapping[str, str]:
        """Name the checkpoints that can be made of a result."""
        from analyzers._connectivity_merging import merges

        return merges(result)

    def merged(
        self, objective: Objective, checkpoints: tuple[Checkpoint, ...], result: Result, which: str, tick: Tick
    ) -> Point:
        """Make one of `merges`; raise ProbeError where it cannot be made."""
        from analyzers._connectivity_merging import merged

        return merged(self, objective, checkpoints, result, which, tick)
