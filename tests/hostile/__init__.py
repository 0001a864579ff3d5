"""The corpus: hostile, broken and awkward files with the verdict that each must get, written afresh for every test."""

from __future__ import annotations

from pathlib import Path

from hostile import archives, calling, clinic, executing, exhausting, folders, headers, honest, tensors
from hostile.assemble import CANARY, Case

GROUPS = (executing, calling, exhausting, archives, tensors, headers, folders, clinic, honest)
CORPUS: tuple[Case, ...] = tuple(case for group in GROUPS for case in group.cases())


def write(case: Case, root: Path) -> Path:
    """Lay a case out in a folder of its own below `root`; return the path to give to a reader."""
    folder = root / case.name
    folder.mkdir(parents=True)
    return case.write(folder)


def touched(case: Case, root: Path) -> bool:
    """Tell whether something ran: the canary is there."""
    return (root / case.name / CANARY).exists()


__all__ = ["CORPUS", "Case", "touched", "write"]
