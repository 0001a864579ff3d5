"""What the tests of checkpoints share: a small network, the ways to save it, and how a refusal is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from probes.checkpoint import read_checkpoint
from probes.errors import RefusedCheckpoint

SAVE: dict[str, Callable[[Any, Path], None]] = {
    "torch zip": lambda value, path: torch.save(value, path),
    "torch legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda value, path: save_file(value, path),
}
MAGIC = 0x1950A86A20F9469CFC6C


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, 3)


def state() -> dict[str, torch.Tensor]:
    return dict(Net().state_dict())


def refusal(path: Path) -> str:
    with pytest.raises(RefusedCheckpoint) as caught:
        read_checkpoint(path).load()
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)
