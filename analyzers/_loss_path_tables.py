"""What stands behind the figures of a loss path, in rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

Values = Mapping[str, Any]


def tables(values: Values) -> dict[str, pd.DataFrame]:
    """Return "loss", "accuracy", "controls" and "on_the_way", each where there is something in it."""
    found = {"loss": _curves(values, "loss")}
    if values["accuracy"] is not None:
        found["accuracy"] = _curves(values, "accuracy")
    if values["controls"]:
        found["controls"] = _controls(values)
    if values["on_the_way"]:
        found["on_the_way"] = pd.DataFrame(values["on_the_way"])
    return found


def _curves(values: Values, what: str) -> pd.DataFrame:
    columns = {"alpha": values["alpha"], "added": [alpha in set(values["added"]) for alpha in values["alpha"]]}
    for prefix in ("", "test_"):
        for name in (f"{prefix}{what}", f"{prefix}{what}_low", f"{prefix}{what}_high"):
            if values.get(name) is not None:
                columns[name] = values[name]
        beside = (values["uncorrected"] or {}).get(f"{prefix}{what}")
        if beside is not None:
            columns[f"{prefix}{what}_uncorrected"] = beside
    return pd.DataFrame(columns)


def _controls(values: Values) -> pd.DataFrame:
    rows = [
        pd.DataFrame({"control": name, **{key: each[key] for key in ("alpha", "loss", "accuracy")}})
        for name, each in values["controls"].items()
    ]
    return pd.concat(rows, ignore_index=True)
