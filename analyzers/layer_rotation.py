"""How far has each layer turned away from its initialisation?"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from analyzers._base import Analyzer, Result, Tick, option, times_option

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.kernels import Kernel
    from probes.objective import Objective
    from probes.rotation import Rotation
    from probes.series import Series

_SPLITS = ("none", "matrix", "head")


@dataclass(frozen=True)
class LayerRotationResult(Result):
    """Rotation, norm and steps of each layer over time, with the random walk that they are measured by."""

    def figures(self, null: bool = False) -> Mapping[str, go.Figure]:  # type: ignore[override]  # its view
        """Draw "rotation", "final_rotation", "norms", "angular_steps"; null: with the random walk of each layer."""
        from analyzers._rotation_figures import draw

        return draw(self.values, null=null)

    def overlay(self, others: Sequence[Result], **view: Any) -> Mapping[str, go.Figure]:
        """Draw "mean_rotation" of several runs and, with three accuracies, "rotation_against_accuracy".

        accuracies: for this result and each of the others, fractions or None; what the files say where left out.
        Raises ProbeError, naming what differs, when the cards are not the same.
        """
        from analyzers._rotation_figures import overlay

        return overlay([self, *others], **view)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return a row for each layer at each checkpoint behind the lines, and a row for each layer in "layers"."""
        from analyzers._rotation_tables import tables

        return tables(self.values)


@dataclass(frozen=True)
class LayerRotation(Analyzer):
    """Cosine distance of each layer's kernel from its initialisation, with norms, steps and controls."""

    name: ClassVar[str] = "layer_rotation"
    title: ClassVar[str] = "Layer rotation"
    question: ClassVar[str] = "How far has each layer turned away from its initialisation?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = LayerRotationResult
    series: ClassVar[bool] = True
    needs_objective: ClassVar[bool] = False

    times: str = times_option()
    split: str = option(
        "none", "Split fused attention",
        "Count fused query-key-value kernels as one layer, as three, or as three for each head.",
        choices=_SPLITS,
    )  # fmt: skip
    heads: int = option(
        0, "Attention heads", "To split by head; 0 reads their number from the files.",
        minimum=0, maximum=10_000, advanced=True,
    )  # fmt: skip
    leave_out: str = option(
        "", "Leave out", "Parts of names, separated by commas: kernels whose name has one of them do not count.",
        advanced=True,
    )  # fmt: skip

    def run(
        self,
        objective: Objective | None,  # noqa: ARG002
        checkpoints: tuple[Checkpoint, ...],
        tick: Tick,
    ) -> LayerRotationResult:
        """Follow the kernels through all checkpoints; names and tensors are enough.

        Raises DataError (fewer than two checkpoints, times that do not fit, no kernel in common, heads not known) or
        RefusedCheckpoint.
        """
        from probes.errors import DataError
        from probes.kernels import kernels
        from probes.rotation import measure
        from probes.series import series

        if len(checkpoints) < 2:
            raise DataError("Layer rotation compares checkpoints: give the initialisation and at least one more.")
        times = series(checkpoints, self.times)
        ordered = [checkpoints[place] for place in times.order]
        tick(0.0, "looking for the kernels")
        split: Any = self.split
        found, doubts = kernels(ordered, split, self.heads, self.leave_out)
        rotation = measure(ordered, found, tick)
        values = _values(ordered, times, found, rotation)
        caveats = (*times.doubts, *doubts, *_doubts(values, times))
        arrays = {"squares": rotation.squares, "starts": rotation.starts, "steps": rotation.steps}
        return LayerRotationResult(self.name, self._card(ordered, found, values), values, arrays, caveats)

    def _card(self, ordered: list[Checkpoint], found: tuple[Kernel, ...], values: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        from probes import VERSION
        from probes.kernels import digest

        return {
            "layers": len(values["rotation"]),
            "weights": sum(each.numel for each in found),
            "layers_sha256": digest(found),
            "split": self.split,
            "since": values["since"],
            "unit": values["unit"],
            "dtype": "sums in float64",
            "versions": {"theodolite": VERSION, "torch": torch.__version__, "python": platform.python_version()},
            "device": "CPU",
            "checkpoint": {"name": ordered[-1].name, "sha256": ordered[-1].sha256},
        }


def _values(ordered: list[Checkpoint], times: Series, found: tuple[Kernel, ...], rotation: Rotation) -> dict[str, Any]:
    from probes.gate import stored_accuracy
    from probes.seed_match import seed_match

    layers = [(label, each) for each in found for label in each.labels]
    names = [label for label, _ in layers]
    since = (
        "initialisation" if times.starts else "the first checkpoint" if times.unit == "position" else times.labels[0]
    )
    may_start = times.starts or times.unit == "position"
    turned, norm = rotation.rotation, rotation.norm
    with np.errstate(all="ignore"):
        ratio = norm / norm[:, :1]
    counted = [index for index, (_, each) in enumerate(layers) if each.kind == "kernel"] or list(range(len(layers)))
    accuracy = stored_accuracy(ordered[-1].facts.get("metrics", {}))
    return {
        "rotation": _by_layer(names, turned),
        "checkpoints": [each.name for each in ordered],
        "times": list(times.times),
        "unit": times.unit,
        "since": since,
        "seed_match": seed_match(turned, [each.weights for _, each in layers], since, is_start=may_start).to_json(),
        "mean_rotation": [_mean(column) for column in turned[counted].T],
        "null": _by_layer(names, rotation.random_walk),
        "norm": _by_layer(names, norm),
        "norm_ratio": _by_layer(names, ratio),
        "angular_step": _by_layer(names, rotation.angles),
        "radial_share": _by_layer(names, rotation.radial_share),
        "kinds": {label: each.kind for label, each in layers},
        "weights": {label: each.weights for label, each in layers},
        "accuracy": accuracy.value if accuracy else None,
    }


def _doubts(values: Mapping[str, Any], times: Series) -> list[str]:
    found = []
    match = values["seed_match"]
    if match["verdict"] == "unlikely":
        found.append(match["sentence"])
    if not times.starts:
        found.append(
            f"No checkpoint is known to be of time 0: all figures count since {values['since']}, not since the "
            "initialisation."
        )
    lost = [layer for layer, row in values["rotation"].items() if None in row]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        found.append(
            f"The direction of {lost[0]}{more} is not defined everywhere: all its weights are zero, or not all are "
            "finite. Those points are left out."
        )
    return found


def _by_layer(names: list[str], rows: NDArray[np.float64]) -> dict[str, list[float | None]]:
    return {name: [_number(each) for each in row] for name, row in zip(names, rows.tolist(), strict=True)}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mean(column: NDArray[np.float64]) -> float | None:
    known = column[np.isfinite(column)]
    return float(known.mean()) if len(known) else None
