"""What stands behind the figures of a layer rotation, in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def tables(values: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Return "rotation", "norms" and "angular_steps", a row for each layer at each checkpoint, and two by layer."""
    layers = _layers(values)
    places = range(len(values["times"]))
    steps = [
        {
            "layer": layer,
            "from": values["checkpoints"][place - 1],
            "to": values["checkpoints"][place],
            "from_time": values["times"][place - 1],
            "to_time": values["times"][place],
            "angle_radians": row[place],
            "radial_share": values["radial_share"][layer][place],
        }
        for layer, row in values["angular_step"].items()
        for place in places[1:]
    ]
    return {
        "rotation": _long(values, {"rotation": "rotation", "random_walk": "null"}),
        "final_rotation": layers[["depth", "layer", "kind", "weights", "final", "random_walk"]],
        "norms": _long(values, {"norm": "norm", "norm_ratio": "norm_ratio"}),
        "angular_steps": pd.DataFrame(steps),
        "layers": layers,
    }


def _long(values: Mapping[str, Any], columns: Mapping[str, str]) -> pd.DataFrame:
    rows = [
        {
            "checkpoint": values["checkpoints"][place],
            values["unit"]: time,
            "layer": layer,
            **{title: values[key][layer][place] for title, key in columns.items()},
        }
        for layer in values["rotation"]
        for place, time in enumerate(values["times"])
    ]
    return pd.DataFrame(rows)


def _layers(values: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        {
            "depth": depth,
            "layer": layer,
            "kind": values["kinds"][layer],
            "weights": values["weights"][layer],
            **_summary(row[1:]),
            "random_walk": values["null"][layer][-1],
            "norm_ratio": values["norm_ratio"][layer][-1],
            "norm": values["norm"][layer][-1],
        }
        for depth, (layer, row) in enumerate(values["rotation"].items(), 1)
    ]
    return pd.DataFrame(rows)


def _summary(row: Sequence[float | None]) -> dict[str, float | None]:
    """Sum up the rotation after the start."""
    known = [each for each in row if each is not None]
    found = {"min": min(known), "mean": sum(known) / len(known), "max": max(known)} if known else {}
    return {"min": None, "mean": None, "max": None, **found, "final": row[-1]}
