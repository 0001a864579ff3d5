"""Which weights carry what fine-tuning has taught? A part of the change is put onto the base, and the network judged.

theta(gamma) = base + gamma (fine-tuned - base), gamma being 1 for the chosen weights and 0 for all others.
Source: Panigrahi, Saunshi, Zhao, Arora (2023), "Task-Specific Skill Localization in Fine-tuned Language Models".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from probes.errors import ModelError
from probes.objective import Objective
from probes.points import Point

Scores = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
KINDS = ("embedding", "norm", "attention", "convolution", "MLP", "head", "other")
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_ATTENTION = re.compile(r"attn|attention|(^|[._])(qkv|[qkvo]_proj|query|key|value|in_proj|out_proj)([._]|$)", re.I)
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|cls_token|mask_token|pos_\w+|token|position)(\.|$)", re.I)
_HEAD = re.compile(
    r"^(\w+\.)?(lm_head|heads?|classifier|score|qa_outputs|fc|out_proj|embed_out|cls\.predictions)(\.|$)"
)
_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln|bn|gn)(_?[\df]+)?(\.|$)", re.I)


@dataclass(frozen=True)
class Place:
    """Where a parameter stands among all weights that may be grafted. layer: the block or module that it belongs to."""

    name: str
    layer: str
    kind: str
    weights: slice

    @property
    def size(self) -> int:
        """Return the number of its weights."""
        return int(self.weights.stop - self.weights.start)


@dataclass(frozen=True)
class Overlap:
    """What two masks have in common. jaccard: of what either has, the share that both have.

    by_chance: of two random masks of these sizes. by_tensor: of two masks that are random within every parameter, with
    as many of its weights as these have (ratios of expected sizes).
    """

    shared: int
    jaccard: float
    by_chance: float
    by_tensor: float


def layout(objective: Objective, whole: Sequence[str] = ()) -> tuple[Place, ...]:
    """List the parameters that may be grafted, in the order of the model.

    whole: parts of names; such parameters are always taken from the fine-tuned model and do not count. Raises
    ModelError where none is left.
    """
    modules, found, start = dict(objective.module.named_modules()), list[Place](), 0
    last = _last_linear(modules, objective.names)
    for name, each in zip(objective.names, objective.theta, strict=True):
        if any(part in name for part in whole):
            continue
        owner = name.rpartition(".")[0]
        kind = kind_of(name, modules.get(owner), is_last=owner == last)
        found.append(Place(name, layer_of(name), kind, slice(start, start + each.numel())))
        start += each.numel()
    if not found:
        raise ModelError("All parameters are always taken from the fine-tuned model; nothing is left to graft.")
    return tuple(found)


def movement(objective: Objective, base: Point, tuned: Point, places: Sequence[Place]) -> Scores:
    """Return |fine-tuned - base| of all weights, flat (P,).

    Raises ModelError where the shapes differ, weights are not finite, or nothing has moved.
    """
    found = []
    ends = {name: pair for name, *pair in zip(objective.names, base.theta, tuned.theta, strict=True)}
    for each in places:
        one, other = ends[each.name]
        if one.shape != other.shape:
            raise ModelError(f"{each.name} has shape {tuple(one.shape)} in the base, {tuple(other.shape)} fine-tuned.")
        found.append((other - one).abs().reshape(-1).cpu().numpy())
    moved = np.concatenate(found)
    if not np.isfinite(moved).all():
        raise ModelError("Some weights are not finite; the checkpoints cannot be compared.")
    if not moved.any():
        raise ModelError("The two checkpoints have the same weights; there is nothing to graft. Choose two others.")
    return moved


def top(scores: Scores, count: int) -> Mask:
    """Choose exactly so many of the largest scores; among equal ones, those that come first."""
    if not 0 <= count <= len(scores):
        raise ValueError(f"{count} of {len(scores)} weights")
    if count == 0:
        return np.zeros(len(scores), dtype=np.bool_)
    place = len(scores) - count
    threshold = np.partition(scores, place)[place]
    chosen: Mask = scores > threshold
    equal = np.flatnonzero(scores == threshold)
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


def counts_of(shares: Sequence[float], weights: int) -> list[int]:
    """Return how many weights each share is, one at least; shares that come to the same number count once."""
    return sorted({min(weights, max(1, round(share * weights))) for share in shares})


def grafted(objective: Objective, base: Point, tuned: Point, places: Sequence[Place], mask: Mask) -> Point:
    """Return the base with the chosen weights of the fine-tuned model, taken as they are: nothing is rounded.

    Buffers, and parameters that have no place, are those of the fine-tuned model.
    """
    where = {each.name: each.weights for each in places}
    theta = []
    for name, one, other in zip(objective.names, base.theta, tuned.theta, strict=True):
        if name not in where:
            theta.append(other)
            continue
        chosen = torch.as_tensor(mask[where[name]]).to(one.device).view(one.shape)
        theta.append(torch.where(chosen, other, one))
    return Point(tuple(theta), tuned.buffers)


def overlap(one: Mask, other: Mask, places: Sequence[Place]) -> Overlap:
    """Compare two masks of the same weights."""
    shared = int((one & other).sum())
    sizes = int(one.sum()), int(other.sum())
    inside = sum(float(one[e.weights].sum()) * float(other[e.weights].sum()) / e.size for e in places if e.size)
    return Overlap(
        shared,
        _jaccard(shared, *sizes),
        _jaccard(sizes[0] * sizes[1] / len(one), *sizes),
        _jaccard(inside, *sizes),
    )


def kind_of(name: str, owner: nn.Module | None, *, is_last: bool = False) -> str:
    """Tell what a parameter belongs to, one of KINDS, by its module and its name; is_last: in the last linear layer."""
    if isinstance(owner, _NORMS) or "Norm" in type(owner).__name__ or _NORM.search(name):
        return "norm"
    if isinstance(owner, nn.Embedding) or (_EMBEDDING.search(name) and not _HEAD.search(name)):
        return "embedding"
    if is_last or _HEAD.search(name):
        return "head"
    if isinstance(owner, nn.MultiheadAttention) or _ATTENTION.search(name):
        return "attention"
    if isinstance(owner, _ConvNd):
        return "convolution"
    return "MLP" if isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D" else "other"


def layer_of(name: str) -> str:
    """Return the block that a parameter belongs to: its name up to the first number, else its module."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ".".join(parts[:-1]) or name


def _jaccard(shared: float, one: float, other: float) -> float:
    either = one + other - shared
    return shared / either if either else 0.0


def _last_linear(modules: Mapping[str, nn.Module], names: Sequence[str]) -> str:
    """Return the last linear layer where no layer is a head by its name, else ""."""
    if any(_HEAD.search(name) for name in names):
        return ""
    linear = [name for name, each in modules.items() if isinstance(each, nn.Linear) and not _ATTENTION.search(name)]
    return linear[-1] if linear else ""
