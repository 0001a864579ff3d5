"""The cases of a run: one example at one checkpoint, as it is after its edit, and what there is to say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analyzers._attribution_answers import answer_at, answer_words
from analyzers._attribution_asked import Edit
from analyzers._attribution_choice import class_of, labels_of
from analyzers._attribution_judged import is_answer
from probes.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from probes.attribution import Case, Target
    from probes.data import Batches
    from probes.objective import Objective

LIKELY = 5  # classes or tokens that are named beside the prediction


def case_at(
    objective: Objective, row: int, aim: Target | Literal["answer"] | None, position: int, edit: Edit, baseline: str
) -> Case:
    """Return an example as it is after its edit; aim: None is what the model then predicts."""
    from probes.attribution import Target, case_of

    at = edited(objective, row, edit, baseline) if edit else objective
    if aim == "answer":
        return answer_at(at, row, position)
    case = case_of(at, row, aim or (Target(0, position) if at.loss == "causal_lm" else Target(0)))
    if aim is not None:
        return case
    index = int(case.in_chunks(case.features, "logits")[0].argmax())
    return replace(case, target=Target(index, case.target.position), _kept={})


def aim_of(objective: Objective, row: int, text: str, position: int) -> Target | Literal["answer"] | None:
    """Return the target that is asked for, None for "predicted"; raise DataError where there is none such."""
    from probes.attribution import Target

    following, asked = objective.loss == "causal_lm", text.strip()
    if position != -1 and not following:
        raise DataError(f"The position is {position}, but only language models have one; give -1.")
    if asked == "predicted":
        return None
    if asked == "answer":
        return "answer"
    if asked != "label":
        return Target(_token(asked) if following else class_of(objective, asked), position)
    label = int(objective.targets[row, position]) if following and position != -1 else int(labels_of(objective)[row])
    if label < 0:
        raise DataError(f"Example {row} has no label that is a class or a token; choose the target predicted.")
    single = objective.loss == "bce_with_logits"
    return Target(0 if single else label, position)


def edited(objective: Objective, row: int, edit: Edit, baseline: str) -> Objective:
    """Return the objective with one example changed; raise AttributionError where the edit does not fit it."""
    from probes.attribution import editing

    if edit.mask:
        return editing.with_mask(objective, row, edit.mask, baseline)
    if edit.tokens:
        return editing.with_tokens(objective, row, edit.tokens)
    if edit.words:
        return editing.with_words(objective, row, edit.words)
    return editing.with_values(objective, row, edit.values)


def described(case: Case, checkpoint: str, place: int) -> dict[str, Any]:
    """Say of a case what it is called, what the model says of it, and what its features are."""
    objective, batches = case.objective, case.objective.batches
    label = _label(case)
    logits = case.in_chunks(case.features, "logits")[0].double().cpu().numpy()
    prediction, probability = _prediction(objective.loss, logits)
    text = case.kind in ("text", "language_model")
    return {
        "checkpoint": checkpoint,
        "checkpoint_index": place,
        "row": case.row,
        "id": batches.ids[case.row],
        "label": label,
        "label_name": _name(case, label),
        "prediction": prediction,
        "prediction_name": _name(case, prediction),
        "probability": probability,
        "top": _likely(case, logits),
        "score": case.score,
        "target": case.target.index,
        "target_name": _name(case, case.target.index),
        "position": case.target.position,
        "tokens": list(case.names) if text else [],
        "special": list(case.special) if text else [],
        "words": _words(case) if text else [],
        "columns": list(case.names) if case.kind == "table" else [],
        "raw": [float(each) for each in case.raw[0]] if case.kind == "table" else [],
        "text": _text(case) if text else None,
        **(answer_words(case) if is_answer(case) else {}),
    }


def pictures(batches: Batches, raws: Sequence[Tensor]) -> Sequence[np.ndarray[Any, Any]]:
    """Return images (1, C, H, W) as pictures (H, W, 3), on one scale of brightness; of other inputs nothing."""
    import torch

    from probes.pictures import pictures_of

    if not raws or raws[0].ndim != 4:
        return ()
    inputs = torch.cat(list(raws)).float().cpu()
    found = pictures_of(replace(batches, inputs=inputs), range(len(inputs)), max(inputs.shape[2:]))
    return () if found is None else list(found)


def identity_of(objective: Objective) -> dict[str, Any] | None:
    """Return what a map depends on beside weights and example: model, data (of baselines), precision, versions.

    None of models whose code is not known by its content, as those of the operator: their maps are of one run only.
    """
    spec = objective.about.get("spec")
    if spec is None or spec.source in ("operator", "trusted"):
        return None
    config: Any = getattr(objective.module, "config", None)
    told = config.to_json_string() if config is not None and hasattr(config, "to_json_string") else ""
    card = {name: each for name, each in objective.card().items() if name != "checkpoint"}
    return {**card, "spec": {**spec.to_json(), "folder": ""}, "config": told}


def layers_told(case: Case) -> list[dict[str, Any]]:
    """Return the layers that one may ask for, with the shapes of their outputs; of images those with places only."""
    from probes.attribution.cam import REACHED
    from probes.attribution.layer_outputs import layers_of

    least = REACHED if case.kind == "image" else 0.0
    return [
        {"name": each.name, "shape": list(each.shape[1:])}
        for each in layers_of(case).values()
        if each.calls == 1 and not each.inner and each.reached > least and (each.layout or case.kind == "table")
    ]


def _words(case: Case) -> list[dict[str, Any]]:
    from probes.attribution.words import pieces_of, words_in

    pieces = pieces_of(case.objective.batches, case.raw[0].tolist(), case.names)
    if not pieces.known:
        return []
    return [{"first": each.first, "stop": each.stop, "text": each.text} for each in words_in(pieces, case.special)]


def _token(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise DataError(f"The target is {text[:80]!r}; give predicted, label, or the id of a token.")


def _label(case: Case) -> int | float | None:
    objective = case.objective
    if case.kind == "language_model":
        label = int(objective.targets[case.row, case.target.position])
        return None if label == -100 else label
    known = int(labels_of(objective.chosen([case.row]))[0])
    if known >= 0:
        return known
    one = objective.targets[case.row].reshape(-1)
    return float(one[0]) if len(one) == 1 and math.isfinite(float(one[0])) else None


def _prediction(loss: str, logits: np.ndarray[Any, Any]) -> tuple[int | float, float | None]:
    """Return the class and its probability, or the value of a single output."""
    if loss == "mse" and len(logits) == 1:
        return float(logits[0]), None
    if loss == "bce_with_logits" and len(logits) == 1:
        yes = float(1 / (1 + np.exp(-logits[0])))
        return int(logits[0] > 0), max(yes, 1 - yes)
    best = int(logits.argmax())
    if loss not in ("cross_entropy", "causal_lm"):
        return best, None
    shares = np.exp(logits - logits.max())
    return best, float(shares[best] / shares.sum())


def _likely(case: Case, logits: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Return the likeliest classes or tokens with their probabilities, where the loss gives them some."""
    if case.objective.loss not in ("cross_entropy", "causal_lm"):
        return []
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")[:LIKELY]
    return [{"index": int(at), "name": _name(case, int(at)), "probability": float(shares[at])} for at in order]


def _name(case: Case, number: int | float | None) -> str | None:
    """Return the name of a class or a token; its number where it has none."""
    if number is None:
        return None
    if case.kind == "language_model":
        from probes.attribution.tokens import token_names

        return token_names(case.objective.batches, [int(number)])[0]
    classes = case.objective.batches.classes
    if isinstance(number, int) and 0 <= number < len(classes):
        return classes[number]
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def _text(case: Case) -> str | None:
    from probes.pictures import texts_of

    ids = case.raw.cpu()
    batches = replace(case.objective.batches, inputs=ids, targets=case.objective.targets[:1].reshape(-1)[:1])
    found = texts_of(batches, [0], most=2000)
    return found[0] if found else None
