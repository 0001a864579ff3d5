"""The card of a result: of what its numbers are, so that two results are compared only where they may be."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from probes import VERSION
from probes.losses import REDUCTIONS
from probes.memory import device_name
from probes.strict import ATTENTION

if TYPE_CHECKING:
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective

MODE = "eval: BatchNorm uses its running statistics, dropout off"


def named(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the name of a checkpoint and the hash of its content, as cards have them."""
    return {"name": checkpoint.name, "sha256": checkpoint.sha256}


def card_of(objective: Objective) -> dict[str, Any]:
    """Return the loss and its reduction, the examples and their hash, mode, dtype, device, versions and model."""
    return {
        "model": objective.about.get("model", type(objective.module).__name__),
        "parameters": objective.size,
        "loss": objective.loss,
        "reduction": REDUCTIONS[objective.loss],
        "examples": len(objective.batches),
        "examples_sha256": objective.batches.sha256,
        "normalisation": {key: objective.batches.about.get(key) for key in ("mean", "std")},
        "mode": MODE,
        "dtype": str(objective.dtype).removeprefix("torch."),
        "attention": ATTENTION,
        "seed": None,
        "versions": {"theodolite": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        "device": device_name(objective.device),
        "checkpoint": objective.about.get("checkpoint"),
    }
