"""Captions of images: which image has which, the words of a caption, and their token ids."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from probes.dataset.encoders import encoded_by, read_tokenizer
from probes.dataset.examples import Caption, Own, Word
from probes.dataset.files import MAX_MEMBERS, Array, short, shown
from probes.dataset.trees import Tree
from probes.errors import DataError
from probes.specs import DataSpec

NAMES = ("captions.csv", "captions.tsv", "captions.jsonl")
FILES = ("file_name", "file", "filename", "path", "image")
CAPTIONS = ("caption", "text", "sentence")
MAX_BYTES = 2**28
LONGEST = 2000
_WORD = re.compile(r"\w+(?:['’.-]\w+)*|[^\w\s]+")
_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class Encoded:
    """Token ids of captions, (N, T) int64, each filled up with its own last token; words and texts; doubts."""

    ids: Array
    captions: tuple[Caption, ...]
    doubts: tuple[str, ...]
    tokenizer: str


def is_caption_list(name: str) -> bool:
    """Tell whether a file is a list of captions by its name."""
    return PurePosixPath(name).name.lower() in NAMES


def read_caption_list(tree: Tree, member: str, images: list[str], field: str) -> list[tuple[str, str]]:
    """Return image and caption of each row; DataError by its row for one that is missing or empty.

    An image may have several captions. field: the column of captions, or "" to look for caption, text or sentence.
    """
    name, content = shown(member), tree.read(member, MAX_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    rows = _json_rows(name, text) if name.lower().endswith(".jsonl") else _table_rows(name, text)
    known, pairs = known_as(member, images), []
    for number, row in rows:
        image = _cell(name, number, row, FILES, "file names").replace("\\", "/").removeprefix("./")
        caption = _cell(name, number, row, (field,) if field else CAPTIONS, "captions")
        if image not in known:
            raise DataError(
                f"{name}: row {number} names {shown(image)!r}, which is not there. Add the image or drop the row."
            )
        pairs.append((known[image], _checked(name, number, caption)))
    if not pairs:
        raise DataError(f"{name} lists no captions. Give the columns file_name and caption, one row a pair.")
    return pairs


def known_as(member: str, images: list[str]) -> Mapping[str, str]:
    """Return the images by how a list may name them: from where it lies, from the top, or from their common folder."""
    here = PurePosixPath(member).parent
    known: dict[str, str] = {each: each for each in images}
    for each in images:
        if PurePosixPath(each).is_relative_to(here):
            known.setdefault(PurePosixPath(each).relative_to(here).as_posix(), each)
    if len({PurePosixPath(each).parent for each in images}) == 1:
        for each in images:
            known.setdefault(PurePosixPath(each).name, each)
    return known


def encoded(name: str, texts: list[str], spec: DataSpec, own: Own) -> Encoded:
    """Turn captions into token ids by the tokenizer.json that is chosen, or the model's own; cut to its context."""
    path = own.tokenizer if spec.tokenizer == "auto" else None
    if spec.tokenizer not in ("auto", "bytes", "characters"):
        tokenizer, about = tokenizer_of(name, spec.tokenizer)
    elif path is not None:
        tokenizer, about = read_tokenizer(name, path), "tokenizer.json of the checkpoint"
    else:
        raise DataError(
            f"{name}: captions need the tokenizer of the model. Bring its tokenizer.json in the checkpoint's folder (a "
            "zip of the whole Hugging Face folder), choose one, or give token ids (input_ids) in an .npz."
        )
    limit = spec.context or own.context
    rows = [_row(name, tokenizer, text, limit) for text in texts]
    cut = sum(each[2] for each in rows)
    doubts = (f"{cut} of {len(texts)} captions have more than {limit} tokens and are cut.",) if cut else ()
    return Encoded(padded([each[0] for each in rows]), tuple(each[1] for each in rows), doubts, about)


def tokenizer_of(name: str, path: str) -> tuple[Tokenizer, str]:
    """Read a tokenizer.json by its path; return it and what it is called."""
    from pathlib import Path

    return read_tokenizer(name, Path(path)), shown(Path(path).name)


def padded(rows: list[list[int]]) -> Array:
    """Lay rows of ids side by side, each filled up with its own last token: CLIP does not look behind the first end."""
    width = max(map(len, rows))
    return np.array([[*each, *[each[-1]] * (width - len(each))] for each in rows], np.int64)


