"""The built-in losses: one number per example or predicted token, and what chance alone would reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
)

from probes.errors import DataError, ObjectiveError
from probes.specs import LOSS_TITLES, LossName

IGNORED = -100  # a next-token label that is not counted

REDUCTIONS: Mapping[LossName, str] = {
    "cross_entropy": "mean over examples",
    "mse": "mean over examples of the mean over outputs of the squared difference",
    "bce_with_logits": "mean over examples of the mean over outputs",
    "causal_lm": "mean over predicted tokens (padding not counted)",
    "caption_distance": "mean over pairs of 1 - cosine of image and caption",
    "operator": "mean over examples of the operator's own loss",
}


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy on all examples, with standard errors, beside what chance reaches.

    predictions: examples, or predicted tokens of a language model. chance: share of the most frequent class (or
    token); chance_loss: loss of the best constant prediction, NaN where it is not known. accuracy is None for
    regression and for a loss of the operator's.
    """

    loss: float
    loss_stderr: float
    accuracy: float | None
    accuracy_stderr: float | None
    examples: int
    predictions: int
    chance: float | None
    chance_loss: float


@dataclass(frozen=True)
class Tally:
    """Per example: how many predictions, the sum of their losses, and how many are right (or None)."""

    counts: Tensor
    losses: Tensor
    right: Tensor | None


def counted(loss: LossName, targets: Tensor) -> Tensor:
    """Return per example the number of units that weigh one in the mean: 1, or its predicted tokens; (N,) int64."""
    if loss == "causal_lm":
        return (targets != IGNORED).flatten(1).sum(1)
    return torch.ones(len(targets), dtype=torch.int64, device=targets.device)


