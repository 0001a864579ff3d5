"""Is the first checkpoint the initialisation of this run, or that of another seed?

Vectors that know nothing of each other lie at a right angle, within some standard errors of 1/sqrt(d): a rotation of 1
in every layer, which looks like the best of trainings. So an initialisation of the wrong seed is told by its rotation
being 1 *to within chance* in all layers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["plausible", "unlikely", "fine-tuning", "not applicable"]

_SIGMAS = 3.0
_WIDEST = 0.5  # a kernel of few weights, whose band is wider, tells nothing
_NEAR = 0.05  # rotation below which a layer has hardly moved


@dataclass(frozen=True)
class SeedMatch:
    """The verdict, a sentence for the reader, and how many of the layers that can tell lie in the band of chance."""

    verdict: Verdict
    sentence: str
    layers_within: int
    layers: int

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        return asdict(self)


def seed_match(rotation: NDArray[np.float64], weights: Sequence[int], since: str, *, is_start: bool) -> SeedMatch:
    """Judge by the rotation (L, K) of layers with so many weights each, the first checkpoint being the start.

    since: what the first checkpoint is, in words ("epoch 50"). is_start: whether it may be the initialisation. Of ten
    layers or more one in ten may lie outside of the band: three standard errors are exceeded by chance, too.
    """
    band = _SIGMAS / np.sqrt(np.asarray(weights, float))
    usable = (band < _WIDEST) & np.isfinite(rotation).all(axis=1)
    layers, later = int(usable.sum()), rotation[usable, 1:]
    if not is_start:
        return SeedMatch("not applicable", f"Rotation counts since {since}: there is no initialisation.", 0, layers)
    if not layers or not later.shape[1]:
        return SeedMatch("not applicable", "No kernel is large enough to tell.", 0, layers)
    within = (np.abs(1 - later) < band[usable, None]).sum(axis=0)
    first, least = int(within[0]), int(within.min())
    told = f"{first} of {layers} layers" if layers > 1 else f"{first} of 1 layer"
    if layers - least <= (layers // 10):
        return SeedMatch(
            "unlikely",
            f"This is probably not this run's initialisation: in {told} the rotation is 1 within 3/√d, as it is "
            "between weights that know nothing of each other. (A training that forgets its start before the "
            "first checkpoint looks the same; an earlier checkpoint would tell.)",
            first,
            layers,
        )
    if float(np.abs(later).max()) < _NEAR:
        return SeedMatch(
            "fine-tuning",
            f"No layer turns by more than {_NEAR}: normal when fine-tuning from pretrained weights, and early in a "
            "training from scratch.",
            first,
            layers,
        )
    sentence = (
        f"The start plausibly is this run's: in {layers - first} of {layers} layers more is left of it than chance."
    )
    return SeedMatch("plausible", sentence, first, layers)
