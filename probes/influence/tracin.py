"""TracIn: how much each training example lowered the loss of another along the checkpoints of a run.

Pruthi, Liu, Kale, Sundararajan 2020, "Estimating Training Data Influence by Tracing Gradient Descent" (TracInCP):
influence(z, z') = sum_t eta_t <grad l(theta_t, z), grad l(theta_t, z')>. Above zero the example helped (a step on it
lowers the loss of the other), below zero it hurt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from probes.errors import ObjectiveError
from probes.influence.products import Floats, Places, Products, Report, chosen_parameters, gradient_of, products
from probes.objective import Objective
from probes.per_sample import per_example


def at_checkpoint(
    objective: Objective, target: Objective, rows: Iterable[int], chosen: Places, tick: Report | None = None
) -> Products:
    """Return <h_i, g_q> of all examples with these rows of `target` (the same model on other data, or the same).

    h_i: of an example's share in the mean loss, times N; g_q: of the mean loss over the example's own units.
    """
    return products(objective, [gradient_of(target, row, chosen) for row in rows], chosen, tick)


def tracin(
    objectives: Iterable[Objective],
    rows: Sequence[int],
    rates: Sequence[float],
    layers: str = "",
    *,
    test: bool = False,
) -> Floats:
    """Return TracIn (N, Q) of all examples on these rows, of the test data with `test`; one checkpoint at a time.

    objectives: at each checkpoint; rates: the learning rate at each. Raises ObjectiveError, ModelError.
    """
    total: Floats = np.zeros((0, len(rows)))
    for objective, rate in zip(objectives, rates, strict=True):
        target = objective.on_test() if test else objective
        if target is None:
            raise ObjectiveError("There are no test data to take the example from.")
        found = rate * at_checkpoint(objective, target, rows, chosen_parameters(objective, layers)).values
        total = total + found if len(total) else found
    return total


def own_squares(objective: Objective, chosen: Places, tick: Report | None = None) -> Floats:
    """Return ||h_i||^2 of each example, (N,): the influence on itself at this checkpoint, but for the learning rate."""
    found = per_example(objective, tick, [objective.names[place] for place in chosen])
    squares: Floats = found.squares.sum(1) * (len(objective.inputs) / objective.units) ** 2
    return squares


def learning_rates(text: str, count: int) -> tuple[float, ...]:
    """Read one learning rate, or one for each of `count` checkpoints in the order given; nothing is 1.

    Raises ObjectiveError.
    """
    words = [each for each in re.split(r"[,;\s]+", text.strip()) if each] or ["1"]
    try:
        rates = tuple(float(each) for each in words)
    except ValueError:
        rates = (math.nan,)
    if not all(math.isfinite(each) and each >= 0 for each in rates):
        raise ObjectiveError(f"The learning rates are {text[:80]!r}; give numbers from 0 on, separated by commas.")
    if len(rates) not in (1, count):
        raise ObjectiveError(
            f"There are {len(rates)} learning rates for {count} checkpoints; give one for all, or one for each."
        )
    return rates * count if len(rates) == 1 else rates
