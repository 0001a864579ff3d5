"""Convolutions: the kernel's gradient for every example, or its norm by products between places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from probes.ghost_ledger import Slot
from probes.ghost_norms import CHUNK, gram_is_less, gram_squares, inner, row_squares
from probes.ghost_rules import Layout, Use

NARROW, WIDE = 8, 128  # channels: below and from these on, products of patches are quicker than a grouped convolution


@dataclass(frozen=True)
class Steps:
    """How a convolution steps, each entry of the tuples for one axis in space; extra: the transposed one's padding."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    extra: tuple[int, ...] = ()

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve."""
        extra = self.extra or (0,) * len(self.stride)
        steps = self.stride, self.padding, self.dilation
        return torch.convolution(x, weight, bias, *steps, self.transposed, extra, self.groups)

    def input_gradient(self, d: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of x."""
        return self._backward(d, x, weight, self.groups, (True, False, False), transposed=self.transposed)[0]

    def kernel_gradients(self, a: Tensor, e: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return (N, O, C / groups, *kernel), the plain convolution's of every row of a (N, C, ...), e (N, O, ...)."""
        N, C, outputs = len(a), a.shape[1], e.shape[1]
        narrow = C // self.groups
        if self.by_patches(a):
            tokens = self.tokens(a, e, kernel)
            return torch.bmm(tokens[1].mT, tokens[0]).view(N, outputs, narrow, *kernel)
        weight = a.new_empty(1).expand(N * outputs, narrow, *kernel)
        joined = e.reshape(1, N * outputs, *e.shape[2:]), a.reshape(1, N * C, *a.shape[2:])
        found = self._backward(*joined, weight, N * self.groups, (False, True, False), transposed=False)[1]
        return found.view(N, outputs, narrow, *kernel)

    def by_patches(self, a: Tensor) -> bool:
        """Tell whether a product of patches is quicker than a grouped convolution."""
        return a.shape[1] <= NARROW or a.shape[1] // self.groups >= WIDE

    def tokens(self, a: Tensor, e: Tensor, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return what the kernel sees at its T places, (N groups, T, numbers), and e, (N groups, T, O / groups)."""
        if any(self.padding):
            a = functional.pad(a, [side for each in reversed(self.padding) for side in (each, each)])
        rows, places = len(a) * self.groups, e.shape[2:]
        steps = a.stride()[2:]
        apart = [step * each for step, each in zip(steps, self.stride, strict=True)]
        within = [step * each for step, each in zip(steps, self.dilation, strict=True)]
        shape, strides = (*a.shape[:2], *kernel, *places), (*a.stride()[:2], *within, *apart)
        windows = a.as_strided(shape, strides, a.storage_offset())
        return windows.reshape(rows, -1, places.numel()).mT, e.reshape(rows, -1, places.numel()).mT

    def _backward(
        self, d: Tensor, x: Tensor, weight: Tensor, groups: int, mask: tuple[bool, ...], *, transposed: bool
    ) -> tuple[Tensor, ...]:
        steps = list(self.stride), list(self.padding), list(self.dilation)
        extra = list(self.extra) if transposed else [0] * len(self.stride)
        backward = torch.ops.aten.convolution_backward
        return backward(d, x, weight, None, *steps, transposed, extra, groups, list(mask))  # type: ignore[no-any-return]


@dataclass
class Convolve(Use):
    """A convolution, or a transposed one: its kernel's gradient is that of the plain one from output to input."""

    layout: Layout
    steps: Steps
    weight: Tensor
    bias: Tensor | None
    weight_slot: Slot | None
    bias_slot: Slot | None
    _rows: int = 1  # of each example

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, O, ...)."""
        self._rows = len(x) // self.layout.count
        return self.steps.run(x, self.weight, self.bias)

    def backward(self, x: Tensor, d: Tensor, *, wanted: bool) -> Tensor | None:
        """Take products between places where they cost less than every example's kernel gradient."""
        dx = self.steps.input_gradient(d, x, self.weight) if wanted else None
        if self.bias_slot is not None:
            self.bias_slot.dense(self.layout.fold(d.flatten(2).sum(2)))
        slot, (a, e) = self.weight_slot, (d, x) if self.steps.transposed else (x, d)
        if slot is None:
            return dx
        if not slot.alone:
            slot.dense(self._kernels(a, e))
            return dx
        places, size, groups = e.shape[2:].numel(), self.weight[0].numel(), self.steps.groups
        if gram_is_less(self._rows * places, size, e.shape[1] // groups):
            pair = (d, self.steps.run(x, self.weight, None)) if dx is None else (x, dx)
            squares = [self._gram(*each) for each in self._blocks(a, e, places * (size + self._rows * places) * groups)]
            slot.known(self.layout.fold(inner(*pair)), torch.cat(squares))
        else:
            held = self.weight.numel() + (places * size * groups if self.steps.by_patches(a) else 0)
            sums = [self._sums(*each) for each in self._blocks(a, e, held)]
            slot.known(*torch.cat(sums, 1))
        return dx

    def _gram(self, a: Tensor, e: Tensor) -> Tensor:
        """Return the squared norms of a block's kernel gradients; the places of an example's rows come together."""
        groups = self.steps.groups
        joined = [
            each.unflatten(0, (-1, self._rows, groups)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
            for each in self.steps.tokens(a, e, tuple(self.weight.shape[2:]))
        ]
        return gram_squares(joined[0], joined[1]).reshape(-1, groups).sum(1)

    def _sums(self, a: Tensor, e: Tensor) -> Tensor:
        flat = self._kernels(a, e).flatten(1)
        return torch.stack([flat @ self.weight.reshape(-1), row_squares(flat)])

    def _kernels(self, a: Tensor, e: Tensor) -> Tensor:
        found = self.steps.kernel_gradients(a, e, tuple(self.weight.shape[2:]))
        return found if self._rows == 1 else found.unflatten(0, (-1, self._rows)).sum(1)

    def _blocks(self, a: Tensor, e: Tensor, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut into blocks of whole examples, each row of which needs so many numbers for a moment."""
        rows = max(1, CHUNK // (numbers * self._rows)) * self._rows
        return zip(a.split(rows), e.split(rows), strict=True)
