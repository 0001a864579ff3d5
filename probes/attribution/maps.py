"""What a method gives back: one number per feature, the numbers to check it by, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from probes.attribution.validity import Badge

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from probes.attribution.case import Case

Reduce = Literal["sum", "l2", "none"]
_UNJUDGED = Badge("ok", ())


@dataclass(frozen=True)
class Map:
    """The attribution of one score to the features of one example.

    values: (C, H, W) or fewer channels, (F,) or (T,). signed: whether the sign means for or against the target.
    score, baseline_score: of the example and of the reference. completeness_error: |sum - (score - baseline_score)|
    as a share of the difference; None where the method promises none. stderr: of each value, of sampled methods.
    about: settings, steps, baseline, layer, seed, evaluations. notes: doubts, in words. badge: see `validity`.
    """

    method: str
    values: NDArray[floating[Any]]
    signed: bool
    score: float
    baseline_score: float | None = None
    completeness_error: float | None = None
    stderr: NDArray[floating[Any]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    badge: Badge = _UNJUDGED


def make_map(
    case: Case,
    method: str,
    values: Tensor,
    *,
    signed: bool = True,
    complete: bool = False,
    baseline_score: float | None = None,
    reduce: Reduce = "sum",
    stderr: Tensor | None = None,
    about: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Map:
    """Make the map of an attribution shaped like the features, (1, ...) or (...), or already like `case.shape`.

    complete: the values (before they are reduced) should add up to score - baseline_score (0 where None). reduce: how
    token vectors become one number a token: "sum" keeps completeness, "l2" suits gradients. stderr: already reduced.
    """
    score, total = case.score, float(values.double().sum())
    error = completeness_error(total, score, baseline_score) if complete else None
    shown = reduced(case, values, reduce)
    spread = None if stderr is None else _array(stderr)
    said = {**(about or {}), "sum": total}
    return Map(method, _array(shown), signed, score, baseline_score, error, spread, said, notes)


def completeness_error(total: float, score: float, baseline_score: float | None) -> float:
    """Return |total - difference| / |difference|; infinite where the scores do not differ and the total is not 0."""
    difference = score - (baseline_score or 0.0)
    if difference == 0:
        return 0.0 if total == 0 else float("inf")
    return abs(total - difference) / abs(difference)


def reduced(case: Case, values: Tensor, reduce: Reduce = "sum") -> Tensor:
    """Bring an attribution (1, ...) or (...) to the shape that is shown; token vectors become numbers."""
    one = values[0] if values.ndim == case.features.ndim and len(values) == 1 else values
    if not case.embedding or one.ndim == 1 or reduce == "none":
        return one
    return one.sum(-1) if reduce == "sum" else one.norm(dim=-1)


def _array(values: Tensor) -> NDArray[np.floating[Any]]:
    return values.detach().cpu().numpy().copy()
