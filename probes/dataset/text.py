"""Read plain text and JSONL for language models and classifiers of text.

Plain text is one document, a line of JSONL is one. A line holds `input_ids` or `tokens` (whole numbers) or `text`, and
perhaps a `label`; text goes through a tokenizer. `labels` (a list, -100 where nothing counts) and `attention_mask` of
a line are heeded as transformers writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from probes.dataset.encoders import Encoder, encoder_of
from probes.dataset.examples import Examples, Own
from probes.dataset.files import Array, Source, short, shown
from probes.dataset.roles import ID_FIELDS, FieldKind, Roles, roles_of
from probes.dataset.targets import as_labels
from probes.dataset.tokens import IGNORED, MAX_TOKENS, Tokens, context_for, labelled, sequences, shower
from probes.errors import DataError
from probes.specs import DataSpec

MAX_TEXT_BYTES = 2**26
MAX_LINES = 2**20
SHOWN = 12

Line = tuple[int, Mapping[str, Any]]


def read_text(source: Source, spec: DataSpec, own: Own) -> Examples:
    """Read the sequences of a text or JSONL file."""
    content = source.read(MAX_TEXT_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source.name} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    lines = tuple(each[:200] for each in text[:20_000].splitlines()[:SHOWN])
    if is_jsonl(text[: 2**16]):
        return replace(_from_jsonl(source, spec, text, own), lines=lines)
    encoder = encoder_of(source.name, spec.tokenizer, own.tokenizer, text)
    made = sequences_of(source, "text", tokens_of(source, map(encoder.encode, [text])), spec, own, encoder.about)
    return replace(made, lines=lines, show=shower(encoder.decode))


def sequences_of(
    source: Source, format: str, tokens: Tokens, spec: DataSpec, own: Own, about: Mapping[str, Any]
) -> Examples:
    """Cut documents of token ids into sequences, at the context that was chosen or the model's own."""
    lengths = tokens.lengths()
    context, doubts = context_for(source, spec, int(lengths.max(initial=0)), own)
    largest = int(tokens.ids.max(initial=0)) if len(tokens.ids) else 0
    return sequences(source, format, tokens, context, own, {**about, "largest_id": largest}, doubts)


def tokens_of(source: Source, rows: Iterator[Array], names: tuple[str, ...] = ()) -> Tokens:
    """Lay documents of ids end to end; names: their ids, where the file gives them."""
    found: list[Array] = []
    held = 0
    for row in rows:
        held += len(row)
        if held > MAX_TOKENS:
            raise DataError(f"{source.name} has over {MAX_TOKENS} tokens. Give a smaller part of the data.")
        found.append(row)
    starts = np.concatenate([[0], np.cumsum([len(each) for each in found])]).astype(np.int64)
    ids = np.concatenate(found) if found else np.zeros(0, np.int32)
    return Tokens(ids, starts, None, names)


