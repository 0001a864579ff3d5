"""Examples as one looks at them: the inputs of a model turned back into pictures, or into text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probes.dataset.files import shown

if TYPE_CHECKING:
    from probes.data import Batches

_ROUNDING = 1e-3  # how far a value may lie outside of [0, 1] after mean and std were undone in float32
_PART = 512  # pictures that are looked at at a time


def pictures_of(
    batches: Batches, rows: Sequence[int], side: int = 48, span: tuple[float, float] | None = None
) -> NDArray[np.uint8] | None:
    """Return examples as pictures (K, H, W, 3), none larger than `side` pixels; None when they are no images.

    Mean and std are undone. span: what is black and what is white, `span_of` more examples than these; None takes it
    from these. Of two channels the first is shown, in grey, and of more than three the first three.
    """
    if not _are_images(batches):
        return None
    low, high = span or span_of(batches, rows)
    values = _brightness(batches, rows)
    values = (values - low) / ((high - low) or 1.0)
    pixels = np.rint(values.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return _reduced(np.ascontiguousarray(pixels), side)


def span_of(batches: Batches, rows: Sequence[int]) -> tuple[float, float]:
    """Return what is black and what is white in these pictures: 0 and 1 where all lies between, else the range."""
    ends = [(0.0, 1.0)] if not len(rows) else []
    for start in range(0, len(rows), _PART):
        values = _brightness(batches, rows[start : start + _PART])
        ends.append((float(values.min()), float(values.max())))
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return (0.0, 1.0) if low >= -_ROUNDING and high <= 1 + _ROUNDING else (low, high)


def texts_of(batches: Batches, rows: Sequence[int], most: int = 160) -> list[str] | None:
    """Return examples of token ids as text of `most` characters each; None when they are no tokens.

    Where the tokenizer is not known the ids are shown.
    """
    inputs = batches.inputs
    if inputs.ndim != 2 or inputs.is_floating_point():
        return None
    kept = [_counted(batches, row) for row in rows]
    if batches.show is not None:
        return [_cut(batches.show(each), most) for each in kept]
    if batches.about.get("tokenizer") == "bytes":
        return [_cut(bytes(each.clip(0, 255).tolist()).decode("utf-8", "replace"), most) for each in kept]
    return [_cut(" ".join(map(str, each[:most].tolist())), most) for each in kept]


def _counted(batches: Batches, row: int) -> NDArray[np.int64]:
    """Return the ids of an example: with the token that it predicts last, and without padding, where targets tell."""
    ids: NDArray[np.int64] = batches.inputs[row].numpy()
    if batches.targets.shape != batches.inputs.shape:
        return ids
    targets = batches.targets[row].numpy()
    predicted = np.flatnonzero(targets != -100)
    last = int(predicted[-1]) if len(predicted) else len(ids) - 1
    return np.append(ids[: last + 1], targets[last : last + 1][: len(predicted)])


def _are_images(batches: Batches) -> bool:
    return batches.inputs.ndim == 4 and batches.inputs.is_floating_point()


def _brightness(batches: Batches, rows: Sequence[int]) -> NDArray[np.float64]:
    values = _undone(batches.inputs[list(rows)].double().numpy(), batches.about)
    return values[:, :3] if values.shape[1] >= 3 else np.repeat(values[:, :1], 3, axis=1)


def _undone(values: NDArray[np.float64], about: Any) -> NDArray[np.float64]:
    std = np.asarray(about.get("std") or (1.0,), np.float64).reshape(1, -1, 1, 1)
    mean = np.asarray(about.get("mean") or (0.0,), np.float64).reshape(1, -1, 1, 1)
    return values * std + mean  # type: ignore[no-any-return]


def _reduced(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1 or not len(pixels):
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in pixels])


def _cut(text: str, most: int) -> str:
    line = text if len(text) <= most else f"{text[: most - 1]}…"
    return shown(line.replace("\n", "↵").replace("\t", "→"))
