"""Layer by layer: how alike two networks are after matching, where variance collapses, which layer carries the barrier.

Jordan et al. 2023 (REPAIR) for the collapse of variance; Adilova et al. 2024 (Layer-wise Linear Mode Connectivity) for
moving one layer alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from probes.barriers import Barrier, Estimate, barrier, lambdas, rise
from probes.objective import Objective
from probes.paths import Floats, Readings, read
from probes.permutations import Found, PermutationSpec, permuted
from probes.points import Point, point_from, tensors_of
from probes.pool import Moments

Tick = Callable[[float, str], None]
POINTS = 5


@dataclass(frozen=True)
class TensorMatch:
    """One parameter of A beside that of B, as B is and permuted.

    cosine: of the whole tensors (None where one is zero). unit_cosine: the mean over units, rows along the first axis,
    of the cosine of their weights (None for vectors); units whose weights are zero are left out. displaced: share of
    the units along the first axis that the permutation moves, None where none acts. distance_share: of the squared
    distance between A and permuted B, (0 to 1).
    """

    tensor: str
    cosine: float | None
    cosine_naive: float | None
    unit_cosine: float | None
    unit_cosine_naive: float | None
    displaced: float | None
    distance_share: float


@dataclass(frozen=True)
class Moved:
    """The losses of one network while one of its layers goes to the other's."""

    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None
    barrier: Barrier
    rise: Estimate


@dataclass(frozen=True)
class LayerBarrier:
    """What happens when one layer alone goes from its value in one network to that in the other.

    layer: its name. lambdas: the points, 0 where the network is whole. first, second: with everything else staying at
    A (at B): losses and accuracies at the points, the barrier between the ends of this path, and how far the loss rises
    above that of the whole network.
    """

    layer: str
    lambdas: tuple[float, ...]
    first: Moved
    second: Moved


def tensor_matches(
    objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, found: Found
) -> list[TensorMatch]:
    """Compare every parameter of A with B's as it is and permuted; buffers are left out."""
    a, b = tensors_of(objective, point_a), tensors_of(objective, point_b)
    moved = permuted(b, spec, found)
    gaps = {name: float((a[name].double() - moved[name].double()).square().sum()) for name in objective.names}
    total = sum(gaps.values()) or 1.0
    rows = _displaced_rows(spec, found)
    return [
        TensorMatch(
            name, _cosine(a[name], moved[name]), _cosine(a[name], b[name]),
            _unit_cosine(a[name], moved[name]), _unit_cosine(a[name], b[name]), rows.get(name), gaps[name] / total,
        )
        for name in objective.names
    ]  # fmt: skip


def variance_ratios(
    merged: Mapping[str, Moments], of_a: Mapping[str, Moments], of_b: Mapping[str, Moments]
) -> dict[str, float | None]:
    """Return for each layer E_c[Var_c(merged)] / E_c[(Var_c(A) + Var_c(B)) / 2] over its channels c.

    1: as much spread as the ends; near 0: variance collapse. The order of the channels does not matter:
    B may be permuted or not. None where the ends do not vary, or a value is not finite.
    """
    ratios: dict[str, float | None] = {}
    for name, found in merged.items():
        between = float((of_a[name].variance.mean() + of_b[name].variance.mean()) / 2)
        ratio = float(found.variance.mean()) / between if between > 0 else math.nan
        ratios[name] = ratio if math.isfinite(ratio) else None
    return ratios


def layers_of(objective: Objective) -> dict[str, tuple[str, ...]]:
    """Group the parameters by the module that holds them, in their order: module -> names."""
    groups: dict[str, list[str]] = {}
    for name in objective.names:
        groups.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return {layer: tuple(names) for layer, names in groups.items()}


def layer_barriers(
    objective: Objective,
    point_a: Point,
    point_b: Point,
    weights: Floats,
    tick: Tick,
    *,
    points: int = POINTS,
    statistics: Objective | None = None,
) -> list[LayerBarrier]:
    """Move one layer at a time from A's value to B's, the others staying at A, and from B's to A's, at B.

    point_b: permuted or not, as the question is. A layer is a module that holds parameters of its own, its running
    statistics with it. points: lambdas on [0, 1], odd. weights: of `probes.paths.resamples`. statistics: as in
    `probes.paths.read`. Costs 2 (points - 1) evaluations a layer, and two.
    """
    at, layers = lambdas(points), layers_of(objective)
    ends = tensors_of(objective, point_a), tensors_of(objective, point_b)
    buffers = tuple(point_a.buffers)
    whole = [read(objective, point, statistics) for point in (point_a, point_b)]
    total, done, rows = 2 * len(layers), 0, []
    for layer, names in layers.items():
        own = (*names, *(name for name in buffers if name.rpartition(".")[0] == layer))
        sides = []
        for stays in (0, 1):
            held = whole[stays]
            for tensors in _on_the_way(ends[stays], ends[1 - stays], own, at[1:]):
                held = held.with_more(read(objective, point_from(objective, tensors), statistics))
            sides.append(_moved(held, at, weights))
            done += 1
            tick(done / total, f"layer {layer} alone")
        rows.append(LayerBarrier(layer, tuple(at.tolist()), *sides))
    return rows


def _on_the_way(
    stay: Mapping[str, Tensor], go: Mapping[str, Tensor], names: tuple[str, ...], at: Floats
) -> Iterator[dict[str, Tensor]]:
    for share in at.tolist():
        yield {**stay, **{name: (1 - share) * stay[name] + share * go[name] for name in names}}


def _moved(held: Readings, at: Floats, weights: Floats) -> Moved:
    accuracy = None if held.accuracy is None else tuple(held.accuracy.tolist())
    return Moved(tuple(held.loss.tolist()), accuracy, barrier(held, at, weights), rise(held, at, weights))


def _displaced_rows(spec: PermutationSpec, found: Found) -> dict[str, float]:
    """Return for each tensor with units along its first axis the share of them that move, inner ones with the outer."""
    places: dict[str, dict[int, int]] = {}
    for each in spec:
        pi = found.get(each.name)
        for use in each.uses:
            if use.axis != 0 or use.rows is not None:
                continue
            held = places.setdefault(use.tensor, {})
            source = use.index if pi is None else use.index[pi]
            before = dict(held)
            for row, origin in zip(use.index.ravel().tolist(), source.ravel().tolist(), strict=True):
                held[row] = before.get(origin, origin)
    return {name: float(np.mean([row != origin for row, origin in held.items()])) for name, held in places.items()}


def _cosine(one: Tensor, other: Tensor) -> float | None:
    one, other = one.double().flatten(), other.double().flatten()
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms > 0 else None


def _unit_cosine(one: Tensor, other: Tensor) -> float | None:
    if one.ndim < 2:
        return None
    one, other = one.double().flatten(1), other.double().flatten(1)
    norms = one.norm(dim=1) * other.norm(dim=1)
    kept = norms > 0
    return float(((one * other).sum(1)[kept] / norms[kept]).mean()) if bool(kept.any()) else None
