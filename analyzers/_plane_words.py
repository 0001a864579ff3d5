"""What stands around the drawing of a slice: title, what the plane holds, axis titles, ticks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzers._figures import as_plotly

Values = Mapping[str, Any]
HELD = 0.01  # of its squared distance lies in the plane: a checkpoint with less is not drawn there
SEEN = 0.02  # of the window's width: a path shorter than this would be a heap of marks


def title(plane: Values, quantity: str) -> str:
    """Name the quantity and the plane."""
    words = str(plane["title"])
    return f"{quantity}: {as_plotly(words[:1].lower() + words[1:])}"


def about(plane: Values, error: str) -> str:
    """Say of what it is, how many points were evaluated, and what the plane holds."""
    loss = str(plane["loss_name"]).replace("_", "-")
    words = [loss, f"n = {plane['examples']} examples", f"{plane['mode']} mode", plane["dtype"]]
    first = as_plotly(", ".join([*words, plane["batch_norm_words"], str(plane["model"])]))
    points = f"{plane['evaluations']} points evaluated, {plane['nodes']:,} cells drawn"
    return f"{first}<br>{points}; stated interpolation error {error}<br>{badge(plane)}"


def badge(plane: Values) -> str:
    """Say what the plane holds of the path and of the curvature."""
    path, bent, spread = (plane[key] for key in ("trajectory_share", "curvature_share", "curvature_share_stderr"))
    words = []
    if path is not None:
        count = sum(each["role"] != "centre" for each in plane["points"])
        words.append(f"{percent(path)} of the squared distance to {count} other checkpoint{'s' if count > 1 else ''}")
    if bent is not None:
        error = f" ± {100 * spread:.2g}" if spread is not None and bent >= 1e-3 else ""
        words.append(f"{percent(bent).removesuffix(' %')}{error} % of the curvature (‖H‖²) at the centre")
    return f"Held by the plane: {'; '.join(words)}" if words else ""


def percent(share: float) -> str:
    """Write a share as a percentage."""
    if share < 1e-3:
        return f"{100 * share:.1g} %" if share >= 1e-6 else "under 0.0001 %"
    return f"{100 * share:.3g} %"


def ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between two ends, the powers only where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(powers) <= 5 else (1,)
    slack = 1 + 1e-9
    return [
        digit * 10.0**power
        for power in powers
        for digit in digits
        if low / slack <= digit * 10.0**power <= high * slack
    ]


def seen(plane: Values) -> list[Values]:
    """Return the checkpoints that belong into the drawing: near the plane, and apart from the centre.

    A checkpoint whose displacement lies almost wholly off the plane would stand in a place that says nothing of it.
    """
    width = max(plane[side][-1] - plane[side][0] for side in ("x", "y"))
    others = [each for each in plane["points"] if each["role"] != "centre"]
    inside = [math.hypot(each["x"], each["y"]) for each in others]
    if plane["kind"] in ("random", "hessian"):
        pairs = zip(others, inside, strict=True)
        return [each for each, near in pairs if near**2 >= HELD * (near**2 + each["off_plane"] ** 2) and near > 0]
    return others if any(each > SEEN * width for each in inside) else []


def told(mark: Values) -> str:
    """Tell of a checkpoint what the pointer shows."""
    loss = "not finite" if mark["loss"] is None else f"{mark['loss']:.4g}"
    return f"{as_plotly(mark['label'])}<br>its own loss {loss}<br>{mark['off_plane']:.3g} off the plane"


def cell_words(evaluated: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Tell of each cell where its number is from."""
    return np.where(evaluated, "evaluated", "interpolated")


def axis(label: str) -> str:
    """Title an axis with its unit."""
    return f"{as_plotly(label)} (‖Δθ‖)"


def short_axis(label: str) -> str:
    """Title an axis of a figure in three dimensions."""
    return as_plotly(label).replace("Distance along ", "along ").replace("Distance ", "")


def short(label: str) -> str:
    """Shorten the name of a checkpoint."""
    return as_plotly(label if len(label) <= 28 else f"{label[:27]}…")


def step(low: float, high: float, levels: int) -> float:
    """Return 1, 2 or 5 times a power of ten, so that at most so many steps lie between two ends."""
    rough = (high - low) / levels
    if not rough > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
