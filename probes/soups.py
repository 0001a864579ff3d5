"""Model soups: the mean of several networks' weights, of all or of those that help; and a merged network as a file.

Wortsman et al. 2022 (Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time), recipe 1 for the greedy soup.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from probes.batch_statistics import renewed
from probes.checkpoint import Checkpoint
from probes.errors import ModelError
from probes.objective import Objective
from probes.paths import read
from probes.points import Point, combined, tensors_of

Tick = Callable[[float, str], None]
_FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Soup:
    """A greedy soup of N networks.

    chosen: the places of those that are in it, in the order in which they were added. order: the places of all, best
    first. alone, tried: the held-out metric of each alone and of the mean with it added, both in that order. metric:
    "accuracy", or "loss" where there is none (lower is better).
    """

    chosen: tuple[int, ...]
    order: tuple[int, ...]
    alone: tuple[float, ...]
    tried: tuple[float, ...]
    metric: Literal["accuracy", "loss"]
    point: Point


def uniform(points: Sequence[Point], statistics: Objective | None = None) -> Point:
    """Return the mean of points; raise ModelError where they do not match.

    statistics: the objective on whose examples the running statistics of BatchNorm are measured anew.
    """
    if not points:
        raise ValueError("a soup needs a network")
    mean = combined(points, [1 / len(points)] * len(points)) if len(points) > 1 else points[0]
    return mean if statistics is None else renewed(statistics, mean)


def greedy(objective: Objective, points: Sequence[Point], tick: Tick, statistics: Objective | None = None) -> Soup:
    """Add networks to the mean, best first, wherever the held-out metric of the mean strictly rises.

    objective: of data that were held out (the choice is made on them: judge the soup on others). points: at least one.
    statistics: as for `uniform`, in the single networks too. A metric that is not finite counts as the worst.
    """
    total = 2 * len(points) - 1
    found = []
    for number, point in enumerate(points):
        found.append(_measured(objective, point, statistics))
        tick((number + 1) / total, f"checkpoint {number + 1} of {len(points)} alone")
    order = sorted(range(len(points)), key=lambda place: (-found[place][0], place))
    chosen, best, tried = [order[0]], found[order[0]][0], [found[order[0]][1]]
    for number, place in enumerate(order[1:]):
        mean = uniform([points[each] for each in (*chosen, place)])
        score, value, _ = _measured(objective, mean, statistics)
        tried.append(value)
        if score > best:
            chosen, best = [*chosen, place], score
        tick((len(points) + number + 1) / total, f"soup of {len(chosen)}")
    soup = uniform([points[each] for each in chosen], statistics)
    alone = tuple(found[place][1] for place in order)
    return Soup(tuple(chosen), tuple(order), alone, tuple(tried), found[0][2], soup)


def as_safetensors(objective: Objective, point: Point, path: Path, *, how: str, like: Checkpoint | None = None) -> None:
    """Write a network as a safetensors file, atomically: every tensor of its state dict, by the names of the module.

    how: how it was made, for the metadata ("Theodolite"). like: the checkpoint whose floating dtypes are kept (half
    precision is computed in float32); values that it cannot hold stay as they are. A tied parameter is written once,
    under its first name, its other names in the metadata, as safetensors demands. Raises ModelError where the
    state dict holds what is no tensor, OSError.
    """
    from safetensors.torch import save_file

    tensors, twins = _state(objective, point, like)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, {"format": "pt", "Theodolite": how, **twins})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _measured(
    objective: Objective, point: Point, statistics: Objective | None
) -> tuple[float, float, Literal["accuracy", "loss"]]:
    """Return the score (higher is better, -inf where it is not finite), the metric as it is, and its name."""
    found = read(objective, point, statistics)
    if found.accuracy is not None:
        value = float(found.accuracy[0])
        broken = not math.isfinite(float(found.loss[0]))
        return -math.inf if broken else value, value, "accuracy"
    value = float(found.loss[0])
    return -value if math.isfinite(value) else -math.inf, value, "loss"


def _state(objective: Objective, point: Point, like: Checkpoint | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to write, and the other names of tied ones -> the name that is written."""
    held: Mapping[str, Tensor] = {**objective.constants, **tensors_of(objective, point)}
    state = objective.module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    tensors, twins = {}, {}
    for name, own in state.items():
        if not isinstance(own, Tensor):
            raise ModelError(f"{name} of the model is no tensor; a safetensors file cannot hold it.")
        twin = first.setdefault(id(own), name)
        if twin != name:
            twins[name] = twin
            continue
        value = held.get(name, own).detach()
        tensors[name] = _typed(value, own, like.tensors[name].dtype if like and name in like.tensors else "")
    return tensors, twins


def _typed(value: Tensor, own: Tensor, dtype: str) -> Tensor:
    value = value.to("cpu", own.dtype)
    wanted = value.to(_FLOATS[dtype]) if dtype in _FLOATS and value.is_floating_point() else value
    fits = torch.equal(wanted.isfinite(), value.isfinite())
    return (wanted if fits else value).clone(memory_format=torch.contiguous_format)
