"""From pairs of wires to classes: which wires are one, what is pinned, what lies in which slot and group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from probes.tracing.wires import Labels, Wires


@dataclass(frozen=True)
class Classes:
    """Wires that are one, numbered; of: wire -> class.

    slots: (class, what it lies in, key). members: (class, group). Both with each row once.
    """

    of: Labels
    pinned: NDArray[np.bool_]
    slots: Labels
    members: Labels


class _Work:
    """The state between rounds."""

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self.edges = [np.stack(wires.tied.arrays()[:2], axis=1)]
        self.pins = [np.concatenate([np.zeros(0, dtype=np.int64), *wires.pinned])]
        self.changed = False

    def tie(self, pairs: Labels) -> None:
        """Let classes of the next round be one."""
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            self.edges.append(self.first[pairs])
            self.changed = True

    def pin(self, classes: Labels) -> None:
        """Let classes stay where they are."""
        new = classes[~self.pinned[classes]]
        if len(new):
            self.pinned[new] = True
            self.pins.append(self.first[new])
            self.changed = True

    def number(self) -> None:
        """Number the classes as they are now."""
        edges, count = np.concatenate(self.edges), self.wires.count
        matrix = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
        number, self.of = connected_components(matrix, directed=False)
        self.of = self.of.astype(np.int64)
        self.first = np.zeros(number, dtype=np.int64)
        self.first[self.of[::-1]] = np.arange(count)[::-1]
        self.pinned = np.zeros(number, dtype=np.bool_)
        self.pinned[self.of[np.concatenate(self.pins)]] = True
        within, outer, keys = self.wires.slots.arrays()
        self.slots = np.unique(np.stack([self.of[within], self.of[outer], keys], axis=1), axis=0)
        member, group, family = self.wires.members.arrays()
        self.members = np.unique(np.stack([self.of[member], self.of[group], family], axis=1), axis=0)


def settle(wires: Wires) -> Classes:
    """Decide what moves together and what stays, so that nothing contradicts."""
    work = _Work(wires)
    while True:
        work.changed = False
        work.number()
        _match_slots(work)
        if work.changed:
            continue
        _spread_pins(work)
        _match_groups(work)
        if work.changed:
            continue
        _match_slots_with_groups(work)
        _break_circles(work)
        if not work.changed:
            members = np.unique(work.members[:, :2], axis=0)
            return Classes(work.of, work.pinned, work.slots, members)


def _match_slots(work: _Work) -> None:
    """Equal slots of one thing are one; what is one and lies in equal slots lies in one thing."""
    within, outer, key = work.slots.T
    work.tie(_neighbours(np.stack([outer, key], axis=1), within))
    work.tie(_neighbours(np.stack([within, key], axis=1), outer))
    if not work.changed:
        torn = _neighbours(within[:, None], outer)
        work.pin(np.unique(torn))


def _spread_pins(work: _Work) -> None:
    """What lies in a pinned thing is pinned, and the other way round; a group with a pinned member is pinned."""
    within, outer, _ = work.slots.T
    member, group = work.members[:, 0], work.members[:, 1]
    while True:
        before = int(work.pinned.sum())
        work.pin(np.unique(within[work.pinned[outer]]))
        work.pin(np.unique(outer[work.pinned[within]]))
        work.pin(np.unique(group[work.pinned[member]]))
        if int(work.pinned.sum()) == before:
            return


def _match_groups(work: _Work) -> None:
    """Groups that hold the same wires move as one; where they cut across each other, one kind is pinned."""
    free = work.members[~work.pinned[work.members[:, 1]]]
    free = free[np.unique(free[:, :2], axis=0, return_index=True)[1]]
    pairs: dict[tuple[int, int], list[Labels]] = {}
    starts = np.flatnonzero(np.diff(free[:, 0], prepend=-1))
    counts = np.diff(np.append(starts, len(free)))
    for count in np.unique(counts[counts > 1]):
        block = np.stack([free[starts[counts == count] + place] for place in range(count)], axis=1)
        for one in range(count):
            for other in range(one + 1, count):
                _sort_in(pairs, block[:, one, 1:], block[:, other, 1:])
    for found in pairs.values():
        _match_pair(work, np.unique(np.concatenate(found), axis=0), free)


def _sort_in(pairs: dict[tuple[int, int], list[Labels]], one: Labels, other: Labels) -> None:
    swap = (one[:, 1] > other[:, 1])[:, None]
    one, other = np.where(swap, other, one), np.where(swap, one, other)
    families = np.stack([one[:, 1], other[:, 1]], axis=1)
    for first, second in np.unique(families, axis=0):
        here = (families[:, 0] == first) & (families[:, 1] == second)
        pairs.setdefault((int(first), int(second)), []).append(np.stack([one[here, 0], other[here, 0]], axis=1))


def _match_pair(work: _Work, pairs: Labels, free: Labels) -> None:
    pairs = pairs[~work.pinned[pairs].any(axis=1)]
    one, other = pairs.T
    single = len(np.unique(one)) == len(pairs), len(np.unique(other)) == len(pairs)
    if all(single):
        work.tie(pairs)
    elif single[0] or single[1]:  # the finer groups lie within the coarser ones
        work.pin(np.unique(other if single[0] else one))
    else:
        sizes = [int(np.isin(free[:, 1], side).sum()) / len(np.unique(side)) for side in (one, other)]
        work.pin(np.unique(other if sizes[0] >= sizes[1] else one))


def _match_slots_with_groups(work: _Work) -> None:
    """What lies both in a slot and in a group: the two move as one where they match, else both are pinned."""
    within, outer, _ = work.slots.T
    place = dict(zip(within.tolist(), outer.tolist(), strict=True))
    pairs = [(g, place[w]) for w, g, _ in work.members.tolist() if w in place and not work.pinned[g]]
    found = np.unique(np.array([pair for pair in pairs if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2), axis=0)
    one, other = found.T
    if len(np.unique(one)) == len(found) == len(np.unique(other)):
        work.tie(found)
    else:
        work.pin(np.unique(found))


def _break_circles(work: _Work) -> None:
    """Pin what would lie within itself."""
    links = np.concatenate([work.slots[:, :2], work.members[:, :2]])
    work.pin(np.unique(links[links[:, 0] == links[:, 1]]))
    count = len(work.pinned)
    matrix = coo_array((np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1])), shape=(count, count))
    _, ring = connected_components(matrix, directed=True, connection="strong")
    sizes = np.bincount(ring, minlength=1)
    work.pin(np.flatnonzero(sizes[ring] > 1))


def _neighbours(groups: Labels, values: Labels) -> Labels:
    """Return pairs of different values that stand in the same group."""
    if not len(values):
        return np.zeros((0, 2), dtype=np.int64)
    order = np.lexsort((values, *groups.T))
    groups, values = groups[order], values[order]
    same = (groups[1:] == groups[:-1]).all(axis=1) & (values[1:] != values[:-1])
    return np.stack([values[:-1][same], values[1:][same]], axis=1)
