"""What a checkpoint predicts for each example: one forward pass in micro-batches, of which a few numbers are kept.

Whatever has the size of (examples, classes) or (tokens, vocabulary) lives for one micro-batch only. All is computed in
float64 from the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probes.errors import ObjectiveError

if TYPE_CHECKING:
    from torch import Tensor

    from probes.objective import Objective

Kind = Literal["classes", "outputs", "values", "tokens", "loss"]
Floats = NDArray[np.float64]
Report = Callable[[float, str], None]
IGNORED = -100
LOGITS = 2**23  # logits of tokens that are turned into float64 at a time
MOST_TOKENS = 2**21  # positions of all sequences of which loss and prediction are kept one by one
PROBABLE = ("probability", "label_probability", "entropy")
NUMBERS = ("prediction", "probability", "label_probability", "margin", "gap", "loss", "entropy", "right")


@dataclass(frozen=True)
class Asked:
    """How a model is looked at.

    kind: "classes" (one of several, also yes or no), "outputs" (several yes-or-no answers an example), "values"
    (regression), "tokens" (language model) or "loss" (it takes the model itself: nothing else is known). labels: (N,)
    class or value of each example, of sequences the last token to predict; NaN where there is not one. bins: of
    confidence.
    """

    kind: Kind
    labels: Floats
    bins: int


def asked_of(objective: Objective, bins: int) -> Asked:
    """Tell by loss and targets what there is to predict."""
    from probes.head_alignment import class_of

    targets, loss = objective.targets, objective.loss
    if loss == "causal_lm":
        return Asked("tokens", _last_tokens(targets), bins)
    if objective.own is not None:
        return Asked("loss", np.full(len(targets), math.nan), bins)
    labels: Floats = class_of(targets).cpu().numpy()
    width = targets[0].numel()
    if loss == "bce_with_logits" and width == 1:
        return Asked("classes", (labels > 0.5).astype(np.float64), bins)
    if loss == "cross_entropy" or (width > 1 and np.isfinite(labels).all()):
        return Asked("classes", labels, bins)
    return Asked("outputs" if loss == "bce_with_logits" else "values", labels, bins)


def look(objective: Objective, asked: Asked, tick: Report) -> dict[str, NDArray[Any]]:
    """Return what is predicted of each example.

    (N,): NUMBERS, NaN where one does not exist, averaged over the tokens (or outputs) of an example but for
    `prediction`, which of a sequence is that of the last token; `counts`, the units of the loss. (N, bins):
    `bin_counts`, `bin_confidence`, `bin_right`, sums over the predictions in each bin of confidence. Of tokens also
    `position_sums` (4, T): counts, losses, squared losses and right answers; and, if they are not too many,
    `token_loss` and `token_prediction` (N, T), NaN and -1 where nothing counts. Of classes `width` (): how many the
    model knows. Raises ObjectiveError (not finite, memory).
    """
    if objective.own is not None:
        found = _of_own(objective, asked, tick)
    else:
        found = objective.in_memory(lambda: _joined(list(_parts(objective, asked, tick))))
    if not np.isfinite(found["loss"][found["counts"] > 0]).all():
        objective.evaluate()  # names the layer
        raise ObjectiveError("The loss of an example is not finite. Check the checkpoint (diverged?) and the data.")
    return found


def _parts(objective: Objective, asked: Asked, tick: Report) -> Iterator[dict[str, NDArray[Any]]]:
    import torch

    from probes.strict import strict

    for part in objective.parts():
        with torch.no_grad(), strict(objective.module):
            outputs, targets = objective.outputs(objective.theta, part), objective.targets[part]
            found = _of_part(objective, asked, outputs, targets.to(outputs.device), part)
        yield found
        tick(part.stop / len(objective.inputs), "predictions")


def _of_part(
    objective: Objective, asked: Asked, outputs: Tensor, targets: Tensor, part: slice
) -> dict[str, NDArray[Any]]:
    if asked.kind == "tokens":
        return _of_tokens(outputs, targets, asked.bins, keep=objective.targets.numel() <= MOST_TOKENS)
    if objective.loss == "cross_entropy":
        found, width = _of_classes(outputs, targets), outputs.shape[1]
    elif objective.loss == "bce_with_logits":
        found, width = _of_yes_no(outputs, targets, asked, part)
    else:
        found, width = _of_values(outputs, targets, asked, part)
    sure, right = (found.pop(name, found[other]) for name, other in (("_sure", "probability"), ("_right", "right")))
    rows = np.arange(len(sure)) if sure.ndim == 1 else np.repeat(np.arange(len(sure)), sure.shape[1])
    binned = _binned(sure.ravel(), right.ravel(), rows, len(sure), asked.bins)
    return {**found, "counts": np.ones(len(sure)), "width": np.array([width]), **binned}


def _of_own(objective: Objective, asked: Asked, tick: Report) -> dict[str, NDArray[Any]]:
    losses = objective.tallied(tick, finite=False).losses.cpu().double().numpy()
    unknown = np.full(len(losses), math.nan)
    binned = _binned(unknown, unknown, np.arange(len(losses)), len(losses), asked.bins)
    return {**dict.fromkeys(NUMBERS, unknown), "loss": losses, "counts": np.ones(len(losses)), **binned}


def _of_classes(outputs: Tensor, labels: Tensor) -> dict[str, Floats]:
    """Return NUMBERS of rows of logits (n, C) with one class each."""
    z = outputs.double()
    log_p, y, guess = z.log_softmax(1), labels[:, None], outputs.argmax(1)
    p, own = log_p.exp(), log_p.gather(1, y)[:, 0]
    others = z.scatter(1, y, -math.inf).amax(1)
    found = {
        "prediction": guess,
        "probability": p.gather(1, guess[:, None])[:, 0],
        "label_probability": own.exp(),
        "margin": (z.gather(1, y)[:, 0] - others).nan_to_num(posinf=math.nan),
        "gap": _gap(p),
        "loss": -own,
        "entropy": -(p * log_p.masked_fill(p == 0, 0.0)).sum(1),
        "right": guess == labels,
    }
    return {name: each.double().cpu().numpy() for name, each in found.items()}


def _of_yes_no(outputs: Tensor, targets: Tensor, asked: Asked, part: slice) -> tuple[dict[str, Floats], int]:
    """Return NUMBERS of logits of which each is a yes or a no, and how many classes there are."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    z, t = outputs.double().reshape(len(outputs), -1), targets.double().reshape(len(outputs), -1)
    yes, hit = z.sigmoid(), (z > 0) == (t > 0.5)
    found = {
        "loss": binary_cross_entropy_with_logits(z, t, reduction="none").mean(1),
        "margin": (z * (2 * t - 1)).amin(1),
        "entropy": _binary_entropy(z).mean(1),
        "gap": (2 * yes - 1).abs().amin(1),
        "right": hit.double().mean(1),
        "probability": z.abs().sigmoid().mean(1),
        "label_probability": (z * (2 * t - 1)).sigmoid().mean(1),
        "_sure": z.abs().sigmoid(),
        "_right": hit.double(),
    }
    numbers = {name: each.cpu().numpy() for name, each in found.items()}
    if z.shape[1] == 1:
        return {**numbers, "prediction": (z[:, 0] > 0).double().cpu().numpy()}, 2
    if asked.kind == "outputs":
        return {**numbers, "prediction": np.full(len(z), math.nan)}, z.shape[1]
    for name in ("_sure", "_right"):
        del numbers[name]
    return {**numbers, **_chosen(yes.cpu().numpy(), asked.labels[part])}, z.shape[1]


