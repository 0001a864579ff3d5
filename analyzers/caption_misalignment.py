"""Which words of a caption do not fit its image, by the attention of CLIP?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from analyzers._base import Analyzer, Result, Tick, micro_batch_option, option, precision_option, seed_option

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.objective import Objective


@dataclass(frozen=True)
class MisalignmentResult(Result):
    """The scores of the words of every caption, those of other images beside them, and the pairs that stand out."""

    def figures(self, **_view: Any) -> Mapping[str, go.Figure]:
        """Draw "captions", "gallery", "patches", "scores" and "swaps", as far as they were asked for."""
        from analyzers import _misalignment_figures as draw

        pictures, patches = self.arrays.get("pictures"), self.arrays.get("patches")
        found = {"captions": draw.captions_figure(self.card, self.values)}
        if pictures is not None:
            found["gallery"] = draw.gallery_figure(self.card, self.values, pictures)
        if pictures is not None and patches is not None:
            found["patches"] = draw.patches_figure(self.card, self.values, pictures, patches)
        found["scores"] = draw.scores_figure(self.card, self.values, self.arrays)
        if self.values["swaps"]:
            found["swaps"] = draw.swaps_figure(self.card, self.values["swaps"])
        return found

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return a row for each word, for each pair, and what the swapped words gave."""
        import pandas as pd

        rows = self.values["rows"]
        names = ("row", "id", "caption", "cosine", "f_clip_score", "worst_word", "worst_score", "misaligned")
        words = [
            {"row": row["row"], "id": row["id"], "place": place, "word": word, "score": row["scores"][place],
             "on_other_images": row["typical"][place] if row["typical"] else None,
             "lower_on_others": row["lower_on_others"][place] if row["typical"] else None}
            for row in rows for place, word in enumerate(row["words"])
        ]  # fmt: skip
        found = {
            "captions": pd.DataFrame(words),
            "scores": pd.DataFrame([{key: row[key] for key in names} for row in rows]),
        }
        return found | ({"swaps": pd.DataFrame([self.values["swaps"]])} if self.values["swaps"] else {})


@dataclass(frozen=True)
class CaptionMisalignment(Analyzer):
    """Gradient times attention in the last text blocks of CLIP, beside the same captions on other images."""

    name: ClassVar[str] = "caption_misalignment"
    title: ClassVar[str] = "Misaligned words of captions"
    question: ClassVar[str] = "Which words of a caption do not fit its image?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = MisalignmentResult

    order: str = option(
        "worst word",
        "Pairs shown first",
        "By the lowest word, by the lowest F-CLIPScore, or as the data have them.",
        choices=("worst word", "F-CLIPScore", "order of the data"),
    )
    top: int = option(8, "Pairs shown", "How many pairs are drawn; all are scored.", minimum=1, maximum=48)
    threshold: float = option(
        -5e-5,
        "Threshold",
        "A word below it is called misaligned.",
        minimum=-1.0,
        maximum=0.0,
    )
    null_images: int = option(
        8, "Other images", "With how many images of other captions each caption is compared.", minimum=1, maximum=200
    )
    swaps: bool = option(True, "Swap words", "Tests on these data whether a swapped word is the most negative one.")
    patches: bool = option(True, "Patches", "Also finds which patches of the pairs shown speak for the caption.")
    blocks: int = option(
        3,
        "Text blocks",
        "How many of the last blocks the attention is taken of.",
        minimum=1,
        maximum=200,
        advanced=True,
    )
    tolerance: float = option(
        0.01, "Completeness of patches", "How far they may miss the cosine, as a share.", minimum=1e-6, maximum=1.0,
        advanced=True,
    )  # fmt: skip
    dtype: str = precision_option("Of the network and its attention.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The other images, the swapped words and the intervals are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> MisalignmentResult:  # noqa: ARG002
        """Score the words of all captions; raises AttributionError where model or data are no CLIP and no pairs."""
        from analyzers._misalignment_measure import Asked, measure
        from analyzers._misalignment_values import arrays_of, card_of, caveats_of, values_of

        objective = objective.converted(self.dtype, self.micro_batch)
        asked = Asked(
            self.order, self.top, self.blocks, self.threshold, self.null_images, self.swaps, self.patches,
            self.tolerance, self.seed,
        )  # fmt: skip
        found = measure(objective, asked, tick)
        values = values_of(found)
        caveats = (*objective.caveats, *caveats_of(found, values))
        return MisalignmentResult(self.name, card_of(found), values, arrays_of(found), caveats)
