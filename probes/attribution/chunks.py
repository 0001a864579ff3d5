"""How many rows a model is run on at once: what the memory allows, and what the caches of a CPU hold."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from probes.memory import spare_bytes
from probes.objective import Objective

LARGEST_CHUNK = 256
ROWS_ON_CPU, ON_CPU = 64, 2**26  # rows; bytes of graph: what the caches of a CPU hold is fastest
_ROW_BYTES: WeakKeyDictionary[Objective, dict[torch.Size, int]] = WeakKeyDictionary()


def rows_at_once(objective: Objective, shape: torch.Size, row_bytes: Callable[[], int]) -> int:
    """Return how many rows of features of this shape (1, ...) are run at once.

    row_bytes: measures the bytes of the graph of one row; asked once for each objective and shape.
    """
    known = _ROW_BYTES.setdefault(objective, {})
    if shape not in known:
        known[shape] = max(row_bytes(), 1)
    spare, most = spare_bytes(objective.device) / 4, LARGEST_CHUNK
    if objective.device.type == "cpu":
        spare, most = min(spare, ON_CPU), min(most, max(ROWS_ON_CPU, ON_CPU // 16 // known[shape]))
    return max(1, min(most, int(spare / known[shape])))
