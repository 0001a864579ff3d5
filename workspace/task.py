"""What a task is: work that a child does for a run. The table of them is `workspace.tasks.TASKS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzers._base import Tick
from workspace.store import Store

Work = Callable[[Mapping[str, Any], Store, Path, Tick], None]


@dataclass(frozen=True)
class Task:
    """Work by name: `run(payload, store, folder, tick)` writes result.json into the folder, atomically and last."""

    run: Work
