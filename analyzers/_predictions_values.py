"""What a result about predictions holds: figures of each checkpoint with their intervals, arrays by row, caveats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzers._base import Arrays
from analyzers._examples import number
from analyzers._predictions_look import NUMBERS, Asked
from analyzers._predictions_statistics import Reliability, Z, disagreement, effective, paired, reliability, wilson

if TYPE_CHECKING:
    from probes.losses import Evaluation
    from probes.objective import Objective

MATRIX = 1000  # classes above which no confusion matrix is kept
CONFUSED = 200  # pairs of classes that are listed at most
FEW = 100  # examples below which the calibration is mostly chance
KEPT = ("token_loss", "token_prediction")
CHARACTERS = 200  # of an id that is kept, or of the name of a class


@dataclass(frozen=True)
class Seen:
    """All that was found. names: of the checkpoints, in the order given; looks: of each what `look` gives."""

    objective: Objective
    asked: Asked
    names: tuple[str, ...]
    times: tuple[str, ...]
    looks: Sequence[Arrays]
    seed: int

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Return loss and accuracy of each checkpoint, as the gate has them but for several yes-or-no answers."""
        return [_evaluation(self.objective, each, self.judged) for each in self.looks]

    @cached_property
    def reliabilities(self) -> list[Reliability | None]:
        """Return the calibration of each checkpoint, None where no probabilities are known."""
        return [
            reliability(each["bin_counts"], each["bin_confidence"], each["bin_right"], self.seed) for each in self.looks
        ]

    @property
    def judged(self) -> bool:
        """Tell whether a prediction is right or wrong."""
        return self.asked.kind in ("classes", "outputs", "tokens")

    @property
    def width(self) -> int:
        """Return how many classes there are, 0 where there are none."""
        return int(self.looks[-1]["width"]) if self.asked.kind == "classes" else 0

    @cached_property
    def classes(self) -> list[str]:
        """Return the names of the classes, their numbers where they have none."""
        names = self.objective.batches.classes
        return [str(names[each])[:CHARACTERS] if each < len(names) else str(each) for each in range(self.width)]


def values_of(seen: Seen) -> dict[str, Any]:
    """Return the values of the result but for the examples: lists by checkpoint, None where a number does not exist."""
    found = seen.evaluations
    loss = [each.loss for each in found]
    spread = [each.loss_stderr for each in found]
    return {
        "kind": seen.asked.kind,
        "checkpoints": list(seen.names),
        "labels": list(seen.times),
        "examples_seen": len(seen.looks[-1]["loss"]),
        "predictions": found[-1].predictions,
        "classes": seen.classes,
        **(_accuracies(seen) if seen.judged else {}),
        "loss": loss,
        "loss_stderr": spread,
        "chance": found[-1].chance if seen.judged else None,
        "chance_loss": number(found[-1].chance_loss),
        **(_perplexities(loss, spread) if seen.asked.kind == "tokens" else {}),
        **({"rmse": [math.sqrt(each) for each in loss]} if seen.asked.kind == "values" else {}),
        "entropy": [number(_mean(each["entropy"])) for each in seen.looks],
        **_calibrations(seen.reliabilities),
        **({"confused": confused(seen)} if seen.width else {}),
        **({"disagreement": _disagreements(seen)} if len(seen.names) > 1 else {}),
    }


def arrays_of(seen: Seen) -> dict[str, NDArray[Any]]:
    """Return what is known of each row, and of each class.

    `ids`, `label` (N,); NUMBERS and `counts` (K, N). Classes and tokens are int64, -1 where there is none. Of classes
    `support` (C,), `recall` and `precision` (K, C, 3): value, low, high; `confusion` (K, C, C) of label and prediction.
    Of language models `position_loss` (K, T, 3): mean, standard error, n; `token_loss`, `token_prediction` (K, N, T).
    """
    whole = seen.asked.kind != "values"
    found: dict[str, NDArray[Any]] = {
        "ids": np.array([each[:CHARACTERS] for each in seen.objective.batches.ids]),
        "label": _whole(seen.asked.labels) if whole else seen.asked.labels,
        **{name: np.array([each[name] for each in seen.looks]) for name in (*NUMBERS, "counts")},
    }
    found["prediction"] = _whole(found["prediction"]) if whole else found["prediction"]
    if seen.width:
        found |= _by_class(found["label"], found["prediction"], seen.width)
    if seen.asked.kind == "tokens":
        found["position_loss"] = np.array([_positions(each["position_sums"]) for each in seen.looks])
        found |= {name: np.array([each[name] for each in seen.looks]) for name in KEPT if name in seen.looks[0]}
    return found


