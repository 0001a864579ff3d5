"""Which training examples helped this prediction, and which hurt it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.objective import Objective


@dataclass(frozen=True)
class InfluenceResult(Result):
    """The influence of every training example on one prediction, those that helped and hurt most, and a null."""

    def figures(self, **_view: Any) -> Mapping[str, go.Figure]:
        """Draw "influence", "influence_distribution" and, by TracIn at several checkpoints, "influence_over_time"."""
        from analyzers._influence_figures import distribution_figure, ranking_figure, time_figure

        found = {
            "influence": ranking_figure(self.card, self.values),
            "influence_distribution": distribution_figure(self.card, self.values, self.arrays),
        }
        if len(self.values["contributions_helped"]) > 1:
            found["influence_over_time"] = time_figure(self.card, self.values)
        return found

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return the listed examples, the influence of every example, and the contribution of each checkpoint."""
        import pandas as pd

        values, influence = self.values, self.arrays["influence"]
        order = np.argsort(-influence, kind="stable")
        found = {
            "influence": pd.DataFrame(values["examples"]),
            "influence_distribution": pd.DataFrame(
                {"row": order, "influence": influence[order], "on_random_examples": self.arrays["typical"][order]}
            ),
        }
        if len(values["contributions_helped"]) > 1:
            names = ("checkpoints", "times", "learning_rates", "contributions_helped", "contributions_hurt")
            found["influence_over_time"] = pd.DataFrame({name: values[name] for name in names})
        return found


@dataclass(frozen=True)
class Influence(Analyzer):
    """Inner products of gradients over the checkpoints of a run (TracIn), or by the inverse Fisher at the last one."""

    name: ClassVar[str] = "influence"
    title: ClassVar[str] = "Influence of training examples"
    question: ClassVar[str] = "Which training examples helped this prediction, and which hurt it?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = InfluenceResult
    series: ClassVar[bool] = True
    uses_test: ClassVar[bool] = True

    method: str = option(
        "tracin",
        "Method",
        "TracIn follows the gradients over all checkpoints; inverse fisher looks at the last one only.",
        choices=("tracin", "inverse fisher"),
    )
    example: str = option(
        "worst",
        "Example",
        "Of the test data where there are some: its id, its number from 0 on, or worst for the highest loss.",
    )
    top: int = option(12, "Examples listed", "How many that helped, and how many that hurt.", minimum=1, maximum=200)
    learning_rates: str = option(
        "1", "Learning rates", "For TracIn: one, or one for each checkpoint in the order given, as in: 0.1, 0.1, 0.01."
    )
    layers: str = option(
        "",
        "Parameters",
        "Empty for all; last for the final layer; or names of layers, separated by commas.",
    )
    relative: bool = option(
        False, "Relative to gradient length", "Divides by the length of each example's own gradient."
    )
    gradients: int = option(
        512, "Gradients of the Fisher", "How many examples the Fisher matrix is made of.", minimum=1, maximum=8192,
        advanced=True,
    )  # fmt: skip
    damping: float = option(
        0.1, "Damping of the Fisher", "In units of the mean eigenvalue that the gradients give.",
        minimum=1e-8, maximum=1e8, advanced=True,
    )  # fmt: skip
    null_examples: int = option(
        8, "Random examples", "Whose influences are compared with those on this one.", minimum=2, maximum=100,
        advanced=True,
    )  # fmt: skip
    times: str = times_option()
    dtype: str = precision_option("Of network and gradients.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The random examples and the gradients of the Fisher matrix are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> InfluenceResult:
        """Take the influence of all examples on one; those of the data are taken for the training examples.

        Raises DataError (times), ModelError (parameters), ObjectiveError (no such example, learning rates, memory).
        """
        from analyzers._influence_measure import Asked, measure
        from analyzers._influence_values import arrays_of, card_of, caveats_of, values_of

        objective = objective.converted(self.dtype, self.micro_batch)
        asked = Asked(
            self.method, self.example, self.learning_rates, self.layers, self.relative, self.gradients, self.damping,
            self.null_examples, self.times, self.seed,
        )  # fmt: skip
        found = measure(objective, checkpoints, asked, tick)
        values, arrays = values_of(found, self.top), arrays_of(found, self.top)
        caveats = (*objective.caveats, *found.series.doubts, *caveats_of(found, values))
        return InfluenceResult(self.name, card_of(found), values, arrays, caveats)
