"""Tables behind the figures about predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analyzers._base import Arrays, Result

Values = Mapping[str, Any]
COLUMNS = ("id", "row", "group", "checkpoint", "label", "prediction", "probability", "loss", "margin", "gap", "entropy",
           "text")  # fmt: skip
LISTS = ("accuracy", "wrong", "loss", "rmse", "perplexity", "entropy", "ece", "overconfidence")  # and what begins so
MOST = 200  # pairs of classes at most


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """Return a table for each figure, "checkpoints" with a row for each, and "examples"."""
    values, arrays = result.values, result.arrays
    found = {"checkpoints": _checkpoints(values)}
    if values["classes"]:
        found["confusion"] = _pairs(values, arrays["label"], arrays["prediction"])
        found["classes"] = _classes(values, arrays)
    if "reliability" in values:
        found["reliability"] = _reliability(values)
    if values["kind"] == "values" and np.isfinite(arrays["label"]).any():
        found["values"] = _rows(values, arrays, ("prediction",), label=True)
    if values["kind"] == "tokens":
        found["positions"] = _positions(values, arrays)
    found["losses"] = _rows(values, arrays, ("loss",))
    if "disagreement" in values:
        found["disagreement"] = _disagreement(values)
    found["examples"] = pd.DataFrame(values["examples"], columns=list(COLUMNS) if not values["examples"] else None)
    return found


def _checkpoints(values: Values) -> pd.DataFrame:
    count = len(values["checkpoints"])
    lists = {key: each for key, each in values.items()
             if key.startswith(LISTS) and isinstance(each, list) and len(each) == count}  # fmt: skip
    return pd.DataFrame({"checkpoint": values["checkpoints"], "time": values["labels"], **lists})


def _pairs(values: Values, labels: Any, predictions: Any) -> pd.DataFrame:
    """Return label, prediction and count of the pairs that occur, the wrong ones first, for each checkpoint."""
    names, frames = np.array(values["classes"], dtype=object), []
    for name, guesses in zip(values["checkpoints"], predictions, strict=True):
        pairs, counts = np.unique(np.array([labels, guesses]), axis=1, return_counts=True)
        order = np.lexsort((-counts, pairs[0] == pairs[1]))
        order = order if len(values["classes"]) <= MOST else order[: MOST * 10]
        columns = {"label": names[pairs[0, order]], "prediction": names[pairs[1, order]], "count": counts[order]}
        frames.append(pd.DataFrame({"checkpoint": name, **columns}))
    return pd.concat(frames, ignore_index=True)


def _classes(values: Values, arrays: Arrays) -> pd.DataFrame:
    frames = []
    for place, name in enumerate(values["checkpoints"]):
        columns: dict[str, Any] = {"checkpoint": name, "class": values["classes"], "examples": arrays["support"]}
        for key in ("recall", "precision"):
            for part, ending in enumerate(("", "_low", "_high")):
                columns[f"{key}{ending}"] = arrays[key][place, :, part]
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _reliability(values: Values) -> pd.DataFrame:
    frames = []
    for name, found in zip(values["checkpoints"], values["reliability"], strict=True):
        edges = np.linspace(0, 1, len(found["counts"]) + 1)
        frames.append(pd.DataFrame({"checkpoint": name, "above": edges[:-1], "up_to": edges[1:], **found}))
    return pd.concat(frames, ignore_index=True)


def _positions(values: Values, arrays: Arrays) -> pd.DataFrame:
    frames = []
    for name, found in zip(values["checkpoints"], arrays["position_loss"], strict=True):
        columns = dict(zip(("loss", "stderr", "sequences"), found.T, strict=True))
        frames.append(pd.DataFrame({"checkpoint": name, "place": np.arange(1, len(found) + 1), **columns}))
    return pd.concat(frames, ignore_index=True)


def _rows(values: Values, arrays: Arrays, keys: tuple[str, ...], *, label: bool = False) -> pd.DataFrame:
    """Return one row for each example, with a column for each number at each checkpoint."""
    columns: dict[str, Any] = {"row": np.arange(len(arrays["ids"])), "id": arrays["ids"]}
    if label:
        columns["label"] = arrays["label"]
    for key in keys:
        for place, name in enumerate(values["checkpoints"]):
            title = key if len(values["checkpoints"]) == 1 else f"{key}, {place + 1}: {name}"
            columns[title] = arrays[key][place]
    return pd.DataFrame(columns)


def _disagreement(values: Values) -> pd.DataFrame:
    names = values["checkpoints"]
    rows = [{**each, "first": names[each["first"]], "second": names[each["second"]]} for each in values["disagreement"]]
    return pd.DataFrame(rows)
