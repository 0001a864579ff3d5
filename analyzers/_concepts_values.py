"""What a result about concepts holds: numbers by layer with the null beside them, examples, and caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Arrays

if TYPE_CHECKING:
    import pandas as pd

    from analyzers._concepts_measure import Found
    from probes.attribution.concepts import Concept
    from probes.objective import Objective

Array = np.ndarray[Any, Any]
FEW = 30  # examples of the concept
MIDDLE = (0.025, 0.975)


def values_of(found: Found, listed: int) -> dict[str, Any]:
    """Return the values of the result."""
    rows, shown = found.rows, found.layers[found.shown]
    by_layer = [_of_layer(each, found) for each in found.layers]
    name = _class(found.objective, found.class_index)
    return {
        "concept": found.asked[0],
        "class_index": found.class_index,
        "class": name,
        "concept_examples": len(rows.shown),
        "random_examples": len(rows.random),
        "class_examples": len(rows.own),
        "vectors": found.settings.vectors,
        "controls": found.settings.controls,
        "alpha": found.settings.alpha,
        **{key: [each[key] for each in by_layer] for key in by_layer[0]},
        "significant_layers": sum(each.significant for each in found.layers),
        "shown_layer": shown.layer,
        "shown": found.shown,
        "examples_title": f"The concept, and examples of class {name} most and least along it at {shown.layer}",
        "examples": _examples(found, listed),
    }


def arrays_of(found: Found, listed: int) -> dict[str, Array]:
    """Return what each concept vector and each control gave, (L, R) and (L, controls), and pictures of the examples."""
    from probes.pictures import pictures_of

    names = ("scores", "random_scores", "derivatives", "control_scores", "control_derivatives", "accuracies",
             "random_accuracies")  # fmt: skip
    arrays = {f"all_{name}": np.stack([getattr(each, name) for each in found.layers]) for name in names}
    arrays |= {"along": found.along, "class_rows": np.array(found.rows.own)}
    pictures = pictures_of(found.objective.batches, [row for _, row, _ in _listed(found, listed)])
    return arrays | ({} if pictures is None else {"pictures": pictures})


def caveats_of(found: Found) -> list[str]:
    """Return what a reader must bear in mind."""
    said = []
    if len(found.layers) > 1:
        said.append(
            f"The concept is tested at {len(found.layers)} layers and the p-values are not corrected for that: one "
            "significant layer among many is weak evidence."
        )
    if found.rows.shared:
        said.append(
            f"{found.rows.shared} of the concept's examples are of class {_class(found.objective, found.class_index)} "
            "themselves: what is found may be what makes the class, and not the concept."
        )
    if len(found.rows.shown) < FEW:
        said.append(f"The concept has {len(found.rows.shown)} examples; what they share by chance counts as concept.")
    weak = [each.layer for each in found.layers if each.accuracy <= np.quantile(each.random_accuracies, MIDDLE[1])]
    if weak:
        said.append(
            f"At {', '.join(weak)} the concept vectors tell the concept from random examples no better than they tell "
            "random examples from one another: the layer does not know it."
        )
    for word, kept, there in zip(("concept", "class"), (found.rows.shown, found.rows.own), found.rows.each[::2],
                                 strict=True):  # fmt: skip
        if len(kept) < there:
            said.append(f"Of the {there:,} examples of the {word} {len(kept)} were drawn at random.")
    return said


def tables_of(values: Mapping[str, Any], arrays: Arrays) -> dict[str, pd.DataFrame]:
    """Return the tables behind the figures."""
    import pandas as pd

    layers = values["layers"]
    names = ("scores", "score_means", "score_low", "score_high", "null_means", "null_low", "null_high", "p",
             "p_controls", "significant", "sentences")  # fmt: skip
    every = lambda name, kind: [
        {"layer": layer, "of": kind, "number": number, "value": value}
        for layer, row in zip(layers, arrays[name], strict=True)
        for number, value in enumerate(row.tolist())
    ]
    slopes = [*every("all_derivatives", "concept"), *every("all_control_derivatives", "random concept")]
    right = [*every("all_accuracies", "concept"), *every("all_random_accuracies", "random")]
    return {
        "concept_scores": pd.DataFrame({"layer": layers, **{name: values[name] for name in names}}),
        "concept_derivatives": pd.DataFrame(slopes),
        "concept_accuracy": pd.DataFrame(right),
        "examples": pd.DataFrame(values["examples"]),
    }


def _of_layer(each: Concept, found: Found) -> dict[str, Any]:
    """Return the numbers of a layer; intervals hold the middle 95 % of the concept vectors, or of the controls."""
    name = _class(found.objective, found.class_index)
    return {
        "layers": each.layer,
        "scores": each.score,
        "score_means": float(each.scores.mean()),
        "score_stderr": each.stderr,
        **_spread("score", each.scores),
        "null_means": float(each.control_scores.mean()),
        **_spread("null", each.control_scores),
        "p": each.p,
        "p_controls": each.p_controls,
        "significant": each.significant,
        "accuracies": each.accuracy,
        **_spread("accuracy", each.accuracies),
        "random_accuracies": each.random_accuracy,
        "derivatives": float(each.derivatives.mean()),
        **_spread("derivative", each.derivatives),
        **_spread("null_derivative", each.control_derivatives),
        "sentences": each.sentence.replace(f"class {each.class_index} ", f"class {name} ", 1),
    }


def _spread(name: str, sample: Array) -> dict[str, float]:
    low, high = np.quantile(sample, MIDDLE).tolist()
    return {f"{name}_low": low, f"{name}_high": high}


def _listed(found: Found, most: int) -> list[tuple[str, int, float | None]]:
    """Return group, row and place along the concept of the examples that are listed."""
    rows, apart = found.rows, set(found.rows.shown)
    order = np.argsort(-found.along, kind="stable").tolist()
    order = [place for place in order if rows.own[place] not in apart] or order
    half = min(most, len(order) // 2)
    ends = (("most along", order[:half]), ("least along", order[len(order) - half :][::-1]))
    concept: list[tuple[str, int, float | None]] = [("concept", row, None) for row in rows.shown[:most]]
    return concept + [(group, rows.own[at], float(found.along[at])) for group, places in ends for at in places]


def _examples(found: Found, most: int) -> list[dict[str, Any]]:
    from probes.opposing import answers
    from probes.pictures import texts_of

    objective, listed = found.objective, _listed(found, most)
    batches, rows = objective.batches, [row for _, row, _ in listed]
    texts: Sequence[str | None] = texts_of(batches, rows) or [None] * len(rows)
    checkpoint = objective.about.get("checkpoint", {}).get("name")
    return [
        {
            "group": group,
            "id": batches.ids[row],
            "row": row,
            "along": far,
            "label": _class(objective, batches.targets[row].item()) if batches.targets[row].numel() == 1 else None,
            "prediction": _class(objective, prediction),
            "margin": margin,
            "text": text,
            "checkpoint": checkpoint,
        }
        for (group, row, far), text, (prediction, margin) in zip(listed, texts, answers(objective, rows), strict=True)
    ]


def _class(objective: Objective, value: Any) -> Any:
    classes = objective.batches.classes
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else value
