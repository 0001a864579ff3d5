"""The influence of all examples on one and on random ones: at each checkpoint, kept for a run that is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Arrays, Tick
from probes.errors import DataError, ObjectiveError
from probes.series import Series, series

if TYPE_CHECKING:
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective

Array = np.ndarray[Any, Any]
Said = Callable[[float, str], None]
TRACIN, FISHER = "tracin", ("gradients", "damping", "directions")


@dataclass(frozen=True)
class Asked:
    """The options of the analyzer."""

    method: str
    example: str
    learning_rates: str
    layers: str
    relative: bool
    gradients: int
    damping: float
    null_examples: int
    times: str
    seed: int


@dataclass(frozen=True)
class Found:
    """What was found. last, target: model at the last checkpoint on the data, and on those the example is from.

    row: of the example in target; random: rows of the random ones. losses: of target. influence: (N,) on the example;
    others: (N, K) on the random ones, NaN of one on itself. terms: (T, N) what each used checkpoint adds, before
    `relative`. lengths: (N,) by which it was divided. rates: of the used checkpoints. fisher: gradients, damping and
    directions, or empty.
    """

    asked: Asked
    series: Series
    names: tuple[str, ...]
    rates: tuple[float, ...]
    last: Objective
    target: Objective
    row: int
    random: tuple[int, ...]
    losses: Array
    influence: Array
    others: Array
    terms: Array
    lengths: Array
    fisher: dict[str, float]
    singly: bool

    @property
    def own(self) -> bool:
        """Tell whether the example is one of the training examples themselves."""
        return self.target is self.last

    @property
    def without(self) -> tuple[int, ...]:
        """Return the rows that are not listed: the example itself."""
        return (self.row,) if self.own else ()


@dataclass(frozen=True)
class _Run:
    objective: Objective
    checkpoints: tuple[Checkpoint, ...]
    order: tuple[int, ...]

    def at(self, number: int) -> Objective:
        """Return the objective at a checkpoint, by its place in time."""
        place = self.order[number]
        return self.objective if place == 0 else self.objective.at(self.checkpoints[place])


def measure(objective: Objective, checkpoints: tuple[Checkpoint, ...], asked: Asked, tick: Tick) -> Found:
    """Choose the example at the last checkpoint, and take the influence of all on it and on random ones."""
    from probes.influence.products import chosen_parameters
    from probes.influence.ranking import losses_of, row_of
    from probes.influence.tracin import learning_rates

    over = series(checkpoints, asked.times)
    given = learning_rates(asked.learning_rates, len(checkpoints))
    run = _Run(objective, checkpoints, over.order)
    tick(0.0, "choosing the example")
    last = run.at(len(over.order) - 1)
    target = last.on_test() or last
    losses = losses_of(target)
    row = row_of(asked.example, target.batches.ids, losses)
    random = _random_rows(losses.known, row, asked)
    chosen = chosen_parameters(last, asked.layers)
    rows, traced = (row, *random), asked.method == TRACIN
    used = range(len(over.order)) if traced else range(len(over.order) - 1, len(over.order))
    looks = [_look(run, number, rows, chosen, asked, _part(tick, done, len(used)), tick)
             for done, number in enumerate(used)]  # fmt: skip
    rates = tuple(given[over.order[number]] if traced else 1.0 for number in used)
    terms = np.array([rate * look["products"] for rate, look in zip(rates, looks, strict=True)])
    total, lengths = _divided(terms.sum(0), looks, rates, asked)
    if target is last:
        total[list(random), 1 + np.arange(len(random))] = np.nan
    fisher = {} if traced else dict(zip(FISHER, looks[-1]["fisher"].tolist(), strict=True))
    names = tuple(checkpoints[place].name for place in over.order)
    return Found(
        asked, over, names, rates, last, target, row, random, losses.values, total[:, 0], total[:, 1:], terms[..., 0],
        lengths, fisher, any(bool(look["singly"]) for look in looks),
    )  # fmt: skip


def _divided(total: Array, looks: list[Arrays], rates: tuple[float, ...], asked: Asked) -> tuple[Array, Array]:
    """Divide by the length of each example's gradients where that is asked for; return the lengths (N,) too."""
    if not asked.relative:
        return total, np.ones(len(total))
    squares = np.array([rate * look["squares"] for rate, look in zip(rates, looks, strict=True)])
    lengths = np.sqrt(squares.sum(0))
    return np.divide(total, lengths[:, None], out=np.zeros_like(total), where=lengths[:, None] > 0), lengths


def _look(
    run: _Run, number: int, rows: tuple[int, ...], chosen: tuple[int, ...], asked: Asked, said: Said, tick: Tick
) -> Arrays:
    """Take the products at a checkpoint, or what an earlier attempt kept of them."""
    from probes.influence.tracin import at_checkpoint, own_squares

    key = f"{asked.method.replace(' ', '_')}_{number}"
    kept = tick.load(key)
    if kept is not None:
        return kept
    at = run.at(number)
    target = at.on_test() or at
    width = 0.7 if asked.relative else 1.0
    doing: Said = lambda share, words: said(width * share, words)
    name = run.checkpoints[run.order[number]].name
    more: dict[str, Array] = {}
    try:
        if asked.method == TRACIN:
            found = at_checkpoint(at, target, rows, chosen, doing)
        else:
            found, more = _by_fisher(at, target, rows, chosen, asked, doing)
        if asked.relative:
            more["squares"] = own_squares(at, chosen, lambda share, words: said(width + 0.3 * share, words))
    except ObjectiveError as error:
        raise ObjectiveError(f"{name}: {error}") from error
    looked = {"products": found.values, "singly": np.array(found.singly), **more}
    tick.save(key, looked)
    return looked


def _by_fisher(
    at: Objective, target: Objective, rows: tuple[int, ...], chosen: tuple[int, ...], asked: Asked, said: Said
) -> tuple[Any, dict[str, Array]]:
    from probes.influence.inverse_fisher import fisher_gradients, influences, inverse_fisher, some_rows

    drawn = some_rows(len(at.inputs), asked.gradients, asked.seed)
    gradients = fisher_gradients(at, drawn, chosen, lambda share, words: said(0.5 * share, words))
    fisher = inverse_fisher(gradients, asked.damping, relative=True)
    found = influences(at, target, rows, chosen, fisher, lambda share, words: said(0.5 + 0.5 * share, words))
    return found, {"fisher": np.array([len(drawn), fisher.damping, fisher.directions])}


def _random_rows(known: Array, row: int, asked: Asked) -> tuple[int, ...]:
    others = known[known != row]
    if not len(others):
        raise DataError("There is one example only; to compare the influence on it with others, give more.")
    drawn = np.random.default_rng([asked.seed, 1]).choice(others, min(asked.null_examples, len(others)), replace=False)
    return tuple(np.sort(drawn).tolist())


def _part(tick: Tick, done: int, count: int) -> Said:
    words = f", checkpoint {done + 1} of {count}" if count > 1 else ""
    return lambda share, doing: tick((done + share) / count, doing + words)
