"""How single examples are told of in a result: numbers fit for JSON, names of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float) -> float | None:
    """Return a float for JSON, None for what is not finite."""
    return float(value) if math.isfinite(value) else None


def class_name(value: float, classes: Sequence[str]) -> str | int | float | None:
    """Return the name of a class, its number where it has none, or a value that is no class; None where not finite."""
    if not math.isfinite(value):
        return None
    if value != int(value):
        return float(value)
    return classes[int(value)] if 0 <= value < len(classes) else int(value)
