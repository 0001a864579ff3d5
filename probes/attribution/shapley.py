"""Shapley values of segments: exact over all coalitions, by sampled orders, and by KernelSHAP's regression."""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np

from probes.attribution.coalitions import (
    Bools,
    Estimate,
    Floats,
    Game,
    Progress,
    all_coalitions,
    distinct,
    fitted,
    quiet,
    relative,
    watched,
)
from probes.attribution.errors import AttributionError
from probes.attribution.methods import Method
from probes.attribution.players import cells_or_single, few, plan_of_players, players_of, refuse_single
from probes.attribution.sampling import Plan, State, added, collected, counts, mean_and_error, moments, nothing, sample

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.maps import Map
    from probes.attribution.methods import Settings, Tick

MOST_EXACT = 10  # segments whose 2^P coalitions are all taken


def exact(game: Game, tick: Progress = quiet) -> Estimate:
    """Return the Shapley values from all 2^P coalitions: the mean gain of a segment over all orders (Shapley 1953)."""
    kept = all_coalitions(game.count)
    scores, sizes = watched(game, kept, tick, "exact_shapley"), kept.sum(1)
    weights = 1 / np.array([game.count * comb(game.count - 1, size) for size in range(game.count)])
    values = np.zeros(game.count)
    for i in range(game.count):
        without = ~kept[:, i]
        gains = scores[np.flatnonzero(without) | 1 << i] - scores[without]
        values[i] = weights[sizes[without]] @ gains
    return Estimate(values, None, {"coalitions": len(kept), "stopped": "exact"})


def sampled(game: Game, plan: Plan) -> Estimate:
    """Estimate the Shapley values from random orders, each with its reverse (Mitchell et al. 2022), one pair a round.

    Unbiased, and complete in every round. stderr: from the spread of the pairs.
    """

    def extend(state: State, number: int) -> State:
        game.ahead(number, plan.samples, lambda each: _prefixes(orders(plan, each, game.count)))
        pair = np.mean([gains(game, order) for order in orders(plan, number, game.count)], 0)
        return added(state, pair, pair**2, 1)

    found = sample(plan, moments(np.zeros(game.count)), extend, lambda state: relative(*mean_and_error(state)))
    values, stderr = mean_and_error(found.state)
    run = distinct(np.concatenate([_prefixes(orders(plan, each, game.count)) for each in range(found.rounds)]))
    about = {"samples": found.rounds, "orders": 2 * found.rounds, "evaluations": run, "stopped": found.stopped}
    return Estimate(values, stderr, {**about, "relative_stderr": relative(values, stderr)})


def kernel(game: Game, plan: Plan) -> Estimate:
    """Estimate the Shapley values by KernelSHAP: least squares under the constraint that they add up.

    Coalitions are drawn with the kernel's probabilities (Lundberg and Lee 2017), each with its complement (Covert and
    Lee 2021), P pairs a round; all 2^P - 2, weighted by the kernel, where that is not more: then the values are exact.
    """
    if game.count == 1:
        return exact(game)
    if 2**game.count - 2 <= 2 * game.count * plan.samples:
        kept = all_coalitions(game.count)[1:-1]
        watched(game, kept, plan.tick, plan.doing)
        values = constrained(game, kept, game(kept), kernel_weights(kept))[0]
        return Estimate(values, None, {"coalitions": 2**game.count, "stopped": "exact"})

    def extend(state: State, number: int) -> State:
        return collected(game, plan, state, number, pairs)

    found = sample(plan, nothing(game), extend, lambda state: relative(*_pairs_fitted(game, state)))
    values, stderr = _pairs_fitted(game, found.state)
    about = {"samples": found.rounds, "stopped": found.stopped, **counts(found.state)}
    return Estimate(values, stderr, {**about, "relative_stderr": relative(values, stderr)})


def orders(plan: Plan, number: int, count: int) -> tuple[list[int], list[int]]:
    """Return the two orders of a round: a random one and its reverse."""
    order = plan.random(number).permutation(count).tolist()
    return order, order[::-1]


def gains(game: Game, order: list[int]) -> Floats:
    """Return what each segment adds to the score when they come in this order, (P,)."""
    values = np.zeros(game.count)
    values[order] = np.diff(game(_prefix(order)))
    return values