def is_jsonl(head: str) -> bool:
    """Tell whether the first line is a JSON object."""
    first = head.lstrip("\ufeff").lstrip().split("\n", 1)[0]
    if not first.startswith("{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return '"' in first and ":" in first


def _from_jsonl(source: Source, spec: DataSpec, text: str, own: Own) -> Examples:
    first = next(_objects(source, text), None)
    if first is None:
        raise DataError(f"{source.name} holds no lines. Give one JSON object a line.")
    roles = roles_of(source.name, {key: _kind(value) for key, value in first[1].items()}, spec)
    lines = _objects(source, text)
    if roles.input in ID_FIELDS or isinstance(first[1][roles.input], list):
        return _of_ids(source, spec, roles, lines, own)
    return _of_text(source, spec, roles, lines, own)


def _of_ids(source: Source, spec: DataSpec, roles: Roles, lines: Iterator[Line], own: Own) -> Examples:
    rows, counted, labels, names = [], [], [], []
    for number, value in lines:
        ids, counts = _given(source, number, value, roles)
        rows.append(ids)
        counted.append(counts)
        labels.append(_label(source, number, value, roles.label))
        names.append(_name(value))
    tokens = replace(tokens_of(source, iter(rows), _names(names)), counted=np.concatenate(counted))
    about = {"tokenizer": f"ids in the field {roles.input!r}", "field": roles.input}
    return _made(source, spec, tokens, roles, labels, own, about, None)


def _of_text(source: Source, spec: DataSpec, roles: Roles, lines: Iterator[Line], own: Own) -> Examples:
    texts, labels, names = [], [], []
    for number, value in lines:
        texts.append(_text(source, number, value, roles.input))
        labels.append(_label(source, number, value, roles.label))
        names.append(_name(value))
    encoder = encoder_of(source.name, spec.tokenizer, own.tokenizer, "".join(texts))
    tokens = tokens_of(source, map(encoder.encode, texts), _names(names))
    about = {**encoder.about, "field": roles.input}
    return _made(source, spec, tokens, roles, labels, own, about, encoder)


def _made(
    source: Source,
    spec: DataSpec,
    tokens: Tokens,
    roles: Roles,
    labels: list[Any],
    own: Own,
    about: dict[str, Any],
    encoder: Encoder | None,
) -> Examples:
    show = shower(encoder.decode if encoder else None)
    if not roles.label:
        return replace(sequences_of(source, "JSONL", tokens, spec, own, about), show=show)
    targets = as_labels(np.array(labels, dtype=object))
    own = replace(own, context=spec.context or own.context)
    pad = encoder.pad if encoder else None
    made = labelled(source, "JSONL", tokens, targets, own, {**about, "label": roles.label}, pad)
    return replace(made, show=show)


def _objects(source: Source, text: str) -> Iterator[Line]:
    start, number = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line, start, number = text[start:end], end + 1, number + 1
        if number > MAX_LINES:
            raise DataError(f"{source.name} has over {MAX_LINES} lines. Give a smaller part of the data.")
        if line.strip():
            yield number, _object(source, number, line)


def _object(source: Source, number: int, line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source.name}: line {number} is no JSON ({short(error)}). Give one object a line.") from error
    if not isinstance(value, dict):
        raise DataError(f"{source.name}: line {number} is a {type(value).__name__}. Give one JSON object a line.")
    return value


def _kind(value: Any) -> FieldKind:
    if isinstance(value, list):
        return "ids"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, int | float) else "other"


def _text(source: Source, number: int, value: Mapping[str, Any], field: str) -> str:
    text = value.get(field)
    if not isinstance(text, str):
        raise DataError(f"{source.name}: line {number} has no text in {field!r} ({str(text)[:40]}). Mend or drop it.")
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise DataError(f"{source.name}: line {number} has half a character (a lone surrogate) in {field!r}. Mend it.")
    return text


def _label(source: Source, number: int, value: Mapping[str, Any], field: str) -> Any:
    if not field:
        return None
    label = value.get(field)
    if not isinstance(label, str | int | float) or (isinstance(label, int) and abs(label) >= 2**63):
        raise DataError(
            f"{source.name}: line {number} has {shown(str(label)[:40])} in {field!r}. Give a number or a name."
        )
    return label


def _name(value: Mapping[str, Any]) -> str | None:
    found = value.get("id")
    return shown(str(found)) if isinstance(found, str | int) and not isinstance(found, bool) else None


def _names(names: list[str | None]) -> tuple[str, ...]:
    """Return the ids that the lines give, if all do."""
    return tuple(each for each in names if each is not None) if None not in names else ()


def _given(source: Source, number: int, value: Mapping[str, Any], roles: Roles) -> tuple[Array, Array]:
    ids = _whole(source, number, value.get(roles.input), roles.input)
    if (ids < 0).any():
        raise DataError(
            f"{source.name}: line {number} has the token {ids.min()} in {roles.input!r}; ids are 0 or more."
        )
    counted = np.ones(len(ids), bool)
    for name in ("labels", "attention_mask"):
        if name in value and not roles.label:
            marks = _whole(source, number, value[name], name)
            if len(marks) != len(ids):
                raise DataError(
                    f"{source.name}: line {number} has {len(ids)} {roles.input} but {len(marks)} {name}. Mend it."
                )
            counted &= marks != (IGNORED if name == "labels" else 0)
    return ids, counted


def _whole(source: Source, number: int, value: Any, field: str) -> Array:
    numbers = isinstance(value, list) and all(type(each) is int and abs(each) < 2**31 for each in value)
    if not numbers:
        found = str(value)[:40]
        raise DataError(f"{source.name}: line {number} has {found} in {field!r}. Give a list of whole numbers.")
    return np.array(value, np.int32)
