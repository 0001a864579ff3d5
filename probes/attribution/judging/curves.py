"""Insertion and deletion: how the target's probability rises or falls as features go in or out in a map's order.

Petsiuk, Das and Saenko (2018); deletion by blocks of pixels: Samek et al. (2017). The areas depend on the baseline (on
some models a random order has the best deletion of all, since scattered pixels are no images), so two baselines are
drawn at once, and `nulls` has what an order without a map reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from probes.attribution.judging.orders import (
    Floats,
    Ints,
    Measure,
    Numbers,
    Steps,
    default_baselines,
    ends,
    free,
    inserted,
    measure_of,
    order_of,
    plane,
    read,
    steps_of,
)

if TYPE_CHECKING:
    from probes.attribution.case import Case

POINTS = 32


@dataclass(frozen=True, eq=False)
class Curves:
    """Insertion and deletion with B baselines at P points.

    baselines: their names, the first is the one to quote. measure: what is drawn, "probability" of the target, or its
    "score" where the loss gives no probability. shares: (P,) of the features, 0 to 1. insertion, deletion: (B, P) of
    the measure. insertion_scores, deletion_scores: (B, P) of the raw score (logit, log-probability). unit: what goes in
    or out at once. evaluations: examples the model was run on for this. notes: doubts, in words.
    """

    baselines: tuple[str, ...]
    measure: Measure
    shares: Floats
    insertion: Floats
    deletion: Floats
    insertion_scores: Floats
    deletion_scores: Floats
    unit: str
    evaluations: int
    notes: tuple[str, ...] = ()

    @property
    def insertion_auc(self) -> Floats:
        """Return the areas under the insertion curves, (B,); high is good."""
        return area(self.insertion, self.shares)

    @property
    def deletion_auc(self) -> Floats:
        """Return the areas under the deletion curves, (B,); low is good."""
        return area(self.deletion, self.shares)


def area(curve: Floats, shares: Floats) -> Floats:
    """Return the area under curves (..., P) over shares (P,) by the trapezoid rule."""
    return np.asarray(np.trapezoid(curve, shares, axis=-1))


def curves(
    case: Case, values: Numbers, *, baselines: Sequence[str] = (), points: int = POINTS, seed: int = 0
) -> Curves:
    """Draw insertion and deletion of a map (`Map.values`), most positive features first, equal ones at random.

    baselines: names of `probes.attribution.baselines`; () chooses two. points: steps from none to all features, fewer
    where there are fewer features. Special tokens stay. Raises AttributionError (map of another shape, not finite).
    """
    names = tuple(baselines) or default_baselines(case)
    steps = steps_of(case, points)
    order = order_of(case, values, seed)
    found = drawn(case, np.stack([order, order[::-1]]), names, steps, seed)
    # Reversed, the second row is what is left when the first features have gone.
    return made(case, names, steps, found[:, :, 0], found[:, :, 1, ::-1], 2, _notes(case, values))


def drawn(case: Case, orders: Ints, names: Sequence[str], steps: Steps, seed: int) -> Floats:
    """Return probability and score while the features of several orders (D, n) go in, (2, B, D, P)."""
    inner = steps.counts[1:-1]
    found = np.empty((2, len(names), len(orders), len(steps.counts)))
    for number, name in enumerate(names):
        blank, whole = ends(case, name, seed).T
        found[:, number, :, 0], found[:, number, :, -1] = blank[:, None], whole[:, None]
        if len(inner):
            found[:, number, :, 1:-1] = _between(case, orders, name, inner, seed)
    return found


def made(
    case: Case,
    names: Sequence[str],
    steps: Steps,
    insertion: Floats,
    deletion: Floats,
    orders: int,
    notes: tuple[str, ...] = (),
) -> Curves:
    """Put curves (2, B, P) of probability and score together."""
    measure = measure_of(case)
    shown = 0 if measure == "probability" else 1
    unit = {"image": "pixels", "table": "columns"}.get(case.kind, "tokens")
    evaluations = len(names) * (orders * max(len(steps.counts) - 2, 0) + 2)
    return Curves(
        tuple(names), measure, steps.shares, insertion[shown], deletion[shown], insertion[1], deletion[1], unit,
        evaluations, notes,
    )  # fmt: skip


def _between(case: Case, orders: Ints, name: str, counts: Ints, seed: int) -> Floats:
    """Run the model on as many orders at once as fill a chunk; (2, D, len(counts))."""
    together = max(1, case.chunk() // len(counts))
    parts = [orders[start : start + together] for start in range(0, len(orders), together)]
    rows = [read(case, torch.cat([inserted(case, each, name, counts, seed) for each in part])) for part in parts]
    return np.concatenate(rows, 1).reshape(2, len(orders), len(counts))


def _notes(case: Case, values: Numbers) -> tuple[str, ...]:
    if np.ptp(plane(case, values)[free(case)]) == 0:
        return ("All values of the map are equal, so this is the curve of a random order.",)
    return ()
