"""The gradient of every example: its inner product with each parameter and its norm, without holding the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import ObjectiveError
from probes.ghosts import Ghosts, Sums
from probes.objective import Objective
from probes.one_by_one import Figures, differing, one_by_one, single

Floats = NDArray[np.float64]
Report = Callable[[float, str], None]
SAME = {torch.float32: (1e-3, 1e-4), torch.float64: (1e-8, 1e-10)}  # a loss in a batch and alone: relative, absolute


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
        chosen = _places(self.names, names)
        dots = self.dots[:, chosen].sum(1)
        sizes = np.sqrt(self.squares[:, chosen].sum(1) * self.weights[chosen].sum())
        found: Floats = -np.divide(dots, sizes, out=np.zeros_like(dots), where=sizes > 0)
        return found


def per_example(
    objective: Objective,
    tick: Report | None = None,
    names: Sequence[str] | None = None,
) -> PerExample:
    """Take the gradient of every example, of these parameters or of all, at the objective's own parameters.

    One forward pass and one backward pass to the outputs of the layers (see probes.ghosts), checked against autograd
    on two examples; what cannot be had so, or is not right, is taken one example at a time. BatchNorm uses its running
    statistics. Raises ObjectiveError where there is no gradient for each example; ValueError for an unknown name.
    """
    report = tick or _silent
    work = _Work(objective, _places(objective.names, names))
    if len(objective.inputs) > 1:
        work.follow(report)
    else:
        work.slow.update(range(len(work.chosen)))
    slow = sorted(work.slow)
    if slow:
        work.take_singly(slow, lambda share, doing: report(0.5 + 0.5 * share, doing))
    work.check()
    found = work.found
    return PerExample(
        names=work.names(range(len(work.chosen))),
        dots=found.dots.numpy(),
        squares=found.squares.numpy(),
        weights=work.weights.numpy(),
        losses=found.losses.numpy(),
        fallback=work.names(slow) if len(objective.inputs) > 1 else (),
        doubts=(_differ(work.names(sorted(work.wrong))),) if work.wrong else (),
    )


class _Work:
    """The figures as they are found; slow: places among the chosen that are taken singly, wrong: those found wrong."""

    def __init__(self, objective: Objective, chosen: Sequence[int]) -> None:
        self.objective, self.chosen = objective, chosen
        self.count = len(objective.inputs)
        self.found = Figures.zeros(self.count, len(chosen))
        self.slow: set[int] = set()
        self.wrong: set[int] = set()
        norms = [torch.linalg.vector_norm(objective.theta[index].detach(), dtype=torch.float64) for index in chosen]
        self.weights = torch.stack(norms).square().cpu()
        rows = {0, min(objective.micro_batch, self.count) - 1}
        self.truth = {row: objective.in_memory(partial(single, objective, row, chosen)) for row in rows}

    def names(self, places: Sequence[int]) -> tuple[str, ...]:
        """Return the names of the parameters at these places."""
        return tuple(self.objective.names[self.chosen[place]] for place in places)

    def follow(self, report: Report) -> None:
        """Take all that can be had from the layers' outputs."""
        ghosts, start = Ghosts(self.objective), 0
        while start < self.count and len(self.slow) < len(self.chosen):
            places = [place for place in range(len(self.chosen)) if place not in self.slow]
            part, sums = self.objective.in_memory(partial(self._next, ghosts, start, places))
            self.found.put(part, places, sums)
            self.slow.update(places[lost] for lost in sums.lost)
            for row in set(self.truth) & set(range(part.start, part.stop)) if len(self.slow) < len(self.chosen) else ():
                self._compare(row)
            self.slow |= self.wrong
            start = part.stop
            report(start / self.count * (0.5 if self.slow else 1.0), "gradient of every example")

    def take_singly(self, slow: Sequence[int], report: Report) -> None:
        """Take the gradients by these of the chosen one example at a time."""
        known = {row: each.columns(slow) for row, each in self.truth.items()}
        exact = one_by_one(self.objective, [self.chosen[place] for place in slow], known, report)
        self.found.put(slice(0, self.count), slow, exact)

    def check(self) -> None:
        """Raise ObjectiveError where a loss or a gradient is not finite."""
        found = self.found
        if not bool(torch.isfinite(found.losses).all()):
            self.objective.evaluate()  # names the layer
        bad = (~torch.isfinite(found.squares + found.dots)).nonzero()
        if len(bad):
            row, place = bad[0].tolist()
            raise ObjectiveError(
                f"The gradient of example {row} by `{self.names([place])[0]}` is not finite; check the checkpoint "
                "(diverged?) and square roots or norms at zero."
            )

    def _next(self, ghosts: Ghosts, start: int, places: Sequence[int]) -> tuple[slice, Sums]:
        part = slice(start, min(start + self.objective.micro_batch, self.count))
        return part, ghosts.sums(part, [self.chosen[place] for place in places])

    def _compare(self, row: int) -> None:
        together, alone = float(self.found.losses[row]), float(self.truth[row].losses[0])
        near, floor = SAME[self.objective.dtype]
        if abs(together - alone) > near * abs(alone) + floor:
            raise ObjectiveError(
                f"The loss of example {row} is {together:.6g} in a batch with others and {alone:.6g} alone: in this "
                "model the examples of a batch influence each other, so that there is no gradient of one example."
            )
        off = differing(self.found.row(row), self.truth[row], self.weights, self.objective.dtype)
        self.wrong |= set(off.nonzero().flatten().tolist()) - self.slow


def _places(names: Sequence[str], wanted: Sequence[str] | None) -> list[int]:
    unknown = set(wanted or ()) - set(names)
    if unknown:
        raise ValueError(f"no parameter is called {', '.join(sorted(unknown))}")
    if wanted is not None and not wanted:
        raise ValueError("no parameter is named")
    return [place for place, name in enumerate(names) if wanted is None or name in set(wanted)]


def _silent(share: float, doing: str) -> None:
    del share, doing


def _differ(names: Sequence[str]) -> str:
    some = ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"The gradients by {some} that follow from the layers' outputs are not those of autograd; they were taken one "
        "example at a time instead."
    )
