"""The score of an example of which some segments are kept and the others replaced by a baseline: v(S)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Progress = Callable[[float, str], None]
Scores = Callable[[Tensor], Tensor]  # features (B, ...) -> (B,)


def quiet(share: float, doing: str) -> None:
    """Report nothing."""


class Game:
    """The score as a function of the segments that are kept; asking twice for the same ones runs the model once.

    scores: features (B, ...) -> (B,). x, baseline: (1, ...). labels: the segment of each element, shaped to broadcast
    over x[0]; any number where x equals the baseline. block: examples that are made at a time.
    """

    def __init__(
        self, scores: Scores, x: Tensor, baseline: Tensor, labels: NDArray[np.int64], count: int, block: int = 64
    ) -> None:
        self.scores, self.x, self.baseline, self.count, self.block = scores, x, baseline, count, max(1, block)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels)).to(x.device)
        self._known: dict[bytes, float] = {}

    @property
    def evaluations(self) -> int:
        """Return how many examples the model has been run on."""
        return len(self._known)

    @property
    def full(self) -> float:
        """Return the score of the example itself, v(all)."""
        return float(self(np.ones((1, self.count), bool))[0])

    @property
    def empty(self) -> float:
        """Return the score of the baseline, v(none)."""
        return float(self(np.zeros((1, self.count), bool))[0])

    def know(self, full: float, empty: float) -> None:
        """Take the scores of the example and of the baseline from elsewhere, so that they are not run again."""
        for kept, value in ((np.ones((1, self.count), bool), full), (np.zeros((1, self.count), bool), empty)):
            self._known[np.packbits(kept, axis=1)[0].tobytes()] = value

    def __call__(self, kept: Bools) -> Floats:
        """Return the scores of coalitions, (B, P) -> (B,)."""
        keys = [row.tobytes() for row in np.packbits(kept, axis=1)]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        rows = list(new.values())
        for start in range(0, len(rows), self.block):
            part = rows[start : start + self.block]
            values = self.scores(self.features(kept[part])).double().cpu().tolist()
            self._known.update(zip([keys[i] for i in part], values, strict=True))
        return np.array([self._known[key] for key in keys])

    def ahead(self, number: int, samples: int, coalitions: Callable[[int], Bools]) -> None:
        """Run the rounds from `number` on together, as many as fill a block; asking for them later runs nothing."""
        each = coalitions(number)
        if number % (together := max(1, self.block // len(each))) == 0:
            later = range(number + 1, min(number + together, samples))
            self(np.concatenate([each, *(coalitions(other) for other in later)]))

    def features(self, kept: Bools) -> Tensor:
        """Make the examples of coalitions, (B, P) -> (B, ...)."""
        chosen = torch.from_numpy(np.ascontiguousarray(kept)).to(self.x.device)[:, self.labels]
        return torch.where(chosen, self.x, self.baseline)


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a sampling method knows of each segment or pixel.

    values, stderr: of the same shape; stderr is None where nothing is sampled. about: how it was found.
    """

    values: Floats
    stderr: Floats | None
    about: dict[str, Any]


def watched(game: Game, kept: Bools, tick: Progress, doing: str) -> Floats:
    """Return the scores of coalitions, reporting after each block; the tick may raise, which cancels."""
    for start in range(0, len(kept), game.block):
        game(kept[start : start + game.block])
        tick(min(1.0, (start + game.block) / len(kept)), f"{doing}: {len(kept)} coalitions")
    return game(kept)


def all_coalitions(count: int) -> Bools:
    """List the 2^P coalitions; bit i of the row's number says whether segment i is kept."""
    numbers = np.arange(2**count)
    return (numbers[:, None] >> np.arange(count) & 1).astype(bool)


def distinct(kept: Bools) -> int:
    """Count the examples of coalitions, and of all and none of the segments, each once, whichever attempt ran it."""
    ends = np.stack([np.ones(kept.shape[1], bool), np.zeros(kept.shape[1], bool)])
    return len(np.unique(np.packbits(np.concatenate([kept, ends]), axis=1), axis=0))


def relative(values: Floats, stderr: Floats) -> float:
    """Return the standard error beside the values, both as root mean squares; 0 where there is no error at all."""
    error, size = float(np.sqrt(np.mean(stderr**2))), float(np.sqrt(np.mean(values**2)))
    if error == 0:
        return 0.0
    return error / size if size else math.inf


def fitted(design: Floats, y: Floats, weights: Floats, cluster: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Fit y = design @ beta by weighted least squares; return beta (Q,) and its covariance (Q, Q).

    cluster: which rows were drawn together, numbered from 0. The covariance is the sandwich that allows for unequal
    errors and for rows drawn together (Liang and Zeger 1986), times m / (m - Q) for m clusters. With fewer rows than
    unknowns beta is the shortest one.
    """
    weighted = design * weights[:, None]
    inverse = np.linalg.pinv(weighted.T @ design, hermitian=True)
    beta = inverse @ (weighted.T @ y)
    pulls = weighted * (y - design @ beta)[:, None]
    groups, unknowns = int(cluster.max()) + 1, design.shape[1]
    sums = np.zeros((groups, unknowns))
    np.add.at(sums, cluster, pulls)
    spread = inverse @ sums.T
    return beta, spread @ spread.T * groups / max(1, groups - unknowns)
