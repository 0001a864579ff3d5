"""Checkpoints in memory that turn, and the rotation of their kernels by torch in float64."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analyzers._base import Quiet
from probes.checkpoint import Checkpoint, TensorInfo
from probes.kernels import kernels
from probes.rotation import Rotation, measure

State = Mapping[str, torch.Tensor]


def held(state: State, name: str = "x.pt", in_parts: bool = True, **facts: Any) -> Checkpoint:
    """Make a checkpoint of tensors in memory."""

    def parts(key: str) -> Any:
        flat = state[key].flatten()
        return (lambda first, count: flat[first : first + count]) if in_parts else None

    infos = {key: TensorInfo(tuple(each.shape), str(each.dtype).removeprefix("torch.")) for key, each in state.items()}
    stream = lambda: iter(state.items())
    more = {"fetch": lambda key: state[key], "parts": parts}
    return Checkpoint(Path(name), name, name, 0, "", infos, facts, (), stream, texts={}, **more)


def series_of(*shape: int, count: int = 4, dtype: torch.dtype = torch.float32, size: float = 0.3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    found = [torch.randn(shape, generator=generator, dtype=torch.float64)]
    for _ in range(count - 1):
        found.append(found[-1] + size * torch.randn(shape, generator=generator, dtype=torch.float64))
    return [each.to(dtype) for each in found]


def followed(tensors: list[torch.Tensor], in_parts: bool = True) -> Rotation:
    checkpoints = [held({"a.weight": each}, in_parts=in_parts) for each in tensors]
    return measure(checkpoints, kernels(checkpoints)[0], Quiet())


def dense(tensors: list[torch.Tensor]) -> tuple[np.ndarray, ...]:
    """Return rotation by torch's cosine, norms, and angles by arccos, all in float64."""
    flat = [each.double().flatten() for each in tensors]
    cosine = lambda one, two: float(torch.nn.functional.cosine_similarity(one, two, dim=0, eps=0))
    turned = np.array([1 - cosine(each, flat[0]) for each in flat])
    angles = np.array([np.nan, *(np.arccos(cosine(a, b)) for a, b in pairwise(flat))])
    return turned, np.array([float(each.norm()) for each in flat]), angles
