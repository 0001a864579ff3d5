"""Which unit was matched to which, and how well: cosine of their weights, correlation of what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.dropout_stability import readers
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
    one does not vary. active: shares of positions at which the layer that reads them gets anything but zero from A's
    and from B's; None for what is no plain hidden unit. state: "", "dead in both", "dead in the first", "dead in the
    second" (never active, or no weights).
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
    """Of the units of one permutation, each (units,).

    correlation: of the pairs, NaN where one does not vary, or where no single layer gives these units. first, second:
    shares of positions at which they are not zero, in A and in permuted B; NaN where no plain layer reads them.
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

    Correlations are those of the outputs of a linear or convolutional layer whose units these are, one each; of several
    layers that write to the same units (a residual stream) the first. How often hidden units are active is seen where
    the first layer reads them. Raises ObjectiveError (memory).
    """
    watched = [_Watched(objective.module, each) for each in spec]
    watched = [each for each in watched if each.source is not None or each.reader is not None]
    if not watched:
        return {}
    moved = point_from(objective, permuted(tensors_of(objective, point_b), spec, found))

    def work() -> dict[str, Activity]:
        for each in watched:
            each.clear()
        _observe(objective, (point_a, moved), watched, tick)
        return {each.name: each.activity() for each in watched}

    return objective.in_memory(work)


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
            shares = float(activity.first[unit]), float(activity.second[unit])
            active = shares if np.isfinite(shares).all() else None
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


def _observe(objective: Objective, points: tuple[Point, Point], watched: Sequence[_Watched], tick: Tick) -> None:
    modules = dict(objective.module.named_modules())
    hooks = [modules[each.source].register_forward_hook(each.written) for each in watched if each.source is not None]
    hooks += [modules[each.reader].register_forward_pre_hook(each.read) for each in watched if each.reader is not None]
    with removed_after(hooks):
        for part in objective.parts():
            for side, point in enumerate(points):
                for each in watched:
                    each.side = side
                run(objective, point, objective.inputs[part])
            for each in watched:
                each.join()
            tick(part.stop / len(objective.inputs), "correlations of matched units")


class _Watched:
    """What is seen of the units of one permutation in two networks, batch by batch.

    source, reader: the layers that write and read them, None where there is no plain one. scatter: centred squares of
    A's and of B's and their products, (3, units) float64, pooled over batches (Chan, Golub, LeVeque 1979).
    """

    def __init__(self, module: nn.Module, permutation: Permutation) -> None:
        self.name, self.size = permutation.name, permutation.size
        self.source = _source(module, permutation)
        plain = permutation.kind in ("units", "channels") and not permutation.inner
        reading = readers(module, permutation) if plain else ()
        self.reader = reading[0][0] if reading else None
        self.index = reading[0][1] if reading else np.zeros((self.size, 0), dtype=np.int64)
        modules = dict(module.named_modules())
        self.axes = [(places(modules.get(each or "")) or (1, 0))[0] for each in (self.source, self.reader)]
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.side, self.count = 0, 0
        self.means, self.scatter = torch.zeros(2, self.size).double(), torch.zeros(3, self.size).double()
        self.outputs: list[list[Tensor]] = [[], []]
        self.nonzero, self.positions = np.zeros((2, self.size)), np.zeros(2)

    def written(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        """Keep what the layer gives until the other network has run (a layer may be called several times)."""
        self.outputs[self.side].append(output.detach().movedim(self.axes[0], 0).flatten(1))

    def read(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Count where the units are not zero."""
        values = args[0].detach().movedim(self.axes[1], 0).flatten(1)
        each = (values != 0).sum(1).cpu().numpy()[self.index].sum(1)
        self.nonzero[self.side] += each
        self.positions[self.side] += values.shape[1] * self.index.shape[1]

    def join(self) -> None:
        """Pool a batch that both networks have seen."""
        for one, other in zip(*self.outputs, strict=True):
            values = torch.stack([one, other]).double().cpu()  # (2, units, positions)
            count, means = values.shape[2], values.mean(2)
            a, b = values - means[:, :, None]
            gap, total = means - self.means, self.count + count
            cross = torch.stack([gap[0].square(), gap[1].square(), gap[0] * gap[1]]) * self.count * count / total
            self.scatter += torch.stack([a.square(), b.square(), a * b]).sum(2) + cross
            self.means, self.count = self.means + gap * count / total, total
        self.outputs = [[], []]

    def activity(self) -> Activity:
        """Return correlations and shares, NaN where there are none."""
        a, b, ab = self.scatter.numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = np.where(a * b > 0, ab / np.sqrt(a * b), np.nan)
            first, second = self.nonzero / self.positions[:, None]
        return Activity(correlation, first, second)
