"""What a preprocessor_config.json says: how images were resized, cropped and normalised in training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from probes.dataset.files import Array
from probes.dataset.pictures import MAX_PIXELS

FILE = "preprocessor_config.json"
_BICUBIC = 3
_FILTERS = {each.value: each for each in Image.Resampling}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input.

    shortest: pixels of the shorter side after resizing, or size: (height, width); () and 0 leave it as it is. crop:
    (height, width) of the middle that is kept, or (). mean, std: per channel, after the division by 255, or ().
    """

    shortest: int = 0
    size: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    resample: Image.Resampling = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def applied(self, pixels: Array) -> Array:
        """Resize and crop one picture, (H, W, 3) uint8; in this order, as in transformers."""
        if self.shortest or self.size:
            wanted = self.size or _scaled(pixels.shape[:2], self.shortest)
            if wanted != pixels.shape[:2]:
                image = Image.fromarray(pixels).resize((wanted[1], wanted[0]), self.resample)
                pixels = np.asarray(image)
        return _cropped(pixels, self.crop) if self.crop else pixels

    def words(self) -> str:
        """Say in words what is done to the size; "" for nothing."""
        steps = [f"to {self.size[0]} x {self.size[1]} pixels"] if self.size else []
        steps += [f"to {self.shortest} pixels on the shorter side"] if self.shortest else []
        resized = f"resized {steps[0]} ({self.resample.name.lower()})" if steps else ""
        cut = f"cut to the middle {self.crop[0]} x {self.crop[1]}" if self.crop else ""
        return " and ".join(filter(None, (resized, cut)))


def preprocessing_of(content: bytes) -> Preprocessing | None:
    """Read the settings; None where they are no JSON object, and nothing for each that makes no sense."""
    try:
        held: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(held, dict) or held.get("do_rescale") is False:
        return None
    shortest, size = _size(held.get("size")) if held.get("do_resize", True) else (0, ())
    _, crop = _size(held.get("crop_size"), square=True) if held.get("do_center_crop", False) else (0, ())
    normal = held.get("do_normalize", True) is not False
    mean, std = (_numbers(held.get(name)) if normal else () for name in ("image_mean", "image_std"))
    if not std or min(std) <= 0 or len(mean) != len(std):
        mean, std = (), ()
    resample = held.get("resample", _BICUBIC)
    found = _FILTERS.get(resample, Image.Resampling.BICUBIC) if type(resample) is int else Image.Resampling.BICUBIC
    return Preprocessing(shortest, size, crop, found, mean, std)


def _size(value: Any, *, square: bool = False) -> tuple[int, tuple[int, ...]]:
    """Return the shorter side, or height and width; older files give one number for the shorter side, or a square."""
    if _is_side(value):
        return (0, (value, value)) if square else (value, ())
    if not isinstance(value, Mapping):
        return 0, ()
    if _is_side(value.get("shortest_edge")):
        return value["shortest_edge"], ()
    sides = (value.get("height"), value.get("width"))
    return (0, sides) if all(map(_is_side, sides)) else (0, ())  # type: ignore[return-value]


def _is_side(value: Any) -> bool:
    return type(value) is int and value > 0 and value * value <= MAX_PIXELS


def _numbers(value: Any) -> tuple[float, ...]:
    fine = isinstance(value, list) and len(value) == 3 and all(_is_number(each) for each in value)
    return tuple(map(float, value)) if fine else ()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _scaled(shape: tuple[int, ...], shortest: int) -> tuple[int, int]:
    """Return height and width with this shorter side; the other is cut off to whole pixels, as in transformers."""
    height, width = shape
    short, long = min(height, width), int(shortest * max(height, width) / min(height, width))
    long = max(long, shortest) if short else shortest
    return (shortest, long) if height <= width else (long, shortest)


def _cropped(pixels: Array, crop: tuple[int, ...]) -> Array:
    """Keep the middle; what is smaller gets black borders, as in transformers."""
    height, width = crop
    missing = [max(0, wanted - given) for wanted, given in zip(crop, pixels.shape[:2], strict=True)]
    if any(missing):
        before = [-(-each // 2) for each in missing]
        borders = [(front, each - front) for front, each in zip(before, missing, strict=True)]
        pixels = np.pad(pixels, (*borders, (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
