"""What stands behind the figures of mode connectivity, in rows; the evidence and the specification too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analyzers._base import Arrays

Values = Mapping[str, Any]
READ = ("loss", "loss_low", "loss_high", "accuracy", "accuracy_low", "accuracy_high")


def tables(values: Values, arrays: Arrays) -> dict[str, pd.DataFrame]:
    """Return a table for each figure, and "verdict", "permutations", "specification"."""
    made = {
        "loss": _lines(values, ("loss", "loss_low", "loss_high")),
        "accuracy": _lines(values, ("accuracy", "accuracy_low", "accuracy_high")),
        "barriers": _barriers(values),
        "restarts": pd.DataFrame(values.get("restarts", [])),
        "verdict": pd.DataFrame({"evidence": values.get("verdict_evidence", [])}),
        "permutations": pd.DataFrame(values.get("permutations", [])),
        "matchers": pd.DataFrame(values.get("matchers", [])),
        "specification": pd.DataFrame(values.get("specification_rows", [])),
        "layers": pd.DataFrame(values.get("tensors", [])),
        "variance_ratio": _variance(values),
        "layer_barriers": _layer_barriers(values),
        "unit_pairs": _pairs(values, arrays),
        "controls": _controls(values),
        "curve": _curve(values),
        "curve_plane": _plane(values, arrays),
        "soups": _soups(values),
        **_dropout(values),
        **_matrices(values),
    }
    return {name: each for name, each in made.items() if len(each)}


def _lines(values: Values, keys: tuple[str, ...]) -> pd.DataFrame:
    """Write a row for each point of each line; what was read without measuring BatchNorm anew is marked."""
    rows = []
    for of, source in (("data", ""), ("test data", "test_")):
        rows += _stages(values, values.get("lambda", []), keys, source, {"of": of, "as_interpolated": False})
    if values.get("uncorrected"):
        marks = {"of": "data", "as_interpolated": True}
        rows += _stages(values["uncorrected"], values["lambda"], keys, "", marks)
    return pd.DataFrame(rows)


def _stages(values: Values, at: list[float], keys: tuple[str, ...], source: str, marks: Values) -> list[dict[str, Any]]:
    known = [key for key in keys if f"{source}{key}" in values]
    stages = values.get(f"{source}{known[0]}", {}) if known else {}
    return [
        {"stage": stage, "lambda": each, **{key: values[f"{source}{key}"][stage][place] for key in known}, **marks}
        for stage in stages
        for place, each in enumerate(at)
    ]


def _barriers(values: Values) -> pd.DataFrame:
    rows = []
    for of, prefix in (("data", ""), ("test data", "test_")):
        for key in ("barrier", "accuracy_drop"):
            found = values.get(f"{prefix}{key}", {})
            rows += [
                {
                    "what": "loss" if key == "barrier" else "accuracy", "of": of, "stage": stage,
                    "definition": definition, "barrier": value,
                    "low": values[f"{prefix}{key}_low"][stage][definition],
                    "high": values[f"{prefix}{key}_high"][stage][definition],
                }
                for stage, row in found.items() for definition, value in row.items()
            ]  # fmt: skip
    return pd.DataFrame(rows)


def _variance(values: Values) -> pd.DataFrame:
    found = values.get("variance_ratio", {})
    layers = list(next(iter(found.values()), {}))
    return pd.DataFrame(
        [{"layer": layer, **{stage: row.get(layer) for stage, row in found.items()}} for layer in layers]
    )


def _layer_barriers(values: Values) -> pd.DataFrame:
    rows = [
        {"layer": each["layer"], "stage": stage, "stays": side, **{k: v for k, v in each[side].items() if k != "loss"}}
        for stage, layers in values.get("layer_barriers", {}).items()
        for each in layers
        for side in ("first", "second")
    ]
    return pd.DataFrame(rows)


def _pairs(values: Values, arrays: Arrays) -> pd.DataFrame:
    """Write every pair of units; states are known of the listed ones."""
    states = {(each["permutation"], each["first"]): each["state"] for each in values.get("unit_pairs", [])}
    parts = []
    for key, found in arrays.items():
        name = key.removeprefix("pairs_")
        if name == key:
            continue
        units = np.arange(found.shape[1])
        columns = {"cosine_before": found[0], "cosine": found[1], "correlation": found[2]}
        head = {"permutation": name, "first": units, "second": arrays[f"permutation_{name}"]}
        parts.append(pd.DataFrame({**head, **columns, "state": [states.get((name, int(unit)), "") for unit in units]}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _controls(values: Values) -> pd.DataFrame:
    found = values.get("controls")
    if not found:
        return pd.DataFrame()
    copy, noise = found["permuted_copy"], found["noise"]
    rows = [
        ("permuted copy: share of units found again", copy["found_again"]),
        ("permuted copy: distance left", copy["distance"]),
        ("noise: distance before matching", noise["distance_naive"]),
        ("noise: distance after matching", noise["distance"]),
        ("noise: share of the squared distance that matching takes away", noise["gain"]),
        ("the pair: share of the squared distance that matching takes away", found["gain"]),
        *(
            (f"noise: barrier {stage}, {definition}", value)
            for stage, row in noise["barrier"].items()
            for definition, value in row.items()
        ),
    ]
    alone = values.get("repair_without_matching", {})
    rows += [(f"REPAIR without matching, half-way: {key}", each) for key, each in alone.items()]
    return pd.DataFrame(rows, columns=["control", "value"])


def _curve(values: Values) -> pd.DataFrame:
    found = values.get("curve")
    if not found:
        return pd.DataFrame()
    known = [key for of in ("", "test_") for key in (f"{of}{each}" for each in READ) if key in found]
    x, y = zip(*found["places"], strict=True)
    place = {"arclength": found["arclength"], "along": x, "across": y, "aside": found["aside"]}
    return pd.DataFrame({"t": found["t"], **place, **{key: found[key] for key in known}})


def _plane(values: Values, arrays: Arrays) -> pd.DataFrame:
    if "curve_plane" not in arrays:
        return pd.DataFrame()
    x, y = (values["curve"]["plane"][each] for each in ("x", "y"))
    places = {"x": np.tile(x, len(y)), "y": np.repeat(y, len(x))}
    return pd.DataFrame({**places, "loss": np.asarray(arrays["curve_plane"]).ravel()})


def _soups(values: Values) -> pd.DataFrame:
    found = values.get("soups", {"rows": (), "alone": ()})
    names = values.get("checkpoints", [])
    of = lambda each: ", ".join(str(names[place]) for place in each["chosen"])
    rows = [{**each, "chosen": of(each)} for each in found["rows"]]
    alone = [{"what": "alone", **each} for each in found["alone"]]
    return pd.DataFrame([*rows, *alone])


def _dropout(values: Values) -> dict[str, pd.DataFrame]:
    found, path = values.get("dropout", {}), values.get("dropout_path")
    shares, layers = [], []
    for name, each in found.items():
        for at, kept in enumerate(each["kept"]):
            accuracy = each["mean_accuracy"][at] if each["mean_accuracy"] else None
            head = {"checkpoint": name, "kept": kept}
            numbers = {"epsilon": each["epsilon"][at], "stderr": each["epsilon_stderr"][at], "accuracy": accuracy}
            shares.append({**head, **numbers, "draws": each["draws"]})
            layers += [
                {**head, "layer": layer, "units": units, "epsilon": row[at], "stderr": error[at]}
                for layer, units, row, error in zip(
                    each["layers"], each["units"], each["layer_epsilon"], each["layer_epsilon_stderr"], strict=True
                )
            ]
    made = {"dropout": pd.DataFrame(shares), "dropout_layers": pd.DataFrame(layers)}
    if path:
        known = [key for of in ("", "test_") for key in (f"{of}{each}" for each in READ) if key in path]
        made["dropout_path"] = pd.DataFrame({"segment": path["segment"], **{key: path[key] for key in known}})
    return made


def _matrices(values: Values) -> dict[str, pd.DataFrame]:
    found = values.get("matrix")
    if not found:
        return {}
    names = found["checkpoints"]
    made = {}
    for stage, name in (("naive", "matrix_before"), ("matched", "matrix_after")):
        rows = [
            {"first": names[i], "second": names[j], **{each: found[f"{stage}{suffix}"][i][j] for each, suffix in ENDS}}
            for i in range(len(names)) for j in range(i + 1, len(names))
        ]  # fmt: skip
        made[name] = pd.DataFrame(rows)
    return made


ENDS = (("barrier", ""), ("low", "_low"), ("high", "_high"))
