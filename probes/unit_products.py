"""Inner products of units in float64: the rows that belong to a unit, what pairs of them give, and the time taken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.permutations import Permutation, Use

Tensors = Mapping[str, Tensor]
GAIN = 1e-12  # relative to the norms: less is rounding
AT_ONCE = 1 << 23  # elements of a product that are held in float64 at a time


@dataclass
class Clock:
    """Where the time goes: wall seconds in the assignments and in the products, summed over threads."""

    assignment: float = 0.0
    products: float = 0.0

    @contextmanager
    def assigning(self) -> Iterator[None]:
        """Add what the block takes to the assignments."""
        began = time.perf_counter()
        yield
        self.assignment += time.perf_counter() - began

    @contextmanager
    def multiplying(self) -> Iterator[None]:
        """Add what the block takes to the products."""
        began = time.perf_counter()
        yield
        self.products += time.perf_counter() - began

    def add(self, other: Clock) -> None:
        """Add another clock's times."""
        self.assignment += other.assignment
        self.products += other.products


def inner_product(a: Tensors, b: Tensors) -> float:
    """Return the inner product of two sets of tensors over the names of the second, in float64."""
    flat = ((a[name].reshape(-1), each.reshape(-1)) for name, each in b.items())
    return sum(float(one.double() @ other.double()) for one, other in flat)


def counted(permutation: Permutation, tensors: Tensors) -> list[Use]:
    """List the uses that count and whose tensors are there."""
    return [use for use in permutation.uses if use.counts and use.tensor in tensors]


def unfolded(tensor: Tensor, use: Use) -> Tensor:
    """Return a row for each unit, (units, everything that belongs to it)."""
    if use.rows is not None:
        tensor = tensor.index_select(use.rows[0], torch.as_tensor(use.rows[1], device=tensor.device))
    flat = tensor.movedim(use.axis, 0).reshape(tensor.shape[use.axis], -1)
    units, slots = use.index.shape
    if slots == 1 and units == len(flat) and np.array_equal(use.index[:, 0], np.arange(units)):
        return flat
    return flat[torch.as_tensor(use.index, device=flat.device)].reshape(units, -1)


def product_of(one: Tensor, other: Tensor) -> Tensor:
    """Return one @ other.T in float64, a block of columns at a time."""
    columns = max(1, AT_ONCE // max(len(one), 1))
    total = torch.zeros(len(one), len(other), dtype=torch.float64, device=one.device)
    for left, right in zip(one.split(columns, 1), other.split(columns, 1), strict=True):
        total.addmm_(left.double(), right.double().T)
    return total
