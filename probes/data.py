"""Files, arrays, text -> `Batches`: finite examples in a fixed order, as they enter the model.

The order is that of the files, or, with a seed, `numpy.random.default_rng(seed).permutation(N)`; then the first
`examples` are taken. uint8 inputs are divided by 255, floats are kept, channels come first, and mean and std are
applied for each channel. The readers of the single formats are in `probes.dataset`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.dataset.classes import map_classes, order_doubts
from probes.dataset.examples import Caption, Examples, Own
from probes.dataset.files import Array, Source, shown
from probes.dataset.formats import find_examples
from probes.dataset.pairs import captions_of
from probes.dataset.pictures import contact_sheet
from probes.dataset.preprocessing import Preprocessing
from probes.dataset.scaling import channels_first, name_of, scaled_inputs
from probes.dataset.summary import (
    balance,
    channels,
    copies,
    copy_doubts,
    id_doubts,
    missing_doubts,
    repeated_ids,
    samples,
)
from probes.dataset.targets import read_targets
from probes.dataset.trees import hash_of_path
from probes.errors import DataError
from probes.specs import DataSpec

SEEN = 1000
SHOWN = 10
MOST_SHUFFLED = 2**27
MOST_IDS = 200_000
LARGEST_LABEL = 1000


@dataclass(frozen=True)
class Batches:
    """Hold the chosen examples.

    inputs: float32 (N, C, H, W) images or (N, F) rows, int64 (N, T) token ids. targets: int64 (N,) classes; float32
    (N,) or (N, K) values; int64 (N, T) next tokens aligned to the inputs, -100 where nothing counts, or the token ids
    of captions. ids: stable names. sha256: of dtype, shape and bytes of inputs and targets. about: source, format,
    mean, std, shuffle, of. show: token ids -> their text, where the tokenizer is known. captions: texts and words,
    where the targets are captions.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    ids: tuple[str, ...]
    sha256: str
    classes: tuple[str, ...]
    doubts: tuple[str, ...]
    about: Mapping[str, Any]
    show: Callable[[Array], str] | None = field(default=None, repr=False, compare=False)
    captions: tuple[Caption, ...] = field(default=(), repr=False, compare=False)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.ids)


@dataclass(frozen=True)
class Chosen:
    """Keep chosen examples and what is known of them. rows: their indices; targets: theirs; labels: of all chosen."""

    spec: DataSpec
    found: Examples
    order: Array  # of all that were chosen
    rows: Array  # of those that were read
    raw: Array
    inputs: Array
    targets: Array
    labels: Array | None
    classes: tuple[str, ...]
    doubts: tuple[str, ...]


def read_batches(
    spec: DataSpec,
    names: Mapping[str, str] | None = None,
    own_context: int = 0,
    own_tokenizer: Path | None = None,
    own_vocabulary: int = 0,
    own_classes: tuple[str, ...] = (),
    own_preprocessing: Preprocessing | None = None,
) -> Batches:
    """Read what a DataSpec chooses.

    names: the original name of a path, where that is another. own_*: what the model brings along, where it is known:
    its longest context (what a context of 0 means at most, see `context_of`), the tokenizer.json beside it (what the
    tokenizer "auto" means), how many tokens it knows (`vocabulary_of`), the names of its classes in its order,
    and how images with captions become inputs. Raises DataError, naming the file, the value found and what to do.
    """
    with _in_words(spec):
        own = Own(own_context, own_vocabulary, own_tokenizer, own_classes, own_preprocessing)
        read = _read(spec, names or {}, own, None)
        x, y = torch.from_numpy(read.inputs), torch.from_numpy(_typed(read.targets))
        ids = tuple(read.found.name_of(int(each)) for each in read.order)
        return Batches(
            inputs=x,
            targets=y,
            ids=ids,
            sha256=hash_of(x, y),
            classes=read.classes,
            doubts=(*read.doubts, *id_doubts(ids)),
            about=about(read.spec, read.found),
            show=read.found.show,
            captions=captions_of(read.found, read.order),
        )


