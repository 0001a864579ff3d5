"""What the tests of perturbation methods share: a game with interactions, ticks that keep or cancel, and runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.attribution import Case, Map, Settings
from probes.attribution.coalitions import Game
from probes.attribution.sampling import Plan


class Cancelled(Exception):
    """Raised by `Keeping` in place of the user who cancels."""


class Keeping:
    """A tick that keeps what it is given and, after `most` reports, cancels."""

    def __init__(self, most: int = 10**9) -> None:
        self.most, self.kept, self.told = most, {}, []

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        self.told.append((share, doing))
        if len(self.told) >= self.most:
            raise Cancelled

    def save(self, key: str, arrays: Any) -> None:
        self.kept[key] = {name: np.array(each) for name, each in arrays.items()}

    def load(self, key: str) -> Any:
        return self.kept.get(key)


class Counting:
    """Count the examples that a function is called on."""

    def __init__(self, scores: Any) -> None:
        self.scores, self.count = scores, 0

    def __call__(self, features: Tensor) -> Tensor:
        self.count += len(features)
        return self.scores(features)


def interacting(count: int, seed: int = 0) -> Any:
    """A smooth function of `count` features in which all interact."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, 2 * count, generator=generator, dtype=torch.float64)
    last = torch.randn(2 * count, generator=generator, dtype=torch.float64)
    return lambda x: torch.tanh(x.reshape(len(x), -1) @ first / count**0.5) @ last


def game(count: int, scores: Any = None, seed: int = 0, block: int = 64) -> Game:
    """A game of single features with another baseline than zero."""
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(1, count, generator=generator, dtype=torch.float64)
    baseline = 0.3 * torch.randn(1, count, generator=generator, dtype=torch.float64)
    return Game(scores or interacting(count, seed), x, baseline, np.arange(count), count, block)


def plan(samples: int = 20, tolerance: float = 0.0, seed: int = 0, tick: Any = None) -> Plan:
    """A plan that never stops early unless it is asked to."""
    return Plan(samples, tolerance, seed, "key", "test", tick or Keeping())


def run(module: Any, case: Case, name: str, settings: Settings | None = None, tick: Any = None) -> Map:
    """Run a method of a module on a case."""
    method = next(each for each in module.METHODS if each.name == name)
    assert method.refuse(case) is None
    return method.run(case, settings or Settings(), tick or Keeping())
