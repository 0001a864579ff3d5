"""Read plain text and JSONL for language models: token ids and, aligned to them, the token that follows each.

Plain text is one document, a line of JSONL is one. A line holds `input_ids` or `tokens` (whole numbers) or `text`;
without a choice the first of these is taken, and text goes through "characters". A document is cut into pieces of
`context` predictions that overlap in one token, so that each of its tokens but the first is predicted once. What is
left of a piece is padded with id 0 in the inputs and -100 in the targets. `labels` (-100 where nothing counts) and
`attention_mask` of a line are heeded as transformers writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from probes.dataset.files import Array, Examples, Source, from_array, short, words
from probes.errors import DataError
from probes.specs import DataSpec

IGNORED = -100
DEFAULT_CONTEXT = 128
MAX_CONTEXT = 2**17
MAX_TEXT_BYTES = 2**26
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_TOKENS = 2**28
ID_FIELDS = ("input_ids", "tokens")
SHOWN = 12

Encode = Callable[[str], Array]


@dataclass(frozen=True)
class Document:
    """Keep one text as token ids, and which of them count as targets."""

    ids: Array
    counted: Array


def read_text(source: Source, spec: DataSpec, jsonl: bool, own_context: int = 0) -> Examples:
    """Read the sequences of a text or JSONL file; `own_context` is the model's, where the user gives none."""
    content = source.read(MAX_TEXT_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source.name} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    if jsonl:
        return _from_jsonl(source, spec, text, own_context)
    encode, about = _encoder(source, spec, text)
    documents = [_document(encode(text))]
    context, doubts = _context(source, spec, documents, own_context)
    return _examples(source, "text", documents, {**about, "context": context}, text, doubts)


