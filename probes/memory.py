"""How much memory is there, and how much does a graph hold?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


@dataclass
class Kept:
    """What graphs keep for a backward pass: storage -> bytes."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The sum over storages."""
        return sum(self.storages.values())


@contextmanager
def measuring(theta: list[Tensor]) -> Iterator[Kept]:
    """Count the bytes that graphs built inside keep, the parameters not counted."""
    kept = Kept()
    own = {each.untyped_storage().data_ptr() for each in theta}

    def note(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in own:  # a slice of the data does not keep all the data: the smaller of the two
            held = min(tensor.untyped_storage().nbytes(), tensor.nbytes)
            kept.storages[key] = max(kept.storages.get(key, 0), held)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def graph_bytes(share: Callable[[], Tensor], theta: list[Tensor]) -> int:
    """Measure the bytes that the graph of a loss and its gradient keeps for a second derivative."""
    with measuring(theta) as kept:
        loss = share()
        if not loss.requires_grad:
            return 0
        gradients = torch.autograd.grad(loss, theta, create_graph=True, allow_unused=True)
    del gradients
    return kept.bytes


def spare_bytes(device: torch.device) -> int:
    """Return the bytes that may still be allocated: free memory, on the CPU within the limit of the cgroup."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    return min(_available(), _cgroup_left())


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


def device_named(name: str) -> torch.device:
    """Return a device by its name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return what people call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
