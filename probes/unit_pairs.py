"""Which unit was matched to which, and how well: cosine of their weights, correlation of what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.layer_moments import places, removed_after, run
from probes.objective import Objective
from probes.paths import Floats
from probes.permutations import Found, Permutation, PermutationSpec, permuted
from probes.points import Point, point_from, tensors_of

Tick = Callable[[float, str], None]
LIMIT = 20


@dataclass(frozen=True)
class UnitPair:
    """Unit `first` of A and the unit `second` of B that takes its place.

    cosine: of all weights that belong to the units, in and out (None where one has none but zeros). norms: of these
    weights. correlation: Pearson, of the pre-activations over all examples and positions; None without data, or where
    one does not vary. active: shares of positions at which the pre-activations of A and of B are above zero. state:
    "", "dead in both", "dead in the first", "dead in the second" (never above zero, or no weights).
    """

    permutation: str
    first: int
    second: int
    cosine: float | None
    norms: tuple[float, float]
    correlation: float | None
    active: tuple[float, float] | None
    state: str


@dataclass(frozen=True, eq=False)
class Activity:
    """Of the units of one permutation, each (units,): correlation of the pairs (NaN where one does not vary), and the
    shares of positions above zero, in A and in permuted B.
    """

    correlation: Floats
    first: Floats
    second: Floats


def unit_pairs(
    objective: Objective,
    point_a: Point,
    point_b: Point,
    spec: PermutationSpec,
    found: Found,
    *,
    activities: Mapping[str, Activity] | None = None,
    limit: int = LIMIT,
) -> list[UnitPair]:
    """List the pairs of every permutation, dead units first, then the worst cosines; at most `limit` of each.

    point_b: as it is, not permuted. found: as `permuted` takes it. activities: of `activities`, where there are data.
    """
    a, b = tensors_of(objective, point_a), tensors_of(objective, point_b)
    moved, rows = permuted(b, spec, found), []
    for each in spec:
        pi = found.get(each.name, np.arange(each.size))
        one, other = (_weights(tensors, each) for tensors in (a, moved))
        rows += _worst(_pairs(each, pi, one, other, (activities or {}).get(each.name)), limit)
    return rows


def activities(
    objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, found: Found, tick: Tick
) -> dict[str, Activity]:
    """Run both networks on the examples and correlate the units that were matched.

    Only for permutations whose units are the outputs of a linear or convolutional layer, one each; of several layers
    that write to the same units (a residual stream) the first. Raises ObjectiveError (memory).
    """
    sources = {each.name: layer for each in spec if (layer := _source(objective.module, each)) is not None}
    if not sources:
        return {}
    moved = point_from(objective, permuted(tensors_of(objective, point_b), spec, found))
    return objective.in_memory(lambda: _correlated(objective, point_a, moved, sources, tick))


def _weights(tensors: Mapping[str, Tensor], permutation: Permutation) -> Floats:
    """Return all numbers that belong to each unit, (units, numbers), float64; running statistics left out."""
    parts = []
    for use in permutation.uses:
        if not use.counts:
            continue
        tensor = tensors[use.tensor].double().cpu()
        if use.rows is not None:
            tensor = tensor.index_select(use.rows[0], torch.as_tensor(use.rows[1]))
        parts.append(tensor.movedim(use.axis, 0)[torch.as_tensor(use.index)].flatten(1).numpy())
    return np.concatenate(parts, 1) if parts else np.zeros((permutation.size, 0))


def _pairs(
    permutation: Permutation, pi: NDArray[np.int64], one: Floats, other: Floats, activity: Activity | None
) -> list[UnitPair]:
    norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    product, dots = norms[0] * norms[1], (one * other).sum(1)
    rows = []
    for unit in range(permutation.size):
        cosine = float(dots[unit] / product[unit]) if product[unit] > 0 else None
        lengths = float(norms[0][unit]), float(norms[1][unit])
        correlation, active = None, None
        if activity is not None:
            value = float(activity.correlation[unit])
            correlation = value if np.isfinite(value) else None
            active = float(activity.first[unit]), float(activity.second[unit])
        state = _state(lengths, active)
        name, second = permutation.name, int(pi[unit])
        rows.append(UnitPair(name, unit, second, cosine, lengths, correlation, active, state))
    return rows


def _state(norms: tuple[float, float], active: tuple[float, float] | None) -> str:
    first, second = (norm == 0 or (active is not None and active[at] == 0) for at, norm in enumerate(norms))
    if first and second:
        return "dead in both"
    return "dead in the first" if first else "dead in the second" if second else ""


def _worst(pairs: list[UnitPair], limit: int) -> list[UnitPair]:
    key = lambda each: (each.state == "", each.cosine if each.cosine is not None else -1.0, each.first)
    return sorted(pairs, key=key)[:limit]


def _source(module: nn.Module, permutation: Permutation) -> str | None:
    modules = dict(module.named_modules())
    for use in permutation.uses:
        layer, _, kind = use.tensor.rpartition(".")
        where = places(modules[layer]) if layer in modules else None
        if kind != "weight" or where is None or use.axis != where[1] or use.rows is not None:
            continue
        size = modules[layer].weight.shape[use.axis]
        if np.array_equal(use.index, np.arange(size)[:, None]):
            return layer
    return None


def _correlated(
    objective: Objective, one: Point, other: Point, sources: Mapping[str, str], tick: Tick
) -> dict[str, Activity]:
    modules, held = dict(objective.module.named_modules()), {name: _Sums() for name in sources}
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        axis = (places(modules[sources[name]]) or (1, 0))[0]

        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            values = output.detach().movedim(axis, 0).flatten(1)
            if name in seen:
                held[name].add(seen.pop(name), values)
            else:
                seen[name] = values

        return hook

    with removed_after([modules[layer].register_forward_hook(note(name)) for name, layer in sources.items()]):
        for part in objective.parts():
            seen.clear()
            for point in (one, other):
                run(objective, point, objective.inputs[part])
            tick(part.stop / len(objective.inputs), "correlations of matched units")
    return {name: each.activity() for name, each in held.items() if each.count}


class _Sums:
    """Centred sums of pairs of units over batches, float64: two squares and their product, pooled (Chan)."""

    def __init__(self) -> None:
        self.count = 0
        self.means = self.scatter = self.above = torch.zeros(0)

    def add(self, one: Tensor, other: Tensor) -> None:
        values = torch.stack([one, other]).double().cpu()  # (2, units, positions)
        count, means = values.shape[2], values.mean(2)
        centred, above = values - means[:, :, None], (values > 0).sum(2)
        scatter = torch.stack([centred[0].square(), centred[1].square(), centred[0] * centred[1]]).sum(2)
        if not self.count:
            self.count, self.means, self.scatter, self.above = count, means, scatter, above
            return
        gap, total = means - self.means, self.count + count
        cross = torch.stack([gap[0].square(), gap[1].square(), gap[0] * gap[1]])
        self.scatter = self.scatter + scatter + cross * self.count * count / total
        self.means, self.above = self.means + gap * count / total, self.above + above
        self.count = total

    def activity(self) -> Activity:
        a, b, ab = self.scatter.numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = np.where(a * b > 0, ab / np.sqrt(a * b), np.nan)
        first, second = (self.above.double() / self.count).numpy()
        return Activity(correlation, first, second)
