"""Gradients of single examples as autograd takes them: the truth for a few, and the slow way for what has no rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from probes.errors import ObjectiveError
from probes.ghost_ledger import quiet
from probes.losses import total_loss
from probes.memory import is_out_of_memory, spare_bytes
from probes.objective import Objective
from probes.strict import strict

LARGEST_CHUNK = 64  # examples whose gradients are held at once
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)
NEAR = {torch.float32: (1e-2, 1e-5), torch.float64: (1e-6, 1e-10)}  # of the parameter's gradient, of the whole


@dataclass(frozen=True)
class Figures:
    """Of N examples: dots and squares (N, L) of their gradients and the losses (N,), float64 on the CPU."""

    dots: Tensor
    squares: Tensor
    losses: Tensor

    @classmethod
    def zeros(cls, examples: int, parameters: int) -> Figures:
        """Make room."""
        dots, squares = (torch.zeros(examples, parameters, dtype=torch.float64) for _ in range(2))
        return cls(dots, squares, torch.zeros(examples, dtype=torch.float64))

    def put(self, rows: slice, places: Sequence[int], other: Figures) -> None:
        """Write another's figures over these, for some examples and parameters."""
        self.dots[rows, places], self.squares[rows, places] = other.dots, other.squares
        self.losses[rows] = other.losses

    def row(self, row: int) -> Figures:
        """Return those of one example."""
        return Figures(*(each[row : row + 1] for each in (self.dots, self.squares, self.losses)))

    def columns(self, places: Sequence[int]) -> Figures:
        """Return those of some parameters."""
        return Figures(self.dots[:, places], self.squares[:, places], self.losses)


def alone(
    objective: Objective, place: int, theta: list[Tensor], row: int, times: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of the example at a place, `times` over, and its gradient by some of the objective's theta.

    row: what the example is called in an error. Raises ObjectiveError where there is no gradient.
    """
    try:
        with strict(objective.module):
            loss = objective.part_loss(objective.theta, slice(place, place + 1)) * times
            if not loss.requires_grad:
                raise ObjectiveError(
                    "The loss does not depend on any parameter: the model cuts the gradient (detach?)."
                )
            return loss.detach(), list(torch.autograd.grad(loss, theta, allow_unused=True, materialize_grads=True))
    except REFUSALS as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        words = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ObjectiveError(
            f"There is no gradient of the loss of example {row} by itself ({words}); the model must run on a single "
            "example, and every operation in it needs a derivative."
        ) from error


def single(objective: Objective, row: int, chosen: Sequence[int]) -> Figures:
    """Differentiate the loss of one example, alone in its batch, by these of the parameters.

    Raises ObjectiveError where that cannot be done.
    """
    theta = [objective.theta[index] for index in chosen]
    loss, found = alone(objective, row, theta, row, objective.units)
    return _figures([each[None] for each in found], theta, loss[None])


def one_by_one(
    objective: Objective, chosen: Sequence[int], truth: Mapping[int, Figures], tick: Callable[[float, str], None]
) -> Figures:
    """Take the gradients of all examples by these parameters: vectorised by torch.func, where that works and is right.

    truth: row -> its figures for the same parameters. Raises ObjectiveError where there is no gradient.
    """
    count, vectorised, start = len(objective.inputs), objective.own is None, 0
    weights = torch.stack([objective.theta[index].detach().double().square().sum() for index in chosen]).cpu()
    parts: list[Figures] = []
    while start < count:
        found = None
        if vectorised:
            found = objective.in_memory(partial(_vectorised, objective, start, chosen))
            rows = range(start, start + len(found.losses)) if found is not None else ()
            pairs = (
                [(found.row(row - start), truth[row]) for row in set(truth) & set(rows)] if found is not None else []
            )
            if any(bool(differing(*pair, weights, objective.dtype).any()) for pair in pairs):
                found = None
        if found is None:
            vectorised = False
            found = objective.in_memory(partial(single, objective, start, chosen))
        parts.append(found)
        start += len(found.losses)
        tick(start / count, "gradients one example at a time")
    return Figures(*(torch.cat([getattr(each, name) for each in parts]) for name in ("dots", "squares", "losses")))


def differing(found: Figures, truth: Figures, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Tell by which parameters (L,) one example's figures are not those of autograd, rounding and kinks allowed for.

    weights: (L,) squared norms of the parameters.
    """
    near, floor = NEAR[dtype]
    norms, whole = truth.squares[0].sqrt(), truth.squares[0].sum().sqrt()
    allowed = near * norms + floor * whole
    off = (found.squares[0].sqrt() - norms).abs() > allowed
    return off | ((found.dots[0] - truth.dots[0]).abs() > allowed * weights.sqrt())


def _vectorised(objective: Objective, start: int, chosen: Sequence[int]) -> Figures | None:
    part = slice(start, min(start + _chunk(objective, chosen), len(objective.inputs)))
    theta = [objective.theta[index].detach() for index in chosen]
    constant = [each.detach() for each in objective.theta]

    def loss_of(pieces: list[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        values = list(constant)
        for index, piece in zip(chosen, pieces, strict=True):
            values[index] = piece
        outputs = functional_call(objective.module, objective._values(values), (x[None],))
        loss = total_loss(objective.loss, outputs, y[None])
        return loss, loss.detach()

    try:
        with strict(objective.module), quiet():
            found, losses = vmap(grad(loss_of, has_aux=True), (None, 0, 0))(theta, *objective._batch(part))
    except REFUSALS as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return None
    return _figures(found, theta, losses)


def _figures(gradients: Sequence[Tensor], theta: Sequence[Tensor], losses: Tensor) -> Figures:
    pairs = [(g.reshape(len(g), -1), w.detach().reshape(-1)) for g, w in zip(gradients, theta, strict=True)]
    dots = torch.stack([(g * w).sum(1, dtype=torch.float64) for g, w in pairs], 1)
    squares = torch.stack([torch.linalg.vector_norm(g, dim=1, dtype=torch.float64).square() for g, _ in pairs], 1)
    return Figures(dots.cpu(), squares.cpu(), losses.double().cpu())


def _chunk(objective: Objective, chosen: Sequence[int]) -> int:
    each = sum(objective.theta[index].nbytes for index in chosen)
    return max(1, min(LARGEST_CHUNK, objective.micro_batch, int(spare_bytes(objective.device) / 8 / max(each, 1))))
