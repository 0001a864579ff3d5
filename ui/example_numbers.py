"""The numbers that stand above the figures of a result about examples: their influence, or the concept they show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ui.cells import Cell
from ui.text import number, percent

Values = Mapping[str, Any]


def influence(values: Values) -> list[Cell]:
    """Return the numbers of the influence of training examples."""
    example = values["example"]
    said = "" if example["label"] is None else f"label {example['label']}, predicted {example['prediction']}"
    shared = (
        "Share of the listed examples that are in the lists of random examples too: these matter to any prediction."
    )
    chance = f"{percent(values['null_shared_by_chance'])} by chance"
    cells = [
        Cell("Loss of the example", number(example["loss"]), f"{example['id']}, of {example['of']}.", said),
        Cell("Helped", number(values["helped"]), "Training examples with an influence above zero.",
             f"of {number(values['training_examples'])} training examples"),
        Cell("Hurt", number(values["hurt"]), "Training examples with an influence below zero."),
        Cell("Shared with random examples", percent(values["null_shared"]), shared, chance),
        Cell("Sum of influences", number(values["influence_sum"]), "Over all training examples."),
    ]  # fmt: skip
    if values.get("self_influence") is not None:
        cells.append(Cell("Influence on itself", number(values["self_influence"]), "Not listed."))
    if values.get("fisher_gradients"):
        told = f"Of {number(values['fisher_gradients'])} gradients: along so many the data outweigh the damping."
        note = f"damping {number(values['fisher_damping'])}"
        cells.append(Cell("Directions of the Fisher", number(values["fisher_directions"], 3), told, note))
    return cells


def concepts(values: Values) -> list[Cell]:
    """Return the numbers of a concept, at the layer that tells it best."""
    at, layers = values["shown"], values["layers"]
    score = values["scores"][at]
    null = f"random: {values['null_low'][at]:.0%} to {values['null_high'][at]:.0%}"
    right = _share(values["accuracy_low"][at], values["accuracy_high"][at])
    told = "Of concept vectors, on examples held out; 50 % is chance. In brackets 95 % of the vectors."
    p = f"{number(values['p'][at], 2)} by the t-test; random sets taken for a concept give the p-value above."
    counts = f"{values['random_examples']} random, {values['class_examples']} of the class"
    return [
        Cell("TCAV score", "insignificant" if score is None else percent(score), values["sentences"][at], null),
        Cell("Layer", f"{at + 1} of {len(layers)}", "Where the concept is told best from random examples.",
             f"called {layers[at]}"),
        Cell("Accuracy of the vectors", percent(values["accuracies"][at]), told, right),
        Cell("p-value", number(values["p_controls"][at], 2), p),
        Cell("Significant layers", f"{values['significant_layers']} of {len(layers)}", f"At {values['alpha']:g}."),
        Cell("Examples of the concept", number(values["concept_examples"]), note=counts),
    ]  # fmt: skip


def _share(low: Any, high: Any) -> str:
    return f"[{percent(low)}, {percent(high)}]"
