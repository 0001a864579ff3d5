"""The answer of a language model as one target: the sum of its tokens' scores, and the matrix of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._attribution_records import Record, number, plain
from probes.errors import DataError

if TYPE_CHECKING:
    from probes.attribution import Case, Method, Settings
    from probes.attribution.methods import Tick
    from probes.objective import Objective

WORST = ("ok", "doubtful", "invalid")


def answer_at(objective: Objective, row: int, position: int) -> Case:
    """Return the case of the tokens from a position on (-1: where the targets begin, else half of the text)."""
    from probes.attribution.language import answer_case, answer_start

    if objective.loss != "causal_lm":
        raise DataError("The target answer is for language models; choose predicted, label, or a class.")
    return answer_case(objective, row, answer_start(objective, row) if position == -1 else position)


def answer_words(case: Any) -> dict[str, Any]:
    """Say of the case of an answer what there is besides: its tokens and where it begins."""
    from probes.attribution.tokens import token_names

    names = token_names(case.objective.batches, case.answer.tolist())
    text = case.objective.batches.show
    whole = text(case.answer.cpu().numpy()) if text is not None else " ".join(names)
    return {"target": "answer", "target_name": whole, "answer": list(names), "answer_start": case.raw.shape[1]}


def answer_record(case: Case, method: Method, settings: Settings, tick: Tick, head: dict[str, Any]) -> Record:
    """Attribute each token of the answer to the prompt; the map is the sum over the answer."""
    from probes.attribution.language import token_matrix

    found = token_matrix(case.objective, case.row, case.raw.shape[1], method.name, settings, tick)
    total = found.sequence
    scores = found.baseline_scores
    known = bool(np.isfinite(scores).all())
    difference = float(found.scores.sum() - scores.sum()) if known else 0.0
    complete = bool(np.isfinite(found.completeness_errors).all()) and difference != 0
    about = {
        **head,
        "signed": found.signed,
        "badge": max((each.verdict for each in found.badges), key=WORST.index),
        "reasons": list(dict.fromkeys(reason for each in found.badges for reason in each.reasons)),
        "notes": list(found.notes),
        "baseline": plain(found.about.get("baseline")),
        "score": number(found.scores.sum()),
        "baseline_score": number(scores.sum()) if known else None,
        "completeness_error": abs(float(total.sum()) - difference) / abs(difference) if complete else None,
        "evaluations": None,
        "about": plain(dict(found.about)),
    }
    arrays = {"map": total.astype(np.float32), "token_matrix": found.values.astype(np.float32)}
    if np.isfinite(found.stderr).all():
        arrays["stderr"] = np.sqrt((found.stderr**2).sum(0)).astype(np.float32)
    return Record(about, arrays)
