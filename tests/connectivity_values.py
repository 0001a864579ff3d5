"""A result of mode connectivity that is made up, every number chosen here: for figures, tables and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from analyzers.mode_connectivity import ModeConnectivityResult

LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0]
BUMPS = {"naive": 0.8, "matched": 0.03, "repaired": 0.01}
SHAPE = np.array([0.0, 0.6, 1.0, 0.6, 0.0])
NAMES = ("git_rebasin", "entezari", "midpoint")


def card(**changed: Any) -> dict[str, Any]:
    known = {
        "model": "Sequential: 3 layers", "parameters": 33, "loss": "cross_entropy", "reduction": "mean", "examples": 40,
        "examples_sha256": "ab", "normalisation": {}, "mode": "eval: dropout off", "dtype": "float32", "attention": "",
        "seed": 0, "versions": {}, "device": "CPU", "checkpoint": None, "checkpoints": ["one.pt", "two.pt"],
    }  # fmt: skip
    return {**known, **changed}


def lines(prefix: str = "", more: float = 0.0) -> dict[str, Any]:
    """Losses, accuracies and barriers of three lines whose ends are 0.2 and 0.3."""
    ends = np.linspace(0.2, 0.3, 5) + more
    loss = {stage: (ends + bump * SHAPE).tolist() for stage, bump in BUMPS.items()}
    accuracy = {stage: (1 - np.array(row) / 4).tolist() for stage, row in loss.items()}
    values: dict[str, Any] = {"loss": loss, "accuracy": accuracy}
    for key, rows in (("loss", loss), ("accuracy", accuracy)):
        values |= {f"{key}_low": {stage: [each - 0.02 for each in row] for stage, row in rows.items()}}
        values |= {f"{key}_high": {stage: [each + 0.02 for each in row] for stage, row in rows.items()}}
    for end, off in (("", 0.0), ("_low", -0.01), ("_high", 0.02)):
        values[f"barrier{end}"] = {stage: dict.fromkeys(NAMES, bump + off) for stage, bump in BUMPS.items()}
    return {f"{prefix}{key}": each for key, each in values.items()}


def matrix(names: list[str]) -> dict[str, Any]:
    """Barriers 0.1 between neighbours, 0.2 between those two apart, and so on; a tenth of it after matching."""
    places = np.arange(len(names))
    gaps = 0.1 * np.abs(places[:, None] - places)
    found: dict[str, Any] = {"checkpoints": names, "points": 11, "definition": "git_rebasin"}
    for stage, scale in (("naive", 1.0), ("matched", 0.1)):
        for end, off in (("", 0.0), ("_low", -0.01), ("_high", 0.01)):
            found[f"{stage}{end}"] = (scale * gaps + off).tolist()
    return found


def thinned(layer: str) -> dict[str, Any]:
    """What is known of the dropout stability of one checkpoint."""
    return {"kept": [0.9, 0.5], "loss": 0.2, "accuracy": 0.9, "epsilon": [0.1, 0.5], "epsilon_stderr": [0.01, 0.1],
            "mean_accuracy": [0.9, 0.6], "draws": 4, "layers": [layer], "units": [4], "layer_epsilon": [[0.05, 0.3]],
            "layer_epsilon_stderr": [[0.01, 0.02]]}  # fmt: skip


def result(
    *, layer: str = "0.weight", names: tuple[str, ...] = ("one.pt", "two.pt"), **changed: Any
) -> ModeConnectivityResult:
    """Everything a run may hold; layer: the name that stands wherever files name things."""
    tensor = {"cosine": 0.9, "cosine_naive": 0.1, "unit_cosine": 0.8, "unit_cosine_naive": 0.05, "displaced": 0.75,
              "distance_share": 0.5}  # fmt: skip
    side = {"loss": [0.2, 0.3], "barrier": 0.1, "barrier_low": 0.0, "barrier_high": 0.2, "rise": 0.4, "rise_low": 0.3,
            "rise_high": 0.6}  # fmt: skip
    told = {"value": 0.5, "low": 0.4, "high": 0.6}
    path = {"loss": [0.2, 0.5, 0.3], "loss_low": [0.1, 0.4, 0.2], "loss_high": [0.3, 0.6, 0.4]}
    pair = {"permutation": layer, "first": 0, "second": 1, "cosine": 0.9, "norms": [1.0, 1.0], "correlation": 0.8,
            "active": [0.5, 0.5], "state": "dead in both"}  # fmt: skip
    values: dict[str, Any] = {
        "checkpoints": list(names), "examples": 40, "test_examples": 20, "looked_at": 30, "batch_norm": "measured anew",
        "definition": "git_rebasin", "lambda": LAMBDAS, **lines(), **lines("test_", 0.1),
        "uncorrected": {key: {stage: row for stage, row in each.items() if stage != "repaired"}
                        for key, each in lines(more=0.5).items()},
        "threshold": 0.05, "verdict_evidence": ["a", "b"], "matcher": "weight matching", "distance_naive": 9.0,
        "restarts": [{"distance": 5.0 + each, "agreement": 1 - each / 5, "sweeps": 3, "start": "random"}
                     for each in range(3)],
        "matchers": [{"matcher": "weight matching", "distance": 5.0, "loss_half_way": None}],
        "permutations": [{"permutation": layer, "kind": "units", "units": 4, "agreement": 1.0, "displaced": 0.5}],
        "specification_rows": [{"permutation": layer, "tensor": layer}],
        "tensors": [{"tensor": layer, **tensor}, {"tensor": f"{layer}.2", **tensor, "displaced": None}],
        "variance_ratio": {stage: {layer: 0.5, "last": None} for stage in BUMPS},
        "layer_barriers": {stage: [{"layer": layer, "lambda": [0, 1], "first": side, "second": side}]
                           for stage in ("naive", "matched")},
        "unit_pairs": [pair],
        "controls": {"permuted_copy": {"found_again": 1.0, "distance": 0.0, "units": 4, "exact": True},
                     "noise": {"distance_naive": 9.0, "distance": 8.0, "gain": 0.2, "loss": 2.0,
                               "barrier": {"naive": dict.fromkeys(NAMES, 1.0)}}, "gain": 0.7},
        "curve": {"kind": "bezier", "bends": 1, "t": [0, 0.5, 1], **path, "test_loss": [0.3, 0.6, 0.4],
                  "summary": {"highest": told, "integral": told}, "length": 12.0, "straight_length": 9.0,
                  "arclength": [0, 6, 12], "places": [[0, 0], [4.5, 3], [9, 0]], "aside": [0, 0, 0],
                  "plane": {"x": [0, 9], "y": [0, 3], "error": 0.002, "points": 4}},
        "dropout": {"first": thinned(layer), "second": thinned(layer)},
        "dropout_path": {"labels": [f"{layer} A", "B", f"{layer} C"], "segment": [0, 1, 2], **path, "highest": 0.5},
        "soups": {"rows": [{"soup": "soup", "what": "average", "chosen": [0, 1], "loss": 0.3, "loss_low": 0.2,
                            "loss_high": 0.5}],
                  "alone": [{"checkpoint": names[0], "loss": 0.2, "loss_low": 0.1, "loss_high": 0.3}]},
        "matrix": matrix([*names, "three.pt"]),
    }  # fmt: skip
    arrays = {
        f"pairs_{layer}": np.array([[0.1, 0.2, np.nan, 0.0], [0.7, 0.9, np.nan, 0.8], [np.nan] * 4]),
        f"permutation_{layer}": np.array([2, 0, 3, 1]),
        "curve_plane": np.array([[0.2, 0.3], [0.5, 99.0]]),
        "curve_plane_points": np.array([[0.0, 0.0], [9.0, 0.0]]),
    }
    return ModeConnectivityResult("mode_connectivity", card(), {**values, **changed}, arrays)
