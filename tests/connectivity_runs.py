"""Pairs of small trained networks as an analyzer gets them: an objective at the first, and the checkpoints of all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from curvature_oracles import Notes, batches
from series_runs import a_run
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from analyzers.mode_connectivity import ModeConnectivity, ModeConnectivityResult
from probes.checkpoint import Checkpoint
from probes.objective import Objective

Pair = tuple[Objective, tuple[Checkpoint, ...]]


class Shown(Notes):
    """A tick that also keeps what was shown."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(stop_after)
        self.results: list[ModeConnectivityResult] = []

    def show(self, result: ModeConnectivityResult) -> None:
        self.results.append(result)


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Five classes in eight dimensions, two clouds each: no straight cut tells them apart."""
    centres = 2.0 * torch.randn(10, 8, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(10, (count,), generator=generator)
    return centres[which] + 0.6 * torch.randn(count, 8, generator=generator), which % 5


def mlp(seed: int, width: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))


def normed(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))


def trained(net: nn.Module, steps: int = 120) -> dict[str, Tensor]:
    """Train in full batches; return the state."""
    x, y = blobs(200, 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net.train()(x), y).backward()
        optimizer.step()
    return copy.deepcopy(net.eval().state_dict())


def pair_of(folder: Path, make: Any, seeds: tuple[int, ...] = (1, 2), *, test: bool = False, **options: Any) -> Pair:
    """Train networks from these seeds, and lay them out; test: with test data beside."""
    states = [trained(make(seed)) for seed in seeds]
    return laid(folder, make(0), states, test=test, **options)


def laid(folder: Path, net: nn.Module, states: list[dict[str, Tensor]], *, test: bool = False, **options: Any) -> Pair:
    folder.mkdir(exist_ok=True)
    objective, checkpoints = a_run(folder, net, states, batches(*blobs(200, 0)), **options)
    return (objective.with_test(batches(*blobs(90, 1))) if test else objective), checkpoints


def run(pair: Pair, tick: Any = None, **options: Any) -> ModeConnectivityResult:
    """Ask for little, but for what the options say."""
    asked = {"points": 5, "restarts": 2, "controls": False, "repair": False, **options}
    return ModeConnectivity(**asked).run(*pair, tick or Shown())
