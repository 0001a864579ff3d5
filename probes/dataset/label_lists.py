"""A labels.csv beside images: which image has which label, each listed once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from probes.dataset.files import MAX_MEMBERS, Array, short, shown
from probes.dataset.targets import as_labels
from probes.dataset.trees import Tree
from probes.errors import DataError

NAMES = ("labels.csv", "labels.tsv")
FILES = ("file", "filename", "file_name", "path", "image")
LABELS = ("label", "class", "target")
MAX_BYTES = 2**28


@dataclass(frozen=True)
class LabelList:
    """Say what a labels.csv says: images in its order, their labels, the column of these, the columns left out."""

    images: tuple[str, ...]
    labels: Array
    label: str
    not_used: tuple[str, ...]


def is_label_list(name: str) -> bool:
    """Tell whether a file is a list of labels by its name."""
    return PurePosixPath(name).name.lower() in NAMES


def read_label_list(tree: Tree, member: str, images: list[str], label: str) -> LabelList:
    """Read a list; DataError by its row for an image that is missing, repeated or has no label, and for one not listed.

    label: the column of labels, or "" to look for label, class or target.
    """
    name = shown(member)
    rows = _rows(name, tree.read(member, MAX_BYTES))
    header = [each.strip() for each in next(rows, (0, []))[1]]
    file_at, label_at = (
        _column(name, header, FILES, "files"),
        _column(name, header, (label,) if label else LABELS, "labels"),
    )
    known = _known(member, images)
    listed: dict[str, str] = {}
    for row, values in rows:
        image, value = _row(name, row, values, len(header), file_at, label_at)
        path = known.get(image)
        if path is None:
            raise DataError(
                f"{name}: row {row} names {shown(image)!r}, which is not there. Add the image or drop the row."
            )
        if path in listed:
            raise DataError(f"{name}: row {row} names {shown(image)!r} again. List every image once.")
        listed[path] = value
    missing = next((each for each in images if each not in listed), None)
    if missing is not None:
        raise DataError(f"{name} does not list the image {shown(missing)!r}. Give it a label or take it out.")
    labels = as_labels(np.array(list(listed.values()), dtype=object))
    left = tuple(shown(each) for place, each in enumerate(header) if place not in (file_at, label_at))
    return LabelList(tuple(listed), labels, header[label_at], left)


def _rows(name: str, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield row numbers (the first below the names is 1) and cells, without empty rows."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), skipinitialspace=True)
    try:
        for row, values in enumerate(each for each in reader if each):
            if row > MAX_MEMBERS:
                raise DataError(f"{name} has over {MAX_MEMBERS} rows. Give a smaller part of the data.")
            yield row, values
    except csv.Error as error:
        raise DataError(f"{name} is no readable table ({short(error)}). Write it again.") from error


def _column(name: str, header: list[str], wanted: tuple[str, ...], what: str) -> int:
    lowered = [each.lower() for each in header]
    found = [place for place, each in enumerate(header) if each in wanted or lowered[place] in wanted]
    if len(found) == 1:
        return found[0]
    held = ", ".join(repr(shown(each)) for each in header[:12]) or "nothing"
    number = "no" if not found else "more than one"
    raise DataError(f"{name} has {number} column of {what} ({', '.join(wanted)}); it has {held}. Name one of them so.")


def _row(name: str, row: int, values: list[str], width: int, file_at: int, label_at: int) -> tuple[str, str]:
    if len(values) != width:
        raise DataError(f"{name}: row {row} has {len(values)} values, the first line names {width}. Mend it.")
    image, label = values[file_at].strip().replace("\\", "/"), values[label_at].strip()
    if not label:
        raise DataError(f"{name}: row {row} ({shown(image)!r}) has no label. Fill it in or leave it out.")
    return image.removeprefix("./"), label


def _known(member: str, images: list[str]) -> Mapping[str, str]:
    """Return the images by how a list may name them: from where it lies, from the top, or from their common folder."""
    here = PurePosixPath(member).parent
    known: dict[str, str] = {each: each for each in images}
    for each in images:
        if PurePosixPath(each).is_relative_to(here):
            known.setdefault(PurePosixPath(each).relative_to(here).as_posix(), each)
    parents = {PurePosixPath(each).parent for each in images}
    if len(parents) == 1:
        known.update({PurePosixPath(each).name: each for each in images if PurePosixPath(each).name not in known})
    return known
