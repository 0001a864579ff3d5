"""A curve of low loss between two solutions, found by moving its bends while the ends stay where they are.

Each minibatch is seen at one t, drawn evenly from [0, 1]; as phi(t) is linear in the bends, its gradient reaches bend j
times c_j(t). Nothing is written to the model: its parameters are passed in.
Source: Garipov, Izmailov, Podoprikhin, Vetrov, Wilson (2018), with the schedule of the authors' code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from probes.curves import Curve, Floats, Kind, coefficients, straight
from probes.errors import ObjectiveError
from probes.extremes import Store
from probes.fitting import gradients
from probes.objective import Objective
from probes.points import Point
from probes.strict import strict

Tick = Callable[[float, str], None]
SAVE_SECONDS = 2.0  # between two savings, at least
SAVE_SHARE = 0.05  # of the time goes into saving, at most
CONSTANT, DECAYED, LEAST = 0.5, 0.9, 0.01  # the rate is constant up to here, falls up to there, stays at this share
SHOWN = 20  # minibatches whose mean loss is reported
WRITTEN = ("running_mean", "running_var", "num_batches_tracked")  # by BatchNorm layers that see a batch


@dataclass(frozen=True)
class Recipe:
    """How a curve is trained.

    bends: nodes between the ends. epochs: passes over the examples. learning_rate: of the first half. weight_decay:
    times half the squared norm of the point on the curve (all parameters) is added to the loss. batch: examples in a
    minibatch at most; the minibatches of an epoch are as even as can be.
    """

    kind: Kind
    bends: int
    epochs: int
    learning_rate: float
    momentum: float
    weight_decay: float
    batch: int
    seed: int


@dataclass(frozen=True, eq=False)
class TrainedCurve:
    """A curve and how it came about. losses: the mean loss of each minibatch, without the decay, (steps,)."""

    curve: Curve
    recipe: Recipe
    losses: Floats
    caveats: tuple[str, ...]


def rate_at(share: float) -> float:
    """Return the learning rate as a share of the first one: 1 up to half of the steps, then linear to 1 % at 90 %."""
    return min(1.0, max(LEAST, 1.0 - (1.0 - LEAST) * (share - CONSTANT) / (DECAYED - CONSTANT)))


def trained(
    objective: Objective,
    point_a: Point,
    point_b: Point,
    *,
    kind: Kind = "bezier",
    bends: int = 1,
    epochs: int = 10,
    learning_rate: float = 0.03,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch: int = 128,
    seed: int = 0,
    tick: Tick,
    store: Store | None = None,
    key: str = "curve",
) -> TrainedCurve:
    """Train a curve from a to b, the bends at first on the straight line; the same seed gives the same curve.

    BatchNorm layers normalise by the minibatch; otherwise the model is as in evaluation (dropout off). store: where the
    state is kept under `key` from time to time, `tick` itself where it keeps arrays; a killed training goes on from
    there to the same bends, to the bit. Raises ObjectiveError (loss not finite, memory), ModelError (points differ).
    """
    recipe = Recipe(kind, bends, epochs, learning_rate, momentum, weight_decay, batch, seed)
    run = _Run(objective, straight(kind, point_a, point_b, bends), recipe)
    keeper = _Keeper(store or _store_of(tick), key)
    keeper.restore(run)
    with strict(objective.module), _seeing_batches(objective.module):
        while run.step < run.steps:
            run.advance()
            keeper.keep(run)
            tick(run.step / run.steps, run.words())
    keeper.keep(run, now=True)
    return run.result()


class _Run:
    """The state of a training: nodes (n, P) of which the ends stay, momenta of the bends, and what has been seen."""

    def __init__(self, objective: Objective, line: Curve, recipe: Recipe) -> None:
        self.objective, self.line, self.recipe = objective, line, recipe
        self.nodes = torch.stack([objective.flat([objective.cast(each) for each in at.theta]) for at in line.nodes])
        self.momenta = torch.zeros_like(self.nodes[1:-1])
        self.step, self.losses = 0, list[float]()
        self.an_epoch = math.ceil(len(objective.inputs) / recipe.batch)
        self.steps = recipe.epochs * self.an_epoch
        self.order, self.times, self.epoch = [np.zeros(0, dtype=np.int64)], np.zeros(0), -1
        self.normalises = any(isinstance(each, _BatchNorm) for each in objective.module.modules())
        self.parts = 1  # of a minibatch, at most, that went through the model one by one
        self._refuse_single_examples()

    def advance(self) -> None:
        """Take one step of SGD with momentum."""
        rows, t = self._minibatch()
        weights = torch.as_tensor(coefficients(self.recipe.kind, len(self.nodes), t)).to(self.nodes)
        phi = weights @ self.nodes
        loss, gradient = self.objective.in_memory(lambda: self._gradient(phi, t, rows))
        if not math.isfinite(loss):
            raise ObjectiveError(self._not_finite(t))
        gradient.add_(phi, alpha=self.recipe.weight_decay)
        rate = self.recipe.learning_rate * rate_at(self.step / self.steps)
        self.momenta.addr_(weights[1:-1], gradient, beta=self.recipe.momentum)
        self.nodes[1:-1].sub_(self.momenta, alpha=rate)
        self.losses.append(loss)
        self.step += 1

    def words(self) -> str:
        """Say where the training is."""
        epoch, loss = (self.step - 1) // self.an_epoch + 1, np.mean(self.losses[-SHOWN:])
        return f"training the curve: epoch {epoch} of {self.recipe.epochs}, loss {loss:.4g}"

    def result(self) -> TrainedCurve:
        """Return the curve as it is."""
        if not bool(torch.isfinite(self.nodes).all()):
            raise ObjectiveError(self._not_finite(1.0))
        pairs = zip(self.nodes[1:-1].clone(), self.line.bends, strict=True)
        bends = tuple(Point(tuple(self.objective.like_theta(row)), each.buffers) for row, each in pairs)
        curve = Curve(self.line.kind, self.line.ends, bends)
        return TrainedCurve(curve, self.recipe, np.array(self.losses), tuple(self._caveats()))

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return all that is needed to go on; what is drawn at random follows from the seed and the epoch."""
        arrays = {"bends": self.nodes[1:-1].cpu().numpy(), "momenta": self.momenta.cpu().numpy()}
        numbers = np.array([self.step, self.objective.micro_batch, self.parts])
        return {**arrays, "losses": np.array(self.losses), "numbers": numbers}

    def go_on(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Undo `state`."""
        self.nodes[1:-1] = torch.as_tensor(state["bends"]).to(self.nodes)
        self.momenta = torch.as_tensor(state["momenta"]).to(self.nodes)
        self.losses = state["losses"].tolist()
        self.step, self.objective.micro_batch, self.parts = state["numbers"].tolist()

    def _minibatch(self) -> tuple[list[int], float]:
        """Return the rows of the next minibatch and its t."""
        epoch, place = divmod(self.step, self.an_epoch)
        if epoch != self.epoch:
            generator = np.random.default_rng([self.recipe.seed, epoch])
            self.order = np.array_split(generator.permutation(len(self.objective.inputs)), self.an_epoch)
            self.times, self.epoch = generator.random(self.an_epoch), epoch
        return self.order[place].tolist(), float(self.times[place])

    def _gradient(self, phi: Tensor, t: float, rows: list[int]) -> tuple[float, Tensor]:
        """Return the mean loss of a minibatch at a point of the curve, and its gradient there, flat (P,)."""
        batch = self.objective.chosen(rows)
        batch.units = max(batch.units, 1)  # a minibatch in which no token is to be predicted
        batch = batch.moved([each.clone() for each in batch.like_theta(phi)], self._buffers(t))
        parts = self._cut(len(rows))
        self.parts = max(self.parts, len(parts))
        loss, gradient = 0.0, torch.zeros_like(phi)
        for part in parts:
            share = batch.part_loss(batch.theta, part)
            loss += float(share.detach())
            gradient += batch.flat(gradients(share, batch.theta))
        return loss, gradient

    def _cut(self, count: int) -> list[slice]:
        """Cut a minibatch into even parts that fit the memory; for BatchNorm of two examples at least."""
        parts = math.ceil(count / self.objective.micro_batch)
        ends = np.linspace(0, count, min(parts, count // 2 if self.normalises else count) + 1).astype(int)
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    def _buffers(self, t: float) -> dict[str, Tensor]:
        """Return the buffers at t; of those that BatchNorm writes to, copies."""
        bare = [Point((), each.buffers) for each in self.line.nodes]
        here = Curve(self.line.kind, (bare[0], bare[-1]), tuple(bare[1:-1])).at(t).buffers
        values = {**self.objective.constants, **here}
        return {name: each.clone() if name.endswith(WRITTEN) else each for name, each in values.items()}

    def _refuse_single_examples(self) -> None:
        count = len(self.objective.inputs) // self.an_epoch
        if self.normalises and count < 2:
            raise ObjectiveError(
                f"The minibatches have {count} example each, but BatchNorm layers normalise by the minibatch and need "
                "two or more; choose larger minibatches or more examples."
            )

    def _not_finite(self, t: float) -> str:
        if self.step == 0:
            return (
                f"The loss is not finite at t = {t:.3g} on the straight line between the two checkpoints, before the "
                "first step: no curve can be trained from there. Match the units of the two first, or check them."
            )
        return (
            f"The loss on the curve is not finite at step {self.step + 1} of {self.steps} (t = {t:.3g}): the learning "
            f"rate, {self.recipe.learning_rate:g}, is too high for this model. Try a tenth of it."
        )

    def _caveats(self) -> Iterator[str]:
        modules = list(self.objective.module.modules())
        if self.normalises:
            yield "While the curve was trained, BatchNorm layers normalised by the minibatch."
        if self.normalises and self.parts > 1:
            yield (
                f"For want of memory a minibatch went through the model in up to {self.parts} parts, and BatchNorm "
                "layers normalised by these: smaller minibatches would fit."
            )
        if any(isinstance(each, _DropoutNd) and each.p > 0 for each in modules):
            yield "While the curve was trained, dropout was off."


class _Keeper:
    """Keep the state of a training from time to time, the less often the longer that takes."""

    def __init__(self, store: Store | None, key: str) -> None:
        self._store, self._key = store, key
        self._next, self._kept = time.monotonic() + SAVE_SECONDS, -1

    def restore(self, run: _Run) -> None:
        """Bring a fresh training to where it was kept, if it was."""
        state = self._store.load(self._key) if self._store is not None else None
        if state is not None and state["bends"].shape == tuple(run.momenta.shape):
            run.go_on(state)
            self._kept = run.step

    def keep(self, run: _Run, *, now: bool = False) -> None:
        """Keep what is new, when it is time."""
        began = time.monotonic()
        if self._store is None or self._kept == run.step or not (now or began >= self._next):
            return
        self._store.save(self._key, run.state())
        self._kept, taken = run.step, time.monotonic() - began
        self._next = began + max(SAVE_SECONDS, taken / SAVE_SHARE)


def _store_of(tick: object) -> Store | None:
    return cast(Store, tick) if hasattr(tick, "save") and hasattr(tick, "load") else None


@contextmanager
def _seeing_batches(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers normalise by the batch at hand; undone afterwards."""
    layers = [each for each in module.modules() if isinstance(each, _BatchNorm)]
    before = [each.training for each in layers]
    try:
        for each in layers:
            each.training = True
        yield
    finally:
        for each, was in zip(layers, before, strict=True):
            each.training = was
