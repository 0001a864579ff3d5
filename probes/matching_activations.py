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

from probes.assignment import GAIN, Clock, Tensors, best_assignment, family, solved
from probes.coordinate_ascent import Tick
from probes.matching import Matching, check, distance_between, weight_matching
from probes.objective import Objective
from probes.permutations import Indices, Permutation, PermutationSpec, Use, identity, permuted
from probes.points import Point, at, tensors_of
from probes.unit_views import MADE, READ, Spot, View, best_views, seen, views_of


@dataclass
class Moments:
    """Sums over observations from which correlations follow, in float64, about the means of the first part."""

    count: int = 0
    shift: tuple[Tensor, Tensor] | None = None
    sums: list[Tensor] = field(default_factory=list)  # of a, of b, their squares, and the products (n, n)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add observations, each (observations, units)."""
        a, b = a.double(), b.double()
        if self.shift is None:
            self.shift = a.mean(0), b.mean(0)
        a, b = a - self.shift[0], b - self.shift[1]
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
    """What is measured for an outermost permutation: of its units, or of all features where others lie within it.

    inner: the permutation and those within it, as they act on the features of each spot; None where none lie within.
    """

    views: tuple[View, ...]
    moments: tuple[Moments, ...]
    inner: PermutationSpec | None

    def worth(self) -> dict[Spot, Tensor]:
        """Return the correlations at each spot."""
        return {view.spot: each.correlations() for view, each in zip(self.views, self.moments, strict=True)}


def activation_matching(
    objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, tick: Tick
) -> Matching:
    """Match the units of b to those of a by the correlation of their activations over the examples.

    A permutation with others within its slots is solved with them at once: a pair of heads is worth what the best
    assignment of the units within them gives. Permutations whose units no layer shows are matched by their weights, and
    the notes name them. Nothing is stored but sums. Raises ModelError where a tensor is missing.
    """
    a, b = tensors_of(objective, point_a), tensors_of(objective, point_b)
    check(a, b, spec)
    clock, found, hidden = Clock(), identity(spec), []
    with clock.multiplying():
        asked = _measured(objective, point_a, point_b, spec, lambda share, doing: tick(0.9 * share, doing))
    for each in spec.outermost():
        then = _assigned(each, asked[each.name], clock)
        found |= then or {}
        hidden += [] if then else [each.name]
    found |= _by_weights(a, permuted(b, spec, found), spec, hidden)
    tick(1.0, "matched")
    return Matching(
        found=found,
        distance=distance_between(a, permuted(b, spec, found), spec),
        seconds_assignment=clock.assignment,
        seconds_products=clock.products,
        notes=(*spec.notes, *_note(hidden)),
    )


def _ask(spec: PermutationSpec, permutation: Permutation, views: Mapping[str, list[View]]) -> _Asked:
    """Choose where to look: where units have answered, else what layers read, else what they make; with heads, both."""
    mine = views[permutation.name]
    if not permutation.inner:
        chosen = best_views(mine)
        return _Asked(chosen, tuple(Moments() for _ in chosen), None)
    chosen = tuple(each for each in mine if each.rank in (READ, MADE))
    spots, members = {each.spot for each in chosen}, []
    for each in family(spec, permutation):
        uses = [Use(view.spot.name, 0, view.index) for view in views[each.name] if view.spot in spots]
        members.append(replace(each, uses=tuple(uses)))
    return _Asked(chosen, tuple(Moments() for _ in chosen), PermutationSpec(tuple(members), spec.source))


def _measured(
    objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, tick: Tick
) -> dict[str, _Asked]:
    """Run both networks over the examples and sum up what is seen of their units."""
    one, two = at(objective, point_a), at(objective, point_b)
    views = views_of(one, spec)

    def work() -> dict[str, _Asked]:
        asked = {each.name: _ask(spec, each, views) for each in spec.outermost()}
        spots = {view.spot for each in asked.values() for view in each.views}
        for part in objective.parts():
            ours, theirs = seen(one, part, spots), seen(two, part, spots)
            for each in asked.values():
                for view, moments in zip(each.views, each.moments, strict=True):
                    for left, right in zip(ours[view.spot], theirs[view.spot], strict=True):
                        index = None if each.inner else view.index
                        moments.add(_observations(left, view.spot, index), _observations(right, view.spot, index))
            tick(part.stop / len(objective.inputs), "activations")
        return asked

    return objective.in_memory(work)


def _observations(values: Tensor, spot: Spot, index: Indices | None) -> Tensor:
    """Put activations into rows: (observations, units), every position and every slot an observation."""
    rows = values.detach().movedim(spot.axis, -1).flatten(0, -2)
    if index is None:
        return rows
    return rows[:, torch.as_tensor(index, device=rows.device)].transpose(1, 2).flatten(0, 1)


def _assigned(permutation: Permutation, asked: _Asked, clock: Clock) -> dict[str, Indices] | None:
    """Return the best assignment of a permutation's units and of those within; None where they were not seen."""
    worth = asked.worth()
    if asked.inner is None:
        with clock.assigning():
            total = sum(each.cpu().numpy() for each in worth.values())
            return {permutation.name: best_assignment(np.asarray(total))} if worth else None
    seen = {spot.name: each for spot, each in worth.items()}
    if not all(any(use.tensor in seen for use in each.uses) for each in asked.inner):
        return None
    units = {name: torch.eye(len(each), dtype=each.dtype, device=each.device) for name, each in seen.items()}
    turned = {name: each.T for name, each in seen.items()}  # so that the product of rows u and v is their correlation
    return solved(units, turned, asked.inner, asked.inner[permutation.name], clock).then


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
