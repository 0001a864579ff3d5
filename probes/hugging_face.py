"""Hugging Face folders: config.json and weights, without remote code."""

from __future__ import annotations

from pathlib import Path

from probes.checkpoint import Checkpoint
from probes.errors import CheckpointError


def checkpoint_of_folder(folder: Path, *, name: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Read the weights of a folder as one checkpoint."""
    raise CheckpointError(f"{name or folder.name} is a folder with config.json; folders cannot be read yet ({sha256}).")
