"""TCAV at each layer, kept for a run that is killed, and which examples of the class lie along the concept."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Arrays, Tick
from analyzers._concepts_asked import Rows, class_named, drawn, labels_of, rows_of
from probes.errors import DataError

if TYPE_CHECKING:
    from probes.attribution.concepts import Concept
    from probes.objective import Objective

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Settings:
    """The options that are numbers."""

    vectors: int
    controls: int
    alpha: float
    pooled: bool
    penalty: float
    most: int
    seed: int


@dataclass(frozen=True)
class Found:
    """What was found. layers: of each, in the order asked. shown: place of the one whose examples are listed.

    along: how far the examples of the class lie along the concept there.
    """

    objective: Objective
    settings: Settings
    asked: tuple[str, str]
    class_index: int
    rows: Rows
    layers: tuple[Concept, ...]
    shown: int
    along: Array
    chosen: bool


def measure(objective: Objective, asked: tuple[str, str, str], settings: Settings, tick: Tick) -> Found:
    """Test a concept (in words) on a class at some layers."""
    from probes.attribution.concept_layers import some_layers
    from probes.attribution.concepts import along

    concept, target, given = asked
    if settings.alpha * (settings.controls + 1) < 1:
        raise DataError(
            f"With {settings.controls} random concepts no p-value is below {1 / (settings.controls + 1):.2g}; for "
            f"{settings.alpha:g} take {math.ceil(1 / settings.alpha) - 1} or more."
        )
    labels, classes = labels_of(objective), objective.batches.classes
    shown = rows_of(concept, labels.tolist(), classes)
    tick(0.0, "choosing examples")
    class_index = _class(objective, target, shown)
    own = np.flatnonzero(labels == class_index).tolist()
    rows = drawn(objective, shown, own, settings.most, settings.seed)
    named = tuple(dict.fromkeys(each.strip() for each in given.split(",") if each.strip()))
    names = named or some_layers(objective, rows.shown[0])
    found = tuple(_at_layer(objective, name, rows, class_index, settings, (place, len(names)), tick)
                  for place, name in enumerate(names))  # fmt: skip
    best = max(range(len(found)), key=lambda place: (found[place].accuracy, place))
    far = along(objective, names[best], rows.own, rows.shown, rows.random, pooled=settings.pooled,
                penalty=settings.penalty)  # fmt: skip
    return Found(objective, settings, (concept, target), class_index, rows, found, best, far, not named)


def _class(objective: Objective, target: str, shown: list[int]) -> int:
    """Return the class that is asked about; of none named the one that is predicted most often for the concept."""
    from probes.opposing import answers

    outputs = _outputs(objective)
    if target.strip():
        return class_named(target, outputs, objective.batches.classes)
    predicted = [int(each) for each, _ in answers(objective, shown)]
    return int(np.bincount(predicted).argmax())


def _outputs(objective: Objective) -> int:
    import torch

    from probes.strict import strict

    with torch.no_grad(), strict(objective.module):
        return int(objective.outputs(objective.theta, slice(0, 1)).shape[-1])


def _at_layer(
    objective: Objective, name: str, rows: Rows, class_index: int, settings: Settings, place: tuple[int, int],
    tick: Tick,
) -> Concept:  # fmt: skip
    """Test the concept at a layer, or take what an earlier attempt kept."""
    from probes.attribution.concepts import Concept, tcav

    key = f"layer-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    kept = tick.load(key)
    if kept is not None:
        return Concept(layer=name, **_unpacked(kept))
    said = lambda share, doing: tick((place[0] + share) / place[1], f"{doing}, layer {place[0] + 1} of {place[1]}")
    found = tcav(
        objective, name, rows.shown, rows.random, class_index, class_rows=rows.own, runs=settings.vectors,
        pooled=settings.pooled, penalty=settings.penalty, alpha=settings.alpha, controls=settings.controls,
        seed=settings.seed, tick=said,
    )  # fmt: skip
    tick.save(key, _packed(found))
    return found


def _packed(found: Concept) -> dict[str, Array]:
    values = {each.name: getattr(found, each.name) for each in fields(found) if each.name != "layer"}
    return {name: np.array(np.nan if value is None else value) for name, value in values.items()}


def _unpacked(kept: Arrays) -> dict[str, Any]:
    values = {name: each if each.ndim else each.item() for name, each in kept.items()}
    return values | {"score": None if np.isnan(values["score"]) else values["score"]}
