"""What is asked of the queue and what comes back, as values. No torch here.

The browser side, the command line and the tasks meet here: who asks for an analysis writes the same payload, and so
gets the same run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from analyzers import catalogue
from analyzers._base import Analyzer, Result
from probes.errors import ProbeError
from probes.specs import DataSpec, LossName, ModelSpec
from workspace.jobs import Jobs, JobSpec
from workspace.store import Store

if TYPE_CHECKING:
    import plotly.graph_objects as go


def analysis(
    analyzer: Analyzer,
    checkpoints: Sequence[str],
    model: ModelSpec | None,
    data: DataSpec | None,
    loss: LossName | None,
    title: str,
    test: DataSpec | None = None,
) -> JobSpec:
    """Ask an analyzer about checkpoints, by their references; files in `model` and `data` go by their sha256.

    Model, data and loss are left out where the analyzer needs none, test data where it looks at none.
    """
    payload: dict[str, Any] = {
        "analyzer": analyzer.name,
        "version": analyzer.version,
        "options": asdict(analyzer),
        "checkpoints": list(checkpoints),
    }
    if analyzer.needs_objective:
        if model is None or data is None or loss is None:
            raise ValueError(f"{analyzer.name} needs model, data and loss")
        payload |= {"model": model.to_json(), "data": data.to_json(), "loss": loss}
        if test is not None and analyzer.uses_test:
            payload["test"] = test.to_json()
    return JobSpec("analysis", payload, title)


def example() -> JobSpec:
    """Ask for the example: two small networks trained on handwritten digits, and the spectrum of one."""
    return JobSpec("example", {}, "The example: handwritten digits")


def payload_of(run: str, store: Store) -> Mapping[str, Any]:
    """Return what a run was asked; raise ProbeError when there is no such run."""
    job = Jobs(store).status(run)
    if job is None:
        raise ProbeError(f"There is no run {run} in this workspace; choose one from the list of jobs.")
    return job.payload


def result_of(run: str, store: Store) -> Result:
    """Return the finished result of an analysis; raise ProbeError when there is none."""
    folder = store.folder(run)
    try:
        name = json.loads((folder / "result.json").read_text())["analyzer"]
        return catalogue()[name].result.read(folder)
    except FileNotFoundError:
        raise ProbeError(f"The run {run} has no result yet; wait until it is done, or retry it.") from None


def figures_of(run: str, view: Mapping[str, Any], store: Store) -> Mapping[str, go.Figure]:
    """Draw a finished analysis as it was looked at.

    view: the keywords of the result's `figures`, and `over`: the runs that it is drawn over.
    """
    style = {name: value for name, value in view.items() if name != "over"}
    result = result_of(run, store)
    others = [result_of(each, store) for each in view.get("over", ())]
    return result.overlay(others, **style) if others else result.figures(**style)
