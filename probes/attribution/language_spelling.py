"""From a word to token ids: with the vocabulary of the tokenizer that shows the data's tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.attribution.errors import AttributionError
from probes.attribution.words import Show, added

if TYPE_CHECKING:
    from probes.data import Batches


@dataclass(frozen=True)
class Spelling:
    """The tokens of a text; doubt: why its tokenizer might have cut it otherwise, "" where it would not."""

    ids: tuple[int, ...]
    doubt: str = ""


def spelled(batches: Batches, before: Sequence[int], text: str, vocabulary: int) -> Spelling:
    """Cut a text into tokens as it would stand behind others: the longest token that fits, again and again.

    That is the rule of WordPiece; words of a single token, characters and bytes are exact too. vocabulary: how many
    tokens there are. Raises AttributionError (the tokenizer is not known, or has no token for a sign of the text).
    """
    tokenizer = str(batches.about.get("tokenizer", ""))
    if tokenizer == "bytes":
        return Spelling(tuple(text.encode()))
    if batches.show is None or tokenizer.startswith("ids in "):
        raise AttributionError(
            "The tokenizer of this data is not known, so a word cannot be turned into tokens. Give ids of tokens, or "
            "the data as text with the model's tokenizer.json."
        )
    table, wordpiece = _table(batches.show, before, vocabulary)
    ids = _longest_first(table, text.replace("\n", "↵").replace("\t", "→"))
    if len(ids) == 1 or wordpiece or tokenizer == "characters":
        return Spelling(ids)
    shown = " + ".join(repr(batches.show(np.array([each]))) for each in ids)
    doubt = f"The word {text.strip()[:60]!r} was cut into the longest tokens that fit, {shown[:200]}"
    return Spelling(ids, f"{doubt}; its tokenizer may cut it otherwise.")


def _table(show: Show, before: Sequence[int], vocabulary: int) -> tuple[dict[str, int], bool]:
    """Map what each token says behind others to the token, and tell whether "##" marks tokens that go on."""
    table: dict[str, int] = {}
    wordpiece = False
    for each in range(vocabulary):
        table.setdefault(added(show, before, [each]), each)
        wordpiece = wordpiece or (len(alone := show(np.array([each]))) > 2 and alone.startswith("##"))
    table.pop("", None)
    return table, wordpiece


def _longest_first(table: dict[str, int], text: str) -> tuple[int, ...]:
    most = max(map(len, table), default=0)
    found, at = list[int](), 0
    while at < len(text):
        length = next((n for n in range(min(most, len(text) - at), 0, -1) if text[at : at + n] in table), 0)
        if not length:
            raise AttributionError(
                f"The tokenizer has no token for {text[at:].strip()[:20]!r} in {text.strip()[:60]!r}; choose "
                "another word, or give ids of tokens."
            )
        found.append(table[text[at : at + length]])
        at += length
    return tuple(found)
