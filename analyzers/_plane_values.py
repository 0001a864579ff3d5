"""What is kept of two-dimensional slices: JSON values, arrays, and sentences of doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from analyzers._planes import Planes
    from probes.planes_layout import Mark

NOTICED = 0.01  # a loss at the centre that differs by more than this share from the stored model's is mentioned


def values_of(planes: Planes, index: int) -> dict[str, Any]:
    """Return the JSON values of one plane."""
    slice, surface, held = planes.laid.slices[index], planes.surfaces[index], planes.held[index]
    low, high = surface.range
    centre = (surface.at == 0).all(axis=1)
    facts = {key: value for key, value in slice.facts.items() if key != "corners"}
    return {
        "kind": planes.kind,
        "title": slice.title,
        "x_label": slice.labels[0],
        "y_label": slice.labels[1],
        "x": surface.x.tolist(),
        "y": surface.y.tolist(),
        "range": [low, high],
        "stated_error": surface.error,
        "error_wanted": planes.goal,
        "error_reached": surface.error is not None and surface.error <= planes.goal,
        "held_out": surface.held,
        "evaluations": len(surface.at),
        "nodes": surface.values.size,
        "interpolation": surface.model,
        "complete": surface.complete,
        "loss_at_centre": _number(surface.rows[centre][0, 0]),
        "points": [_point(each) for each in slice.marks],
        "trajectory_share": _trajectory_share(slice.marks),
        "curvature_share": held.share if held else None,
        "curvature_share_stderr": held.stderr if held else None,
        "curvature_along": list(held.along) if held else None,
        "curvature_residuals": list(held.residuals) if held else None,
        "explained": None,
        "eigenvalues": None,
        **facts,
        **planes.about,
    }


def arrays_of(planes: Planes, index: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of one plane."""
    from probes.surface import column

    surface, name = planes.surfaces[index], f"plane_{index}"
    found: dict[str, NDArray[Any]] = {
        f"{name}_loss": surface.values,
        f"{name}_evaluated": surface.evaluated,
        f"{name}_at": surface.at,
        f"{name}_values": surface.rows[:, 0],
    }
    if surface.rows.shape[1] > 1:
        accuracy, error = column(surface, 1)
        found |= {f"{name}_accuracy": accuracy, f"{name}_right": surface.rows[:, 1]}
        found[f"{name}_accuracy_error"] = np.array(np.nan if error is None else error)
    return found


def caveats_of(planes: Planes, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the reader should doubt."""
    found = list(planes.doubts)
    for number, row in enumerate(rows, 1):
        if row["complete"] and not row["error_reached"]:
            error = "not known" if row["stated_error"] is None else f"{100 * row['stated_error']:.2g} % of the range"
            found.append(
                f"Plane {number}: after {row['evaluations']} evaluations the interpolation error is {error}, above the "
                f"{100 * row['error_wanted']:.2g} % asked for; the loss is rough there. Raise the budget, or lower the "
                "resolution."
            )
        lost = int(np.isnan(planes.surfaces[number - 1].values).sum())
        if lost:
            found.append(
                f"Plane {number}: around points where the loss is not finite {lost} of {row['nodes']} cells are left "
                "empty; choose a smaller span."
            )
    found += _moved_centre(rows)
    return found


def _moved_centre(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    for row in rows[:1]:
        drawn, stored = row["loss_at_centre"], row["loss_as_stored"]
        if row["batch_norm"] != "measured" or drawn is None or stored is None:
            continue
        if abs(drawn - stored) > NOTICED * max(abs(stored), abs(drawn)):
            return [
                f"With BatchNorm statistics measured anew the loss at the centre is {drawn:.4g}; with those that were "
                f"saved with {row['centre']} it is {stored:.4g}."
            ]
    return []


def _point(mark: Mark) -> dict[str, Any]:
    place = mark.place
    return {
        "x": place.x,
        "y": place.y,
        "off_plane": place.off,
        "label": mark.label,
        "role": mark.role,
        "loss": _number(mark.loss),
    }


def _trajectory_share(marks: Sequence[Mark]) -> float | None:
    """The share of the checkpoints' squared distances from the centre that lies within the plane; None for just one."""
    squares = [each.place.squared for each in marks if each.role != "centre"]
    total = sum(whole for _, whole in squares)
    return sum(inside for inside, _ in squares) / total if total > 0 else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
