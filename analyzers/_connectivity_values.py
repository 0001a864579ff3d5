"""Readings of lines as numbers for the result: losses, accuracies, bands, barriers, and what matching gains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.barriers import Barrier, accuracy_drop, barrier
from probes.paths import Floats, Readings, interval, resampled

if TYPE_CHECKING:
    from probes.verdict import Stage

DEFINITIONS = ("git_rebasin", "entezari", "midpoint")
ENDS = {"": "value", "_low": "low", "_high": "high"}


def numbers(values: Iterable[float]) -> list[float | None]:
    """Return numbers as JSON knows them: None where one is not finite."""
    return [number(each) for each in values]


def number(value: float | None) -> float | None:
    """Return a number as JSON knows it."""
    return float(value) if value is not None and math.isfinite(value) else None


def stage_values(found: Readings, lambdas: Floats, weights: Floats) -> dict[str, Any]:
    """Return losses, accuracies, their bands, barriers and drops of accuracy of a path, by the names of the result."""
    values: dict[str, Any] = {"loss": numbers(found.loss)}
    values |= _bands("loss", found.losses, found.counts, weights)
    if found.right is not None and found.accuracy is not None:
        values |= {"accuracy": numbers(found.accuracy), **_bands("accuracy", found.right, found.counts, weights)}
    heights = {"barrier": barrier(found, lambdas, weights), "accuracy_drop": accuracy_drop(found, lambdas, weights)}
    for key, each in heights.items():
        if each is not None:
            values |= {f"{key}{suffix}": _ends(each, end) for suffix, end in ENDS.items()}
    return values


def put_line(
    values: dict[str, Any], stage: str, found: Readings, lambdas: Floats, weights: Floats, of: str = ""
) -> None:
    """Write what `stage_values` gives into the values, each under the name of the stage; of: "" or "test_"."""
    for key, each in stage_values(found, lambdas, weights).items():
        values.setdefault(f"{of}{key}", {})[stage] = each


def band(values: Floats, counts: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the 95 % interval of the mean at each point, (K,) twice; not finite where a value is not."""
    with np.errstate(invalid="ignore", over="ignore"):
        return interval(resampled(values, counts, weights))


def reduction(before: Readings, after: Readings, weights: Floats) -> dict[str, float | None]:
    """Return how much lower the highest loss is after than before, with its 95 % interval from shared resamples."""
    highest = lambda found: resampled(found.losses, found.counts, weights).max(1)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = interval(highest(before) - highest(after))
        value = float(before.loss.max() - after.loss.max())
    return {"value": number(value), "low": number(float(low)), "high": number(float(high))}


def stage_of(values: Mapping[str, Any], name: str, definition: str, of: str = "") -> Stage:
    """Return the barrier of a stage as the verdict takes it, infinite where it is not known; of: "" or "test_"."""
    from probes.verdict import Stage

    curve = name == "curve"
    found = values["curve"] if curve else values
    pick = lambda end: (found[f"{of}barrier{end}"] if curve else found[f"{of}barrier{end}"][name])[definition]
    value, low, high = (pick(end) for end in ENDS)
    if value is None:
        return Stage(name, math.inf, math.inf, math.inf)
    return Stage(name, value, low, high)


def as_arrays(found: Readings | None, prefix: str = "") -> dict[str, Any]:
    """Return readings as arrays to keep."""
    if found is None:
        return {}
    right = {} if found.right is None else {f"{prefix}right": found.right}
    return {f"{prefix}losses": found.losses, f"{prefix}counts": found.counts, **right}


def from_arrays(kept: Mapping[str, Any], prefix: str = "") -> Readings | None:
    """Undo `as_arrays`."""
    if f"{prefix}losses" not in kept:
        return None
    return Readings(kept[f"{prefix}losses"], kept.get(f"{prefix}right"), kept[f"{prefix}counts"])


def _bands(key: str, values: Floats, counts: Floats, weights: Floats) -> dict[str, list[float | None]]:
    return {
        f"{key}_{end}": numbers(each) for end, each in zip(("low", "high"), band(values, counts, weights), strict=True)
    }


def _ends(found: Barrier, end: str) -> dict[str, float | None]:
    return {name: number(getattr(getattr(found, name), end)) for name in DEFINITIONS}
