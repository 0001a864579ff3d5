"""Do the gradients of single examples still point where the weights point, and whose do not?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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

    from probes.alignment import Plan
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective
    from probes.series import Series

MOMENTS = ("gwa", "mean", "excess_kurtosis", "negative_share", "exact_", "rounded", "network_", "loss", "accuracy")
FLIP = ("auroc_flipped", "auroc_flipped_stderr", "auroc_flipped_rounded", "flipped_mean", "kept_mean")
EXAMPLE = ("id", "checkpoint", "label", "prediction", "loss", "margin", "alignment", "text")
QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


@dataclass(frozen=True)
class GradientAlignmentResult(Result):
    """Alignment of every example over time: mean, excess kurtosis, GWA, and the examples to check."""

    def figures(self, **view: Any) -> Mapping[str, go.Figure]:  # noqa: ARG002
        """Draw "alignment", "alignment_distribution", and "layers" and "flip_test" where they were asked for."""
        from analyzers._alignment_figures import figures

        return figures(self)

    def overlay(self, others: Sequence[Result], **view: Any) -> Mapping[str, go.Figure]:
        """Draw "alignment_overlay"; raise ProbeError, naming what differs, when runs are not of the same thing.

        names: of the runs, this one first.
        """
        from analyzers._alignment_figures import overlay

        return overlay([self, *others], **view)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return what the figures show, under their names, and "examples": those to check."""
        import pandas as pd

        values = self.values
        time = {"checkpoint": values["checkpoints"], values["unit"]: values["times"]}
        lists = {key: each for key, each in values.items() if key.startswith(MOMENTS) and not key.endswith("interval")}
        found = {
            "alignment": pd.DataFrame({**time, **lists}),
            "alignment_distribution": _quantiles(values, self.arrays),
        }
        found["examples"] = pd.DataFrame(values["examples"], columns=list(EXAMPLE) if not values["examples"] else None)
        if "layers" in values:
            pairs = zip(values["layers"].items(), values["layers_stderr"].values(), strict=True)
            frames = [pd.DataFrame({"layer": name, **time, "mean": each, "stderr": e}) for (name, each), e in pairs]
            found["layers"] = pd.concat(frames, ignore_index=True)
        if "auroc_flipped" in values:
            found["flip_test"] = pd.DataFrame({**time, **{key: values[key] for key in FLIP}})
        return found


@dataclass(frozen=True)
class GradientAlignment(Analyzer):
    """Cosine of each example's negative gradient with the weights, in the head and in the whole network."""

    name: ClassVar[str] = "gradient_alignment"
    title: ClassVar[str] = "Gradient-weight alignment"
    question: ClassVar[str] = (
        "Do the gradients of single examples still point where the weights point, and whose do not?"
    )
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = GradientAlignmentResult
    series: ClassVar[bool] = True

    scope: str = option(
        "head",
        "Scope",
        "The final linear layer, as published; also the whole network; also each layer by itself.",
        choices=("head", "network", "layers"),
    )
    flip: float = option(
        0.0,
        "Share of labels to flip",
        "A test of the ranking, apart from all else: so many labels are changed at random; 0 leaves it out.",
        minimum=0.0,
        maximum=0.9,
    )
    listed: int = option(
        24, "Examples to check", "How many of the examples with the most negative alignment to list.",
        minimum=0, maximum=1000,
    )  # fmt: skip
    times: str = times_option()
    dtype: str = precision_option(
        "Of network and gradient. In float32 sure predictions leave only rounding; both are shown."
    )
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The labels to flip and the resamples of the standard errors are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> GradientAlignmentResult:
        """Look at each checkpoint in the order of time, one in memory at a time.

        Raises DataError (times), ModelError or ObjectiveError (no linear head, no labels to flip, loss not finite).
        """
        from analyzers._alignment_values import Seen, arrays_of, card_of, caveats_of, examples_of, values_of
        from probes.alignment import plan
        from probes.series import series

        found = series(checkpoints, self.times)
        objective = objective.converted(self.dtype, self.micro_batch)
        tick(0.0, "finding the final layer")
        asked = plan(objective, self.scope, self.flip, self.seed)
        looks, doubts = [], dict[str, None]()
        for number in range(len(found.order)):
            looks.append(self._look(objective, checkpoints, found, asked, number, tick))
            doubts.update(dict.fromkeys(map(str, looks[-1]["doubts"])))
        names = tuple(checkpoints[place].name for place in found.order)
        seen = Seen(objective, asked, found, names, looks, self.seed)
        examples, pictures = examples_of(seen, self.listed)
        values = {**values_of(seen), "examples": examples}
        caveats = (*objective.caveats, *found.doubts, *doubts, *caveats_of(seen))
        arrays = arrays_of(seen) | ({} if pictures is None else {"pictures": pictures})
        return GradientAlignmentResult(self.name, card_of(seen), values, arrays, caveats)

    def _look(
        self,
        objective: Objective,
        checkpoints: tuple[Checkpoint, ...],
        found: Series,
        asked: Plan,
        number: int,
        tick: Tick,
    ) -> Arrays:
        """Look at one checkpoint, or take what an earlier attempt kept."""
        from probes.alignment import look

        place, count, label = found.order[number], len(found.order), found.labels[number]
        kept = tick.load(f"alignment-{number}")
        if kept is not None:
            return kept
        at = objective if place == 0 else objective.at(checkpoints[place])
        try:
            arrays, doubts = look(at, asked, lambda share, doing: tick((number + share) / count, f"{label}: {doing}"))
        except ObjectiveError as error:
            raise ObjectiveError(f"{checkpoints[place].name}: {error}") from error
        looked = {**arrays, "doubts": np.array(doubts, dtype=str)}
        tick.save(f"alignment-{number}", looked)
        return looked


def _quantiles(values: Mapping[str, Any], arrays: Arrays) -> pd.DataFrame:
    """Return quantiles of the alignment at each checkpoint, of all examples, of the right and of the wrong ones."""
    import pandas as pd

    rows = []
    for number, (name, time) in enumerate(zip(values["checkpoints"], values["times"], strict=True)):
        alignment, right = arrays["exact"][number], arrays["right"][number]
        known = np.isfinite(alignment)
        groups = {"all": known}
        if np.isin(right[known], (0, 1)).all():  # not shares of several answers
            groups |= {"right": known & (right == 1), "wrong": known & (right == 0)}
        for words, chosen in groups.items():
            sample = alignment[chosen]
            if len(sample):
                found = dict(zip((f"{100 * q:g} %" for q in QUANTILES), np.quantile(sample, QUANTILES), strict=True))
                rows.append({"checkpoint": name, values["unit"]: time, "of": words, "n": len(sample), **found})
    return pd.DataFrame(rows)
