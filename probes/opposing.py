"""Which examples pull against one another in a step: those whose loss rises most, and those whose loss falls most.

Rosenfeld, Risteski 2023 (Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization).
The null of random groups of the same size is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.errors import DataError, ObjectiveError
from probes.objective import Objective
from probes.strict import strict

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Said = Callable[[float, str], None]
FEWEST = 8  # examples below which there are no two groups and a rest
FEWEST_CHANGES = 3  # that a correlation over time is taken of


@dataclass(frozen=True)
class Groups:
    """The examples (rows) whose loss rises most and falls most, each in the order of its change; (q,) both."""

    rising: Rows
    falling: Rows


@dataclass(frozen=True)
class Opposition:
    """How the mean gradients of two groups lie to one another, and those of random groups of the same size.

    cosine: of the two mean gradients; beside_step: of what is left of them without the direction of the step, along
    which the choice of the groups itself opposes them. rising, falling: norms of the mean gradients; whole: that of all
    examples. null_cosines, null_beside: (n,) of n random pairs; null_norms: (2n,) of their groups. NaN where a gradient
    vanishes.
    """

    cosine: float
    beside_step: float
    rising: float
    falling: float
    whole: float
    null_cosines: Floats
    null_beside: Floats
    null_norms: Floats


@dataclass(frozen=True)
class Correlation:
    """Of the changes of two groups' losses over time, beside those of random pairs of groups (n,)."""

    value: float
    changes: int
    null: Floats


