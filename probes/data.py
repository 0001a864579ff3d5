"""Files, arrays, text -> `Batches`: finite examples in a fixed order, as they enter the model.

The order is that of the files, or, with a seed, `numpy.random.default_rng(seed).permutation(N)`; then the first
`examples` are taken. uint8 inputs are divided by 255, floats are kept, channels come first, and mean and std are
applied for each channel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.dataset.files import Array, Examples, words
from probes.dataset.formats import find_examples
from probes.dataset.images import contact_sheet
from probes.dataset.targets import read_targets
from probes.errors import DataError
from probes.specs import DataSpec, ModelSpec

SEEN = 1000
MAX_INPUT_BYTES = 8 * 2**30
POSITIONS = ("wpe.weight", "position_embeddings.weight", "position_embedding.weight")


@dataclass(frozen=True)
class Batches:
    """Hold the chosen examples.

    inputs: float32 (N, C, H, W) images or (N, F) rows, int64 (N, T) token ids. targets: int64 (N,) classes; float32
    (N,) or (N, K) values; int64 (N, T) next tokens aligned to the inputs, -100 where nothing counts. ids: stable
    names. sha256: of dtype, shape and bytes of inputs and targets. about: source, format, mean, std, shuffle, of.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    ids: tuple[str, ...]
    sha256: str
    classes: tuple[str, ...]
    doubts: tuple[str, ...]
    about: Mapping[str, Any]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.ids)


def read_batches(spec: DataSpec, names: Mapping[str, str] | None = None, own_context: int = 0) -> Batches:
    """Read what a DataSpec chooses.

    names: the original name of a path, where that is another. own_context: what a context of 0 means at most, see
    `context_of`. Raises DataError, naming the file, the value found and what to do.
    """
    found = find_examples(spec, names or {}, own_context)
    chosen, doubts = choose(spec, found)
    raw, met = found.take(chosen)
    targets, classes, noted = _targets(found)
    inputs, changes = _inputs(spec, found, raw, [found.name_of(int(each)) for each in chosen[:1]])
    x, y = torch.from_numpy(inputs), torch.from_numpy(_typed(targets[chosen]))
    return Batches(
        inputs=x,
        targets=y,
        ids=tuple(found.name_of(int(each)) for each in chosen),
        sha256=hash_of(x, y),
        classes=classes,
        doubts=(*found.doubts, *noted, *met, *doubts, *changes),
        about=about(spec, found),
    )


