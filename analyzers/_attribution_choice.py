"""Which examples are looked at: rows as they are named, or by what the model predicts of them, in one pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._attribution_asked import MOST_EXAMPLES
from probes.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from probes.objective import Objective

Array = np.ndarray[Any, Any]
Said = Callable[[float, str], None]
ROWS = re.compile(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*,?\s*")
COUNTED = re.compile(r"\s*(?:(wrong|uncertain|random)|class\s+(.+?)|pair\s+(.+?))\s*:\s*(\d+)\s*")
AS_IN = "give rows, as in 0, 3, 7-9; or wrong:8, uncertain:8, random:20, class 3:20, or pair 4 9:8"


@dataclass(frozen=True)
class Predicted:
    """What the model says of all examples, each (N,): the class, by how much its logit leads, and the label (-1: none).

    Of language models the token after the last one that counts.
    """

    classes: Array
    margins: Array
    labels: Array


def rows_asked(objective: Objective, text: str, seed: int, tick: Said) -> tuple[int, ...]:
    """Return the rows of the examples that are asked for, at most 64, in the order of the data where they are chosen.

    Those named keep their order; uncertain ones come with the smallest margin first. Raises DataError where the text
    says nothing known, a row is not there, there are too many, or none is found.
    """
    count = len(objective.inputs)
    if ROWS.fullmatch(text):
        return _checked(_listed(text, count), text)
    found = COUNTED.fullmatch(text)
    if found is None:
        raise DataError(f"The examples are {text[:80]!r}; {AS_IN}.")
    way, one_class, pair, number = found.groups()
    many = int(number)
    _checked(range(many), text)
    if way == "random":
        drawn = np.random.default_rng([seed, 2]).choice(count, min(many, count), replace=False)
        return tuple(np.sort(drawn).tolist())
    said = predicted(objective, tick)
    chosen, words = _chosen(objective, said, way, one_class, pair)
    if not len(chosen):
        raise DataError(f"No example is {words} among {count:,}; choose others, or take more examples of the data.")
    return tuple(chosen[:many].tolist())


def predicted(objective: Objective, tick: Said) -> Predicted:
    """Run the model once over the data, without a graph; raise DataError where its outputs are no classes."""
    import torch

    from probes.strict import strict

    if objective.own is not None or objective.loss == "mse":
        raise DataError(f"The loss {objective.loss} has no classes, so none is wrong or uncertain; name rows instead.")

    def whole() -> list[tuple[Tensor, Tensor]]:
        found = []
        for part in objective.parts():
            with torch.no_grad(), strict(objective.module):
                found.append(_told(_logits(objective, part)))
            tick(part.stop / len(objective.inputs), "predictions of all examples")
        return found

    pairs = objective.in_memory(whole)
    classes, margins = (torch.cat([pair[which] for pair in pairs]).cpu().numpy() for which in (0, 1))
    return Predicted(classes, margins, labels_of(objective))


def last_counted(targets: Tensor) -> Tensor:
    """Return the last position that counts in next tokens (N, T); the last of all where none does."""
    import torch

    places = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    counts = targets != -100
    last = torch.where(counts, places, torch.full_like(places, -1)).amax(1)
    return torch.where(counts.any(1), last, torch.full_like(last, targets.shape[1] - 1))


def labels_of(objective: Objective) -> Array:
    """Return the class of each example, or its last next token, (N,); -1 where it has none."""
    targets = objective.targets.cpu()
    if objective.loss == "causal_lm":
        labels = targets.gather(1, last_counted(targets)[:, None])[:, 0]
        return np.where(labels.numpy() == -100, -1, labels.numpy())
    if objective.loss == "bce_with_logits":
        one = targets.reshape(len(targets), -1)
        return (one[:, 0] > 0.5).long().numpy() if one.shape[1] == 1 else np.full(len(one), -1)
    if targets.is_floating_point() or targets.ndim != 1:
        return np.full(len(targets), -1)
    return np.asarray(targets.numpy())


def class_of(objective: Objective, text: str) -> int:
    """Return the number of a class by its number or its name; raise DataError naming the classes."""
    names, asked = objective.batches.classes, text.strip()
    if asked in names:
        return names.index(asked)
    if asked.isdecimal():
        return int(asked)
    known = f"the classes are {', '.join(names[:20])}" if names else "give the number of a class"
    raise DataError(f"There is no class {asked[:80]!r}; {known}.")


def _logits(objective: Objective, part: slice) -> Tensor:
    import torch

    outputs = objective.outputs(objective.theta, part)
    if objective.loss != "causal_lm":
        return outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]
    last = last_counted(objective.targets[part]).to(outputs.device)
    return outputs[torch.arange(len(outputs), device=outputs.device), last]


def _told(logits: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).long(), logits[:, 0].double().abs()
    best = logits.double().topk(2, 1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]


def _chosen(
    objective: Objective, said: Predicted, way: str | None, one_class: str | None, pair: str | None
) -> tuple[Array, str]:
    """Return the rows that fit, and what they are, in words."""
    if way == "uncertain":
        return np.argsort(said.margins, kind="stable"), "there"
    if way == "wrong":
        return np.flatnonzero((said.labels >= 0) & (said.classes != said.labels)), "predicted wrong"
    if one_class is not None:
        label = class_of(objective, one_class)
        return np.flatnonzero(said.labels == label), f"of class {one_class.strip()[:80]}"
    parts = (pair or "").split()
    if len(parts) != 2:
        raise DataError(f"The pair is {(pair or '')[:80]!r}; give its label and what is predicted, as in pair 4 9:8.")
    label, wrong = (class_of(objective, each) for each in parts)
    words = f"of class {parts[0][:80]} and predicted {parts[1][:80]}"
    return np.flatnonzero((said.labels == label) & (said.classes == wrong)), words


def _listed(text: str, count: int) -> list[int]:
    rows: list[int] = []
    for part in (each.strip() for each in text.split(",")):
        if not part:
            continue
        first, _, last = (each.strip() for each in part.partition("-"))
        low, high = int(first), int(last or first)
        if high < low:
            raise DataError(f"The examples {part} run backwards; write {high}-{low}.")
        if high >= count:
            raise DataError(f"There is no example {high}; the data has {count:,} (0 to {count - 1}).")
        _checked(range(low, high + 1), text)
        rows += range(low, high + 1)
    return list(dict.fromkeys(rows))


def _checked(rows: Sequence[int], text: str) -> tuple[int, ...]:
    if not 1 <= len(rows) <= MOST_EXAMPLES:
        raise DataError(f"{text.strip()[:80]} are {len(rows):,} examples; give 1 to {MOST_EXAMPLES}.")
    return tuple(rows)
