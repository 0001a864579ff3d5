"""What a result about influence holds: the example, the lists of those that helped and hurt, the null, and caveats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._influence_measure import TRACIN, Found

if TYPE_CHECKING:
    from probes.influence.ranking import Beside, Ranking
    from probes.objective import Objective

Array = np.ndarray[Any, Any]
COMMON = 0.5  # share of the lists that random examples have too, above which it says little about this one


def values_of(found: Found, top: int) -> dict[str, Any]:
    """Return the values of the result."""
    ranked, null = _ranked(found, top), _beside(found, top)
    influence = found.influence
    listed = np.ones(len(influence), bool)
    listed[list(found.without)] = False
    split = [np.where(sign * found.terms[:, listed] > 0, found.terms[:, listed], 0.0).sum(1) for sign in (1, -1)]
    example = described(found.target, [found.row], found.losses)[0]
    where = "the data themselves" if found.own else "the test data"
    return {
        "method": found.asked.method,
        "example": example | {"row": found.row, "of": where},
        "checkpoints": list(found.names),
        "times": list(found.series.times),
        "unit": found.series.unit,
        "labels": list(found.series.labels),
        "learning_rates": list(found.rates) if found.asked.method == TRACIN else None,
        "relative": found.asked.relative,
        "layers": found.asked.layers or "all",
        "training_examples": int(listed.sum()),
        "helped": int((influence[listed] > 0).sum()),
        "hurt": int((influence[listed] < 0).sum()),
        "influence_sum": float(influence[listed].sum()),
        "self_influence": float(influence[found.row]) if found.own else None,
        "contributions_helped": split[0].tolist(),
        "contributions_hurt": split[1].tolist(),
        "null_examples": len(found.random),
        "null_shared": null.shared,
        "null_shared_helped": null.shared_helped,
        "null_shared_hurt": null.shared_hurt,
        "null_shared_by_chance": null.chance,
        "null_rank_correlation": null.correlation,
        **{f"fisher_{name}": int(each) if name == "gradients" else each for name, each in found.fisher.items()},
        "examples_title": f"Training examples that helped and hurt the prediction of {_name(example)}",
        "examples": _examples(found, ranked, null),
    }


def arrays_of(found: Found, top: int) -> dict[str, Array]:
    """Return the influence of every example, beside that on the random ones, and the pictures of those listed."""
    from probes.pictures import pictures_of

    ranked = _ranked(found, top)
    arrays = {"influence": found.influence, "null": found.others, "terms": found.terms, "lengths": found.lengths}
    arrays["typical"] = _beside(found, top).typical
    pictures = pictures_of(found.last.batches, [*ranked.helped, *ranked.hurt])
    shown = pictures_of(found.target.batches, [found.row])
    arrays |= {} if pictures is None else {"pictures": pictures}
    return arrays | ({} if shown is None else {"example_picture": shown})


def card_of(found: Found) -> dict[str, Any]:
    """Return the card; of all checkpoints that were looked at."""
    card = found.last.card() | {"seed": found.asked.seed}
    if len(found.rates) > 1:
        card["checkpoint"] = {"name": f"{len(found.names)} checkpoints, {found.names[0]} to {found.names[-1]}"}
    if not found.own:
        card["test_examples"], card["test_sha256"] = len(found.target.batches), found.target.batches.sha256
    return card


def described(objective: Objective, rows: Sequence[int], losses: Array) -> list[dict[str, Any]]:
    """Say of examples what they are called, what they are, and what the model says of them; losses: (N,) of all."""
    from probes.opposing import answers
    from probes.pictures import texts_of

    batches = objective.batches
    texts: Sequence[str | None] = texts_of(batches, rows) or [None] * len(rows)
    said = answers(objective, rows) if rows else []
    return [
        {
            "id": batches.ids[row],
            "label": _label(objective, row),
            "prediction": _class(objective, prediction),
            "loss": float(losses[row]) if math.isfinite(losses[row]) else None,
            "margin": margin,
            "text": text,
        }
        for row, text, (prediction, margin) in zip(rows, texts, said, strict=True)
    ]


def caveats_of(found: Found, values: dict[str, Any]) -> list[str]:
    """Return what a reader must bear in mind."""
    said = [
        "The data are taken for the training examples of this run. Of other data the numbers say how much they would "
        "have helped or hurt, had the run seen them."
    ]
    said += _of_tracin(found) if found.asked.method == TRACIN else _of_fisher(found)
    if found.own:
        said.append(
            "There are no test data: the example is one of the training examples. Its influence on itself is not "
            "listed (self_influence)."
        )
    shared = values["null_shared"] or 0.0
    if shared > COMMON:
        said.append(
            f"{shared:.0%} of the listed examples are in the lists of random examples too: such training examples have "
            "large gradients and matter to any prediction, not to this one. Set relative to see the others."
        )
    if found.singly:
        said.append("The gradients were taken one example at a time: the model has operations without forward mode.")
    return said


def _of_tracin(found: Found) -> list[str]:
    said = [
        "TracIn counts every step at which an example helped, also what the run undid later: it is near the truth "
        "where the checkpoints lie close together and the run is short, and loosely related to it else. Momentum, Adam "
        "and weight decay are left out."
    ]
    if not found.asked.learning_rates.strip() or set(found.rates) == {1.0}:
        said.append("All learning rates are 1: only the order of the influences means something, not their size.")
    if len(found.rates) == 1:
        said.append("There is one checkpoint only: nothing is known of the way there. Add others of the run.")
    return said


def _of_fisher(found: Found) -> list[str]:
    said = [
        "The inverse Fisher estimates what leaving an example out would do near a minimum that training has reached. "
        "It uses the last checkpoint only, and the order is firmer than the size: the damping scales it."
    ]
    if found.fisher["gradients"] < len(found.influence):
        said.append(
            f"The Fisher matrix is made of {found.fisher['gradients']:.0f} of {len(found.influence):,} examples: along "
            "the gradients of the others it knows the damping only."
        )
    return said


def _examples(found: Found, ranked: Ranking, null: Beside) -> list[dict[str, Any]]:
    from probes.influence.ranking import losses_of

    rows = [*ranked.helped, *ranked.hurt]
    losses = found.losses if found.own else losses_of(found.last).values
    return [
        {
            "group": "helped" if place < len(ranked.helped) else "hurt",
            **each,
            "row": row,
            "influence": float(found.influence[row]),
            "typical_influence": float(null.typical[row]) if math.isfinite(null.typical[row]) else None,
            "checkpoint": found.names[-1],
        }
        for place, (row, each) in enumerate(zip(rows, described(found.last, rows, losses), strict=True))
    ]


def _ranked(found: Found, top: int) -> Ranking:
    from probes.influence.ranking import ranking

    return ranking(found.influence, top, found.without)


def _beside(found: Found, top: int) -> Beside:
    from probes.influence.ranking import beside

    return beside(found.influence, found.others, top, found.without)


def _label(objective: Objective, row: int) -> Any:
    target = objective.batches.targets[row]
    return _class(objective, target.item()) if target.numel() == 1 else None


def _class(objective: Objective, value: Any) -> Any:
    classes = objective.batches.classes
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else value


def _name(example: dict[str, Any]) -> str:
    words = f" (label {example['label']}, predicted {example['prediction']})"
    return f"{example['id']}{words if example['label'] is not None else ''}"
