"""What the tests of gradient statistics share: runs, gradients materialised one by one, and their exact figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from curvature_oracles import batches
from series_runs import a_run
from torch import nn

from probes.objective import Objective


def quiet(_share: float, _doing: str) -> None:
    pass


def one_by_one(objective: Objective) -> np.ndarray:
    """(N, P) the gradient of each example's share in the mean loss, times N."""
    rows = []
    for row in range(len(objective.inputs)):
        share = objective.part_loss(objective.theta, slice(row, row + 1))
        found = torch.autograd.grad(share, objective.theta, allow_unused=True, materialize_grads=True)
        rows.append(objective.flat(list(found)).numpy() * len(objective.inputs))
    return np.array(rows)


def exactly(G: np.ndarray) -> dict[str, float]:
    """The unbiased figures from all gradients, by NumPy's own covariance."""
    trace = float(np.trace(np.cov(G.T)))
    raw = float((G.mean(0) ** 2).sum())
    squared = raw - trace / len(G)
    return {"trace": trace, "raw": raw, "squared": squared, "scale": trace / squared}


def regression(folder: Path, distances, count: int = 3000):
    """Squared error of linear regression y = x w* + e, at checkpoints w* + distance along the first axis."""
    torch.manual_seed(4)
    x = torch.randn(count, 4)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.5 * torch.randn(count)
    states = [{"weight": torch.tensor([[1.0 + each, -2.0, 0.5, 0.0]])} for each in distances]
    return a_run(folder, nn.Linear(4, 1, bias=False), states, batches(x, y), "mse")


def saved(folder: Path, module: nn.Module) -> Path:
    torch.save(module.state_dict(), folder / "x.pt")
    return folder / "x.pt"