def pairs(random: np.random.Generator, count: int) -> Bools:
    """Draw P coalitions with KernelSHAP's probabilities, each followed by its complement, (2 P, P)."""
    sizes = np.arange(1, count)
    chances = 1 / (sizes * (count - sizes))
    drawn = random.choice(sizes, count, p=chances / chances.sum())
    kept = random.random((count, count)).argsort(1).argsort(1) < drawn[:, None]
    return np.stack([kept, ~kept], 1).reshape(-1, count)


def kernel_weights(kept: Bools) -> Floats:
    """Return the Shapley kernel of coalitions: (P - 1) / (C(P, s) s (P - s)), with s from 1 to P - 1."""
    count = kept.shape[1]
    each = [(count - 1) / (comb(count, size) * size * (count - size)) for size in range(1, count)]
    return np.asarray(np.array(each)[kept.sum(1) - 1])


def constrained(game: Game, kept: Bools, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Regress v(S) - v(none) on S with coefficients that add up to v(all) - v(none); return them and their covariance.

    kept, scores: S, in rows of pairs that were drawn together, and v(S). The constraint is met by eliminating the last
    segment.
    """
    full, empty = game.full, game.empty
    z = kept.astype(float)
    y = scores - empty - z[:, -1] * (full - empty)
    beta, covariance = fitted(z[:, :-1] - z[:, -1:], y, weights, np.arange(len(z)) // 2)
    back = np.concatenate([np.eye(game.count - 1), -np.ones((1, game.count - 1))])
    return np.append(beta, full - empty - beta.sum()), back @ covariance @ back.T


def _pairs_fitted(game: Game, state: State) -> tuple[Floats, Floats]:
    values, covariance = constrained(game, state["kept"], state["scores"], np.ones(len(state["kept"])))
    return values, np.sqrt(np.maximum(np.diag(covariance), 0.0))


def _prefix(order: list[int]) -> Bools:
    """List the coalitions of the first 0, 1, ..., P of an order, (P + 1, P)."""
    place = np.argsort(order)
    return place[None] < np.arange(len(order) + 1)[:, None]


def _prefixes(both: tuple[list[int], list[int]]) -> Bools:
    return np.concatenate([_prefix(order) for order in both])


def _run_exact(case: Case, settings: Settings, tick: Tick) -> Map:
    players = players_of(case, settings, lambda case, settings: few(case, settings, MOST_EXACT))
    if players.game.count > MOST_EXACT:
        raise AttributionError(
            f"Exact Shapley values need 2^P evaluations, so at most {MOST_EXACT} segments; these settings give "
            f"{players.game.count}. Choose larger windows, or Shapley value sampling."
        )
    return players.map("exact_shapley", exact(players.game, tick), complete=True)


def _run_sampled(case: Case, settings: Settings, tick: Tick) -> Map:
    players = players_of(case, settings, cells_or_single)
    plan = plan_of_players(players, "shapley_sampling", settings, tick)
    return players.map("shapley_sampling", sampled(players.game, plan), complete=True)


def _run_kernel(case: Case, settings: Settings, tick: Tick) -> Map:
    players = players_of(case, settings, cells_or_single)
    plan = plan_of_players(players, "kernel_shap", settings, tick)
    return players.map("kernel_shap", kernel(players.game, plan), complete=True)


def _refuse_exact(case: Case) -> str | None:
    if case.kind == "table" and len(case.shape) == 1 and case.shape[0] > MOST_EXACT:
        return (
            f"Exact Shapley values need all 2^P coalitions of P columns, so at most {MOST_EXACT}; the table has "
            f"{case.shape[0]}. Choose Shapley value sampling or KernelSHAP."
        )
    return refuse_single(case)


METHODS = (
    Method(
        "exact_shapley", "Shapley values (exact)", "perturbation", _run_exact, complete=True, refuse=_refuse_exact
    ),
    Method(
        "shapley_sampling", "Shapley value sampling", "perturbation", _run_sampled,
        complete=True, sampled=True, refuse=refuse_single,
    ),
    Method(
        "kernel_shap", "KernelSHAP", "perturbation", _run_kernel, complete=True, sampled=True, refuse=refuse_single
    ),
)  # fmt: skip
