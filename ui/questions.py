"""The questions that pages put to the queue: each is a JobSpec, so that asking twice is asking once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probes.specs import DataSpec, LossName, ModelSpec
from ui.state import store
from workspace.jobs import JobSpec
from workspace.references import reference


def name_of(text: str) -> str:
    """Return the name of what a reference means, as raw text: the file, the set of weights in it, the base."""
    meant = reference(text)
    stored = store().file(meant.sha256)
    name = stored.name if stored else f"{meant.sha256[:10]}…"
    name = f"{name} ({meant.weights})" if meant.weights else name
    return f"{name} on {name_of(str(meant.base))}" if meant.base else name


def inspection(text: str) -> JobSpec:
    """Ask what a stored file is, or the weights that a reference means."""
    return JobSpec("inspect", {"file": text}, f"Reading {name_of(text)}")


def comparison(text: str, model: ModelSpec) -> JobSpec:
    """Ask whether a model fits a checkpoint, by its reference."""
    payload = {"file": text, "model": model.to_json()}
    return JobSpec("compare", payload, f"Comparing the model with {name_of(text)}")


def preview(data: DataSpec, checkpoint: str = "", model: ModelSpec | None = None) -> JobSpec:
    """Ask for a look at the data; with a checkpoint, in the light of what it and the model's folder bring along."""
    named = data.files[:1] if data.format == "operator" else map(name_of, data.files)
    payload = {"data": data.to_json(), **({"checkpoint": checkpoint} if checkpoint else {})}
    if checkpoint and model and model.source == "hugging_face":
        payload["model"] = model.to_json()
    return JobSpec("preview", payload, f"Reading {', '.join(named)}")


def gate(text: str, model: ModelSpec, data: DataSpec, loss: LossName) -> JobSpec:
    """Ask for the gate's verdict on one checkpoint, by its reference."""
    payload = {"checkpoint": text, "model": model.to_json(), "data": data.to_json(), "loss": loss}
    return JobSpec("gate", payload, f"Gate: {name_of(text)}")


def rendering(run: str, figure: str, format: str, view: Mapping[str, Any]) -> JobSpec:
    """Ask for a figure of a finished run as a picture, as it is looked at."""
    payload = {"run": run, "figure": figure, "format": format, "view": dict(view)}
    return JobSpec("render", payload, f"Drawing {figure} as {format.upper()}")


def cross_check(run: str) -> JobSpec:
    """Ask PyHessian about a finished run."""
    return JobSpec("cross_check", {"run": run}, f"Cross-check with PyHessian of run {run[:8]}")


def merging(run: str, which: str) -> JobSpec:
    """Ask for a checkpoint made of a finished run."""
    return JobSpec("merge", {"run": run, "which": which}, f"Making a checkpoint of run {run[:8]}: {which}")


def permutations(
    checkpoint: str, model: ModelSpec, data: DataSpec, loss: LossName, rows: Sequence[Mapping[str, Any]] = ()
) -> JobSpec:
    """Ask which permutations of units leave a model's function as it is; or, given edited rows, whether these do."""
    payload = {"checkpoint": checkpoint, "model": model.to_json(), "data": data.to_json(), "loss": loss}
    edited = {"rows": [dict(each) for each in rows]} if rows else {}
    words = "Checking the edited permutations" if rows else "Permutations"
    return JobSpec("specification", {**payload, **edited}, f"{words} of {name_of(checkpoint)}")
