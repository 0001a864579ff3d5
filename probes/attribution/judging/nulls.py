"""What insertion and deletion come to without looking at the model: in random orders, and along the image's edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.stats import t as students_t

from probes.attribution.errors import AttributionError
from probes.attribution.judging.curves import POINTS, Curves, area, curves, drawn, made
from probes.attribution.judging.orders import Floats, Numbers, default_baselines, free, steps_of

if TYPE_CHECKING:
    from probes.attribution.case import Case

Operator = Literal["laplacian", "gradient"]
DRAWS = 10


@dataclass(frozen=True, eq=False)
class NullCurves(Curves):
    """Curves of no map. kind: "random" (means over draws) or "edge" (one map, no errors).

    insertion_stderr, deletion_stderr: of the curves, (B, P). insertion_auc_stderr, deletion_auc_stderr: of the areas,
    (B,). All of the measure, over draws; zero for the edge map, which is not drawn.
    """

    kind: str = "random"
    draws: int = 1
    insertion_stderr: Floats | float = 0.0
    deletion_stderr: Floats | float = 0.0
    insertion_auc_stderr: Floats | float = 0.0
    deletion_auc_stderr: Floats | float = 0.0

    def interval(self, which: Literal["insertion", "deletion"], level: float = 0.95) -> tuple[Floats, Floats]:
        """Return the interval of the mean area by Student's t over the draws, low and high, each (B,)."""
        mean: Floats = getattr(self, f"{which}_auc")
        reach = getattr(self, f"{which}_auc_stderr") * students_t.ppf(0.5 + level / 2, max(self.draws - 1, 1))
        return mean - reach, mean + reach


def null_curves(
    case: Case,
    kind: Literal["random", "edge"] = "random",
    draws: int = DRAWS,
    *,
    baselines: Sequence[str] = (),
    points: int = POINTS,
    seed: int = 0,
) -> NullCurves:
    """Draw the curves that maps have to beat, run once for a case.

    random: the mean over seeded orders; the features that an order puts in last, taken away first, make the same
    examples, so one set of runs gives insertion of each order and deletion of its reverse (their areas are equal).
    edge: the order of `edge_map`, of images only. Raises AttributionError.
    """
    key = ("null curves", kind, draws, tuple(baselines), points, seed)
    if kind == "edge":
        return case.once(key, lambda: _edges(case, baselines, points, seed))
    if draws < 2:
        raise AttributionError(f"draws is {draws}; the standard error of random orders needs at least 2.")
    return case.once(key, lambda: _random(case, draws, baselines, points, seed))


def edge_map(case: Case, operator: Operator = "laplacian") -> Numbers:
    """Return the edges of the image as a map (1, H, W): sizes of its second or first differences, channels added.

    Nothing of the model is in it, so it shows what a map gets by drawing outlines (Adebayo et al. 2018).
    """
    if case.kind != "image":
        raise AttributionError("Only images have edges; compare with random orders instead.")
    image = case.features[0].detach().double().cpu().numpy()
    wide = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    middle, up, down = wide[:, 1:-1, 1:-1], wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]
    left, right = wide[:, 1:-1, :-2], wide[:, 1:-1, 2:]
    if operator == "laplacian":
        found = np.abs(up + down + left + right - 4 * middle)
    else:
        found = np.hypot((down - up) / 2, (right - left) / 2)
    return found.sum(0, keepdims=True)  # type: ignore[no-any-return]


def _edges(case: Case, names: Sequence[str], points: int, seed: int) -> NullCurves:
    found = curves(case, edge_map(case), baselines=names, points=points, seed=seed)
    return NullCurves(**vars(found), kind="edge")


def _random(case: Case, draws: int, baselines: Sequence[str], points: int, seed: int) -> NullCurves:
    names, steps = tuple(baselines) or default_baselines(case), steps_of(case, points)
    orders = np.stack([np.random.default_rng([seed, each]).permutation(free(case)) for each in range(draws)])
    found = drawn(case, orders, names, steps, seed)
    mean = found.mean(2)
    base = made(case, names, steps, mean, mean[..., ::-1], draws)
    errors = _errors(found[0 if base.measure == "probability" else 1], steps.shares)
    return NullCurves(**vars(base), kind="random", draws=draws, **errors)


def _errors(found: Floats, shares: Floats) -> dict[str, Any]:
    """Return the standard errors of mean curves and areas over draws, of curves (B, D, P)."""
    root = np.sqrt(found.shape[1])
    curve = found.std(1, ddof=1) / root
    areas = area(found, shares).std(1, ddof=1) / root
    return {
        "insertion_stderr": curve,
        "deletion_stderr": curve[..., ::-1],
        "insertion_auc_stderr": areas,
        "deletion_auc_stderr": areas,
    }
