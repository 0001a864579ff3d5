"""Labels as they lie in a file -> targets as a loss wants them, with the names of the classes."""

from __future__ import annotations

import numpy as np

from probes.dataset.files import Array, shown
from probes.errors import DataError

MAX_CLASSES = 100_000
MAX_NAME = 1000


def read_targets(labels: Array, name: str) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    """Return targets, class names and doubts.

    Strings (of any string dtype, or objects) become the indices of their sorted set; whole numbers (N,) or (N, 1)
    become int64 classes; floats become float32 values to regress on; (N, K) becomes float32, one column an output.
    """
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "buiUSO":
        labels = labels[:, 0]
    if labels.ndim > 2 or labels.dtype.kind not in "buifUSO":
        raise DataError(
            f"{name}: labels of type {labels.dtype} and shape {labels.shape}; give one number or string each."
        )
    if labels.dtype.kind in "USO":
        return _named(labels, name)
    if labels.dtype.kind == "f":
        return _floats(labels, name)
    return _many(labels) if labels.ndim == 2 else _whole(labels, name)


def as_labels(values: Array) -> Array:
    """Turn labels (objects: texts, numbers, or both) into whole numbers if all are such, else floats, else texts."""
    if all(isinstance(each, str) for each in values):
        plain = all(each.isascii() and "_" not in each for each in values)  # Python would read 1_2 as 12
        kinds: tuple[type, ...] = (np.int64, np.float64) if plain else ()
    elif any(isinstance(each, str) for each in values):
        return np.array([str(each) for each in values], dtype=object)
    else:
        kinds = (np.float64,) if any(isinstance(each, float) for each in values) else (np.int64, np.float64)
    for kind in kinds:
        try:
            return values.astype(kind)
        except (ValueError, OverflowError):
            continue
    return values


def _named(labels: Array, name: str) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "latin-1")
    if labels.ndim != 1:
        raise DataError(f"{name}: string labels of shape {labels.shape}; give one for each example.")
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) > MAX_CLASSES or len(classes) == len(labels) > 20:
        raise DataError(f"{name}: {len(classes)} different strings for {len(labels)} examples are no classes.")
    names = tuple(shown(str(each)) for each in classes)
    if max(map(len, map(str, classes)), default=0) > MAX_NAME or len(set(names)) != len(names):
        raise DataError(f"{name}: the labels are too long, or hardly differ ({names[0][:80]!r}). Give short names.")
    return targets.astype(np.int64), names, ()


def _floats(labels: Array, name: str) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    with np.errstate(over="ignore"):
        targets = labels.astype(np.float32)
    if not np.isfinite(targets).all():
        row = int(np.argwhere(~np.isfinite(targets))[0][0])
        raise DataError(f"{name}: the label of example {row} is {labels[row]}. Leave out such examples or mend them.")
    doubts: tuple[str, ...] = ()
    if labels.size and labels.ndim == 1 and (labels == np.round(labels)).all():
        doubts = (
            "the labels are floats that are all whole: taken as values, not as classes. Save integers for classes.",
        )
    return targets, (), doubts


def _many(labels: Array) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    doubts: tuple[str, ...] = ()
    if labels.size and ((labels != 0).sum(axis=1) == 1).all() and labels.max() == 1:
        doubts = ("each row of labels is one-hot: for cross-entropy give the class numbers instead.",)
    return labels.astype(np.float32), (), doubts


def _whole(labels: Array, name: str) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name}: the label {labels.max()} is too large for a class. Number the classes from 0.")
    targets = labels.astype(np.int64)
    low, high = (int(targets.min()), int(targets.max())) if targets.size else (0, 0)
    if low < 0:
        return targets, (), (f"the labels run from {low} to {high}: as classes they must be numbered from 0.",)
    doubts = (f"the labels run from {low} to {high}: class 0 does not occur.",) if low > 0 else ()
    classes = tuple(str(each) for each in range(high + 1)) if high < MAX_CLASSES else ()
    return targets, classes, doubts