def group_size(count: int, asked: int) -> int:
    """Return how many examples a group has: as asked, else 1 % of them but at least 32, a quarter of all at most.

    Raises DataError where there are too few examples.
    """
    if count < FEWEST:
        raise DataError(f"There are {count} examples; two groups and a rest need at least {FEWEST}. Give more.")
    if 2 * asked > count:
        raise DataError(f"Two groups of {asked} examples were asked for, there are {count}; give {count // 2} or less.")
    return asked or min(max(32, round(count / 100)), count // 4)


def groups_of(changes: Floats, size: int) -> Groups:
    """Return the rows of the `size` largest rises and the `size` largest falls; of equal ones the first."""
    order = np.argsort(-changes, kind="stable")
    return Groups(order[:size], np.argsort(changes, kind="stable")[:size])


def share_of_top(changes: Floats, share: float = 0.01) -> float:
    """Return what the largest changes (1 % of the examples, one at least) are of the sum of all |d|; 0 if none is."""
    sizes = np.sort(np.abs(changes))[::-1]
    return float(sizes[: max(1, math.ceil(share * len(sizes)))].sum() / (sizes.sum() or 1.0))


def random_groups(count: int, size: int, pairs: int, seed: Sequence[int]) -> list[Groups]:
    """Draw pairs of groups that share no example."""
    draw = np.random.default_rng(list(seed))
    drawn = (draw.choice(count, 2 * size, replace=False) for _ in range(pairs))
    return [Groups(rows[:size], rows[size:]) for rows in drawn]


def opposition(objective: Objective, groups: Groups, null: Sequence[Groups], step: Tensor, tick: Said) -> Opposition:
    """Take the mean gradients of the groups, and of the random ones, where the objective stands.

    step: theta_{t+1} - theta_t, flat (P,). Costs one gradient over all examples, and one over each group. Raises
    ObjectiveError.
    """
    tick(0.0, "gradient of all examples")
    whole = float(torch.linalg.vector_norm(objective.gradient().double()))
    along = _unit(step.to(objective.device).double())
    found = []
    for done, each in enumerate((groups, *null)):
        tick(
            0.2 + 0.8 * done / (1 + len(null)), "gradients of the groups" if not done else "gradients of random groups"
        )
        found.append(_compared(_mean_gradient(objective, each.rising), _mean_gradient(objective, each.falling), along))
    (cosine, beside, rising, falling), others = found[0], np.array(found[1:]).reshape(-1, 4)
    if not math.isfinite(rising + falling + whole):
        raise ObjectiveError("A gradient is not finite although the losses are. Check the checkpoint, or take float64.")
    return Opposition(
        cosine, beside, rising, falling, whole, others[:, 0], others[:, 1], np.concatenate([others[:, 2], others[:, 3]])
    )


def p_value(found: float, null: Floats) -> float:
    """Return how often random groups are as low as what was found: (r + 1) / (n + 1)."""
    return (int((null <= found).sum()) + 1) / (len(null) + 1)


def correlation(losses: Floats, groups: Groups, null: Sequence[Groups], chosen: int) -> Correlation | None:
    """Correlate the changes over time of two groups' mean losses, and those of random groups.

    losses: (T, N). chosen: the pair of checkpoints from which the groups were chosen; it is left out, since there the
    one rises and the other falls by choice. None where fewer than three other changes are left, or nothing changes.
    """
    changes = np.delete(np.diff(losses, axis=0), chosen, axis=0)
    if len(changes) < FEWEST_CHANGES:
        return None
    value, *others = [
        _correlated(changes[:, each.rising].mean(1), changes[:, each.falling].mean(1)) for each in (groups, *null)
    ]
    return Correlation(value, len(changes), np.array(others)) if math.isfinite(value) else None


def answers(objective: Objective, rows: Sequence[int]) -> list[tuple[Any, float | None]]:
    """Return what the model says of these examples, with the margin of the right answer.

    A class: its number, and of cross-entropy the logit of the label less the largest other. One value: that value.
    Else None.
    """
    chosen = objective.chosen(rows)
    if objective.own is not None or objective.loss == "causal_lm":
        return [(None, None)] * len(rows)
    with torch.no_grad(), strict(objective.module):
        outputs = torch.cat([chosen.outputs(chosen.theta, part) for part in chosen.parts()]).double().cpu()
    if objective.loss != "cross_entropy":
        return [(each, None) for each in _values(objective, outputs.reshape(len(rows), -1))]
    targets = chosen.targets.cpu()[:, None]
    right = outputs.gather(1, targets)[:, 0]
    others = outputs.scatter(1, targets, -torch.inf).amax(1)
    margins = [float(each) if math.isfinite(each) else None for each in right - others]
    return list(zip(map(int, outputs.argmax(1)), margins, strict=True))


def _values(objective: Objective, outputs: Tensor) -> list[Any]:
    """Return what outputs (K, M) of squared error or of binary cross-entropy say: classes, numbers, or None."""
    labels = objective.batches.targets
    if outputs.shape[1] > 1:
        classes = labels.ndim == 1 and not labels.is_floating_point()
        return outputs.argmax(1).tolist() if classes else [None] * len(outputs)
    column = outputs[:, 0]
    return (column > 0).int().tolist() if objective.loss == "bce_with_logits" else column.tolist()


def _mean_gradient(objective: Objective, rows: Rows) -> Tensor:
    chosen = objective.chosen(rows.tolist())
    if not chosen.units:  # sequences without a token that is predicted
        return torch.zeros(objective.size, dtype=torch.float64, device=objective.device)
    return chosen.gradient().double()


def _compared(one: Tensor, other: Tensor, along: Tensor) -> tuple[float, float, float, float]:
    beside = [each - torch.dot(each, along) * along for each in (one, other)]
    sizes = float(torch.linalg.vector_norm(one)), float(torch.linalg.vector_norm(other))
    return _cosine(one, other), _cosine(*beside), *sizes


def _cosine(one: Tensor, other: Tensor) -> float:
    sizes = float(torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other))
    return float(torch.dot(one, other)) / sizes if sizes > 0 else math.nan


def _unit(vector: Tensor) -> Tensor:
    size = float(torch.linalg.vector_norm(vector))
    return vector / size if size > 0 else vector


def _correlated(one: Floats, other: Floats) -> float:
    one, other = one - one.mean(), other - other.mean()
    sizes = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / sizes if sizes > 0 else math.nan
