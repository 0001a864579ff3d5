"""Which examples does the model get wrong, and of which is it unsure?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from analyzers._base import (
    Analyzer,
    Arrays,
    Result,
    Tick,
    micro_batch_option,
    option,
    precision_option,
    seed_option,
    times_option,
)
from probes.errors import ObjectiveError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from analyzers._predictions_look import Asked
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective


@dataclass(frozen=True)
class PredictionsResult(Result):
    """What each checkpoint predicts for each example, how often it is right, and whether it is as sure as it is right.

    `analyzers._predictions_values.arrays_of` lists the arrays; `analyzers._gallery.choose` chooses rows of them.
    """

    def figures(self, **view: Any) -> Mapping[str, go.Figure]:
        """Draw what the kind of targets allows: "losses" always.

        "confusion", "classes" (classes), "reliability" (probabilities), "values" (regression), "positions" (language
        models), "disagreement" (two checkpoints). view: `checkpoint`, the place of the one that "confusion" is of, the
        last if left out; `first` and `second`, of those that "disagreement" compares.
        """
        from analyzers._predictions_figures import figures

        return figures(self, **view)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return what the figures show, under their names, and "checkpoints" and "examples"."""
        from analyzers._predictions_tables import tables

        return tables(self)


@dataclass(frozen=True)
class Predictions(Analyzer):
    """Predictions, confidences and losses of every example, of one checkpoint or of several beside one another."""

    name: ClassVar[str] = "predictions"
    title: ClassVar[str] = "Predictions"
    question: ClassVar[str] = "Which examples does the model get wrong, and of which is it unsure?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = PredictionsResult
    series: ClassVar[bool] = True

    listed: int = option(
        24, "Examples to check", "How many of the most wrong ones to list, and how many of the least sure.",
        minimum=0, maximum=1000,
    )  # fmt: skip
    bins: int = option(
        15, "Bins of confidence", "For the calibration error.", minimum=2, maximum=100, advanced=True
    )  # fmt: skip
    times: str = times_option()
    dtype: str = precision_option("Of the network; probabilities and losses are in float64.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The resamples of the interval of the calibration error are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> PredictionsResult:
        """Look at each checkpoint, in the order given, one in memory at a time.

        Raises DataError (times), ModelError or ObjectiveError (loss not finite, memory).
        """
        from analyzers._predictions_look import asked_of
        from analyzers._predictions_shown import listed, shown
        from analyzers._predictions_values import Seen, arrays_of, card_of, caveats_of, values_of
        from probes.series import series

        over = series(checkpoints, self.times)
        labels = [""] * len(checkpoints)
        for place, label in zip(over.order, over.labels, strict=True):
            labels[place] = label if over.unit != "position" else ""
        objective = objective.converted(self.dtype, self.micro_batch)
        asked = asked_of(objective, self.bins)
        looks = [self._look(objective, checkpoints, asked, place, tick) for place in range(len(checkpoints))]
        names = tuple(each.name for each in checkpoints)
        seen = Seen(objective, asked, names, tuple(labels), looks, self.seed)
        tick(1.0, "confusion and calibration")
        arrays = arrays_of(seen)
        values = values_of(seen)
        kept, told = shown(objective.batches, arrays)
        examples, pictures = listed(objective.batches, arrays, seen.classes, names[-1], self.listed)
        values |= {**told, "examples": examples}
        arrays |= kept | ({} if pictures is None else {"pictures": pictures})
        caveats = (*objective.caveats, *caveats_of(seen))
        return PredictionsResult(self.name, card_of(seen), values, arrays, caveats)

    def _look(
        self, objective: Objective, checkpoints: tuple[Checkpoint, ...], asked: Asked, place: int, tick: Tick
    ) -> Arrays:
        """Look at one checkpoint, or take what an earlier attempt kept."""
        from analyzers._predictions_look import look

        kept = tick.load(f"predictions-{place}")
        if kept is not None:
            return kept
        count, name = len(checkpoints), checkpoints[place].name
        at = objective if place == 0 else objective.at(checkpoints[place])
        try:
            found = look(at, asked, lambda share, doing: tick((place + share) / count, f"{name}: {doing}"))
        except ObjectiveError as error:
            raise ObjectiveError(f"{name}: {error}") from error
        tick.save(f"predictions-{place}", found)
        return found