def _of_values(outputs: Tensor, targets: Tensor, asked: Asked, part: slice) -> tuple[dict[str, Floats], int]:
    """Return NUMBERS of values, or of the largest of several that stand for classes; no probability is known."""
    z, t = outputs.double().reshape(len(outputs), -1), targets.double().reshape(len(outputs), -1)
    unknown = np.full(len(z), math.nan)
    found = {**dict.fromkeys(NUMBERS, unknown), "loss": (z - t).square().mean(1).cpu().numpy()}
    scores = z.cpu().numpy()
    if asked.kind == "classes":
        found |= _chosen(scores, asked.labels[part])
        own, others = z.masked_fill(t == 0, -math.inf).amax(1), z.masked_fill(t == 1, -math.inf).amax(1)
        return {**found, "margin": (own - others).cpu().numpy(), **dict.fromkeys(PROBABLE, unknown)}, z.shape[1]
    return {**found, "prediction": scores[:, 0] if scores.shape[1] == 1 else unknown}, 0


def _chosen(scores: Floats, labels: Floats) -> dict[str, Floats]:
    """Return what follows when the class of the highest of several independent scores (n, C) is the answer."""
    rows, guess, label = np.arange(len(scores)), scores.argmax(1), labels.astype(np.int64)
    two = np.sort(scores, 1)[:, -2:]
    return {
        "prediction": guess.astype(np.float64),
        "probability": scores[rows, guess],
        "label_probability": scores[rows, label],
        "gap": two[:, 1] - two[:, 0],
        "right": (guess == label).astype(np.float64),
    }