def card_of(seen: Seen) -> dict[str, Any]:
    """Return the card: of all checkpoints, not of the one that the objective is at."""
    card = seen.objective.card() | {"seed": seen.seed}
    if len(seen.names) > 1:
        card["checkpoint"] = {"name": f"{len(seen.names)} checkpoints, {seen.names[0]} to {seen.names[-1]}"}
    return card


def confused(seen: Seen) -> list[dict[str, Any]]:
    """Return the pairs of classes that the last checkpoint confuses most often, with their share of the label's own."""
    labels, guesses = seen.asked.labels, seen.looks[-1]["prediction"]
    wrong = labels != guesses
    pairs, counts = np.unique(np.array([labels[wrong], guesses[wrong]], np.int64), axis=1, return_counts=True)
    support = np.bincount(labels.astype(np.int64), minlength=seen.width)
    order = np.argsort(-counts, kind="stable")[:CONFUSED]
    own = support[pairs[0, order]] if len(order) else np.zeros(0)
    low, high = wilson(counts[order], own)
    return [
        {
            "label": int(pairs[0, place]), "prediction": int(pairs[1, place]), "count": int(counts[place]),
            "share": float(counts[place] / own[rank]), "low": float(low[rank]), "high": float(high[rank]),
        }
        for rank, place in enumerate(order)
    ]  # fmt: skip


def caveats_of(seen: Seen) -> list[str]:
    """Return what a reader must bear in mind."""
    said, kind, count = [], seen.asked.kind, len(seen.looks[-1]["loss"])
    if kind == "values":
        said.append("The targets are values: nothing is right or wrong here, and the model states no probability.")
    if kind == "loss":
        said.append("This loss takes the model itself: what is predicted is not known, only the loss of each example.")
    if kind == "outputs":
        said.append(
            "Each example has several yes-or-no answers: accuracy and probabilities are averaged over them, an example "
            "is wrong when one of them is, and its gap is that of the least sure one."
        )
    if kind == "tokens":
        said.append(
            "Of a sequence the loss and all numbers are means over its tokens; label and prediction are those of its "
            "last one. Intervals are by sequence: its tokens are not independent."
        )
    if kind == "classes" and seen.objective.loss != "cross_entropy" and seen.width > 2:
        said.append("The outputs are independent of one another: the highest is taken for the prediction.")
    if any(each is not None for each in seen.reliabilities) and count < FEW:
        said.append(f"{count} examples tell little about calibration: look at the interval.")
    if seen.width:
        support = np.bincount(seen.asked.labels.astype(np.int64), minlength=seen.width)
        missing = int((support == 0).sum())
        if missing:
            said.append(f"{missing:,} of {seen.width:,} classes have no examples here: their recall is not known.")
    return said


def _evaluation(objective: Objective, look: Arrays, judged: bool) -> Evaluation:
    import torch

    from probes.losses import Tally, evaluation

    counts = torch.from_numpy(look["counts"])
    sums = lambda name: torch.from_numpy(np.nan_to_num(look[name]) * look["counts"])
    return evaluation(
        objective.loss, [Tally(counts, sums("loss"), sums("right") if judged else None)], objective.targets
    )


