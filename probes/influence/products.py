"""Inner products of every example's gradient with given directions, without the gradients of single examples.

<g_i, v> is the derivative of the loss of example i along v: one forward pass in forward mode gives it for a whole
micro-batch. Where an operation has no forward-mode rule, the derivative by u of <sum_i u_i g_i, v> is the same (two
backward passes), and where that fails too, or is not what autograd gives, the examples are taken one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jvp

from probes.errors import ModelError, ObjectiveError
from probes.ghosts import example_losses
from probes.head import find_head
from probes.losses import counted
from probes.memory import is_out_of_memory
from probes.objective import Objective
from probes.one_by_one import NEAR, REFUSALS, alone
from probes.per_sample import SAME
from probes.strict import strict

Floats = NDArray[np.float64]
Report = Callable[[float, str], None]
Places = Sequence[int]
Found = tuple[Tensor, Tensor]  # losses (B,) and products (B, K)
FORWARD, TWICE, SINGLY = range(3)


@dataclass(frozen=True)
class Products:
    """values: (N, K) <h_i, v_k>. h_i: the gradient of example i's share in the mean loss, times N.

    The mean of h_i is the gradient of the mean loss. singly: whether the examples had to be taken one at a time.
    """

    values: Floats
    singly: bool


def chosen_parameters(objective: Objective, wanted: str = "") -> tuple[int, ...]:
    """Return the places of the parameters that are meant, in the order of the objective.

    wanted: "" all; "last" those of the final linear layer, or of the last layer by name where there is none; else names
    of parameters or layers, separated by commas. Raises ModelError for a name that is not there.
    """
    names = objective.names
    if not wanted.strip():
        return tuple(range(len(names)))
    words = [each.strip() for each in wanted.split(",") if each.strip()]
    if words == ["last"]:
        words = _last(objective)
    unknown = [word for word in words if not any(_within(name, word) for name in names)]
    if unknown or not words:
        layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        raise ModelError(
            f"No parameter or layer is called {(unknown or [wanted])[0]!r}; the last ones are "
            f"{', '.join(layers[-5:])}. Give names separated by commas, the word last, or nothing for all."
        )
    return tuple(place for place, name in enumerate(names) if any(_within(name, word) for word in words))


def gradient_of(objective: Objective, row: int, chosen: Places) -> list[Tensor]:
    """Return the gradient of one example's loss, alone in its batch and averaged over its units, by these parameters.

    Zeros for a sequence without a predicted token. Raises ObjectiveError where there is no finite gradient.
    """
    one = objective.chosen([row])
    theta = [objective.theta[place] for place in chosen]
    if not one.units:
        return [torch.zeros_like(each) for each in theta]
    found = one.in_memory(lambda: alone(one, 0, theta, row))[1]
    if not all(bool(torch.isfinite(each).all()) for each in found):
        raise ObjectiveError(
            f"The gradient of example {row} is not finite. Check the checkpoint (diverged?) and the data."
        )
    return found


def products(
    objective: Objective, directions: Sequence[Sequence[Tensor]], chosen: Places, tick: Report | None = None
) -> Products:
    """Return the inner products of every example's gradient with K directions, each shaped like the chosen parameters.

    Two examples are checked against autograd. Raises ObjectiveError: an example has no gradient of its own.
    """
    work = _Work(objective, [[each.detach() for each in one] for one in directions], tuple(chosen))
    rows, start = [], 0
    while start < work.count:
        part, values = objective.in_memory(partial(work.next, start))
        rows.append(values)
        start = part.stop
        if tick is not None:
            tick(start / work.count, "gradients of all examples along the example's")
    scale = work.count / objective.units
    found = scale * torch.cat(rows).cpu().numpy()
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise ObjectiveError(f"The gradient of example {row} is not finite. Check the checkpoint, or take float64.")
    return Products(found, work.way == SINGLY)


class _Work:
    """The way that is taken, the next one tried where it fails; truth: rows and what autograd gives of them."""

    def __init__(self, objective: Objective, directions: Sequence[Sequence[Tensor]], chosen: tuple[int, ...]) -> None:
        self.objective, self.directions, self.chosen = objective, directions, chosen
        self.count, self.way = len(objective.inputs), FORWARD
        self.lengths = torch.tensor([float(_length(each)) for each in directions], dtype=torch.float64)
        self.truth: dict[int, tuple[float, Tensor, float]] = {}

    def next(self, start: int) -> tuple[slice, Tensor]:
        """Return the next micro-batch and its products (B, K) float64, by the first way that gives what is right."""
        part = slice(start, min(start + self.objective.micro_batch, self.count))
        while self.way < SINGLY:
            found = self._tried(part)
            if found is not None and (start or self._right(part, found)):
                return part, found[1].double().cpu()
            self.way += 1
        return part, torch.stack([self._known(row)[1] for row in range(part.start, part.stop)])

    def _tried(self, part: slice) -> Found | None:
        try:
            with strict(self.objective.module), quiet():
                return self._forward(part) if self.way == FORWARD else self._twice(part)
        except REFUSALS as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            return None

    def _forward(self, part: slice) -> Found:
        theta = tuple(self.objective.theta[place].detach() for place in self.chosen)
        losses, columns = torch.empty(0), []
        for direction in self.directions:
            pair: Any = jvp(lambda *values: self._losses(part, values), theta, tuple(direction))
            losses, column = pair
            columns.append(column.detach())
        return losses.detach(), torch.stack(columns, 1)

    def _twice(self, part: slice) -> Found:
        theta = tuple(self.objective.theta[place].detach().requires_grad_() for place in self.chosen)
        losses = self._losses(part, theta)
        u = torch.ones_like(losses, requires_grad=True)
        sums = torch.autograd.grad(losses @ u, theta, create_graph=True, allow_unused=True, materialize_grads=True)
        columns = []
        for direction in self.directions:
            along = torch.stack([(g * v).sum() for g, v in zip(sums, direction, strict=True)]).sum()
            columns.append(torch.autograd.grad(along, u, retain_graph=True)[0].detach())
        return losses.detach(), torch.stack(columns, 1)

    def _losses(self, part: slice, values: Sequence[Tensor]) -> Tensor:
        objective = self.objective
        theta = [each.detach() for each in objective.theta]
        for place, value in zip(self.chosen, values, strict=True):
            theta[place] = value
        if objective.own is not None:
            return objective.own.tally(objective.module, objective._values(theta), objective._batch(part)).losses
        return example_losses(objective, objective.outputs(theta, part), part)

    def _right(self, part: slice, found: Found) -> bool:
        """Compare the first and the last example of a micro-batch with what they give alone."""
        near, floor = NEAR[self.objective.dtype]
        same, least = SAME[self.objective.dtype]
        for row in {part.start, part.stop - 1}:
            loss, truth, length = self._known(row)
            together = float(found[0][row - part.start])
            if abs(together - loss) > same * abs(loss) + least:
                raise ObjectiveError(
                    f"The loss of example {row} is {together:.6g} in a batch with others and {loss:.6g} alone: in this "
                    "model the examples of a batch influence each other, so that there is no gradient of one example."
                )
            off = (found[1][row - part.start].double().cpu() - truth).abs()
            if bool((off > (near * length + floor) * self.lengths).any()):
                return False
        return True

    def _known(self, row: int) -> tuple[float, Tensor, float]:
        """Return the loss of an example alone, its products (K,) and the length of its gradient."""
        if row not in self.truth:
            objective = self.objective
            one = objective.chosen([row])
            units = int(counted(objective.loss, one.targets).sum())
            gradient = [units * each for each in gradient_of(objective, row, self.chosen)]
            with torch.no_grad(), strict(objective.module):
                loss = float(one.part_loss(one.theta, slice(0, 1))) * units if units else 0.0
            pairs = [torch.stack([(g.double() * v).sum() for g, v in zip(gradient, d, strict=True)]).sum().cpu()
                     for d in self.directions]  # fmt: skip
            self.truth[row] = loss, torch.stack(pairs), float(_length(gradient))
        return self.truth[row]


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of torch that its own rules of forward mode are scripted, and that one of vmap's is slow."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is (deprecated|not supported)")
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _last(objective: Objective) -> list[str]:
    try:
        head = find_head(objective)
        held = [each for each in (head.name, *head.shared) if any(_within(name, each) for name in objective.names)]
    except (ModelError, ObjectiveError):
        held = []
    return held[:1] or [objective.names[-1].rpartition(".")[0] or objective.names[-1]]


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _length(tensors: Sequence[Tensor]) -> Tensor:
    return (
        torch.stack([torch.linalg.vector_norm(each, dtype=torch.float64).cpu() for each in tensors])
        .square()
        .sum()
        .sqrt()
    )
