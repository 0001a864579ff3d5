"""The same numbers from PyHessian 0.1 on the same examples, beside ours."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probes.losses import total_loss
from probes.objective import Objective
from probes.strict import strict

EIGENVALUES = 5
TOLERANCE, ITERATIONS = 1e-4, 200  # of PyHessian's power iteration; its own default of 1e-3 stops some 0.5 % off
TRACE_ITERATIONS = 100

NO_DENSITY = (
    "PyHessian's density() is not called: it uses torch.eig, which no longer exists in PyTorch. Its eigenvalues() and "
    "trace() were run."
)
ORDER = "PyHessian orders eigenvalues by size regardless of sign, so ours are put in that order here."

Row = dict[str, Any]
Report = Callable[[float, str], None]


def cross_check(objective: Objective, values: Mapping[str, Any], tick: Report | None = None) -> dict[str, Any]:
    """Run PyHessian's `eigenvalues` and `trace` on the objective's examples; {"rows": [...], "notes": [...]}.

    values: those of our result (`eigenvalues`, `eigenvalue_residuals`, ..., `trace`, `trace_stderr`). A row has
    quantity, ours, ours_uncertainty, pyhessian, pyhessian_uncertainty, difference; a call of PyHessian that fails is
    a note in words, and its rows have None.
    """
    tick = tick or _silent
    notes = [NO_DENSITY, ORDER]
    ours = _by_size(values, notes)[:EIGENVALUES]
    tick(0.0, "PyHessian: building its gradient")
    theirs, samples = _pyhessian(objective, len(ours), notes, tick)
    rows = [
        _row(f"eigenvalue {i + 1} by size", value, bound, theirs[i] if i < len(theirs) else None, None)
        for i, (value, bound) in enumerate(ours)
    ]
    trace = float(np.mean(samples)) if samples else None
    stderr = float(np.std(samples, ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else None
    rows.append(_row("trace", values["trace"], values["trace_stderr"], trace, stderr))
    tick(1.0, "PyHessian: done")
    return {"rows": rows, "notes": notes}


def hessian_of(objective: Objective) -> Any:
    """Return a PyHessian object of the objective: its model in eval mode, the same mean loss, the same examples."""
    from pyhessian import hessian

    module = _module(objective)
    total = len(objective.inputs)

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        share = total / (objective.units * len(targets))  # PyHessian weighs each batch by its examples
        return total_loss(objective.loss, outputs, targets) * share

    parts = [(objective.inputs[part], objective.targets[part]) for part in objective.parts()]
    cuda = objective.device.type == "cuda"
    if len(parts) == 1:
        return hessian(module, criterion, data=parts[0], cuda=cuda)
    return hessian(module, criterion, dataloader=parts, cuda=cuda)


def _pyhessian(objective: Objective, count: int, notes: list[str], tick: Report) -> tuple[list[float], list[float]]:
    if objective.own is not None:
        notes.append("PyHessian needs outputs and a loss of them; one that runs the model itself is not such.")
        return [], []
    devices = [objective.device] if objective.device.type == "cuda" else []
    with strict(objective.module), warnings.catch_warnings(), torch.random.fork_rng(devices):
        warnings.simplefilter("ignore")  # it calls backward(create_graph=True), which torch warns of
        torch.manual_seed(0)
        check = _call("building the gradient", lambda: hessian_of(objective), notes)
        if check is None:
            return [], []
        tick(0.1, "PyHessian: eigenvalues")
        work = lambda: check.eigenvalues(maxIter=ITERATIONS, tol=TOLERANCE, top_n=count)[0] if count else []
        eigenvalues = _call("eigenvalues()", work, notes)
        tick(0.7, "PyHessian: trace")
        samples = _call("trace()", lambda: check.trace(maxIter=TRACE_ITERATIONS), notes)
        for parameter in check.model.parameters():
            parameter.grad = None  # it leaves its graph there
    return [float(each) for each in eigenvalues or []], [float(each) for each in samples or []]


def _call(what: str, work: Callable[[], Any], notes: list[str]) -> Any:
    try:
        return work()
    except (RuntimeError, AssertionError, TypeError, AttributeError, ValueError, IndexError) as error:
        notes.append(f"PyHessian failed in {what}: {_reason(error)}")
        return None


def _reason(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory; it holds the graph of a whole batch."
    if isinstance(error, AssertionError | TypeError | AttributeError) or "does not require grad" in text:
        return (
            f"it needs a gradient of every parameter, but the loss does not use all parameters of this model ({text})."
        )
    return f"{text}."


def _module(objective: Objective) -> nn.Module:
    """Copy the module with the objective's parameters, in its dtype and on its device."""
    module = copy.deepcopy(objective.module).to(objective.device, objective.dtype).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return module


def _by_size(values: Mapping[str, Any], notes: list[str]) -> list[tuple[float, float]]:
    """Sort ours by size, down to the size at which one end is not known any more."""
    ends = [values[key] for key in ("eigenvalues", "eigenvalues_min") if values[key]]
    if len(ends) < 2:
        notes.append("Ours are from one end only: a large eigenvalue at the other end shifts the rows.")
    known = max((abs(end[-1]) for end in ends), default=0.0)
    pairs = [*zip(values["eigenvalues"], values["eigenvalue_residuals"], strict=True)]
    seen = {value for value, _ in pairs}
    low = zip(values["eigenvalues_min"], values["eigenvalues_min_residuals"], strict=True)
    pairs += [(value, bound) for value, bound in low if value not in seen]
    return sorted((pair for pair in pairs if abs(pair[0]) >= known), key=lambda each: -abs(each[0]))


def _silent(share: float, doing: str) -> None:
    """Report nothing."""


def _row(quantity: str, ours: float, bound: float | None, theirs: float | None, spread: float | None) -> Row:
    return {
        "quantity": quantity,
        "ours": ours,
        "ours_uncertainty": bound,
        "pyhessian": theirs,
        "pyhessian_uncertainty": spread,
        "difference": None if theirs is None else theirs - ours,
    }