def _accuracies(seen: Seen) -> dict[str, Any]:
    """Return accuracy with its interval: Wilson's, of as many answers as the clusters are worth."""
    rows = []
    for each, look in zip(seen.evaluations, seen.looks, strict=True):
        share, stderr = float(each.accuracy or 0.0), float(each.accuracy_stderr or 0.0)
        worth = len(look["loss"]) if seen.asked.kind == "classes" else effective(share, stderr, each.examples)
        if seen.asked.kind == "classes":
            stderr = math.sqrt(share * (1 - share) / len(look["loss"]))
        low, high = wilson(share * worth, worth)
        wrong = int((np.nan_to_num(look["right"], nan=1.0) < 1).sum())
        rows.append((share, stderr, float(low), float(high), wrong))
    names = ("accuracy", "accuracy_stderr", "accuracy_low", "accuracy_high", "wrong")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _perplexities(loss: Sequence[float], stderr: Sequence[float]) -> dict[str, Any]:
    """Return exp(mean loss), its standard error to first order, and its interval from that of the loss."""
    return {
        "perplexity": [number(_exp(each)) for each in loss],
        "perplexity_stderr": [number(_exp(each) * error) for each, error in zip(loss, stderr, strict=True)],
        "perplexity_low": [number(_exp(each - Z * error)) for each, error in zip(loss, stderr, strict=True)],
        "perplexity_high": [number(_exp(each + Z * error)) for each, error in zip(loss, stderr, strict=True)],
    }


def _calibrations(found: Sequence[Reliability | None]) -> dict[str, Any]:
    keys = {
        "ece": "error", "ece_low": "low_error", "ece_high": "high_error", "ece_debiased": "debiased",
        "ece_debiased_low": "debiased_low", "ece_debiased_high": "debiased_high", "ece_if_calibrated": "if_calibrated",
        "overconfidence": "overconfidence",
    }  # fmt: skip
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return {}
    bins = ("counts", "confidence", "accuracy", "low", "high")
    rows = [{name: [number(one) for one in getattr(each, name)] for name in bins} for each in known]
    return {key: [getattr(each, name) for each in known] for key, name in keys.items()} | {"reliability": rows}


def _disagreements(seen: Seen) -> list[dict[str, Any]]:
    """Return, for each two checkpoints, how the second differs from the first."""
    rows = []
    for one, two in combinations(range(len(seen.names)), 2):
        first, second = seen.looks[one], seen.looks[two]
        mean, stderr = paired(first["loss"], second["loss"], first["counts"])
        row: dict[str, Any] = {"first": one, "second": two, "loss_difference": mean, "loss_difference_stderr": stderr}
        if seen.asked.kind == "classes":
            row |= vars(disagreement(first["prediction"], second["prediction"], seen.asked.labels))
        if seen.asked.kind == "tokens":
            mean, stderr = paired(first["right"], second["right"], first["counts"])
            row |= {"difference": mean, "difference_stderr": stderr}
        rows.append(row)
    return rows


def _by_class(labels: NDArray[Any], guesses: NDArray[Any], width: int) -> dict[str, NDArray[Any]]:
    support = np.bincount(labels, minlength=width)
    hits = np.array([np.bincount(labels[each == labels], minlength=width) for each in guesses])
    named = np.array([np.bincount(each, minlength=width) for each in guesses])
    found: dict[str, NDArray[Any]] = {"support": support}
    for name, count in (("recall", np.broadcast_to(support, hits.shape)), ("precision", named)):
        share = np.divide(hits, count, out=np.full(hits.shape, np.nan), where=count > 0)
        found[name] = np.stack([share, *wilson(hits, count)], axis=-1)
    if width <= MATRIX:
        pairs = [np.bincount(labels * width + each, minlength=width**2) for each in guesses]
        found["confusion"] = np.array(pairs).reshape(-1, width, width)
    return found


def _positions(sums: NDArray[Any]) -> NDArray[np.float64]:
    """Return mean loss, its standard error and n by position, from counts, sums and sums of squares; (T, 3)."""
    count, total, squares, _ = sums
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    spread = np.maximum(squares - total * np.nan_to_num(mean), 0)
    error = np.sqrt(np.divide(spread, count * (count - 1), out=np.full_like(total, np.nan), where=count > 1))
    return np.stack([mean, error, count], axis=1)


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.where(np.isfinite(values), values, -1).astype(np.int64)


def _mean(values: NDArray[Any]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
