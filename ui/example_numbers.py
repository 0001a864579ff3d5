"""The numbers that stand above the figures of a result about examples: predictions, maps, influence, concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ui.cells import Cell
from ui.text import number, percent, with_error

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


def predictions(values: Values) -> list[Cell]:
    """Return the numbers of the last checkpoint's predictions, with their 95 % intervals."""
    last = lambda name: values[name][-1] if values.get(name) else None
    cells = [Cell("Loss, last", with_error(last("loss"), last("loss_stderr")), "± is the standard error.")]
    if values.get("accuracy"):
        between = _share(last("accuracy_low"), last("accuracy_high"))
        cells.insert(0, Cell("Accuracy, last", percent(last("accuracy")), "95 % by Wilson.", between))
        cells.append(Cell("Wrong, last", number(last("wrong")), note=f"of {number(values['examples_seen'])}"))
    if values.get("ece_debiased"):
        told = "Mean gap between how sure the model is and how often it is right, less what chance adds."
        between = _share(last("ece_debiased_low"), last("ece_debiased_high"))
        cells.append(Cell("Calibration error, last", percent(last("ece_debiased")), told, between))
    if values.get("perplexity"):
        between = f"[{number(last('perplexity_low'))}, {number(last('perplexity_high'))}]"
        cells.append(Cell("Perplexity, last", number(last("perplexity")), "exp(loss).", between))
    return cells


def captions(values: Values) -> list[Cell]:
    """Return the numbers of the words of captions that do not fit their images."""
    told = f"Pairs with a word whose score is below the threshold {values['threshold']:g}."
    cells = [
        Cell("Misaligned pairs", number(values["misaligned_pairs"]), told, f"of {number(values['pairs'])}"),
        Cell("Mean cosine", number(values["mean_cosine"], 3), "Of image and caption, without the temperature."),
    ]
    if values.get("lower_on_others_f_clip_score"):
        told = "How often a caption scores lower on another image than on its own, with 95 % of it; 50 % is chance."
        cells.append(_rate("Own image preferred", told, values["lower_on_others_f_clip_score"]))
    if values.get("swaps"):
        swaps = values["swaps"]
        told = "How often the word that was swapped for another has the lowest score of its caption, with 95 % of it."
        rate = {"mean": swaps["hit_rate"], "low": swaps["low"], "high": swaps["high"]}
        cells.append(_rate("Swapped words found", f"{told} By chance: {percent(swaps['chance'])}.", rate))
    return cells


def attribution(values: Values) -> list[Cell]:
    """Return how many maps can be believed, and which method does best."""
    maps, cases = values["maps"], values["cases"]
    badges = [each["badge"] for each in maps]
    worse = {name: badges.count(name) for name in ("doubtful", "invalid", "refused") if badges.count(name)}
    note = ", ".join(f"{count} {name}" for name, count in worse.items())
    cells = [
        Cell("Maps", f"{badges.count('ok')} of {len(maps)} ok", "Checked for completeness, no-ops and more.", note)
    ]
    if len(cases) == 1:
        label = "" if cases[0]["label_name"] is None else f"label {cases[0]['label_name']}"
        known = "" if cases[0]["probability"] is None else percent(cases[0]["probability"])
        said = ", ".join(each for each in (known, label) if each)
        cells.insert(0, Cell("Prediction", str(cases[0]["prediction_name"]), "With its probability.", said))
    cells += _best(values["scoreboard"], "insertion_auc", "Best insertion", "highest", max)
    cells += _best(values["scoreboard"], "deletion_auc", "Best deletion", "lowest", min)
    checked = [each["sanity"] for each in maps if each.get("sanity")]
    if checked:
        told = "Maps that stay alike when all weights are random: they show the example, not the model."
        cells.append(Cell("Survive random weights", f"{checked.count('flagged')} of {len(checked)}", told))
    return cells


def _best(board: Any, name: str, label: str, which: str, choose: Any) -> list[Cell]:
    """Return the method that is best by an area, with its interval."""
    known = [each for each in board if each[name]["mean"] is not None]
    if len(known) < 2:
        return []
    best = choose(known, key=lambda each: each[name]["mean"])
    found = best[name]
    between = "" if found["low"] is None else f" [{number(found['low'], 3)}, {number(found['high'], 3)}]"
    told = f"The method with the {which} area, its mean over the examples and 95 % of it."
    return [Cell(label, best["title"], told, f"{number(found['mean'], 3)}{between}")]


def _rate(label: str, told: str, rate: Any) -> Cell:
    return Cell(label, percent(rate["mean"]), told, _share(rate["low"], rate["high"]))


def _share(low: Any, high: Any) -> str:
    return f"[{percent(low)}, {percent(high)}]"