def preview(
    spec: DataSpec,
    count: int = SHOWN,
    names: Mapping[str, str] | None = None,
    own: Own | None = None,
) -> dict[str, Any]:
    """Describe data for the page, as JSON: counts, shape, classes, ranges, copies, and the first examples.

    shape, range and channels are those of the inputs as they enter the model; these and the copies are of the first
    1000 chosen at most ("seen").
    """
    with _in_words(spec):
        read = _read(spec, names or {}, own or Own(), SEEN)
    found, inputs = read.found, read.inputs
    following, captions = read.labels is None, captions_of(found, read.rows[:count])
    counts = [] if following or read.labels is None else balance(read.labels, read.classes)
    labels = [] if following else [_label(each, read.classes) for each in read.targets]
    twins = copies(found, read.rows, inputs, labels or None)
    ids = [found.name_of(int(each)) for each in read.order[:MOST_IDS]]
    return {
        "examples": chosen_count(spec, found),
        "kind": found.kind,
        "targets": "captions"
        if found.captions
        else "next tokens"
        if following
        else "classes"
        if read.classes
        else "values",
        "shape": list(inputs.shape[1:]),
        "dtype": str(read.raw.dtype),
        "range": [float(inputs.min()), float(inputs.max())],
        "channels": channels(inputs, _channel_names(found)),
        "classes": counts,
        "own_classes": list((own or Own()).classes),
        "labels": labels[:count],
        "samples": samples(found, read.rows[:count], read.raw, labels, [each.text for each in captions]),
        "sheet": contact_sheet(channels_first(read.raw[:count]), 5) if read.raw.ndim in (3, 4) else None,
        "lines": list(found.lines[: count + 1]),
        "duplicates": {**twins, **repeated_ids(ids)},
        "about": about(read.spec, found),
        "doubts": [*copy_doubts(twins), *id_doubts(ids), *missing_doubts(counts), *read.doubts],
    }


def inspect_data(path: Path) -> dict[str, Any]:
    """Say what a file or folder of data is, as JSON; raises only DataError, where it is refused.

    Keys: name, kind ("data"), format, verdict ("ok" or "warning"), reason (the doubts), sha256 (of a folder: over the
    names and hashes of its files), examples, shape, dtype, range, classes, doubts, duplicates, and what else
    `preview` finds but for pictures.
    """
    seen = preview(DataSpec((str(path),)))
    with _in_words(DataSpec((str(path),))):
        sha256 = hash_of_path(Source(path, shown(path.name)))
    kept = ("examples", "shape", "dtype", "range", "channels", "classes", "targets", "duplicates", "doubts", "about")
    return {
        "name": shown(path.name),
        "kind": "data",
        "format": seen["about"]["format"],
        "verdict": "warning" if seen["doubts"] else "ok",
        "reason": " ".join(seen["doubts"]),
        "sha256": sha256,
        **{key: seen[key] for key in kept},
    }


def hash_of(*tensors: torch.Tensor) -> str:
    """Return the sha256 over dtype, shape and bytes of tensors."""
    digest = hashlib.sha256()
    for each in tensors:
        digest.update(f"{each.dtype} {tuple(each.shape)}\n".encode())
        digest.update(each.contiguous().numpy().data)
    return digest.hexdigest()


