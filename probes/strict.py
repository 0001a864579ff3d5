"""The rules under which second derivatives are right: IEEE arithmetic, deterministic kernels, plain attention."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ATTENTION = "math kernel under derivatives (the fused ones have no double backward)"


@contextmanager
def strict(module: nn.Module | None = None, *, order: int = 2) -> Iterator[None]:
    """Switch TF32, nondeterministic kernels and, under gradients, fused attention off; cuDNN too for recurrent modules.

    order: of the derivatives that are taken. Within `torch.no_grad()`, and for first derivatives, attention keeps its
    fused kernels: they are right there, and faster.
    Operations that have no deterministic kernel still run (a warning of torch, which is dropped here: the products
    are checked for symmetry before they are used).
    """
    recurrent = module is not None and any(isinstance(each, nn.RNNBase) for each in module.modules())
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with (
        _ieee(),
        _cudnn(enabled=not recurrent),
        sdpa_kernel(SDPBackend.MATH) if order > 1 and torch.is_grad_enabled() else nullcontext(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        filling: Any = torch.utils.deterministic
        filled = filling.fill_uninitialized_memory
        filling.fill_uninitialized_memory = False  # three times slower, and only finds bugs
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            filling.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(was[0], warn_only=was[1])


@contextmanager
def _ieee() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextmanager
def _cudnn(*, enabled: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = enabled and before[0], False, True
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before
