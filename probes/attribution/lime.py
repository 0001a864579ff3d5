"""LIME: the linear model of which segments are kept that fits best near the example (Ribeiro et al. 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.attribution.coalitions import Bools, Estimate, Floats, Game, fitted, relative
from probes.attribution.methods import Method
from probes.attribution.players import plan_of_players, players_of, refuse_single, regions_or_single
from probes.attribution.sampling import Plan, State, collected, counts, nothing, sample

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.maps import Map
    from probes.attribution.methods import Settings, Tick

WIDTH = 0.25  # of the kernel, in cosine distance, as in the authors' programs for images and text
POOR = 0.5  # share of the variance under which a linear model is doubtful


def lime(game: Game, plan: Plan) -> Estimate:
    """Fit the local linear model on random coalitions (each segment kept with probability 1/2); P pairs a round.

    A pair is a coalition and its complement. values: the coefficients, by least squares without penalty. about:
    intercept and r2, the share of the weighted variance that the linear model explains.
    """

    def extend(state: State, number: int) -> State:
        return collected(game, plan, state, number, pairs)

    def error(state: State) -> float:
        values, stderr, _ = local(state["kept"], state["scores"])
        return relative(values, stderr)

    found = sample(plan, nothing(game), extend, error)
    values, stderr, about = local(found.state["kept"], found.state["scores"])
    said = {"samples": found.rounds, "stopped": found.stopped, **counts(found.state)}
    return Estimate(values, stderr, {**said, "relative_stderr": relative(values, stderr), **about})


def pairs(random: np.random.Generator, count: int) -> Bools:
    """Draw P coalitions, each followed by its complement, (2 P, P)."""
    kept = random.random((count, count)) < 0.5
    return np.stack([kept, ~kept], 1).reshape(-1, count)


def nearness(kept: Bools) -> Floats:
    """Return the weight of coalitions: exp(-(d / width)^2) of the cosine distance d to keeping all."""
    distance = 1 - np.sqrt(kept.mean(1))
    return np.asarray(np.exp(-((distance / WIDTH) ** 2)))


def local(kept: Bools, y: Floats) -> tuple[Floats, Floats, dict[str, float]]:
    """Fit the linear model of the scores y; return the coefficients, their standard errors, and intercept and r2."""
    design, weights = np.concatenate([np.ones((len(kept), 1)), kept], 1), nearness(kept)
    beta, covariance = fitted(design, y, weights, np.arange(len(kept)) // 2)
    rest = weights @ (y - design @ beta) ** 2
    spread = weights @ (y - np.average(y, weights=weights)) ** 2
    about = {"intercept": float(beta[0]), "r2": float(1 - rest / spread) if spread > 0 else 1.0}
    return beta[1:], np.sqrt(np.maximum(np.diag(covariance)[1:], 0.0)), about


def _run(case: Case, settings: Settings, tick: Tick) -> Map:
    players = players_of(case, settings, regions_or_single)
    found = lime(players.game, plan_of_players(players, "lime", settings, tick))
    return players.map("lime", found, notes=_doubts(found.about["r2"]))


def _doubts(r2: float) -> tuple[str, ...]:
    if r2 >= POOR:
        return ()
    return (
        f"The linear model explains {r2:.0%} of the variance of the score near the example, so its coefficients say "
        "little; choose other segments or Shapley values.",
    )


METHODS = (Method("lime", "LIME", "perturbation", _run, sampled=True, refuse=refuse_single),)
