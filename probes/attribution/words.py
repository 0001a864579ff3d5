"""From tokens to words: what a row of tokens says, where each token stands in it, and which tokens are one word.

Where the tokenizer is known the text of a token is what decoding it adds to the tokens before it, whatever marks the
vocabulary uses; else the marks are read: "Ġ", "▁" or a space begin a word, "##" goes on, "Ċ" is a new line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.data import Batches

Floats = NDArray[np.float64]
Show = Callable[[NDArray[Any]], str]
_BROKEN = "\ufffd"  # what decoding gives for a part of a character
_LONGEST_CHARACTER = 4  # bytes of UTF-8
_SHOWN = 200  # characters that `show` gives at most
_MARKS = ("Ġ", "▁", "##", "Ċ")


@dataclass(frozen=True)
class Pieces:
    """What tokens say, by place.

    texts: what each adds to the text, "\\n" for a new line; of tokens that are bytes of one character the first has
    it. joined: whether a token goes on with the character that the one before it began. known: whether a tokenizer (or
    the marks of one) told where words begin.
    """

    texts: tuple[str, ...]
    joined: tuple[bool, ...]
    known: bool

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each token begins in the text."""
        lengths = [len(each) for each in self.texts]
        return tuple(int(each) for each in np.concatenate([[0], np.cumsum(lengths)])[: len(lengths)])


@dataclass(frozen=True)
class Word:
    """Tokens [first, stop) that are one word; special: set apart, as [CLS], padding or the beginning of the text."""

    first: int
    stop: int
    text: str
    special: bool


def pieces_of(batches: Batches, ids: Sequence[int], names: Sequence[str] = ()) -> Pieces:
    """Return what each token says: by decoding where the tokenizer is known, else by the marks of the names."""
    tokenizer = str(batches.about.get("tokenizer", ""))
    if batches.show is None or tokenizer.startswith("ids in "):
        return pieces_by_marks(names or [str(each) for each in ids])
    return pieces_by_decoding(batches.show, ids)


def pieces_by_marks(names: Sequence[str]) -> Pieces:
    """Read what tokens say from their names in the vocabulary; without marks each is a word of its own."""
    none = (False,) * len(names)
    if any(name.startswith("##") for name in names):
        return Pieces(tuple(name[2:] if name.startswith("##") else f" {name}" for name in names), none, True)
    if any(name[:1] in ("Ġ", "▁", " ", "Ċ") for name in names):
        plain = (name.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n") for name in names)
        return Pieces(tuple(plain), none, True)
    return Pieces(tuple(f" {name}" for name in names), none, False)


def pieces_by_decoding(show: Show, ids: Sequence[int]) -> Pieces:
    """Find what each token adds to the text by decoding it behind the one before it."""
    texts, joined = [""] * len(ids), [False] * len(ids)
    before = first = 0  # where the last whole character began, and where the one that is read begins
    for i in range(len(ids)):
        said = added(show, ids[before:first], ids[first : i + 1])
        whole = not said.endswith(_BROKEN) or i + 1 - first >= _LONGEST_CHARACTER or i + 1 == len(ids)
        joined[i] = i > first
        if whole:
            texts[first] = said.replace("↵", "\n").replace("→", "\t")
            before, first = first, i + 1
    return Pieces(tuple(texts), tuple(joined), True)


def added(show: Show, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return what tokens say behind others: what decoding them adds to the text."""
    alone = show(np.array(ids))
    if not len(before):
        return alone
    head, both = show(np.array(before)), show(np.array([*before, *ids]))
    if both.startswith(head) and len(both) < _SHOWN:
        return both[len(head) :]
    return alone if alone.startswith("##") else f" {alone}"


def words_of(case: Case) -> tuple[Word, ...]:
    """Return the words of a case of text, in order; each token is in one of them."""
    ids = case.raw[0].tolist()
    return words_in(pieces_of(case.objective.batches, ids, case.names), case.special)


def words_in(pieces: Pieces, special: Sequence[bool]) -> tuple[Word, ...]:
    """Join tokens into words: at white space, between letters and other signs, at special tokens a new one begins."""
    starts = [i for i in range(len(pieces.texts)) if i == 0 or _begins(pieces, special, i)]
    ends = [*starts[1:], len(pieces.texts)]
    return tuple(
        Word(first, stop, "".join(pieces.texts[first:stop]).strip(" "), bool(special[first]))
        for first, stop in zip(starts, ends, strict=True)
        if stop > first
    )


def merged(values: NDArray[Any], words: Sequence[Word]) -> Floats:
    """Add up the values of the tokens of each word, (..., T) -> (..., W): the sum over words is that over tokens."""
    if not words:
        return np.zeros((*values.shape[:-1], 0))
    return np.asarray(np.add.reduceat(values.astype(np.float64), [each.first for each in words], axis=-1))


def special_share(values: NDArray[Any], special: Sequence[bool]) -> float:
    """Return the share of special tokens in the sizes of all values, 0 to 1: how much falls on [CLS] or the like."""
    sizes = np.abs(values.astype(np.float64))
    total = float(sizes.sum())
    return float(sizes[..., np.asarray(special, bool)].sum()) / total if total else 0.0


def doubts_of(pieces: Pieces, values: NDArray[Any] | None = None, special: Sequence[bool] = ()) -> tuple[str, ...]:
    """Say what a reader of words should know: cut characters, an unknown tokenizer, special tokens that lead."""
    found = []
    cut = [i for i, each in enumerate(pieces.joined) if each and not pieces.joined[i - 1]]
    if cut:
        found.append(
            f"{len(cut)} {'characters are' if len(cut) > 1 else 'character is'} cut into bytes, each a token (first at "
            f"place {cut[0] - 1}); the bytes of a character are shown together."
        )
    if not pieces.known:
        found.append("The tokenizer is not known: every token is shown for itself.")
    share = special_share(values, special) if values is not None and len(special) else 0.0
    if share > 0.5:
        found.append(
            f"{share:.0%} of the attribution falls on special tokens, where models park attention that has nowhere to "
            "go; look at the others by a scale of their own."
        )
    return tuple(found)


def _begins(pieces: Pieces, special: Sequence[bool], i: int) -> bool:
    """Tell whether a new word begins with a token."""
    if pieces.joined[i]:
        return False
    here = pieces.texts[i]
    if special[i] or special[i - 1] or not here:
        return True
    before = "".join(pieces.texts[max(0, i - _LONGEST_CHARACTER) : i])
    return _parted(before, here)


def _parted(before: str, here: str) -> bool:
    last, first = before[-1:], here[0]
    if first.isspace() or last in ("", "\n"):
        return True
    if last.isspace():
        return False
    if first in "'’" and len(here) > 1 and here[1].isalpha():
        return False
    return _is_wide(first) or _is_letter(last) != _is_letter(first)


def _is_letter(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign).startswith("M") or sign == _BROKEN


def _is_wide(sign: str) -> bool:
    """Tell whether a sign is one of a script that is written without spaces."""
    return sign.isalpha() and unicodedata.east_asian_width(sign) in "WF" and not "\uac00" <= sign <= "\ud7a3"