def _of_tokens(outputs: Tensor, targets: Tensor, bins: int, *, keep: bool) -> dict[str, NDArray[Any]]:
    """Return what `look` says of sequences: logits (n, T, V), the next token of each place (n, T)."""
    n, length = targets.shape
    places = (targets.reshape(-1) != IGNORED).nonzero()[:, 0]
    logits, labels = outputs.reshape(n * length, -1), targets.reshape(-1)
    few = max(1, LOGITS // logits.shape[1])
    pieces = [_of_classes(logits[each], labels[each]) for each in places.split(few)] if len(places) else []
    each = {name: np.concatenate([piece[name] for piece in pieces] or [np.zeros(0)]) for name in NUMBERS}
    at = places.cpu().numpy()
    rows, columns = at // length, at % length
    counts = np.bincount(rows, minlength=n).astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = {name: np.bincount(rows, each[name], n) / counts for name in NUMBERS}
    loss, guess = np.full((n, length), np.nan, np.float32), np.full((n, length), -1, np.int32)
    loss[rows, columns], guess[rows, columns] = each["loss"], each["prediction"]
    last = _last_places((targets != IGNORED).cpu().numpy())
    means["prediction"] = np.where(last >= 0, guess[np.arange(n), last], math.nan)
    weights = (None, each["loss"], each["loss"] ** 2, each["right"])
    sums = np.array([np.bincount(columns, weight, length) for weight in weights], dtype=np.float64)
    binned = _binned(each["probability"], each["right"], rows, n, bins)
    kept = {"token_loss": loss, "token_prediction": guess} if keep else {}
    return {**means, "counts": counts, **binned, "position_sums": sums[None], **kept}


def _binned(sure: Floats, right: Floats, rows: NDArray[Any], count: int, bins: int) -> dict[str, Floats]:
    """Sum predictions up by example and by bin (a, b] of confidence, as `probes.calibration` does."""
    known = np.isfinite(sure)
    sure, right, rows = sure[known], right[known], rows[known]
    place = rows * bins + (np.ceil(sure * bins) - 1).clip(0, bins - 1).astype(np.int64)
    weights = {"bin_counts": None, "bin_confidence": sure, "bin_right": right}
    sums = {name: np.bincount(place, each, count * bins).reshape(count, bins) for name, each in weights.items()}
    return {name: each.astype(np.float64) for name, each in sums.items()}


def _joined(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    found = {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
    if "position_sums" in found:
        found["position_sums"] = found["position_sums"].sum(0)
    if "width" in found:
        found["width"] = found["width"][0]
    return found


def _gap(p: Tensor) -> Tensor:
    top = p.topk(min(2, p.shape[1]), dim=1).values
    return top[:, 0] - (top[:, 1] if p.shape[1] > 1 else 0.0)


def _binary_entropy(z: Tensor) -> Tensor:
    from torch.nn.functional import softplus

    return softplus(-z.abs()) + z.abs() * (-z.abs()).sigmoid()


def _last_tokens(targets: Tensor) -> Floats:
    values = targets.cpu().numpy()
    last = _last_places(values != IGNORED)
    return np.where(last >= 0, values[np.arange(len(values)), last], math.nan)


def _last_places(counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the last place that counts in each row, -1 where none does."""
    last = counted.shape[1] - 1 - counted[:, ::-1].argmax(1)
    return np.where(counted.any(1), last, -1)
