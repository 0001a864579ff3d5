"""Which tensors of a run are kernels, in what order of depth, and how fused ones fall apart. No torch: names decide.

A kernel is the weight of one linear or convolutional layer. Biases, the parameters and running statistics of norms,
scales and tokens are none. Embeddings are listed, and marked as such.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from probes.checkpoint import Checkpoint, TensorInfo
from probes.errors import DataError
from probes.formats.contents import printable

Split = Literal["none", "matrix", "head"]

_FLOATING = ("float64", "float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")
_NO_KERNEL = re.compile(
    r"(^|_)bias($|_)|^(running_|num_batches|masked_|inv_freq|gamma$|beta$|weight_g$|original0$|cls_token|mask_token)"
    r"|(^|_)(scales?|scale_inv|zeros?|zero_point|g_idx|mask)$"
)
_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln|bn|gn)(_?[\df]+)?$", re.IGNORECASE)
_TABLE = re.compile(
    r"(^|[._])((?!embed_out)\w*embed\w*|\w*emb|wte|wpe|tok(en)?s?|token_type\w*|pos(ition)?s?|\w*attention_bias)$",
    re.IGNORECASE,
)
_WEIGHT = re.compile(r"(^|_)(weight|kernel|proj)($|_)")
_FUSED = ("c_attn", "qkv", "qkv_proj", "in_proj_weight", "wqkv", "query_key_value")
_BY_HEAD = ("query_key_value",)  # GPT-NeoX, BLOOM and Falcon store q, k and v of one head side by side
_HEADS = ("n_head", "n_heads", "num_heads", "num_attention_heads", "nhead", "heads")
_MATRICES = ("q", "k", "v")


@dataclass(frozen=True)
class Kernel:
    """A tensor to follow, and the layers that it is reported as.

    labels: one, unless it is split. segments: the tensor falls into so many pieces of equal size, each of the layer
    with this place in `labels`; they lie one after another, or, where `across`, side by side in each row.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["kernel", "embedding"]
    labels: tuple[str, ...]
    segments: tuple[int, ...] = (0,)
    across: bool = False

    @property
    def numel(self) -> int:
        """Return the number of weights of the tensor."""
        return math.prod(self.shape)

    @property
    def weights(self) -> int:
        """Return the number of weights of each layer."""
        return self.numel // len(self.labels)


def kernels(
    checkpoints: Sequence[Checkpoint], split: Split = "none", heads: int = 0, leave_out: str = ""
) -> tuple[tuple[Kernel, ...], tuple[str, ...]]:
    """List the kernels that all checkpoints have, first to last, and say what was left aside and why.

    Tied tensors count once, by their first name. split: fused query-key-value kernels whole, by matrix, or by head.
    heads: their number, 0 to read it from the files. leave_out: parts of names, separated by commas, whose kernels do
    not count. Raises DataError when no kernel is left, or a split needs a number of heads that is not known.
    """
    names = [name for name in _in_order(checkpoints[0].tensors) if is_kernel(name, checkpoints[0].tensors[name])]
    names = [name for name in names if not all(name in each.facts.get("tied", {}) for each in checkpoints)]
    words = [each.strip() for each in leave_out.split(",") if each.strip()]
    names = [name for name in names if not any(word in name for word in words)]
    odd = {name: reason for name in names if (reason := _unlike(name, checkpoints))}
    names = [name for name in names if name not in odd]
    if not names:
        reason = next(iter(odd.values()), "the file has no floating tensor of two dimensions that is a weight")
        raise DataError(f"These checkpoints have no kernel in common: {reason}. Choose checkpoints of one run.")
    doubts = []
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        doubts.append(f"Not all checkpoints have the same kernels; left out: {next(iter(odd.values()))}{more}.")
    found = [_kernel(name, checkpoints[0].tensors[name].shape, split, heads, checkpoints) for name in names]
    whole = [each.name for each in found if split != "none" and _fused(each.name) and len(each.labels) == 1]
    if whole:
        doubts.append(f"Not split, because it is not three matrices of one shape: {printable(', '.join(whole), 200)}.")
    return tuple(found), tuple(doubts)


