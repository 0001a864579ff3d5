"""Which features of an example drive a score of the model, by many methods, and how far are the maps to be believed?"""

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
class AttributionResult(Result):
    """A map for each checkpoint, example and method, with what speaks for and against each."""

    def figures(self, **view: Any) -> Mapping[str, go.Figure]:
        """Draw what the result holds: "maps", "curves", "sanity", "agreement", "scoreboard", "difference", "run", …

        view: opacity of the maps over pictures (0 to 1), case (its number in `values["cases"]`), method (its name),
        absolute (sizes without signs).
        """
        from analyzers._attribution_figures import draw

        return draw(self, view)

    def overlay(self, others: Sequence[Result], **view: Any) -> Mapping[str, go.Figure]:
        """Draw "difference" between this run and another of the same examples; raise ProbeError where they differ."""
        from analyzers._attribution_figures import overlay

        return overlay(self, others, view)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return the maps with all that is known of each, their values for text and tables, and the other figures'."""
        from analyzers._attribution_tables import tables

        return tables(self)


@dataclass(frozen=True)
class Attribution(Analyzer):
    """Maps of one score over the features of examples, at one checkpoint or many, each judged for its faithfulness."""

    name: ClassVar[str] = "attribution"
    title: ClassVar[str] = "Attribution"
    question: ClassVar[str] = "Which features of an example drive the prediction, and which method can be believed?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = AttributionResult
    several: ClassVar[bool] = True

    methods: str = option(
        "integrated_gradients", "Methods", "Names separated by commas, or all; those that cannot run say why."
    )
    examples: str = option(
        "0", "Examples",
        "Rows as in 0, 3, 7-9; or wrong:8, uncertain:8, random:20, class 3:20, pair 4 9:8 (label 4, predicted 9), as "
        "the last checkpoint predicts.",
    )  # fmt: skip
    target: str = option(
        "predicted", "Target",
        "predicted (by the last checkpoint), label, or a class; of language models a token's id, or answer for the "
        "rest of the sequence.",
    )  # fmt: skip
    position: int = option(
        -1, "Position", "Of language models: whose next token is explained; -1 for the last that counts.",
        minimum=-1, maximum=10_000_000,
    )  # fmt: skip
    baseline: str = option(
        "auto", "Baseline",
        "What nothing looks like: zero, mean, blur, random, data, pad, mask, mean embedding; several joined by +; auto "
        "chooses by the model.",
    )  # fmt: skip
    steps: int = option(32, "Steps", "Of integrated gradients, to begin with.", minimum=1, maximum=1024)
    tolerance: float = option(
        1e-3, "Tolerance", "The completeness error, or relative standard error, at which a method stops.",
        minimum=1e-6, maximum=1.0,
    )  # fmt: skip
    samples: int = option(
        25, "Samples", "Of methods that draw at random: how many at most.", minimum=2, maximum=100_000
    )
    noise: float = option(
        0.15, "Noise", "Of SmoothGrad, as a share of the example's range.", minimum=0.0, maximum=2.0, advanced=True
    )
    window: int = option(
        0, "Window", "Of occlusion, in pixels or tokens; 0 chooses.", minimum=0, maximum=10_000, advanced=True
    )
    layer: str = option("", "Layer", "Of methods that look at one; empty chooses the last that sees the example.")
    areas: str = option(
        "0.05, 0.1, 0.2", "Areas", "Of extremal masks, as shares of the image, separated by commas.", advanced=True
    )
    smoothness: float = option(
        3.0, "Smoothness", "Of extremal masks: the width of a spot in 32nds of the shorter side.",
        minimum=0.5, maximum=32.0, advanced=True,
    )  # fmt: skip
    iterations: int = option(
        120, "Iterations", "Of the search for extremal masks.", minimum=1, maximum=10_000, advanced=True
    )
    over: str = option(
        "", "Over",
        "Of smoothing, the method within; of methods that replace parts, what goes together (cells, regions, columns, "
        "groups, tokens, words, sentences, lines, turns).",
        advanced=True,
    )  # fmt: skip
    judge: bool = option(
        True, "Judge", "Insertion and deletion curves beside random orders, infidelity and sensitivity of each map."
    )
    sanity: bool = option(
        False, "Sanity check", "Makes the layers random one after another, and asks whether the map changes."
    )
    edit: str = option(
        "", "Edit",
        'Changes the examples first, as in {"mask": [[0, 0, 8, 8]]} (pixels y0, x0, y1, x1), {"tokens": {"3": 17}}, '
        '{"words": {"3": "good"}} or {"values": {"2": 0.5}}.',
        advanced=True,
    )  # fmt: skip
    dtype: str = precision_option("Of network and maps.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("Examples, baselines, noise and samples that are random are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> AttributionResult:
        """Make the maps of each checkpoint in the order given; a method that refuses leaves its reason in its place.

        Raises AttributionError (no such method, class or token; nothing to attribute to), DataError (examples, edit),
        ModelError (a checkpoint that does not fit).
        """
        from analyzers._attribution_measure import measure
        from analyzers._attribution_values import values_of

        def result(found: Any) -> AttributionResult:
            return AttributionResult(self.name, found.card, *values_of(found))

        found = measure(self, objective.converted(self.dtype, self.micro_batch), checkpoints, tick, result)
        return result(found)
