"""Bytes on disk -> Checkpoint: what a file holds, found safely, and its tensors when they are asked for.

Formats: safetensors, the zip that `torch.save` writes, and its legacy stream of pickles. A file is recognised by
its content, never by its name. This is the only module that calls `torch.load`, with `weights_only=True` and only
after `pickle_outline` has followed the pickle and found nothing but tensors and plain values in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.formats.find import Found, find
from probes.formats.files import Contents, open_contents
from probes.errors import RefusedCheckpoint
from probes.formats.pickle_values import NUMPY_CODES

if TYPE_CHECKING:
    import torch

    Tensors = Iterator[tuple[str, torch.Tensor]]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_FLOATING = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorInfo:
    """Describe a tensor: its shape and its dtype like "float32"."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """Named parameters and buffers at one point theta; the tensors stay in the file until `load`.

    tensors: names as the model has them (wrapper and prefix removed), in the order of the file. facts: what the file
    says besides: "wrapper", "prefix", "epoch", "step", "metrics", "optimizer", "model_args", "tied". stream: yields
    (name, tensor) one at a time.
    """

    path: Path
    name: str
    sha256: str
    bytes: int
    format: str
    tensors: Mapping[str, TensorInfo]
    facts: Mapping[str, Any]
    doubts: tuple[str, ...]
    stream: Callable[[], Tensors] = field(repr=False, compare=False)

    @property
    def parameters(self) -> int:
        """Count the elements of the floating tensors, tied ones once, running statistics left out."""
        tied = self.facts.get("tied", {})
        return sum(info.numel for name, info in self.tensors.items() if name not in tied and _trained(name, info))

    def load(self) -> dict[str, torch.Tensor]:
        """Return fresh, contiguous, detached copies of all tensors on the CPU; raise RefusedCheckpoint."""
        return {name: tensor.detach().clone().contiguous() for name, tensor in self.stream()}

    def describe(self) -> dict[str, Any]:
        """Return JSON for the page: what was found and every doubt, non-finite weights included (reads the file)."""
        dtypes: dict[str, int] = {}
        for info in self.tensors.values():
            dtypes[info.dtype] = dtypes.get(info.dtype, 0) + 1
        head = {"name": self.name, "format": self.format, "bytes": self.bytes, "sha256": self.sha256}
        counts = {"tensors": len(self.tensors), "parameters": self.parameters, "dtypes": dtypes}
        said = {"epoch": self.facts.get("epoch"), "metrics": dict(self.facts.get("metrics", {}))}
        shapes = [[name, list(info.shape), info.dtype] for name, info in self.tensors.items()]
        doubts = [*self.doubts, *_not_finite(self)]
        return {
            **head, **counts, **said, "optimizer": self.facts.get("optimizer"), "doubts": doubts, "shapes": shapes,
            "facts": dict(self.facts),
        }  # fmt: skip


def read_checkpoint(path: Path, *, name: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Say what a file (or a Hugging Face folder, or a zip of one) holds; the tensors are not read yet.

    name: what the user calls it (default: the file's name). sha256: its hash where it is known already, else the
    file is hashed. Raises RefusedCheckpoint, in words, for whatever is not a checkpoint, damaged, or not safe to open.
    """
    path = Path(path)
    name = name or path.name
    contents = open_contents(path, name)
    if contents is None:
        from probes.hugging_face import checkpoint_of_folder

        return checkpoint_of_folder(path, name=name, sha256=sha256)
    found = find(contents.value, contents.metadata, name)
    tensors = {key: TensorInfo(each.shape, each.dtype) for key, each in found.tensors.items()}
    _check_amount(contents, tensors, name)
    return Checkpoint(
        path=path,
        name=name,
        sha256=sha256 or hash_file(path),
        bytes=path.stat().st_size,
        format=contents.format,
        tensors=tensors,
        facts={**found.facts, **_scalar_metrics(contents, found, name)},
        doubts=found.doubts,
        stream=lambda: _stream(contents, found, name),
    )


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trained(name: str, info: TensorInfo) -> bool:
    mask = name.endswith("attn.bias") and len(info.shape) == 4  # the causal masks that GPT files may hold
    return info.dtype in _FLOATING and not mask and not name.endswith(_STATISTICS)


def _check_amount(contents: Contents, tensors: Mapping[str, TensorInfo], name: str) -> None:
    """Refuse a small file whose tensors all look into the same bytes: their copies would fill the memory."""
    total = sum(info.numel for info in tensors.values())
    if total > 8 * contents.bytes + 1024:
        raise RefusedCheckpoint(
            f"{name} has {contents.bytes:,} bytes but its tensors claim {total:,} elements. It is not opened."
        )


def _scalar_metrics(contents: Contents, found: Found, name: str) -> dict[str, Any]:
    """Read metrics that were saved as tensors of one element, as torchvision's recipe does with best_acc1."""
    if not found.scalars:
        return {}
    value = _load_torch(contents, name)
    metrics = dict(found.facts.get("metrics", {}))
    for key in found.scalars:
        number = float(dict.__getitem__(value, key).item())
        if math.isfinite(number):
            metrics[key] = number
    return {"metrics": metrics}


def _stream(contents: Contents, found: Found, name: str) -> Tensors:
    if contents.path.stat().st_size != contents.bytes:
        raise RefusedCheckpoint(f"{name} has changed since it was described. Upload it again.")
    if contents.format == "safetensors":
        yield from _stream_safetensors(contents, found, name)
        return
    value = _load_torch(contents, name)
    for step in found.route:
        value = value[step]
    for key, original in found.names.items():
        yield key, _plain(value[original], key, found, name)


def _plain(tensor: Any, key: str, found: Found, name: str) -> torch.Tensor:
    """Check that torch made of it what the outline said: a dense tensor on the CPU, of that shape."""
    import torch

    expected = found.tensors[key]
    ordinary = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and not tensor.is_quantized
    if not ordinary or tensor.device.type != "cpu" or tuple(tensor.shape) != expected.shape:
        raise RefusedCheckpoint(f"{name}: the tensor {key} is not what the file declared. It is not used.")
    return tensor.detach()  # type: ignore[no-any-return]


def _stream_safetensors(contents: Contents, found: Found, name: str) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(contents.path, framework="pt", device="cpu") as file:
            for key, original in found.names.items():
                yield key, _plain(file.get_tensor(original), key, found, name)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RefusedCheckpoint(f"{name} cannot be read as safetensors: {error}. Copy it again.") from None


def _load_torch(contents: Contents, name: str) -> Any:
    import torch

    mmap = contents.format == "torch zip"
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(  # noqa: TID251  the outline has passed
                contents.path, map_location="cpu", weights_only=True, mmap=mmap
            )
    except MemoryError:
        raise RefusedCheckpoint(f"{name} does not fit into this machine's memory.") from None
    except Exception as error:  # noqa: BLE001  torch lets some ten types through, from KeyError to struct.error
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise RefusedCheckpoint(f"{name} cannot be read by torch ({reason}). Copy it again from its source.") from None


def _numpy_numbers() -> list[Any]:
    """List what torch needs to read NumPy numbers under the names of NumPy 1 and 2; the outline admits no others."""
    types = {type(np.dtype(code)) for code in NUMPY_CODES}
    scalar = np.float64(0).__reduce__()[0]
    return [np.dtype, *types, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def _not_finite(checkpoint: Checkpoint) -> list[str]:
    names = [name for name, tensor in checkpoint.stream() if not bool(tensor.isfinite().all())]
    if not names:
        return []
    return [f"{len(names)} tensors hold values that are not finite ({', '.join(names[:3])}): the training diverged."]