def is_jsonl(head: str) -> bool:
    """Tell whether the first line is a JSON object."""
    first = head.lstrip("\ufeff").lstrip().split("\n", 1)[0]
    if not first.startswith("{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return '"' in first and ":" in first


def _from_jsonl(source: Source, spec: DataSpec, text: str, own_context: int) -> Examples:
    lines = list(_objects(source, text))
    if not lines:
        raise DataError(f"{source.name} holds no lines. Give one JSON object a line.")
    field = _field(source, spec, lines[0][1])
    if field in ID_FIELDS or isinstance(lines[0][1][field], list):
        documents = [_given(source, number, value, field) for number, value in lines]
        about: dict[str, Any] = {"tokenizer": f"ids in the field {field!r}"}
    else:
        texts = [_text(source, number, value, field) for number, value in lines]
        encode, about = _encoder(source, spec, "".join(texts))
        documents = [_document(encode(each)) for each in texts]
    context, doubts = _context(source, spec, documents, own_context)
    return _examples(source, "JSONL", documents, {**about, "field": field, "context": context}, text, doubts)


def _objects(source: Source, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{source.name}: line {number} is no JSON ({short(error)}). Give one object a line."
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{source.name}: line {number} is a {type(value).__name__}. Give one JSON object a line.")
        yield number, value


def _field(source: Source, spec: DataSpec, first: dict[str, Any]) -> str:
    wanted = (spec.label,) if spec.label else (*ID_FIELDS, "text")
    if not spec.label and spec.tokenizer != "auto" and "text" in first:
        return "text"
    found = [each for each in wanted if each in first]
    if not found:
        held = ", ".join(repr(str(each)[:40]) for each in list(first)[:8]) or "none"
        raise DataError(f"{source.name}: the first line has no field {' or '.join(wanted)} (it has {held}). Name one.")
    return found[0]


def _text(source: Source, number: int, value: dict[str, Any], field: str) -> str:
    text = value.get(field)
    if not isinstance(text, str):
        raise DataError(f"{source.name}: line {number} has no text in {field!r} ({str(text)[:40]}). Mend or drop it.")
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise DataError(f"{source.name}: line {number} has half a character (a lone surrogate) in {field!r}. Mend it.")
    return text


def _given(source: Source, number: int, value: dict[str, Any], field: str) -> Document:
    ids = _whole(source, number, value.get(field), field)
    if (ids < 0).any():
        raise DataError(f"{source.name}: line {number} has the token {ids.min()} in {field!r}; ids are 0 or more.")
    counted = np.ones(len(ids), bool)
    for name in ("labels", "attention_mask"):
        if name in value:
            marks = _whole(source, number, value[name], name)
            if len(marks) != len(ids):
                raise DataError(
                    f"{source.name}: line {number} has {len(ids)} {field} but {len(marks)} {name}. Mend it."
                )
            counted &= marks != (IGNORED if name == "labels" else 0)
    return Document(ids, counted)


def _whole(source: Source, number: int, value: Any, field: str) -> Array:
    numbers = isinstance(value, list) and all(type(each) is int and abs(each) < 2**31 for each in value)
    if not numbers:
        found = str(value)[:40]
        raise DataError(f"{source.name}: line {number} has {found} in {field!r}. Give a list of whole numbers.")
    return np.array(value, np.int32)


def _document(ids: Array) -> Document:
    return Document(ids.astype(np.int32), np.ones(len(ids), bool))


def _encoder(source: Source, spec: DataSpec, text: str) -> tuple[Encode, dict[str, Any]]:
    if spec.tokenizer == "bytes":
        return lambda each: np.frombuffer(each.encode(), np.uint8), {"tokenizer": "bytes", "vocabulary": 256}
    if spec.tokenizer in ("auto", "characters"):
        points = sorted(map(ord, set(text)))
        rank = np.zeros(points[-1] + 1 if points else 1, np.int32)
        rank[points] = np.arange(len(points))
        about = {"tokenizer": "characters", "vocabulary": len(points)}
        return lambda each: rank[np.frombuffer(each.encode("utf-32-le"), np.uint32)], about
    tokenizer = _tokenizer(source, Path(spec.tokenizer))
    about = {"tokenizer": Path(spec.tokenizer).name, "vocabulary": tokenizer.get_vocab_size()}
    return lambda each: np.array(tokenizer.encode(each).ids, np.int32), about


def _tokenizer(source: Source, path: Path) -> Tokenizer:
    if not path.is_file():
        raise DataError(
            f"{source.name}: the tokenizer {path.name!r} is no file. Give auto, bytes, characters or a tokenizer.json."
        )
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise DataError(f"{path.name} has {words(path.stat().st_size)}; no tokenizer is that large. Check the file.")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises nothing more special
        raise DataError(
            f"{path.name} is no tokenizer.json that can be read ({short(error)}). Save it again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _examples(
    source: Source, format: str, documents: list[Document], about: dict[str, Any], text: str, doubts: list[str]
) -> Examples:
    context: int = about["context"]
    long = [index for index, each in enumerate(documents) if len(each.ids) > 1]
    if len(long) < len(documents):
        left_out = len(documents) - len(long)
        doubts.append(f"{left_out} of {len(documents)} texts have fewer than two tokens and are left out.")
    if sum(-(-len(each.ids) // context) * context for each in documents) > MAX_TOKENS:
        raise DataError(f"{source.name} gives over {MAX_TOKENS} tokens at context {context}. Give a smaller part.")
    pieces = [_pieces(documents[index], context) for index in long]
    first = np.cumsum([0, *(len(inputs) for inputs, _ in pieces)])

    def name_of(index: int) -> str:
        owner = int(np.searchsorted(first, index, "right")) - 1
        return f"{source.stem}[{long[owner]}]:{(index - int(first[owner])) * context}"

    return Examples(
        format=format,
        kind="tokens",
        targets=np.concatenate([targets for _, targets in pieces]),
        take=from_array(np.concatenate([inputs for inputs, _ in pieces])),
        name_of=name_of,
        doubts=tuple(doubts),
        about={
            **about,
            "documents": len(documents),
            "largest_id": max(int(documents[each].ids.max()) for each in long),
        },
        lines=tuple(each[:200] for each in text[:20_000].splitlines()[:SHOWN]),
    )


def _context(source: Source, spec: DataSpec, documents: list[Document], own: int) -> tuple[int, list[str]]:
    longest = max(len(each.ids) for each in documents)
    if longest < 2:
        raise DataError(f"{source.name}: no text has two tokens, so nothing can be predicted. Give longer texts.")
    if not 0 <= spec.context <= MAX_CONTEXT:
        raise DataError(f"{source.name}: a context of {spec.context} tokens; give 1 to {MAX_CONTEXT}, or 0.")
    if spec.context:
        return spec.context, []
    context = min(own or DEFAULT_CONTEXT, longest - 1)
    return context, [] if own else [f"no context was given: sequences of {context} tokens are made."]


def _pieces(document: Document, context: int) -> tuple[Array, Array]:
    """Return inputs and targets (n, T) of the pieces of a text; the targets are the ids shifted by one."""
    count = len(document.ids) - 1
    shape = (-(-count // context), context)
    inputs, targets = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
    inputs.reshape(-1)[:count] = document.ids[:-1]
    targets.reshape(-1)[:count] = np.where(document.counted[1:], document.ids[1:], IGNORED)
    return inputs, targets
