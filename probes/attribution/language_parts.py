"""Parts of a text that are explained as one: turns of a chat, lines, sentences, words, or cuts of one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probes.attribution.errors import AttributionError
from probes.attribution.segments import Segments
from probes.attribution.words import Pieces, pieces_of, words_in

if TYPE_CHECKING:
    from probes.attribution.case import Case

By = Literal["auto", "turns", "lines", "sentences", "words", "tokens"]
Floats = NDArray[np.float64]
_TURNS = re.compile(
    r"<\|im_start\|>\s*(?P<chatml>\w+)"
    r"|<\|start_header_id\|>\s*(?P<llama3>\w+)\s*<\|end_header_id\|>"
    r"|<start_of_turn>\s*(?P<gemma>\w+)"
    r"|<\|(?P<phi>system|user|assistant|tool)\|>"
    r"|<\uff5c(?P<deepseek>System|User|Assistant)\uff5c>"
    r"|(?P<instruction>\[INST\])|(?P<answer>\[/INST\])"
)
_SYSTEM = re.compile(r"<<SYS>>.*?<</SYS>>\s*", re.DOTALL)
_LINES = re.compile(r"\n+")
_SENTENCES = re.compile(r"[.!?\u2026]+[\"'\u2019\u201d)\]]*\s+|[\u3002\uff01\uff1f]+\s*|\n+\s*")


@dataclass(frozen=True)
class Part:
    """Tokens [first, stop) of a text; name: what it is, as "user" or "sentence 2"."""

    first: int
    stop: int
    name: str
    text: str


def parts_of(case: Case, by: By = "auto", cuts: Sequence[int] = ()) -> tuple[Part, ...]:
    """Cut the text of a case into parts, in order; each token is in one of them.

    by: "auto" takes turns where the text has the marks of a chat, else lines, sentences or words, the first of which
    there are two. cuts: places where new parts begin, instead. Raises AttributionError.
    """
    if not case.embedding:
        raise AttributionError("Only texts have turns, lines or sentences; choose cells, regions or columns.")
    pieces = pieces_of(case.objective.batches, case.raw[0].tolist(), case.names)
    return parts_in(pieces, case.special, by, cuts)


def parts_in(
    pieces: Pieces, special: Sequence[bool], by: By = "auto", cuts: Sequence[int] = ()
) -> tuple[Part, ...]:  # fmt: skip
    """Cut a text into parts, as `parts_of` does."""
    if cuts:
        return _own_cuts(pieces, cuts)
    if by in ("words", "tokens") or not pieces.known:
        return _small(pieces, special, by)
    found = [_by_text(pieces, each) for each in ((by,) if by != "auto" else ("turns", "lines", "sentences"))]
    chosen = next((each for each in found if len(each) > 1), None)
    return chosen or (found[0] if by != "auto" else _small(pieces, special, "words"))


def as_segments(parts: Sequence[Part], unit: str = "parts of the text") -> Segments:
    """Number the tokens by their part, as the methods that leave parts out take them."""
    labels = np.repeat(np.arange(len(parts)), [each.stop - each.first for each in parts])
    return Segments(labels, len(parts), unit)


def part_scores(values: NDArray[Any], parts: Sequence[Part]) -> Floats:
    """Add up the values of the tokens of each part, (..., T) -> (..., P)."""
    return np.asarray(np.add.reduceat(values.astype(np.float64), [each.first for each in parts], axis=-1))


def _by_text(pieces: Pieces, by: str) -> tuple[Part, ...]:
    marks = {"turns": _turns, "lines": _lines, "sentences": _sentences}[by](pieces.text)
    return _laid(pieces, [(0, ""), *marks] if not marks or marks[0][0] > 0 else marks, by)


def _laid(pieces: Pieces, marks: Sequence[tuple[int, str]], by: str) -> tuple[Part, ...]:
    """Give each token to the part in which its first sign that is no white space lies."""
    at = [
        start + len(text) - len(text.lstrip()) if text.strip() else start
        for start, text in zip(pieces.starts, pieces.texts, strict=True)
    ]
    owner = np.searchsorted([start for start, _ in marks], at, "right") - 1
    owner = np.maximum.accumulate(owner) if len(owner) else owner
    for i, joined in enumerate(pieces.joined):
        owner[i] = owner[i - 1] if joined else owner[i]
    edges = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
    return tuple(
        Part(first, stop, marks[owner[first]][1] or f"{by.removesuffix('s')} {number}", _said(pieces, first, stop))
        for number, (first, stop) in enumerate(pairwise(edges), 1)
        if stop > first
    )


def _said(pieces: Pieces, first: int, stop: int) -> str:
    return "".join(pieces.texts[first:stop]).strip()


def _turns(text: str) -> list[tuple[int, str]]:
    found = []
    for match in _TURNS.finditer(text):
        kind = match.lastgroup or ""
        role = {"instruction": "user", "answer": "assistant"}.get(kind, match.group(kind).lower())
        system = _SYSTEM.match(text, match.end() + len(text[match.end() :]) - len(text[match.end() :].lstrip()))
        if kind == "instruction" and system:
            found += [(match.start(), "system"), (system.end(), role)]
        else:
            found.append((match.start(), role))
    return found


def _lines(text: str) -> list[tuple[int, str]]:
    return [(0, ""), *((each.end(), "") for each in _LINES.finditer(text) if 0 < each.end() < len(text))]


def _sentences(text: str) -> list[tuple[int, str]]:
    return [(0, ""), *((each.end(), "") for each in _SENTENCES.finditer(text) if 0 < each.end() < len(text))]


def _small(pieces: Pieces, special: Sequence[bool], by: str) -> tuple[Part, ...]:
    if by in ("turns", "lines", "sentences"):
        raise AttributionError(
            f"The text of these tokens is not known, so it cannot be cut into {by}. Give the data with its tokenizer, "
            "or places of your own."
        )
    if by == "tokens":
        return tuple(Part(i, i + 1, f"token {i}", text.strip()) for i, text in enumerate(pieces.texts))
    words = words_in(pieces, special)
    return tuple(Part(each.first, each.stop, f"word {i}", each.text) for i, each in enumerate(words))


def _own_cuts(pieces: Pieces, cuts: Sequence[int]) -> tuple[Part, ...]:
    length = len(pieces.texts)
    wrong = next((each for each in cuts if not 0 <= each < length), None)
    if wrong is not None:
        raise AttributionError(f"There is no token at place {wrong} to cut at; give 0 to {length - 1}.")
    edges = [0, *sorted({each for each in cuts if each > 0}), length]
    return tuple(
        Part(first, stop, f"part {number}", _said(pieces, first, stop))
        for number, (first, stop) in enumerate(pairwise(edges), 1)
    )
