"""The questions that pages put to the queue: each is a JobSpec, so that asking twice is asking once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.specs import DataSpec, LossName, ModelSpec
from ui.state import store
from workspace.jobs import JobSpec


def name_of(sha256: str) -> str:
    """Return the name of a stored file, as raw text."""
    stored = store().file(sha256)
    return stored.name if stored else f"{sha256[:10]}…"


def inspection(sha256: str) -> JobSpec:
    """Ask what a stored file is."""
    return JobSpec("inspect", {"file": sha256}, f"Reading {name_of(sha256)}")


def comparison(sha256: str, model: ModelSpec) -> JobSpec:
    """Ask whether a model fits a checkpoint."""
    payload = {"file": sha256, "model": model.to_json()}
    return JobSpec("compare", payload, f"Comparing the model with {name_of(sha256)}")


def preview(data: DataSpec) -> JobSpec:
    """Ask for a look at the data."""
    names = ", ".join(name_of(each) for each in data.files)
    return JobSpec("preview", {"data": data.to_json()}, f"Reading {names}")


def gate(sha256: str, model: ModelSpec, data: DataSpec, loss: LossName) -> JobSpec:
    """Ask for the gate's verdict on one checkpoint."""
    payload = {"checkpoint": sha256, "model": model.to_json(), "data": data.to_json(), "loss": loss}
    return JobSpec("gate", payload, f"Gate: {name_of(sha256)}")


def rendering(run: str, figure: str, format: str, view: Mapping[str, Any]) -> JobSpec:
    """Ask for a figure of a finished run as a picture, as it is looked at."""
    payload = {"run": run, "figure": figure, "format": format, "view": dict(view)}
    return JobSpec("render", payload, f"Drawing {figure} as {format.upper()}")


def cross_check(run: str) -> JobSpec:
    """Ask PyHessian about a finished run."""
    return JobSpec("cross_check", {"run": run}, f"Cross-check with PyHessian of run {run[:8]}")
