"""Is a network as often right as it is sure? Reliability in bins of confidence, and the expected calibration error.

Source: Guo, Pleiss, Sun, Weinberger (2017), "On Calibration of Modern Neural Networks".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.losses import IGNORED
from probes.objective import Objective
from probes.paths import interval
from probes.strict import strict

Floats = NDArray[np.float64]
BINS = 15
DRAWS = 200  # of answers of a network that is as often right as it is sure


@dataclass(frozen=True, eq=False)
class Confidences:
    """Sums over the predictions of each example that fall into each of M bins of confidence: three times (N, M).

    counts: predictions. confidence: the largest probability, summed. right: right answers.
    """

    counts: Floats
    confidence: Floats
    right: Floats


@dataclass(frozen=True, eq=False)
class Calibration:
    """Reliability of a network. counts, confidence, accuracy: (M,), means NaN in empty bins.

    error: sum over bins of the share of the predictions times |accuracy - confidence|; low, high: its 95 % bootstrap
    interval over examples. if_calibrated: what a network with these confidences that is as often right as it is sure
    would show on as many predictions, on average. overconfidence: mean confidence less accuracy.
    """

    counts: Floats
    confidence: Floats
    accuracy: Floats
    error: float
    low: float
    high: float
    if_calibrated: float
    overconfidence: float


def is_judged(objective: Objective) -> bool:
    """Tell whether the loss gives probabilities: cross-entropy of classes or tokens, binary cross-entropy."""
    return objective.loss in ("cross_entropy", "causal_lm", "bce_with_logits")


def confidences(
    objective: Objective, bins: int = BINS, tick: Callable[[float, str], None] | None = None
) -> Confidences:
    """Sort every prediction into bins (a, b] of equal width by its confidence; raise ObjectiveError (memory)."""
    return objective.in_memory(lambda: _confidences(objective, bins, tick))


def calibration(found: Confidences, weights: Floats, seed: int = 0) -> Calibration:
    """Sum up a reliability diagram; weights: (draws, N) of the resamples, `probes.paths.resamples`."""
    counts, sure, right = (each.sum(0) for each in (found.counts, found.confidence, found.right))
    with np.errstate(invalid="ignore"):
        means = sure / counts, right / counts
    gaps = weights @ (found.right - found.confidence)
    total = weights @ found.counts.sum(1)
    low, high = interval(np.abs(gaps).sum(1) / total)
    return Calibration(
        counts,
        *means,
        error=float(np.abs(right - sure).sum() / counts.sum()),
        low=float(low),
        high=float(high),
        if_calibrated=_if_calibrated(counts, means[0], seed),
        overconfidence=float((sure.sum() - right.sum()) / counts.sum()),
    )


def _confidences(objective: Objective, bins: int, tick: Callable[[float, str], None] | None) -> Confidences:
    parts = []
    for part in objective.parts():
        with torch.no_grad(), strict(objective.module):
            outputs = objective.outputs(objective.theta, part).double()
            parts.append(_binned(*_judged(objective, outputs, objective.targets[part].to(objective.device)), bins))
        if tick is not None:
            tick(part.stop / len(objective.inputs), "calibration")
    return Confidences(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _judged(objective: Objective, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return confidence, whether right, and whether counted of each prediction, each (n, T)."""
    if objective.loss == "bce_with_logits":
        sure = torch.sigmoid(outputs.abs()).flatten(1) if outputs.ndim > 1 else torch.sigmoid(outputs.abs())[:, None]
        right = ((outputs > 0) == (targets.reshape(outputs.shape) > 0.5)).reshape(sure.shape)
        return sure, right, torch.ones_like(right)
    if objective.loss == "cross_entropy":
        outputs, targets = outputs[:, None], targets[:, None]
    sure, answer = outputs.softmax(-1).max(-1)
    return sure, answer == targets, targets != IGNORED


def _binned(sure: Tensor, right: Tensor, counted: Tensor, bins: int) -> tuple[Floats, Floats, Floats]:
    place = (torch.ceil(sure * bins) - 1).clamp(0, bins - 1).long()
    weight = counted.double()
    rows = (weight, sure * weight, right.double() * weight)
    sums = (torch.zeros(len(sure), bins, dtype=torch.float64, device=sure.device) for _ in rows)
    one, two, three = (empty.scatter_add_(1, place, row).cpu().numpy() for empty, row in zip(sums, rows, strict=True))
    return one, two, three


def _if_calibrated(counts: Floats, confidence: Floats, seed: int) -> float:
    """Draw right answers with the mean confidence of each bin, and return the mean calibration error of the draws."""
    generator = np.random.default_rng(seed)
    kept = counts > 0
    many, sure = counts[kept].astype(np.int64), np.clip(confidence[kept], 0.0, 1.0)
    drawn = generator.binomial(many, sure, size=(DRAWS, len(many)))
    return float(np.abs(drawn - many * sure).sum(1).mean() / many.sum())
