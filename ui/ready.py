"""Is the bench ready for an analysis? Which model is in use, does it fit exactly, and what is still missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probes.specs import DataSpec, LossName, ModelSpec
from ui.bench import Bench
from ui.questions import comparison, gate, inspection, name_of, preview
from ui.state import answer
from workspace.jobs import JobSpec

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Laid:
    """What an analysis is asked with that needs names and tensors alone: checkpoints of the same tensors."""

    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class Ready(Laid):
    """What an analysis is asked with."""

    model: ModelSpec
    data: DataSpec
    loss: LossName
    test: DataSpec | None = None

    def gate(self, sha256: str) -> JobSpec:
        """Ask for the gate's verdict on one of the checkpoints."""
        return gate(sha256, self.model, self.data, self.loss)


def laid(bench: Bench) -> Laid | str:
    """Return the checkpoints on the bench, or a sentence that says what is missing (raw text)."""
    if not bench.checkpoints:
        return "There is no checkpoint on the bench yet."
    found = answer(inspection(bench.checkpoints[0]))
    if found is None:
        return f"{name_of(bench.checkpoints[0])} has not been read yet."
    return Laid(alike(bench, found))


def ready(bench: Bench) -> Ready | str:
    """Return what is on the bench, or a sentence that says what is missing (raw text)."""
    there = laid(bench)
    found = answer(inspection(bench.checkpoints[0])) if bench.checkpoints else None
    if isinstance(there, str) or found is None:
        return str(there)
    model = model_in_use(bench, found)
    if model is None:
        return f"Which model {found['name']} belongs to is not known yet."
    if not fits(bench, found, model):
        return "The model does not fit the checkpoint yet: every name and shape must match."
    if bench.data is None:
        return "No data has been chosen yet."
    return Ready(there.checkpoints, model, bench.data, bench.loss or usual_loss(bench), bench.test)


def alike(bench: Bench, first: Found) -> tuple[str, ...]:
    """Return the checkpoints with the same tensors as the first: those that one model fits."""
    same = _tensors(first)
    others = ((sha256, answer(inspection(sha256))) for sha256 in bench.checkpoints)
    return tuple(sha256 for sha256, found in others if found and _tensors(found) == same)


def _tensors(found: Found) -> dict[str, list[int]]:
    return {name: shape for name, shape, _ in found["shapes"]}


def model_in_use(bench: Bench, found: Found) -> ModelSpec | None:
    """Return the model that was chosen, else the recognised one."""
    if bench.model is not None:
        return bench.model
    spec = found["recognition"]["spec"]
    return ModelSpec.from_json(spec) if spec and not is_mismatch(found["recognition"]["mismatch"]) else None


def fits(bench: Bench, found: Found, model: ModelSpec) -> bool:
    """Tell whether the model is known to match the first checkpoint exactly."""
    if is_recognised(found, model):
        return True
    compared = answer(comparison(bench.checkpoints[0], model))
    return bool(compared and compared["exact"])


def is_recognised(found: Found, model: ModelSpec) -> bool:
    """Tell whether this is the model that was recognised, and exactly."""
    recognition = found["recognition"]
    return recognition["spec"] == model.to_json() and not is_mismatch(recognition["mismatch"])


def is_mismatch(value: Mapping[str, Any] | None) -> bool:
    """Tell whether a comparison found any difference."""
    return value is not None and any(value.get(each) for each in ("missing", "unexpected", "shapes"))


def look(bench: Bench) -> JobSpec | None:
    """Ask for a look at the data in use, with the tokenizer and names of classes that the checkpoint brings along."""
    if bench.data is None:
        return None
    found = answer(inspection(bench.checkpoints[0])) if bench.checkpoints else None
    if found is None or "hugging_face" not in found["facts"]:
        return preview(bench.data)
    return preview(bench.data, bench.checkpoints[0], bench.model)


def usual_loss(bench: Bench) -> LossName:
    """Return the loss that data of this kind is usually trained with."""
    asked = look(bench)
    found = answer(asked) if asked else None
    if found is None:
        following = bench.data is not None and bench.data.format in ("text", "tokens16", "tokens32")
        return "causal_lm" if following else "cross_entropy"
    if found.get("targets") == "captions":
        return "caption_distance"
    if found.get("targets") == "next tokens" or found["about"].get("format") == "text":
        return "causal_lm"
    if found["classes"]:
        return "cross_entropy"
    return "bce_with_logits" if _are_bits(found["labels"]) else "mse"


def _are_bits(labels: list[Any]) -> bool:
    rows = [each for each in labels if isinstance(each, list)]
    return bool(rows) and all(value in (0, 1) for row in rows for value in row)
