"""Which field or column of text data is the input and which, if any, is the label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from probes.dataset.files import shown
from probes.errors import DataError
from probes.specs import DataSpec

FieldKind = Literal["ids", "text", "number", "other"]

ID_FIELDS = ("input_ids", "tokens")
LABELS = ("label", "labels", "y", "target", "targets")


@dataclass(frozen=True)
class Roles:
    """Name the field of ids or text, and that of labels; "" where the next token is the target."""

    input: str
    label: str = ""


def roles_of(name: str, kinds: Mapping[str, FieldKind], spec: DataSpec) -> Roles:
    """Choose among fields: `spec.label` is a field of labels (a number, or a text named as labels are), else the input.

    Without a choice `label` and its like are labels, and the first of input_ids, tokens, text is the input (text, when
    a tokenizer is chosen). Raises DataError, naming the fields there are.
    """
    held = ", ".join(repr(shown(each)[:40]) for each in list(kinds)[:8]) or "none"
    named = spec.label
    if named and named not in kinds:
        raise DataError(f"{name}: there is no field {shown(named)!r} (it has {held}). Name one.")
    labels = [each for each in ((named,) if named else LABELS) if _can_be_label(each, kinds)]
    if named and not labels:
        return Roles(named)
    inputs = [each for each in (*ID_FIELDS, "text") if each in kinds and each not in labels]
    if spec.tokenizer != "auto" and "text" in inputs:
        inputs = ["text"]
    if not inputs:
        raise DataError(f"{name}: there is no field {' or '.join((*ID_FIELDS, 'text'))} (it has {held}). Name one.")
    return Roles(inputs[0], labels[0] if labels else "")


def _can_be_label(field: str, kinds: Mapping[str, FieldKind]) -> bool:
    kind = kinds.get(field)
    return kind == "number" or (kind == "text" and field in LABELS)