def from_ids(ids: Array, token: Callable[[int], str]) -> tuple[Caption, ...]:
    """Make captions of ids alone: tokens are joined up to "</w>" where the tokenizer writes it, else each is a word."""
    return tuple(_caption_of([int(each) for each in row], token) for row in ids)


def _caption_of(row: list[int], token: Callable[[int], str]) -> Caption:
    last = row.index(row[-1])  # the first end token; the same one fills the row
    names = [token(each) for each in row[1:last]]
    joins = any(each.endswith(_END_OF_WORD) for each in names)
    words, start = [], 1
    for place, each in enumerate(names, 1):
        if not joins or each.endswith(_END_OF_WORD) or place == len(names):
            text = "".join(names[start - 1 : place]).replace(_END_OF_WORD, "")
            words.append(Word(shown(text), start, place + 1))
            start = place + 1
    return Caption(" ".join(each.text for each in words), tuple(words))


def _row(name: str, tokenizer: Tokenizer, text: str, limit: int) -> tuple[list[int], Caption, bool]:
    made = encoded_by(name, tokenizer, text)
    ids, offsets = list(made.ids), list(made.offsets)
    special = list(made.special_tokens_mask)
    if len(ids) < 2:
        raise DataError(
            f"{name}: the caption {shown(text[:40])!r} has fewer than two tokens. Check the tokenizer.json."
        )
    cut = bool(limit) and len(ids) > limit
    if cut:  # as transformers does: the end token stays
        ids, offsets = [*ids[: limit - 1], ids[-1]], [*offsets[: limit - 1], offsets[-1]]
        special = [*special[: limit - 1], special[-1]]
    return ids, Caption(shown(text), tuple(_words(text, offsets, special))), cut


def _words(text: str, offsets: list[tuple[int, int]], special: list[int]) -> Iterator[Word]:
    """Give each word of a caption the tokens that lie in it; a word that was cut off has none and is left out."""
    for found in _WORD.finditer(text):
        places = [
            place
            for place, (begin, end) in enumerate(offsets)
            if begin < found.end() and end > found.start() and not special[place]
        ]
        if places:
            yield Word(shown(found.group()), places[0], places[-1] + 1)


def _json_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if number > MAX_MEMBERS:
            raise DataError(f"{name} has over {MAX_MEMBERS} rows. Give a smaller part of the data.")
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: row {number} is no JSON ({short(error)}). Give one object a line.") from error
        if not isinstance(value, dict):
            raise DataError(f"{name}: row {number} is a {type(value).__name__}. Give one JSON object a line.")
        yield number, value


def _table_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), skipinitialspace=True)
    try:
        rows = (each for each in reader if each)
        header = [each.strip() for each in next(rows, [])]
        for number, values in enumerate(rows, 1):
            if number > MAX_MEMBERS:
                raise DataError(f"{name} has over {MAX_MEMBERS} rows. Give a smaller part of the data.")
            if len(values) != len(header):
                raise DataError(
                    f"{name}: row {number} has {len(values)} values, the first line names {len(header)}. Captions with "
                    "commas need quotes."
                )
            yield number, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{name} is no readable table ({short(error)}). Write it again.") from error


def _cell(name: str, number: int, row: Mapping[str, Any], wanted: tuple[str, ...], what: str) -> str:
    lowered = {str(key).lower(): key for key in row}
    found = next((each for each in wanted if each in row), None) or next(
        (lowered[each] for each in wanted if each in lowered), None
    )
    if found is None:
        held = ", ".join(repr(shown(str(each))) for each in list(row)[:12]) or "nothing"
        raise DataError(f"{name}: row {number} has no {what} ({', '.join(wanted)}); it has {held}. Name one so.")
    value = row[found]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name}: row {number} has {str(value)[:40]!r} where a text is needed ({what}). Mend it.")
    return value.strip()


def _checked(name: str, number: int, caption: str) -> str:
    if len(caption) > LONGEST or any("\ud800" <= each <= "\udfff" for each in caption):
        raise DataError(
            f"{name}: row {number} has a caption of {len(caption)} characters, or with half a character (a lone "
            f"surrogate). Give at most {LONGEST} whole characters."
        )
    return " ".join(caption.split())
