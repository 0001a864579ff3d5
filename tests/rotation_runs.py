"""Runs whose layers turn: real ones, and made ones of any depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from analyzers._base import Quiet
from analyzers.layer_rotation import LayerRotation, LayerRotationResult
from probes.checkpoint import read_checkpoint

EPOCHS = ("000", "050", "100", "150", "200")


def run(paths: list[Path], **options: Any) -> LayerRotationResult:
    checkpoints = tuple(read_checkpoint(path, sha256=path.name) for path in paths)
    return LayerRotation(**options).run(None, checkpoints, Quiet())


def files(real: Path, name: str) -> list[Path]:
    return [real / "mnist-cnn" / name / f"epoch-{epoch}.pt" for epoch in EPOCHS]


def made(folder: Path, layers: int, count: int = 3, size: float = 0.1, prefix: str = "h.") -> list[Path]:
    """Write a run of so many layers: two to a block."""
    generator = torch.Generator().manual_seed(layers)
    state = {f"{prefix}{index}.weight": torch.randn(20, 30, generator=generator) for index in range(layers)}
    paths = [folder / f"epoch-{epoch}.pt" for epoch in range(count)]
    for path in paths:
        torch.save({"model": state}, path)
        state = {name: each + size * torch.randn(20, 30, generator=generator) for name, each in state.items()}
    return paths
