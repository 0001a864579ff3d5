"""Does this concept move the model towards this class?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from analyzers._base import (
    Analyzer,
    Result,
    Tick,
    micro_batch_option,
    option,
    precision_option,
    seed_option,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.objective import Objective


@dataclass(frozen=True)
class ConceptsResult(Result):
    """What a class makes of a concept at each layer, beside random examples that are taken for a concept."""

    def figures(self, **_view: Any) -> Mapping[str, go.Figure]:
        """Draw "concept_scores", "concept_derivatives" and "concept_accuracy", each by layer."""
        from analyzers._concepts_figures import accuracy_figure, derivatives_figure, scores_figure

        return {
            "concept_scores": scores_figure(self.card, self.values, self.arrays),
            "concept_derivatives": derivatives_figure(self.card, self.values, self.arrays),
            "concept_accuracy": accuracy_figure(self.card, self.values, self.arrays),
        }

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return the numbers by layer, of every concept activation vector, and of every control."""
        from analyzers._concepts_values import tables_of

        return tables_of(self.values, self.arrays)


@dataclass(frozen=True)
class Concepts(Analyzer):
    """Directional derivatives of a class along a concept that examples show (TCAV), tested against random examples."""

    name: ClassVar[str] = "concepts"
    title: ClassVar[str] = "Concepts"
    question: ClassVar[str] = "Does this concept move the model towards this class?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = ConceptsResult

    concept: str = option(
        "label 0",
        "Examples of the concept",
        "Their row numbers from 0 on, as in 3, 5, 8-20; or all of a label, as in label 4. Better 50 than 10.",
    )
    target: str = option(
        "", "Class", "Its number or name. Empty: the class that the model says most often of the concept's examples."
    )
    layers: str = option("", "Layers", "Names separated by commas. Empty chooses up to four, by depth.")
    vectors: int = option(
        20, "Concept vectors", "How many are fitted, each against other random examples.", minimum=10, maximum=500
    )
    controls: int = option(
        39, "Random concepts", "Random sets that are taken for a concept: what the score is compared with.",
        minimum=19, maximum=999, advanced=True,
    )  # fmt: skip
    alpha: float = option(
        0.05, "Significance", "Scores with a larger p-value are not shown.", minimum=0.001, maximum=0.5, advanced=True
    )
    most: int = option(
        100, "Examples at most", "Of the concept and of the class; of random ones six times as many.",
        minimum=10, maximum=5000, advanced=True,
    )  # fmt: skip
    pooled: bool = option(
        False, "Average over places", "Of a layer's output: one number a channel instead of all.", advanced=True
    )
    penalty: float = option(
        0.01, "Penalty", "Of the squared length of a concept vector, beside the mean loss of its classifier.",
        minimum=1e-6, maximum=1e3, advanced=True,
    )  # fmt: skip
    listed: int = option(
        8, "Examples listed", "Of the concept, and of the class those most and least along it.", minimum=1, maximum=100,
        advanced=True,
    )  # fmt: skip
    dtype: str = precision_option("Of the network; the vectors are fitted in float64.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("Random examples and sets are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> ConceptsResult:  # noqa: ARG002
        """Test the concept at each layer.

        Raises DataError (examples of the concept, the class, too few), ModelError (layers), ObjectiveError (memory).
        """
        from analyzers._concepts_measure import Settings, measure
        from analyzers._concepts_values import arrays_of, caveats_of, values_of

        objective = objective.converted(self.dtype, self.micro_batch)
        settings = Settings(self.vectors, self.controls, self.alpha, self.pooled, self.penalty, self.most, self.seed)
        found = measure(objective, (self.concept, self.target, self.layers), settings, tick)
        values, arrays = values_of(found, self.listed), arrays_of(found, self.listed)
        card = objective.card() | {"seed": self.seed}
        return ConceptsResult(self.name, card, values, arrays, (*objective.caveats, *caveats_of(found)))
