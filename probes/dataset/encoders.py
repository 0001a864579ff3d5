"""Text -> token ids: characters, bytes, or a tokenizer.json (only its own rules; no code, no chat template)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from probes.dataset.files import Array, short, shown, words
from probes.errors import DataError

MAX_TOKENIZER_BYTES = 64 * 2**20
PADDING = ("[PAD]", "<pad>", "<|pad|>")


@dataclass(frozen=True)
class Encoder:
    """Turn a text into token ids and back. pad: the id that fills short sequences, where it is known."""

    encode: Callable[[str], Array]
    decode: Callable[[list[int]], str]
    about: dict[str, Any] = field(default_factory=dict)
    pad: int | None = None


def encoder_of(name: str, choice: str, own: Path | None, text: str) -> Encoder:
    """Return what `choice` says: "bytes", "characters", a path, or "auto": the model's own, else characters.

    name: of the data, for messages. text: all of it, whose characters are the vocabulary of "characters".
    """
    if choice == "bytes":
        return Encoder(
            lambda each: np.frombuffer(each.encode(), np.uint8).astype(np.int32),
            lambda ids: bytes(min(each, 255) for each in ids).decode("utf-8", "replace"),
            {"tokenizer": "bytes", "vocabulary": 256},
        )
    if choice == "characters" or (choice == "auto" and own is None):
        return _characters(text)
    path = own if choice == "auto" and own is not None else Path(choice)
    tokenizer = read_tokenizer(name, path)
    owner = "tokenizer.json of the checkpoint" if choice == "auto" else shown(path.name)
    return Encoder(
        lambda each: np.array(encoded_by(name, tokenizer, each).ids, np.int32),
        lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
        {"tokenizer": owner, "vocabulary": tokenizer.get_vocab_size()},
        _padding(path, tokenizer),
    )


def read_tokenizer(name: str, path: Path) -> Tokenizer:
    """Read a tokenizer.json; DataError where it is none. name: of the data, for messages."""
    if not path.is_file():
        raise DataError(
            f"{name}: the tokenizer {shown(path.name)!r} is no file. Give auto, bytes, characters or a tokenizer.json."
        )
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise DataError(
            f"{shown(path.name)} has {words(path.stat().st_size)}; no tokenizer is that large. Check the file."
        )
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except BaseException as error:  # tokenizers raises nothing more special, and panics past Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise DataError(
            f"{shown(path.name)} is no tokenizer.json that can be read ({short(error)}). Save it again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encoded_by(name: str, tokenizer: Tokenizer, text: str) -> Encoding:
    """Encode a text; DataError, naming the data, where the tokenizer fails."""
    try:
        return tokenizer.encode(text)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise DataError(
            f"{name}: the tokenizer fails on {shown(text[:40])!r} ({short(error)}). Check the tokenizer.json."
        ) from error


def _padding(path: Path, tokenizer: Tokenizer) -> int | None:
    given = json.loads(path.read_text(encoding="utf-8")).get("padding")
    if isinstance(given, dict) and type(given.get("pad_id")) is int and 0 <= given["pad_id"] < 2**31:
        return int(given["pad_id"])
    found = (tokenizer.token_to_id(each) for each in PADDING)
    return next((each for each in found if each is not None), None)


def _characters(text: str) -> Encoder:
    points = sorted(map(ord, set(text)))
    rank = np.zeros(points[-1] + 1 if points else 1, np.int32)
    rank[points] = np.arange(len(points))
    return Encoder(
        lambda each: rank[np.frombuffer(each.encode("utf-32-le"), np.uint32)],
        lambda ids: "".join(chr(points[each]) for each in ids if each < len(points)),
        {"tokenizer": "characters", "vocabulary": len(points)},
    )