def context_of(model: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the longest context of a language model: its argument or the rows of its position table; 0 if unknown.

    shapes: of the checkpoint's tensors.
    """
    said = model.arguments.get("context", 0)
    tables = [shape[0] for name, shape in shapes.items() if name.endswith(POSITIONS) and len(shape) == 2]
    return int(said) or (tables[0] if len(tables) == 1 else 0)


def preview(spec: DataSpec, count: int = 12, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Describe data for the page, as JSON: counts, shape, classes, value range, a contact sheet or the first lines.

    shape and range are those of the inputs as they enter the model; the range is over the first 1000 chosen at most.
    """
    found = find_examples(spec, names or {})
    chosen, doubts = choose(spec, found)
    seen = chosen[:SEEN]
    raw, met = found.take(seen)
    targets, classes, noted = _targets(found)
    inputs, changes = _inputs(spec, found, raw, [found.name_of(int(each)) for each in seen[:1]])
    sheet = contact_sheet(channels_first(raw[:count])) if raw.ndim in (3, 4) else None
    return {
        "examples": len(chosen),
        "shape": list(inputs.shape[1:]),
        "dtype": str(raw.dtype),
        "range": [float(inputs.min()), float(inputs.max())],
        "classes": _counts(targets[chosen], classes),
        "labels": [_label(each, classes) for each in targets[seen[:count]]] if found.kind != "tokens" else [],
        "sheet": sheet,
        "lines": list(found.lines[: count + 1]) if not sheet else [],
        "about": about(spec, found),
        "doubts": [*found.doubts, *noted, *met, *doubts, *changes],
    }


def hash_of(*tensors: torch.Tensor) -> str:
    """Return the sha256 over dtype, shape and bytes of tensors."""
    digest = hashlib.sha256()
    for each in tensors:
        digest.update(f"{each.dtype} {tuple(each.shape)}\n".encode())
        digest.update(each.contiguous().numpy().data)
    return digest.hexdigest()


def choose(spec: DataSpec, found: Examples) -> tuple[Array, tuple[str, ...]]:
    """Return the indices of the chosen examples in their order, and doubts."""
    if len(found) == 0:
        raise DataError(f"{_files(found)} holds no examples. Give a file with some.")
    if spec.examples < 0:
        raise DataError(f"{spec.examples} examples were asked for. Give a number, or 0 for all.")
    order = np.arange(len(found))
    if spec.shuffle is not None:
        if spec.shuffle < 0:
            raise DataError(f"the seed of the order is {spec.shuffle}. Give 0 or more.")
        order = np.random.default_rng(spec.shuffle).permutation(len(found))
    few = spec.examples > len(found)
    doubts = (f"{spec.examples} examples were asked for, the data has {len(found)}: all are taken.",) if few else ()
    return (order[: spec.examples] if spec.examples else order), doubts


def about(spec: DataSpec, found: Examples) -> dict[str, Any]:
    """Return what there is to know about the data besides the numbers, as JSON."""
    mine = {"format": found.format, "mean": list(spec.mean), "std": list(spec.std)}
    return {**found.about, **mine, "shuffle": spec.shuffle, "of": len(found)}


def channels_first(raw: Array) -> Array:
    """Turn (N, H, W) into (N, 1, H, W) and (N, H, W, 1 or 3) into (N, C, H, W); keep what is so already."""
    if raw.ndim == 3:
        return raw[:, None]
    if raw.ndim == 4 and raw.shape[3] in (1, 3) and raw.shape[1] not in (1, 3):
        return raw.transpose(0, 3, 1, 2)
    return raw


def _targets(found: Examples) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    if found.kind == "tokens":
        return found.targets, found.classes, ()
    if found.classes:
        return found.targets, found.classes, ()
    return read_targets(found.targets, _files(found))


def _typed(targets: Array) -> Array:
    return np.ascontiguousarray(targets, np.float32 if targets.dtype.kind == "f" else np.int64)


def _inputs(spec: DataSpec, found: Examples, raw: Array, first: list[str]) -> tuple[Array, list[str]]:
    if found.kind == "tokens":
        if spec.mean or spec.std:
            raise DataError(f"{_files(found)} holds tokens, which are not normalised. Leave mean and std empty.")
        return np.ascontiguousarray(raw, np.int64), []
    if raw.size * 4 > MAX_INPUT_BYTES:
        amount = f"{len(raw)} examples of {raw[0].size} numbers"
        raise DataError(f"{_files(found)}: {amount} need more than {words(MAX_INPUT_BYTES)}. Choose fewer examples.")
    with np.errstate(over="ignore"):
        scaled = channels_first(raw).astype(np.float32)
    if raw.dtype == np.uint8:
        scaled /= np.float32(255)
    if not np.isfinite(scaled).all():
        row = int(np.argwhere(~np.isfinite(scaled))[0][0])
        raise DataError(
            f"{_files(found)}: example {row} of those chosen (from {first[0]} on) is not finite in float32. Mend it."
        )
    doubts = _layout_doubts(raw) + _scale_doubts(found, raw)
    return _normalise(spec, found, scaled, doubts), doubts


def _normalise(spec: DataSpec, found: Examples, inputs: Array, doubts: list[str]) -> Array:
    if not spec.mean and not spec.std:
        return np.ascontiguousarray(inputs)
    channels = inputs.shape[1]
    mean = _per_channel(spec.mean or (0.0,), "mean", channels, found)
    std = _per_channel(spec.std or (1.0,), "std", channels, found)
    if (std <= 0).any():
        raise DataError(f"{_files(found)}: std is {list(spec.std)}; every value must be above 0.")
    low, high = float(inputs.min()), float(inputs.max())
    if mean.max() > high or mean.min() < low:
        doubts.append(f"the mean {list(spec.mean)} lies outside of the inputs, which run from {low:.4g} to {high:.4g}.")
    shape = (1, -1) + (1,) * (inputs.ndim - 2)
    return np.ascontiguousarray((inputs - mean.reshape(shape)) / std.reshape(shape))


def _per_channel(values: tuple[float, ...], what: str, channels: int, found: Examples) -> Array:
    if len(values) not in (1, channels):
        raise DataError(
            f"{_files(found)}: {what} has {len(values)} values, the inputs have {channels} channels. "
            f"Give 1 or {channels} values."
        )
    array = np.asarray(values, np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{_files(found)}: {what} is {list(values)}; every value must be finite.")
    return array


def _layout_doubts(raw: Array) -> list[str]:
    if raw.ndim == 4 and raw.shape[1] in (1, 3) and raw.shape[3] in (1, 3):
        return [f"shape {raw.shape} may mean channels first or last: taken as channels first."]
    return []


def _scale_doubts(found: Examples, raw: Array) -> list[str]:
    if raw.dtype == np.uint8 and found.kind == "rows":
        return [f"the rows of {raw.shape[1]} uint8 numbers are taken as pixels and divided by 255."]
    if found.kind == "images" and raw.dtype != np.uint8 and raw.size and float(raw.max()) > 16:
        return [f"the images are {raw.dtype} up to {float(raw.max()):.4g} and are not divided by 255: only uint8 is."]
    return []


def _counts(targets: Array, classes: tuple[str, ...]) -> list[list[Any]]:
    """Return [class, count] for each class."""
    if not classes:
        return []
    counts = np.bincount(targets, minlength=len(classes))
    return [[name, int(count)] for name, count in zip(classes, counts, strict=True)]


def _label(target: Any, classes: tuple[str, ...]) -> Any:
    return classes[int(target)] if classes else np.asarray(target).tolist()


def _files(found: Examples) -> str:
    return ", ".join(found.about.get("source", ())) or "the data"
