"""Token ids -> examples: sequences that are their own targets, or sequences with a label each.

A document is cut into pieces of `context` predictions that overlap in one token, so that each of its tokens but the
first is predicted once. What is left of a piece is padded with id 0 in the inputs and -100 in the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.dataset.examples import Examples, Own, Taken
from probes.dataset.files import Array, Source
from probes.errors import DataError
from probes.specs import DataSpec

IGNORED = -100
DEFAULT_CONTEXT = 128
MAX_CONTEXT = 2**17
MAX_TOKENS = 2**28


@dataclass(frozen=True)
class Tokens:
    """Keep documents of token ids end to end.

    ids: (M,) integers, in memory or mapped from a file. starts: (D + 1,) where each document begins, and the end.
    counted: (M,) which of them count as targets; None: all. names: the ids that the file gives its documents.
    """

    ids: Array
    starts: Array
    counted: Array | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.starts) - 1

    def lengths(self) -> Array:
        """Return the tokens of each document."""
        return np.diff(self.starts)

    def name(self, source: Source, document: int) -> str:
        """Return the id of a document."""
        return self.names[document] if self.names else f"{source.stem}[{document}]"


def sequences(
    source: Source,
    format: str,
    tokens: Tokens,
    context: int,
    own: Own,
    about: Mapping[str, Any],
    doubts: tuple[str, ...] = (),
) -> Examples:
    """Cut documents into pieces of `context` predictions."""
    lengths = tokens.lengths()
    long = np.flatnonzero(lengths > 1)
    if len(long) < len(tokens):
        doubts += (f"{len(tokens) - len(long)} of {len(tokens)} texts have fewer than two tokens and are left out.",)
    first = np.concatenate([[0], np.cumsum(-(-(lengths[long] - 1) // context))])

    def where(index: int) -> tuple[int, int]:
        owner = int(np.searchsorted(first, index, "right")) - 1
        return int(long[owner]), (index - int(first[owner])) * context

    def take(chosen: Array) -> Taken:
        _check_amount(source, len(chosen), context)
        inputs = np.zeros((len(chosen), context), np.int32)
        targets = np.full(inputs.shape, IGNORED, np.int32)
        for row, index in enumerate(chosen):
            document, offset = where(int(index))
            begin = int(tokens.starts[document]) + offset
            end = min(begin + context + 1, int(tokens.starts[document + 1]))
            piece = _checked(source.name, tokens, document, begin, end, own)
            counts = True if tokens.counted is None else tokens.counted[begin + 1 : end]
            inputs[row, : len(piece) - 1] = piece[:-1]
            targets[row, : len(piece) - 1] = np.where(counts, piece[1:], IGNORED)
        return Taken(inputs, targets=targets)

    def name_of(index: int) -> str:
        document, offset = where(index)
        return f"{tokens.name(source, document)}:{offset}"

    return Examples(
        format=format,
        kind="tokens",
        count=int(first[-1]),
        take=take,
        name_of=name_of,
        doubts=doubts,
        about={"documents": len(tokens), **about, "context": context},
    )


def labelled(
    source: Source,
    format: str,
    tokens: Tokens,
    labels: Array,
    own: Own,
    about: Mapping[str, Any],
    pad: int | None = None,
) -> Examples:
    """Make each document one example with a label, cut to the model's context and padded at its end.

    pad: the id that fills; 0, and a doubt, where it is not known.
    """
    lengths = tokens.lengths()
    if not lengths.size or lengths.min() < 1:
        row = int(lengths.argmin()) + 1 if lengths.size else 0
        raise DataError(f"{source.name}: row {row} has no tokens. Leave it out.")
    width = min(int(lengths.max()), own.context or MAX_CONTEXT, MAX_CONTEXT)
    doubts = []
    if (cut := int((lengths > width).sum())) > 0:
        doubts.append(f"{cut} of {len(tokens)} texts have more than {width} tokens and are cut.")
    if pad is None and lengths.min() < width:
        doubts.append("shorter texts are filled with the token 0: is that the model's padding?")

    def take(chosen: Array) -> Taken:
        _check_amount(source, len(chosen), width)
        inputs = np.full((len(chosen), width), pad or 0, np.int32)
        for row, index in enumerate(chosen):
            begin = int(tokens.starts[index])
            end = min(begin + width, int(tokens.starts[index + 1]))
            piece = _checked(source.name, tokens, int(index), begin, end, own)
            inputs[row, : len(piece)] = piece
        return Taken(inputs)

    return Examples(
        format=format,
        kind="tokens",
        count=len(tokens),
        take=take,
        name_of=lambda index: tokens.name(source, index),
        labels=labels,
        doubts=tuple(doubts),
        about={**about, "context": width},
    )


def context_for(
    source: Source, spec: DataSpec, longest: int, own: Own, usual: int = DEFAULT_CONTEXT
) -> tuple[int, tuple[str, ...]]:
    """Return the tokens in a sequence and doubts: what was chosen, else the model's own, else `usual`."""
    if longest < 2:
        raise DataError(f"{source.name}: no text has two tokens, so nothing can be predicted. Give longer texts.")
    if not 0 <= spec.context <= MAX_CONTEXT:
        raise DataError(f"{source.name}: a context of {spec.context} tokens; give 1 to {MAX_CONTEXT}, or 0.")
    if spec.context:
        return spec.context, ()
    context = min(own.context or usual, longest - 1, MAX_CONTEXT)
    return context, () if own.context else (f"no context was given: sequences of {context} tokens are made.",)


def shower(decode: Callable[[list[int]], str] | None = None) -> Callable[[Array], str]:
    """Make a `show` for token ids: their text where it is known, else the ids."""
    if decode is None:
        return lambda row: " ".join(str(each) for each in row[:40])
    return lambda row: decode([int(each) for each in row[:80]])[:200].replace("\n", "↵").replace("\t", "→")


def check_ids(name: str, tokens: Tokens, chosen: Array, own: Own) -> None:
    """Raise DataError by position where a chosen document has an id that the model does not know."""
    for each in chosen:
        _checked(name, tokens, int(each), int(tokens.starts[each]), int(tokens.starts[each + 1]), own)


def _checked(name: str, tokens: Tokens, document: int, begin: int, end: int, own: Own) -> Array:
    """Return a stretch of ids; DataError by its position where the model does not know one."""
    piece = np.asarray(tokens.ids[begin:end]).astype(np.int64)
    most = own.vocabulary or 2**31
    if piece.size and (int(piece.max()) >= most or int(piece.min()) < 0):
        at = int(np.flatnonzero((piece >= most) | (piece < 0))[0])
        place = begin + at - int(tokens.starts[document])
        row = f" of row {document + 1}" if len(tokens) > 1 else ""
        raise DataError(
            f"{name}: the token at position {place}{row} is {int(piece[at])}, but the model knows {most:,} "
            f"(0 to {most - 1:,}). These tokens are another tokenizer's, or the file is of another kind."
        )
    return piece


def _check_amount(source: Source, count: int, width: int) -> None:
    if count * width > MAX_TOKENS:
        raise DataError(
            f"{source.name} gives over {MAX_TOKENS} tokens at context {width}. "
            f"Choose at most {MAX_TOKENS // width} examples, or give a smaller part."
        )
