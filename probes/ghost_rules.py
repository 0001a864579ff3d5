"""One rule for each kind of operation: run it with constant parameters, and take from the backward pass what is needed.

B examples; a tensor holds `inner` rows of each along one axis (see Layout).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from probes.ghost_ledger import Slot
from probes.ghost_norms import inner


@dataclass(frozen=True)
class Layout:
    """Where B examples are in a tensor: along `axis`, `inner` rows of each, together or `apart` (B rows between)."""

    count: int
    axis: int
    inner: int = 1
    apart: bool = False

    @property
    def leads(self) -> bool:
        """Tell whether the examples are along the first axis, the rows of each together."""
        return self.axis == 0 and not self.apart

    def before(self, x: Tensor, features: int) -> bool:
        """Tell whether the examples are not among the last axes."""
        return self.axis < x.ndim - features

    def spreads(self, x: Tensor, axes: int) -> bool:
        """Tell whether x, broadcast to so many axes, is the same for all examples."""
        axis = self.axis - (axes - x.ndim)
        return axis < 0 or x.shape[axis] == 1

    def split(self, x: Tensor) -> Tensor:
        """Bring x into the form (B, inner, the other axes)."""
        rows = x.movedim(self.axis, 0)
        if self.apart:
            return rows.reshape(self.inner, self.count, *rows.shape[1:]).transpose(0, 1)
        return rows.reshape(self.count, self.inner, *rows.shape[1:])

    def tokens(self, x: Tensor, features: int = 1) -> Tensor:
        """Bring x into the form (B, T, the last axes as one)."""
        width = x.shape[x.ndim - features :].numel()
        return self.split(x).reshape(self.count, -1, width)

    def fold(self, rows: Tensor) -> Tensor:
        """Sum over the rows of each example, where the examples lead: (B inner, ...) -> (B, ...)."""
        return rows if len(rows) == self.count else rows.unflatten(0, (self.count, -1)).sum(1)


class Use(ABC):
    """One operation that takes examples and parameters."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""

    @abstractmethod
    def backward(self, x: Tensor, d: Tensor, *, wanted: bool) -> Tensor | None:
        """Hand in what is known of the parameters' gradients; return the gradient of x where it is wanted."""


class Site(torch.autograd.Function):
    """An operation in the graph: (root, use, x) -> output; root makes a graph where the examples have none."""

    @staticmethod
    def forward(ctx: FunctionCtx, root: Tensor, use: Use, x: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        """Run it."""
        ctx.use = use  # type: ignore[attr-defined]
        ctx.save_for_backward(x)
        return use.forward(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[None, None, Tensor | None]:  # type: ignore[override]
        """Give the rule the gradient of the output."""
        (x,) = ctx.saved_tensors
        return None, None, ctx.use.backward(x, d, wanted=ctx.needs_input_grad[2])


class Seed(torch.autograd.Function):
    """What every example has a copy of: (root, value, slot, layout) -> value, as if it were computed."""

    @staticmethod
    def forward(ctx: FunctionCtx, root: Tensor, value: Tensor, slot: Slot, layout: Layout) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        """Return the value."""
        ctx.slot, ctx.layout = slot, layout  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        """Hand in each copy's gradient."""
        shape = ctx.slot.source.value.shape
        each = ctx.layout.split(d)
        each = each.sum(1) if each.numel() != ctx.layout.count * shape.numel() else each
        ctx.slot.dense(each.reshape(ctx.layout.count, *shape))
        return None, None, None, None


@dataclass
class Linear(Use):
    """x W' + b."""

    layout: Layout
    weight: Tensor
    bias: Tensor | None
    weight_slot: Slot | None
    bias_slot: Slot | None

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        return functional.linear(x, self.weight, self.bias)

    def backward(self, x: Tensor, d: Tensor, *, wanted: bool) -> Tensor | None:
        """Inner products come from x and its gradient: <d, W x> = <W' d, x>."""
        dx = d @ self.weight if wanted else None
        a, e = self.layout.tokens(x), self.layout.tokens(d)

        def dots() -> Tensor:
            pair = (e, functional.linear(a, self.weight)) if dx is None else (a, self.layout.tokens(dx))
            return inner(*pair)

        if self.bias_slot is not None:
            self.bias_slot.dense(e.sum(1))
        if self.weight_slot is not None:
            self.weight_slot.linear(a, e, dots)
        return dx


@dataclass
class Lookup(Use):
    """Rows of a matrix (an embedding)."""

    layout: Layout
    weight: Tensor
    padding: int | None
    slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        """Ids (...) -> (..., n)."""
        return functional.embedding(x, self.weight)

    def backward(self, x: Tensor, d: Tensor, *, wanted: bool) -> None:  # noqa: ARG002
        """The row of the padding has no gradient."""
        ids, e = self.layout.split(x).reshape(self.layout.count, -1), self.layout.tokens(d)
        if self.padding is not None:
            e = e * (ids != self.padding)[..., None]
        self.slot.lookup(ids, e, inner(e, functional.embedding(ids, self.weight)))


@dataclass
class LayerNorm(Use):
    """Layer normalisation over the last axes."""

    layout: Layout
    shape: tuple[int, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    weight_slot: Slot | None
    bias_slot: Slot | None
    _moments: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., *shape) -> the same."""
        out, *moments = torch.native_layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        self._moments = moments[0], moments[1]
        return out

    def backward(self, x: Tensor, d: Tensor, *, wanted: bool) -> Tensor | None:
        """The gradient of the weight is the sum over tokens of d times the normalised x."""
        if self._moments is None:
            raise ValueError("backward before forward")
        features = len(self.shape)
        if self.bias_slot is not None:
            sums = self.layout.tokens(d, features).sum(1)
            self.bias_slot.dense(sums.unflatten(1, self.shape))
        if self.weight_slot is not None:
            product = (x - self._moments[0]).mul_(self._moments[1]).mul_(d)
            sums = self.layout.tokens(product, features).sum(1)
            self.weight_slot.dense(sums.unflatten(1, self.shape))
        if not wanted:
            return None
        mask = [True, False, False]
        backward = torch.ops.aten.native_layer_norm_backward
        return backward(d.contiguous(), x, self.shape, *self._moments, self.weight, self.bias, mask)[0]  # type: ignore[no-any-return]


@dataclass
class BatchNorm(Use):
    """Batch normalisation with running statistics, the examples leading and the channels second."""

    layout: Layout
    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    weight_slot: Slot | None
    bias_slot: Slot | None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> the same."""
        return functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)

    def backward(self, x: Tensor, d: Tensor, *, wanted: bool) -> Tensor | None:
        """The gradient of the weight is the sum over places of d times the normalised x."""
        scale = (self.variance + self.eps).rsqrt()
        across = (-1,) + (1,) * (x.ndim - 2)
        if self.bias_slot is not None:
            self.bias_slot.dense(self._sums(d))
        if self.weight_slot is not None:
            product = (x - self.mean.view(across)).mul_(d)
            self.weight_slot.dense(self._sums(product) * scale)
        factor = scale if self.weight is None else scale * self.weight
        return d * factor.view(across) if wanted else None

    def _sums(self, x: Tensor) -> Tensor:
        return self.layout.fold(x if x.ndim == 2 else x.flatten(2).sum(2))
