"""A small training run, and what its path is asked for: shared by the tests of the loss path."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from curvature_oracles import batches
from series_runs import a_run
from torch import nn
from torch.nn.functional import cross_entropy

SMALL = {"points": 7, "refine": 3, "dtype": "float64"}


def net(bend: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for each in module.parameters():
            each.mul_(bend)
    return module


def data(count: int = 40):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 5, generator=generator)
    return batches(x, (x @ torch.randn(5, 3, generator=generator)).argmax(1))


def trained(module: nn.Module, examples, steps: int = 60):
    """The state at the start, in the middle and at the end of a training."""
    module, states = copy.deepcopy(module), []
    adam = torch.optim.Adam(module.parameters(), lr=0.05)
    for step in range(steps + 1):
        if step in (0, steps // 3, steps):
            states.append(copy.deepcopy(module.state_dict()))
        adam.zero_grad()
        cross_entropy(module(examples.inputs), examples.targets).backward()
        adam.step()
    return states


def a_path(folder: Path):
    """An objective with test data at the start of a run, and its checkpoints: start, end, middle."""
    examples = data()
    start, middle, end = trained(net(), examples)
    objective, checkpoints = a_run(folder, net(), [start, end, middle], examples, dtype="float64", micro_batch=16)
    return objective.with_test(data(23)), checkpoints
