"""Models and Captum's maps for the tests of modified backward passes."""

from __future__ import annotations

from typing import Any

import torch
from attribution_cases import settled
from curvature_oracles import batches
from torch import Tensor, nn
from torch.nn import functional

from probes.attribution import Case, Settings, case_of
from probes.objective import Objective

ZERO = Settings(baseline="zero")


class Functional(nn.Module):
    """The same numbers as a chain with modules, or with whatever stands in for them."""

    def __init__(self, activation: Any, pool: Any = lambda x: functional.max_pool2d(x, 2)) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5 * 2 * 2, 3)
        self.activation, self.pool = activation, pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.first(x)))
        return self.head(self.activation(self.second(x))[:, :, :2, :2].flatten(1))


def pictured(module: nn.Module, seed: int = 0) -> Case:
    torch.manual_seed(seed)
    module = settled(module, seed)
    inputs = torch.randn(4, 1, 10, 10)
    data = batches(inputs, torch.zeros(4, dtype=torch.int64))
    return case_of(Objective.of(module, data, "cross_entropy", dtype="float64", device="cpu"), 0)