def is_kernel(name: str, info: TensorInfo) -> bool:
    """Tell by name, shape and dtype whether a tensor is the weight of a layer, or a table of embeddings."""
    home, _, last = name.rpartition(".")
    if not info.dtype.startswith(_FLOATING) or len(info.shape) < 2 or not info.numel:
        return False
    if _NO_KERNEL.search(last) or _NORM.search(home) or _NORM.search(last):
        return False
    flat = len(info.shape) > 2 and sum(side > 1 for side in info.shape) < 2
    return not flat or bool(_WEIGHT.search(last))


def digest(found: Iterable[Kernel]) -> str:
    """Hash names, shapes and labels: equal where the same layers are reported."""
    rows = [[each.name, list(each.shape), list(each.labels)] for each in found]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _in_order(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names in the order of the file; where that is the alphabet's, layer 10 comes behind layer 9."""
    names = list(tensors)
    return sorted(names, key=_with_numbers) if names == sorted(names) else names


def _with_numbers(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


def _unlike(name: str, checkpoints: Sequence[Checkpoint]) -> str:
    first, shown = checkpoints[0], printable(name, 100)
    for each in checkpoints[1:]:
        info = each.tensors.get(name)
        if info is None or not info.dtype.startswith(_FLOATING):
            return f"{shown} is not in {printable(each.name, 60)}"
        if info.shape != first.tensors[name].shape:
            shapes = f"{list(first.tensors[name].shape)} in {printable(first.name, 60)} and {list(info.shape)}"
            return f"{shown} has the shape {shapes} in {printable(each.name, 60)}"
    return ""


def _kernel(name: str, shape: tuple[int, ...], split: Split, heads: int, checkpoints: Sequence[Checkpoint]) -> Kernel:
    kind: Literal["kernel", "embedding"] = "embedding" if _is_table(name, shape) else "kernel"
    rows, columns = shape[0], math.prod(shape[1:])
    across = len(shape) == 2 and columns == 3 * rows  # as transformers' GPT-2 has it
    if split == "none" or not _fused(name) or not (across or rows == 3 * columns):
        return Kernel(name, shape, kind, (name,))
    by_head = _fused(name) in _BY_HEAD
    if split == "matrix" and not by_head:
        return Kernel(name, shape, kind, tuple(f"{name} [{each}]" for each in _MATRICES), (0, 1, 2), across)
    count = heads or next(_stated(checkpoints), 0)
    width = min(rows, columns)
    if not count or width % count:
        raise DataError(
            f"{printable(name, 100)} is to be split into heads of one width, and its width is {width}: "
            f"{f'{count} heads do not fit' if count else 'the files do not say how many heads there are'}. "
            "Set the option heads."
        )
    if split == "matrix":
        return Kernel(name, shape, kind, tuple(f"{name} [{each}]" for each in _MATRICES), (0, 1, 2) * count, across)
    labels = tuple(f"{name} [{each}, head {head}]" for each in _MATRICES for head in range(count))
    order = [matrix * count + head for head in range(count) for matrix in range(3)] if by_head else range(len(labels))
    return Kernel(name, shape, kind, labels, tuple(order), across)


def _is_table(name: str, shape: tuple[int, ...]) -> bool:
    home, _, last = name.rpartition(".")
    return len(shape) < 4 and bool(_TABLE.search(last) or (len(shape) == 2 and _TABLE.search(home)))


def _fused(name: str) -> str:
    """Return what a fused kernel is called, "" for all others."""
    parts = [part.lower() for part in name.rpartition(".")[::2]]
    parts = [parts[0].rpartition(".")[2] if parts[1] == "weight" else parts[1]]
    return parts[0] if parts[0] in _FUSED else ""


def _stated(checkpoints: Sequence[Checkpoint]) -> Iterator[int]:
    """Yield the numbers of heads that files tell: beside the weights, or in config.json."""
    for each in checkpoints:
        for held in (each.facts.get("model_args"), each.facts.get("arguments"), _config(each)):
            told = [held.get(key) for key in _HEADS] if isinstance(held, Mapping) else []
            yield from (value for value in told if isinstance(value, int) and 0 < value < 10_000)


def _config(checkpoint: Checkpoint) -> Any:
    try:
        return json.loads(checkpoint.texts.get("config.json", b"{}"))
    except ValueError:
        return {}
