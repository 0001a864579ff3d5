"""Activation matching: units are assigned to those that answer alike, by the correlation over the data.

For each permutation one linear assignment on Pearson correlations (Li et al. 2016, Convergent learning; Jordan et al.
2023, REPAIR). Each position of a map or token is an observation. Where a unit is looked at: `probes/unit_views.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from probes.assignment import best_assignment, best_together, family
from probes.coordinate_ascent import Tick
from probes.matching import Matching, check, distance_between, weight_matching
from probes.objective import Objective
from probes.permutations import Indices, PermutationSpec, Use, identity, permuted
from probes.points import Point, at, tensors_of
from probes.unit_products import GAIN, Clock, Tensors
from probes.unit_views import MADE, READ, Spot, View, best_views, seen, views_of


@dataclass
class Moments:
    """Sums over observations from which correlations follow, in float64, about the means of the first part."""

    count: int = 0
    shift: tuple[Tensor, Tensor] | None = None
    sums: list[Tensor] = field(default_factory=list)  # of a, of b, their squares, and the products (n, n)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add observations, each (observations, units)."""
        if self.shift is None:
            self.shift = a.mean(0, dtype=torch.float64), b.mean(0, dtype=torch.float64)
        a, b = (each.to(torch.float64, copy=True).sub_(mean) for each, mean in zip((a, b), self.shift, strict=True))
        new = [a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0), a.T @ b]
        self.sums = [one + other for one, other in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(a)

    def correlations(self) -> Tensor:
        """Return Pearson's correlation of each unit of a with each of b, (n, n); 0 where one does not vary."""
        mean_a, mean_b, square_a, square_b, products = (each / self.count for each in self.sums)
        shift_a, shift_b = self.shift or (mean_a, mean_b)
        vary_a, vary_b = square_a - mean_a.square(), square_b - mean_b.square()
        live_a = vary_a > GAIN * (square_a + shift_a.square())
        live_b = vary_b > GAIN * (square_b + shift_b.square())
        scale = torch.where(live_a, vary_a, 1.0).sqrt()[:, None] * torch.where(live_b, vary_b, 1.0).sqrt()
        return (products - mean_a[:, None] * mean_b) / scale * live_a[:, None] * live_b


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is measured together: one permutation's units, or all features of spots that several permutations move.

    together: the permutations, as they act on the features of each spot; None for the units of one.
    """

    names: tuple[str, ...]
    views: tuple[View, ...]
    moments: tuple[Moments, ...]
    together: PermutationSpec | None

    def worth(self) -> dict[Spot, Tensor]:
        """Return the correlations at each spot."""
        return {view.spot: each.correlations() for view, each in zip(self.views, self.moments, strict=True)}


def activation_matching(
    objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, tick: Tick
) -> Matching:
    """Match the units of b to those of a by the correlation of their activations over the examples.

    Permutations of the same features are solved at once: a pair of heads is worth what the best assignment of the units
    within them gives. Permutations whose units no layer shows are matched by their weights, and
    the notes name them. Nothing is stored but sums. Raises ModelError where a tensor is missing.
    """
    a, b = tensors_of(objective, point_a), tensors_of(objective, point_b)
    check(a, b, spec)
    clock, found = Clock(), identity(spec)
    hidden: list[str] = []
    with clock.multiplying():
        asked = _measured(objective, point_a, point_b, spec, lambda share, doing: tick(0.9 * share, doing))
    for each in asked:
        then = _assigned(each, clock)
        found |= then or {}
        hidden += [] if then else each.names
    found |= _by_weights(a, permuted(b, spec, found), spec, hidden)
    tick(1.0, "matched")
    return Matching(
        found=found,
        distance=distance_between(a, permuted(b, spec, found), spec),
        seconds_assignment=clock.assignment,
        seconds_products=clock.products,
        notes=(*spec.notes, *_note(hidden)),
    )


def _ask(spec: PermutationSpec, views: Mapping[str, list[View]]) -> list[_Asked]:
    """Choose where to look: where units have answered, else what layers read, else what they make; with heads, both."""
    asked = []
    for names in _overlapping(spec, views):
        if len(names) == 1 and not spec[names[0]].inner:
            chosen, together = best_views(views[names[0]]), None
        else:
            chosen = tuple(
                {view.spot: view for name in names for view in views[name] if view.rank in (READ, MADE)}.values()
            )
            together = _together(spec, names, views, {view.spot for view in chosen})
        asked.append(_Asked(names, chosen, tuple(Moments() for _ in chosen), together))
    return asked


def _together(
    spec: PermutationSpec, names: tuple[str, ...], views: Mapping[str, list[View]], spots: set[Spot]
) -> PermutationSpec:
    """Return permutations and those within them as they act on the features of spots."""
    members = []
    for each in (each for name in names for each in family(spec, spec[name])):
        uses = [Use(view.spot.name, 0, view.index) for view in views[each.name] if view.spot in spots]
        members.append(replace(each, uses=tuple(uses)))
    return PermutationSpec(tuple(members), spec.source)


def _overlapping(spec: PermutationSpec, views: Mapping[str, list[View]]) -> list[tuple[str, ...]]:
    """Group the outermost permutations: those that move the same features of a spot go together."""
    groups: list[tuple[tuple[str, ...], set[tuple[Spot, int]]]] = []
    for each in spec.outermost():
        names: tuple[str, ...] = (each.name,)
        held = {(v.spot, int(i)) for v in views[each.name] for i in v.index.reshape(-1)}
        for group in [group for group in groups if group[1] & held]:
            groups.remove(group)
            names, held = group[0] + names, group[1] | held
        groups.append((names, held))
    return [names for names, _ in groups]


def _measured(objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, tick: Tick) -> list[_Asked]:
    """Run both networks over the examples and sum up what is seen of their units."""
    one, two = at(objective, point_a), at(objective, point_b)
    views = views_of(one, spec)

    def work() -> list[_Asked]:
        asked = _ask(spec, views)
        spots = {view.spot for each in asked for view in each.views}
        for part in objective.parts():
            ours, theirs = seen(one, part, spots), seen(two, part, spots)
            for each in asked:
                for view, moments in zip(each.views, each.moments, strict=True):
                    for left, right in zip(ours[view.spot], theirs[view.spot], strict=True):
                        index = None if each.together else view.index
                        moments.add(_observations(left, view.spot, index), _observations(right, view.spot, index))
            tick(part.stop / len(objective.inputs), "activations")
        return asked

    return objective.in_memory(work)


def _observations(values: Tensor, spot: Spot, index: Indices | None) -> Tensor:
    """Put activations into rows: (observations, units), every position and every slot an observation."""
    rows = values.detach().movedim(spot.axis, -1).flatten(0, -2)
    if index is None or np.array_equal(index, np.arange(rows.shape[1])[:, None]):
        return rows
    return rows[:, torch.as_tensor(index, device=rows.device)].transpose(1, 2).flatten(0, 1)


def _assigned(asked: _Asked, clock: Clock) -> dict[str, Indices] | None:
    """Return the best assignment of what was measured together; None where some units were not seen."""
    worth = asked.worth()
    if asked.together is None:
        with clock.assigning():
            total = sum(each.cpu().numpy() for each in worth.values())
            return {asked.names[0]: best_assignment(np.asarray(total))} if worth else None
    if not all(each.uses for each in asked.together):
        return None
    units = {spot.name: torch.eye(len(each), dtype=each.dtype, device=each.device) for spot, each in worth.items()}
    turned = {spot.name: each.T for spot, each in worth.items()}  # the product of rows u and v is their correlation
    return best_together(units, turned, asked.together, clock)[1]


def _by_weights(a: Tensors, b: Tensors, spec: PermutationSpec, hidden: list[str]) -> dict[str, Indices]:
    """Match by their weights the permutations whose units are not seen, the others staying as they were found."""
    if not hidden:
        return {}
    kept = [each for name in hidden for each in family(spec, spec[name])]
    only = PermutationSpec(tuple(each for each in spec if each in kept), spec.source)
    return dict(weight_matching(a, b, only, restarts=1, tick=lambda _share, _doing: None).found)


def _note(hidden: list[str]) -> list[str]:
    if not hidden:
        return []
    more = f" and {len(hidden) - 3} more" if len(hidden) > 3 else ""
    return [f"No layer shows the activations of {', '.join(hidden[:3])}{more}: matched by their weights instead."]