def total_loss(loss: LossName, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the losses of all units of a batch: a scalar that can be differentiated twice."""
    if loss == "cross_entropy":
        return cross_entropy(outputs, targets, reduction="sum")
    if loss == "causal_lm":
        return cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED)
    return _per_output(loss, outputs, targets).flatten(1).mean(1).sum()


def tally(loss: LossName, outputs: Tensor, targets: Tensor) -> Tally:
    """Count, sum up losses (float64) and right answers of each example."""
    counts = counted(loss, targets)
    if loss == "cross_entropy":
        losses = cross_entropy(outputs.double(), targets, reduction="none")
        return Tally(counts, losses, (outputs.argmax(1) == targets).double())
    if loss == "causal_lm":
        logits = outputs.double().flatten(0, 1)
        each = cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=IGNORED)
        right = (outputs.argmax(-1) == targets).double().sum(1)
        return Tally(counts, each.view_as(targets).sum(1), right)
    each = _per_output(loss, outputs.double(), targets.double()).flatten(1).mean(1)
    if loss == "mse":
        return Tally(counts, each, None)
    right = ((outputs > 0) == (targets.reshape(outputs.shape) > 0.5)).double().reshape(len(counts), -1).mean(1)
    return Tally(counts, each, right)


def joined(tallies: Sequence[Tally]) -> Tally:
    """Put the tallies of all batches one after another."""
    right = [each.right for each in tallies if each.right is not None]
    counts, losses = (torch.cat([getattr(each, name) for each in tallies]) for name in ("counts", "losses"))
    return Tally(counts, losses, torch.cat(right) if right else None)


def evaluation(loss: LossName, tallies: list[Tally], targets: Tensor) -> Evaluation:
    """Turn the tallies of all batches into means with standard errors.

    The standard error of the loss comes from the spread over examples (sequences are whole units: their tokens are
    not independent); that of the accuracy is binomial over examples, and from sequences for a language model.
    """
    found = joined(tallies)
    counts, losses = found.counts.double(), found.losses
    mean, stderr = _ratio(losses, counts)
    accuracy: float | None = None
    accuracy_stderr: float | None = None
    if found.right is not None:
        accuracy, accuracy_stderr = _ratio(found.right, counts)
        if loss == "cross_entropy":
            accuracy_stderr = math.sqrt(accuracy * (1 - accuracy) / len(counts))
    chance, chance_loss = _chance(loss, targets)
    return Evaluation(mean, stderr, accuracy, accuracy_stderr, len(counts), int(counts.sum()), chance, chance_loss)


def fitting_targets(loss: LossName, outputs: Tensor, targets: Tensor) -> tuple[Tensor, str]:
    """Return the targets in the shape and dtype that the loss needs of these outputs, and a caveat or "".

    outputs: of the first few examples; targets: of all. Raises DataError (targets do not fit) or ObjectiveError
    (outputs do not fit the loss).
    """
    fit: Callable[[Tensor, Tensor], tuple[Tensor, str]] = {
        "cross_entropy": _fit_classes,
        "causal_lm": _fit_tokens,
        "mse": _fit_values,
        "bce_with_logits": _fit_values,
    }[loss]
    if outputs.ndim < 1 or not outputs.is_floating_point():
        raise ObjectiveError("The model returns no floating-point outputs; this loss needs logits or values.")
    return fit(outputs, targets)


def _fit_classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, str]:
    if targets.is_floating_point() or targets.ndim != 1:
        kind = f"{str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape[1:]) or '()'} each"
        raise DataError(
            f"Cross-entropy needs one whole-number class per example, but the targets are {kind}; "
            "choose mean squared error or binary cross-entropy, or give class labels."
        )
    if outputs.ndim != 2:
        raise ObjectiveError(
            f"Cross-entropy needs outputs of shape (examples, classes), but the model returns {_shape(outputs)} "
            "an example; choose another loss or model."
        )
    _check_range(targets, outputs.shape[1], "label", "classes")
    return targets, ""


def _fit_tokens(outputs: Tensor, targets: Tensor) -> tuple[Tensor, str]:
    if outputs.ndim != 3 or targets.ndim != 2 or targets.is_floating_point():
        raise ObjectiveError(
            f"{LOSS_TITLES['causal_lm']} needs outputs (sequences, tokens, vocabulary) and a token per position, but "
            f"the model returns {_shape(outputs)} an example and the targets are {_shape(targets)} an example."
        )
    if outputs.shape[1] != targets.shape[1]:
        raise DataError(
            f"The model returns {outputs.shape[1]} positions a sequence, the targets have {targets.shape[1]}."
        )
    kept = targets[targets != IGNORED]
    if not len(kept):
        raise DataError("No token is to be predicted: every target is padding. Give longer or other text.")
    _check_range(kept, outputs.shape[2], "token id", "tokens in the vocabulary")
    return targets, ""


def _fit_values(outputs: Tensor, targets: Tensor) -> tuple[Tensor, str]:
    wide = outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]
    if not targets.is_floating_point() and targets.ndim == 1 and wide.shape[1] > 1:
        _check_range(targets, wide.shape[1], "label", "outputs")
        hot = one_hot(targets, wide.shape[1]).float().reshape(-1, *outputs.shape[1:])
        return hot, "The class labels were turned into one-hot targets for this loss."
    flat = targets.flatten(1) if targets.ndim > 1 else targets[:, None]
    if flat.shape[1] != wide.shape[1]:
        raise DataError(
            f"The model returns {wide.shape[1]} values an example, the targets have {flat.shape[1]}; "
            "give targets of the same size or another model."
        )
    values = targets if targets.is_floating_point() else targets.float()
    return values.reshape(-1, *outputs.shape[1:]), ""


def _check_range(labels: Tensor, limit: int, what: str, units: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(f"A {what} is {low}; the smallest allowed is 0 (classes are counted from 0).")
    if high >= limit:
        raise DataError(
            f"A {what} is {high}, but the model has {limit} {units} (0 to {limit - 1}); "
            "this is not the data of this model, or the counting starts elsewhere."
        )


def _per_output(loss: LossName, outputs: Tensor, targets: Tensor) -> Tensor:
    outputs = outputs if outputs.ndim > 1 else outputs[:, None]
    targets = targets.to(outputs.dtype).reshape(outputs.shape)
    if loss == "mse":
        return (outputs - targets).square()
    return binary_cross_entropy_with_logits(outputs, targets, reduction="none")


def _ratio(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    total, n = counts.sum(), len(counts)
    mean = sums.sum() / total
    if n < 2:
        return float(mean), 0.0
    spread = (sums - mean * counts).square().sum().sqrt() / total
    return float(mean), float(spread) * math.sqrt(n / (n - 1))


def _chance(loss: LossName, targets: Tensor) -> tuple[float | None, float]:
    if loss in ("operator", "caption_distance"):
        return None, math.nan
    if loss in ("cross_entropy", "causal_lm"):
        _, numbers = targets[targets != IGNORED].unique(return_counts=True)
        share = numbers.double() / numbers.sum()
        return float(share.max()), float(-(share * share.log()).sum())
    flat = targets.double().flatten(1) if targets.ndim > 1 else targets.double()[:, None]
    mean = flat.mean(0)
    if loss == "mse":
        return None, float((flat - mean).square().mean())
    share = torch.stack([mean, 1 - mean])
    return float(share.amax(0).mean()), float(-torch.xlogy(share, share).sum(0).mean())


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape[1:]))
