"""Which weights carry what fine-tuning has taught?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from analyzers._base import Analyzer, Result, Tick, micro_batch_option, option, precision_option, seed_option

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from analyzers._grafting_measure import Ask, Grafts
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective
    from probes.points import Point

JUDGING = 0.9  # share of the work that goes into judging grafts


@dataclass(frozen=True)
class GraftingResult(Result):
    """How much of a fine-tuned model's gain comes back with which weights, where these are, and what they share."""

    def figures(self, **_view: Any) -> Mapping[str, go.Figure]:
        """Draw "recovery" and "density"; "overlap" of several tasks; "reliability" where there are probabilities."""
        from analyzers._grafting_figures import draw

        return draw(self.card, self.values)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return what is drawn, under the names of the figures."""
        from analyzers._grafting_figures import tables

        return tables(self.values)


@dataclass(frozen=True)
class Grafting(Analyzer):
    """Put the weights that moved most in fine-tuning onto the base, and see how much of the gain comes back."""

    name: ClassVar[str] = "grafting"
    title: ClassVar[str] = "Skill localisation"
    question: ClassVar[str] = "Which weights carry what fine-tuning has taught?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = GraftingResult
    roles: ClassVar[tuple[str, ...]] = ("Base", "Fine-tuned", "Fine-tuned on another task")
    uses_test: ClassVar[bool] = True

    smallest: float = option(
        0.001, "Smallest share (%)", "Of the weights; one weight at least.", minimum=1e-6, maximum=50.0,
    )  # fmt: skip
    points: int = option(
        16, "Shares", "How many shares to try, evenly spaced on a log axis up to 100 %.", minimum=2, maximum=100
    )
    share: float = option(
        0.0, "Share to look at (%)",
        "For density, overlap, calibration and the checkpoint to download; 0 takes the smallest that recovers enough.",
        minimum=0.0, maximum=100.0,
    )  # fmt: skip
    target: float = option(95.0, "Enough (%)", "Of the gain of fine-tuning, recovered.", minimum=1.0, maximum=100.0)
    whole: str = option(
        "", "Always fine-tuned",
        "Parts of names, separated by commas: such parameters are the fine-tuned model's in every graft and do not "
        "count; for a head that fine-tuning began anew.",
    )  # fmt: skip
    masks: int = option(3, "Random masks", "Of each size, to compare with.", minimum=1, maximum=100, advanced=True)
    statistics: str = option(
        "fresh", "BatchNorm statistics",
        "fresh: measured anew on the data for every model; fine_tuned: those of the fine-tuned model in every graft.",
        choices=("fresh", "fine_tuned"), advanced=True,
    )  # fmt: skip
    bins: int = option(15, "Bins of confidence", "For the calibration error.", minimum=2, maximum=100, advanced=True)
    dtype: str = precision_option("float64 is slower.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The random masks and the resamples of the intervals are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> GraftingResult:
        """Graft the second checkpoint onto the first; further ones are other tasks to compare with.

        Raises DataError (one checkpoint only), ModelError (they differ in shape, or not at all), ObjectiveError.
        """
        from analyzers import _grafting_values as numbers
        from analyzers._grafting_measure import densities, judged

        objective, made = self._made(objective, checkpoints)
        seen, tested = judged(made, tick, JUDGING)
        found = numbers.judged_of(seen, self.seed)
        on_test = None if tested is None else numbers.judged_of(tested, self.seed)
        weights = len(made.moved)
        count, why = numbers.chosen(found, made.counts, weights, self.share / 100, self.target / 100)
        shares = [each / weights for each in made.counts]
        values = {
            "checkpoints": [each.name for each in checkpoints],
            "weights": weights,
            "moved": float(np.mean(made.moved > 0)),
            "share": shares,
            "count": list(made.counts),
            "masks": self.masks,
            "examples": [len(each.ends["base"].counts) for each in (seen, tested) if each is not None],
            **numbers.of_set(found),
            **({} if on_test is None else numbers.of_set(on_test, "test_")),
            "target": self.target / 100,
            "reached": self._reached(found, shares),
            "test_reached": None if on_test is None else self._reached(on_test, shares),
            "chosen": {"count": count, "share": count / weights, "why": why},
            **numbers.density_values(densities(made, made.mask("top", count))),
            **self._compared(made, count, checkpoints, tick),
        }
        caveats = (*objective.caveats, *numbers.doubts(made, found, on_test, values))
        card = objective.card() | {"seed": self.seed, "checkpoint": None}
        return GraftingResult(self.name, card, values, {"moved_by": _quantiles(made)}, caveats)

    @classmethod
    def merges(cls, result: Result) -> Mapping[str, str]:
        """Name the graft that was looked at closely."""
        share, base = result.values["chosen"]["share"], result.values["checkpoints"][0]
        return {"grafted": f"{base} with the {100 * share:.4g} % of the weights that moved most"}

    def merged(
        self,
        objective: Objective,
        checkpoints: tuple[Checkpoint, ...],
        result: Result,
        which: str,
        tick: Tick,
    ) -> Point:
        """Make the graft that was looked at closely."""
        if which != "grafted":
            return super().merged(objective, checkpoints, result, which, tick)
        _, made = self._made(objective, checkpoints)
        tick(0.5, "grafting")
        return made.point(made.mask("top", int(result.values["chosen"]["count"])))

    def _made(self, objective: Objective, checkpoints: tuple[Checkpoint, ...]) -> tuple[Objective, Grafts]:
        from analyzers._grafting_measure import grafts
        from probes.errors import DataError

        if len(checkpoints) < 2:
            raise DataError("Skill localisation compares two checkpoints: give the base and the fine-tuned model.")
        objective = objective.converted(self.dtype, self.micro_batch)
        tuned = objective.at(checkpoints[1])
        return objective, grafts(objective, tuned, self._ask())

    def _ask(self) -> Ask:
        from analyzers._grafting_measure import Ask

        shares = np.geomspace(self.smallest / 100, 1.0, self.points).tolist()
        whole = tuple(each.strip() for each in self.whole.split(",") if each.strip())
        statistics: Any = self.statistics
        return Ask(tuple(shares), self.masks, whole, statistics, self.seed)

    def _reached(self, found: Any, shares: list[float]) -> dict[str, float | None]:
        """Return the smallest share that reaches the target, by both definitions of recovery."""
        from analyzers._grafting_values import reached

        rows, target = found.accuracy, self.target / 100
        loss = found.loss.recovery() if found.loss.is_clear else None
        return {
            "recovery": reached(rows.recovery(), shares, target) if rows is not None and rows.is_clear else None,
            "of_fine_tuned": reached(rows.of_fine_tuned(), shares, target) if rows is not None else None,
            "loss_recovery": reached(loss, shares, target),
        }

    def _compared(self, made: Grafts, count: int, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> dict[str, Any]:
        """Return the overlap with other tasks and the calibration, None where there is nothing to compare."""
        from analyzers._grafting_measure import overlaps, reliabilities
        from analyzers._grafting_values import calibration_values, overlap_values
        from probes.calibration import is_judged

        said = lambda share, doing: tick(JUDGING + (1 - JUDGING) * share, doing)
        shared = calibrated = None
        if len(checkpoints) > 2:
            square = overlaps(made, count, checkpoints[2:], lambda share, doing: said(0.5 * share, doing))
            shared = overlap_values(square, [each.name for each in checkpoints[1:]])
        if is_judged(made.objective):
            found, on = reliabilities(made, count, self.bins, lambda share, doing: said(0.5 + 0.5 * share, doing))
            calibrated = calibration_values(found, on, self.seed)
        return {"overlap": shared, "calibration": calibrated}


def _quantiles(made: Grafts) -> np.ndarray[Any, Any]:
    """Return by how much the weights moved: 0, 1, ... 100 % quantiles, (101,)."""
    return np.quantile(made.moved, np.linspace(0, 1, 101))
