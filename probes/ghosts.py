"""Inner products and squared norms of every example's gradient, from one forward and one backward pass.

The backward pass goes to the outputs of the operations that take parameters, never to the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.losses import total_loss
from probes.memory import is_out_of_memory
from probes.objective import Objective
from probes.one_by_one import REFUSALS, Figures
from probes.parameter_rules import RULES
from probes.parameter_steps import Call, Recorder
from probes.parameter_watch import Watch
from probes.strict import strict


@dataclass(frozen=True)
class Sums(Figures):
    """The figures of a micro-batch. lost: places among the L where they are not right: no rule follows those."""

    lost: frozenset[int]


class Ghosts:
    """The engine for one objective; its steps are learnt from two examples (there must be two)."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._theta = [each.detach() for each in objective.theta]
        self._calls = self._steps()

    def sums(self, part: slice, followed: Sequence[int]) -> Sums:
        """Take the figures of a micro-batch for these of the objective's parameters (by their index)."""
        watch = Watch({index: self._theta[index] for index in followed}, self._calls, part.stop - part.start, RULES)
        try:
            losses = self._backward(watch, part)
        except REFUSALS as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            return _nothing(part, len(followed))
        zero = losses.new_zeros(len(losses))
        dots, squares = (
            torch.stack([found.get(index, zero) for index in followed], 1).cpu()
            for found in (watch.ledger.dots, watch.ledger.squares)
        )
        lost = watch.lost | watch.ledger.failed
        return Sums(dots, squares, losses.cpu(), frozenset(i for i, index in enumerate(followed) if index in lost))

    def _backward(self, watch: Watch, part: slice) -> Tensor:
        objective = self._objective
        with strict(objective.module):
            if objective.own is None:
                with watch:
                    outputs = objective.outputs(self._theta, part)
                losses = example_losses(objective, outputs, part)
                total = losses.sum()
            else:
                with watch:
                    total = objective.own.total(
                        objective.module, objective._values(self._theta), objective._batch(part)
                    )
                losses = objective.own.tally(
                    objective.module, objective._values(self._theta), objective._batch(part)
                ).losses
            watch.finish()
            if total.requires_grad:
                torch.autograd.grad(total, watch.root, allow_unused=True)
            with torch.no_grad():
                watch.ledger.finish()
        return losses.detach().double()

    def _steps(self) -> list[Call]:
        for _ in range(2):  # the first pass of some models makes what later ones find
            one = Recorder()
            two = Recorder(one)
            with suppress(*REFUSALS):
                self._record(one, slice(0, 1))
                self._record(two, slice(0, 2))
                return two.calls
        return []

    def _record(self, recorder: Recorder, part: slice) -> None:
        objective = self._objective
        with torch.no_grad(), strict(objective.module), recorder:
            if objective.own is None:
                objective.outputs(self._theta, part)
            else:
                objective.own.total(objective.module, objective._values(self._theta), objective._batch(part))


def example_losses(objective: Objective, outputs: Tensor, part: slice) -> Tensor:
    """Return (B,) each example's sum over its units, differentiable, by a built-in loss."""
    targets = objective.targets[part].to(objective.device)
    one = lambda output, target: total_loss(objective.loss, output[None], target[None])
    return torch.vmap(one)(outputs, targets)


def _nothing(part: slice, columns: int) -> Sums:
    empty = Figures.zeros(part.stop - part.start, columns)
    return Sums(empty.dots, empty.squares, empty.losses, frozenset(range(columns)))
