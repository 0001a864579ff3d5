"""The gradient of every example: its inner product with each parameter and its norm, without holding the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import ObjectiveError
from probes.objective import Objective
from probes.strict import strict

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PerExample:
    """Of N examples and L parameter tensors; g_i is the gradient of the SUM of the losses of example i's units.

    The gradient of the mean loss is sum_i g_i / objective.units.
    names: (L,) parameters in the order of the objective. dots: (N, L) <g_i, w_l>. squares: (N, L) ||g_i,l||^2.
    weights: (L,) ||w_l||^2. losses: (N,). fallback: parameters whose gradients were taken one example at a time
    (torch.func), because no rule covers how the model uses them. doubts: sentences for the reader.
    """

    names: tuple[str, ...]
    dots: Floats
    squares: Floats
    weights: Floats
    losses: Floats
    fallback: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def cosines(self, names: Sequence[str] | None = None) -> Floats:
        """Return (N,) the cosine of -g_i with the weights over these parameters together, over all when None.

        0 where the gradient or the weights vanish. Raises ValueError for a name that is not there.
        """
        chosen = list(range(len(self.names))) if names is None else [self.names.index(name) for name in names]
        dots = self.dots[:, chosen].sum(1)
        sizes = np.sqrt(self.squares[:, chosen].sum(1) * self.weights[chosen].sum())
        found: Floats = -np.divide(dots, sizes, out=np.zeros_like(dots), where=sizes > 0)
        return found


def per_example(
    objective: Objective,
    tick: Callable[[float, str], None] | None = None,
    names: Sequence[str] | None = None,
) -> PerExample:
    """Take the gradient of every example, of these parameters or of all, at the objective's own parameters.

    Raises ObjectiveError where there is no gradient for each example.
    """
    chosen = objective.names if names is None else tuple(name for name in objective.names if name in set(names))
    theta = dict(zip(objective.names, objective.theta, strict=True))
    wanted = [theta[name] for name in chosen]
    count = len(objective.inputs)
    dots, squares, losses = np.zeros((count, len(chosen))), np.zeros((count, len(chosen))), np.zeros(count)
    for row in range(count):
        with strict(objective.module):
            loss = objective.part_loss(objective.theta, slice(row, row + 1)) * objective.units
            if not loss.requires_grad:
                raise ObjectiveError(
                    "The loss does not depend on any parameter: the model cuts the gradient (detach?)."
                )
            found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        losses[row] = float(loss.detach())
        for column, (g, w) in enumerate(zip(found, wanted, strict=True)):
            dots[row, column], squares[row, column] = float((g * w.detach()).sum()), float(g.square().sum())
        if tick is not None:
            tick((row + 1) / count, "gradient of every example")
    weights = np.array([float(each.detach().double().square().sum()) for each in wanted])
    return PerExample(chosen, dots, squares, weights, losses)
