"""Products with the exact Hessian of the mean loss: reverse over reverse, graphs kept where memory allows."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from probes.errors import CurvatureError
from probes.memory import is_out_of_memory, measuring, spare_bytes
from probes.objective import Objective
from probes.strict import strict

KEPT_SHARE = 0.4  # of the spare memory may hold graphs between products


class HessianProduct:
    """v -> H v, flat vectors (P,), H the Hessian of the objective's mean loss over all its examples.

    The gradient's graph of as many micro-batches as fit `budget` bytes is built once and kept; the others are built
    anew in each product. A parameter that the loss does not use has zeros. `products` counts the calls.
    Raises CurvatureError: no second derivative (the operation is named) or one that is not finite.
    """

    def __init__(self, objective: Objective, *, budget: int | None = None) -> None:
        self.objective = objective
        self.products = 0
        self.budget = int(KEPT_SHARE * spare_bytes(objective.device)) if budget is None else budget
        self._kept: dict[tuple[int, int], list[Tensor]] = {}
        self._kept_bytes = 0

    @property
    def size(self) -> int:
        """The number of parameters P."""
        return self.objective.size

    @property
    def kept(self) -> int:
        """How many micro-batches have their graph kept."""
        return len(self._kept)

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v, on the device and in the dtype of the objective."""
        self.products += 1
        v = v.to(self.objective.device, self.objective.dtype)
        Hv = self.objective.in_memory(lambda: self._product(v))
        if not bool(torch.isfinite(Hv.sum())):
            raise CurvatureError(_not_finite(self.objective, Hv))
        return Hv

    def close(self) -> None:
        """Let go of the kept graphs."""
        self._kept.clear()
        self._kept_bytes = 0

    def _product(self, v: Tensor) -> Tensor:
        objective = self.objective
        total = torch.zeros_like(v)
        pieces = objective.like_theta(v)
        try:
            with strict(objective.module):
                for part in objective.parts():
                    total += objective.flat(self._second(self._gradients(part), pieces, part))
        except RuntimeError as error:
            if is_out_of_memory(error):
                self.close()
                self.budget //= 2
                raise
            raise explained(error) from error
        return total

    def _gradients(self, part: slice) -> list[Tensor]:
        key = part.start, part.stop
        if key in self._kept:
            return self._kept[key]
        room = self._kept_bytes < self.budget
        with measuring(self.objective.theta) as held:
            loss = self.objective.part_loss(self.objective.theta, part)
            gradients = first_gradients(loss, self.objective.theta)
        if room and self._kept_bytes + held.bytes <= self.budget:
            self._kept[key] = gradients
            self._kept_bytes += held.bytes
        return gradients

    def _second(self, gradients: list[Tensor], pieces: list[Tensor], part: slice) -> list[Tensor]:
        keep = (part.start, part.stop) in self._kept
        return second_derivative(gradients, self.objective.theta, pieces, keep=keep)


def first_gradients(loss: Tensor, theta: list[Tensor]) -> list[Tensor]:
    """Return the gradient with its graph; zeros (without one) for parameters that the loss does not use."""
    if not loss.requires_grad:
        raise CurvatureError("The loss does not depend on any parameter: the model cuts the gradient (detach?).")
    found = torch.autograd.grad(loss, theta, create_graph=True, allow_unused=True, materialize_grads=True)
    return list(found)


def second_derivative(
    gradients: list[Tensor], theta: list[Tensor], pieces: list[Tensor], *, keep: bool
) -> list[Tensor]:
    """Differentiate the gradient along `pieces`; zeros where nothing depends on a parameter twice."""
    pairs = [(g, piece) for g, piece in zip(gradients, pieces, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(each) for each in theta]
    outputs, directions = zip(*pairs, strict=True)
    return list(
        torch.autograd.grad(outputs, theta, directions, retain_graph=keep, allow_unused=True, materialize_grads=True)
    )


def explained(error: RuntimeError) -> CurvatureError:
    """Turn autograd's words about a missing second derivative into ours, naming the operation."""
    text = str(error)
    operation = re.search(r"derivative for '?(?:aten::)?([\w.]+)'? is not implemented", text)
    if operation:
        return CurvatureError(
            f"The operation `{operation[1]}` has no second derivative in PyTorch, so this model has no Hessian here; "
            "replace it by basic operations."
        )
    if "once_differentiable" in text:
        return CurvatureError(
            "A custom autograd function of the model is marked `once_differentiable`: it has no second derivative, so "
            "this model has no Hessian here; write its backward with differentiable operations."
        )
    first = (text.strip() or type(error).__name__).splitlines()[0][:200]
    return CurvatureError(f"The second derivative failed: {first}")


def _not_finite(objective: Objective, Hv: Tensor) -> str:
    pieces = zip(objective.names, objective.like_theta(Hv), strict=True)
    bad = [name for name, piece in pieces if not bool(torch.isfinite(piece).all())]
    return (
        f"The second derivative is not finite, first at the parameter `{bad[0] if bad else objective.names[0]}` "
        "(a square root or norm at zero does this); add a small constant there or leave those examples out."
    )