def choose(spec: DataSpec, found: Examples, most: int | None = None) -> tuple[Array, tuple[str, ...]]:
    """Return the indices of the chosen examples in their order (the first `most` of them), and doubts."""
    if found.count == 0:
        raise DataError(f"{name_of(found)} holds no examples. Give a file with some.")
    if spec.examples < 0:
        raise DataError(f"{spec.examples} examples were asked for. Give a number, or 0 for all.")
    count = len(range(chosen_count(spec, found))[:most])
    few = spec.examples > found.count
    doubts = (f"{spec.examples} examples were asked for, the data has {found.count}: all are taken.",) if few else ()
    if spec.shuffle is None:
        return np.arange(count), doubts
    if spec.shuffle < 0:
        raise DataError(f"the seed of the order is {spec.shuffle}. Give 0 or more.")
    if found.count > MOST_SHUFFLED:
        raise DataError(f"{name_of(found)} has {found.count} examples, too many to shuffle. Leave the seed empty.")
    return np.random.default_rng(spec.shuffle).permutation(found.count)[:count], doubts


def chosen_count(spec: DataSpec, found: Examples) -> int:
    """Return how many examples are chosen."""
    return min(spec.examples or found.count, found.count)


def about(spec: DataSpec, found: Examples) -> dict[str, Any]:
    """Return what there is to know about the data besides the numbers, as JSON."""
    mine: dict[str, Any] = {"format": found.format, "mean": list(spec.mean), "std": list(spec.std)}
    if spec.classes:
        mine["class_order"] = list(spec.classes)
    return {**found.about, **mine, "shuffle": spec.shuffle, "of": found.count}


def _read(spec: DataSpec, names: Mapping[str, str], own: Own, most: int | None) -> Chosen:
    """Read the chosen examples, `most` of them at most."""
    found = find_examples(spec, names, own)
    order, doubts = choose(spec, found, most if found.labels is None else None)
    rows = order[:most]
    labels, classes, noted = _labels(spec, found, own)
    taken = found.take(rows)
    if found.mean and not (spec.mean or spec.std):
        spec = replace(spec, mean=found.mean, std=found.std)
    inputs, changes = scaled_inputs(spec, found, taken.inputs, rows)
    targets = taken.targets if labels is None else labels[rows]
    if targets is None:
        raise ValueError("a reader gave neither labels nor next tokens")
    doubts = (*found.doubts, *noted, *taken.doubts, *doubts, *changes)
    chosen = None if labels is None else labels[order]
    return Chosen(spec, found, order, rows, taken.inputs, inputs, targets, chosen, classes, doubts)


def _labels(spec: DataSpec, found: Examples, own: Own) -> tuple[Array | None, tuple[str, ...], tuple[str, ...]]:
    """Return all targets, the names of their classes, and doubts; in the model's order where it was chosen."""
    if found.labels is None:
        if spec.classes:
            raise DataError(f"{name_of(found)} has no classes to bring into an order. Leave the names of classes out.")
        return None, (), ()
    targets, classes, doubts = found.labels, found.classes, tuple[str, ...]()
    if not classes and not (found.as_is and targets.ndim > 2):
        targets, classes, doubts = read_targets(targets, name_of(found))
    if not spec.classes:
        return targets, classes, (*doubts, *order_doubts(classes, own.classes))
    targets, moved = map_classes(targets, classes, spec.classes, name_of(found))
    return targets, tuple(map(shown, spec.classes)), (*doubts, *moved)


def _typed(targets: Array) -> Array:
    return np.ascontiguousarray(targets, np.float32 if targets.dtype.kind == "f" else np.int64)


def _label(target: Any, classes: tuple[str, ...]) -> Any:
    array = np.asarray(target)
    shape = " x ".join(str(each) for each in array.shape)
    return classes[int(target)] if classes else array.tolist() if array.size <= LARGEST_LABEL else f"{shape} values"


def _channel_names(found: Examples) -> tuple[str, ...]:
    return tuple(map(str, found.about.get("features", ()))) if found.kind == "rows" else ()


@contextmanager
def _in_words(spec: DataSpec) -> Iterator[None]:
    """Turn what the machine itself refuses into a sentence."""
    name = ", ".join(shown(Path(each).name) for each in spec.files[:2])
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{name} needs more memory than there is. Choose fewer examples, or smaller data.") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}. Check the file.") from error
