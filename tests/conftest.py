"""Shared by all tests: two threads at most, fixed seeds, the real files."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "tests"))  # last: tests/ui.py must not hide ui/
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background, also for children


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real checkpoints and data that others trained; it lies beside the project."""
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        pytest.skip("the real checkpoints are not on this machine")
    return folder


@pytest.fixture(autouse=True)
def _quiet_torch(request: pytest.FixtureRequest) -> None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
