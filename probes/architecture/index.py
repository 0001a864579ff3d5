"""What the models of torchvision and timm are made of: the names and shapes that `scripts/index_models.py` wrote.

No torch here, and none of the two libraries. The index only says which models are near, and of which sizes; what it
says is never trusted: `probes.models` builds the nearest and compares every tensor.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from probes.architecture.layers import Shape, Shapes

PATH = Path(__file__).resolve().parents[2] / "assets" / "models.json.gz"

Numbers = np.ndarray[Any, np.dtype[np.int32]]
Mark = tuple[int, int, int]
_OTHER = -2  # the shape of a tensor that no model has


@dataclass(frozen=True)
class Entry:
    """One architecture.

    names: "torchvision/resnet18"; all of them have exactly these tensors. arguments: with which it is built. first,
    last: its tensors in the index. classes, channels: (tensor, dimension, multiple) of the sizes that follow the number
    of classes and of input channels. headless: tensors that go when there are no classes. image: (tensor, dimension,
    tokens beside the grid, side of a patch) of the position table.
    """

    names: tuple[str, ...]
    arguments: Mapping[str, Any]
    first: int
    last: int
    classes: tuple[Mark, ...]
    channels: tuple[Mark, ...]
    headless: tuple[int, ...]
    image: tuple[int, int, int, int] | None


@dataclass(frozen=True, eq=False)
class Index:
    """All architectures. tensors: their names and shapes one after the other, as places in `names` and `shapes`."""

    versions: Mapping[str, str]
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    entries: tuple[Entry, ...]
    tensors: tuple[Numbers, Numbers]

    def tensors_of(self, entry: Entry) -> dict[str, Shape]:
        """Return names and shapes with a thousand classes and three channels, in the model's order."""
        names, shapes = (column[entry.first : entry.last] for column in self.tensors)
        return {self.names[name]: self.shapes[shape] for name, shape in zip(names, shapes, strict=True)}


@cache
def read_index(path: Path = PATH) -> Index:
    """Read the index; it is part of the app."""
    value = json.loads(gzip.decompress(path.read_bytes()))
    names = [np.concatenate([np.arange(a, a + n) for a, n in _pairs(each["tensors"])]) for each in value["models"]]
    shapes = [np.asarray(each["shapes"]) for each in value["models"]]
    ends = np.cumsum([0, *map(len, shapes)])
    entries = [_entry(each, int(ends[place]), int(ends[place + 1])) for place, each in enumerate(value["models"])]
    return Index(
        versions=value["versions"],
        names=tuple(value["names"]),
        shapes=tuple(tuple(each) for each in value["shapes"]),
        entries=tuple(entries),
        tensors=(np.concatenate(names).astype(np.int32), np.concatenate(shapes).astype(np.int32)),
    )


def nearest(index: Index, shapes: Shapes, count: int) -> list[tuple[Entry, float]]:
    """Return the entries most like these tensors, the best first, with the share that agrees (1: all do).

    A tensor whose shape differs counts half.
    """
    places = {name: place for place, name in enumerate(index.names)}
    sizes = {shape: place for place, shape in enumerate(index.shapes)}
    wanted = np.full(len(index.names), -1, np.int32)
    for name, shape in shapes.items():
        if name in places:
            wanted[places[name]] = sizes.get(shape, _OTHER)
    held = wanted[index.tensors[0]]
    points = 0.5 * (held != -1) + 0.5 * (held == index.tensors[1])
    starts = np.array([entry.first for entry in index.entries])
    lengths = np.array([entry.last - entry.first for entry in index.entries])
    shares = np.add.reduceat(points, starts) / np.maximum(lengths, len(shapes))
    best = np.argsort(-shares, kind="stable")[:count]
    return [(index.entries[place], float(shares[place])) for place in best]


def sizes_of(index: Index, entry: Entry, shapes: Shapes) -> dict[str, Any]:
    """Derive the arguments that the entry must be built with to have tensors of these shapes, as far as they say."""
    own = index.tensors_of(entry)
    names = list(own)
    found = dict(entry.arguments)
    heads = [names[place] for place, *_ in entry.classes]
    found["num_classes"] = _size(names, entry.classes, shapes, 1000)
    if entry.headless and not any(name in shapes for name in heads):
        found["num_classes"] = 0
    found["in_chans"] = _size(names, entry.channels, shapes, 3)
    return {**found, **_image(names, own, entry, shapes)}


def _size(names: list[str], marks: tuple[Mark, ...], shapes: Shapes, default: int) -> int:
    for place, dimension, multiple in marks:
        shape = shapes.get(names[place], ())
        if len(shape) > dimension and shape[dimension] % multiple == 0:
            return shape[dimension] // multiple
    return default


def _image(names: list[str], own: Shapes, entry: Entry, shapes: Shapes) -> dict[str, Any]:
    """Derive the side of image and patch from the position table and the first layer."""
    if entry.image is None:
        return {}
    place, dimension, beside, patch = entry.image
    table, usual = shapes.get(names[place], ()), own[names[place]]
    stem = shapes.get(names[entry.channels[0][0]], ()) if entry.channels else ()
    side = stem[-1] if len(stem) == 4 and stem[-1] == stem[-2] else patch
    if len(table) != len(usual) or (table[dimension] == usual[dimension] and side == patch):
        return {}
    grid = isqrt(max(table[dimension] - beside, 0))
    if not grid or grid * grid + beside != table[dimension]:
        return {}
    return {"img_size": grid * side, **({"patch_size": side} if side != patch else {})}


def _entry(value: Mapping[str, Any], first: int, last: int) -> Entry:
    marks = {name: tuple(tuple(each) for each in value.get(name, ())) for name in ("classes", "channels")}
    image = tuple(value["image"]) if "image" in value else None
    headless = tuple(value.get("headless", ()))
    names, arguments = tuple(value["names"]), value.get("arguments", {})
    return Entry(names, arguments, first, last, marks["classes"], marks["channels"], headless, image)


def _pairs(runs: list[int]) -> zip[tuple[int, int]]:
    return zip(runs[::2], runs[1::2], strict=True)
