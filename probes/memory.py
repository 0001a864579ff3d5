"""How much memory is there, and how much does a graph hold?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from probes.strict import strict


def spare_bytes(device: torch.device) -> int:
    """Return the bytes that may still be allocated on the device: free memory, on the CPU within the cgroup's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    return min(_available(), _cgroup_left())


def graph_bytes(share: Callable[[], Tensor], theta: list[Tensor], module: nn.Module) -> int:
    """Measure the bytes that the graph of loss and gradient keeps for a second derivative (parameters not counted)."""
    seen: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in theta}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            own_bytes = min(storage.nbytes(), tensor.nbytes)  # a slice of the data does not keep all the data
            key = storage.data_ptr()
            seen[key] = max(seen.get(key, 0), own_bytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), strict(module):
        loss = share()
        if not loss.requires_grad:
            return 0
        gradients = torch.autograd.grad(loss, theta, create_graph=True, allow_unused=True)
    kept = sum(seen.values())
    del gradients
    return kept


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell an allocation that failed (on a GPU or on the CPU) from other errors."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


def _available() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 4 << 30
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def _cgroup_left() -> int:
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return 1 << 62
    return max(int(limit.read_text()) - int(used.read_text()), 0)
