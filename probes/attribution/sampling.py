"""Rounds of a sampling method: each from its own seed, kept for a later attempt, ended by an error or a number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probes.attribution.coalitions import Bools, Floats, Game, distinct

State = dict[str, NDArray[Any]]
Draw = Callable[[np.random.Generator, int], Bools]
FEWEST = 10  # rounds before a standard error is believed
SECONDS_BETWEEN_SAVES = 2.0


class Keeps(Protocol):
    """What reports, and keeps arrays for a later attempt; `analyzers._base.Tick` is one."""

    def __call__(self, share: float, doing: str) -> None:
        """Report the share that is done, and what is being done; may raise, which cancels."""

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays."""

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return what was kept."""


@dataclass(frozen=True)
class Plan:
    """How long to sample, and where to keep what is known.

    samples: rounds at most. tolerance: the relative standard error that is enough. key: of what is kept; it must name
    all that the numbers depend on.
    """

    samples: int
    tolerance: float
    seed: int
    key: str
    doing: str
    tick: Keeps

    def random(self, number: int) -> np.random.Generator:
        """Return the source of randomness of one round, the same in every attempt."""
        return np.random.default_rng([self.seed, number])


@dataclass(frozen=True, eq=False)
class Sampled:
    """What the rounds added up to. rounds: of this and earlier attempts. stopped: "tolerance" or "samples"."""

    state: State
    rounds: int
    stopped: str


def sample(plan: Plan, first: State, extend: Callable[[State, int], State], error: Callable[[State], float]) -> Sampled:
    """Draw rounds until the relative standard error is small enough or all are drawn; go on from what was kept.

    extend: the state after one more round, given its number. error: the relative standard error of a state, asked from
    the tenth round on. An interrupted run keeps its rounds.
    """
    state, done = _resumed(plan, first)
    saved, kept, reached = time.monotonic(), done, _reached(error, state, done)
    try:
        while done < plan.samples and reached > plan.tolerance:
            state, done = extend(state, done), done + 1
            reached = _reached(error, state, done)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                _keep(plan, state, done)
                saved, kept = time.monotonic(), done
            plan.tick(done / plan.samples, _told(plan, done, reached))
    finally:
        if kept != done:
            _keep(plan, state, done)
    return Sampled(state, done, "tolerance" if reached <= plan.tolerance else "samples")


def moments(values: Floats) -> State:
    """Begin the sums that `added` goes on with: of values of this shape."""
    return {"total": np.zeros(values.shape), "squares": np.zeros(values.shape), "count": np.zeros(1)}


def added(state: State, total: Floats, squares: Floats, count: int) -> State:
    """Add the sum and the sum of squares of `count` independent values."""
    return {
        "total": state["total"] + total,
        "squares": state["squares"] + squares,
        "count": state["count"] + count,
    }


def nothing(game: Game) -> State:
    """Begin the coalitions and scores that `collected` goes on with."""
    return {"kept": np.zeros((0, game.count), bool), "scores": np.zeros(0)}


def collected(game: Game, plan: Plan, state: State, number: int, draw: Draw) -> State:
    """Add the coalitions of a round, as `draw` makes them from its randomness and the number of players, and scores."""
    game.ahead(number, plan.samples, lambda each: draw(plan.random(each), game.count))
    kept = draw(plan.random(number), game.count)
    return {
        "kept": np.concatenate([state["kept"], kept]),
        "scores": np.concatenate([state["scores"], game(kept)]),
    }


def counts(state: State) -> dict[str, int]:
    """Return how many coalitions were collected, and how many examples were run for them, repeated ones once."""
    return {"coalitions": len(state["kept"]), "evaluations": distinct(state["kept"])}


def mean_and_error(state: State) -> tuple[Floats, Floats]:
    """Return the mean and its standard error, the latter not finite for a single value."""
    count = float(state["count"][0])
    mean = state["total"] / count
    spread = np.maximum(state["squares"] / count - mean**2, 0.0)
    return mean, np.sqrt(spread / (count - 1)) if count > 1 else np.full(mean.shape, np.inf)


def _resumed(plan: Plan, first: State) -> tuple[State, int]:
    kept = plan.tick.load(plan.key)
    if kept is None or not set(first) <= set(kept):
        return first, 0
    return {name: np.asarray(kept[name]) for name in first}, int(kept["rounds"][0])


def _reached(error: Callable[[State], float], state: State, done: int) -> float:
    return error(state) if done >= FEWEST else math.inf


def _keep(plan: Plan, state: State, done: int) -> None:
    plan.tick.save(plan.key, {**state, "rounds": np.array([done])})


def _told(plan: Plan, done: int, reached: float) -> str:
    beside = f", relative standard error {reached:.2g}" if math.isfinite(reached) else ""
    return f"{plan.doing}: {done} of {plan.samples} rounds{beside}"
