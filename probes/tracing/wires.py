"""Wires: what an element of a tensor moves with, when units change places.

Every position along every axis of a parameter is a wire. Operations tie wires (they must move together), put wires
into slots of another (a flattened channel has a slot for each pixel), gather them into groups (within which they may
change places, while the group moves as a whole), or pin them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]  # wires by position; size 1 along the axes that do not matter; HOLE where there is none
HOLE = -1


@dataclass(frozen=True)
class Atom:
    """Positions along an axis of a tensor; rows: (axis, first, last + 1), where only that part of it is meant."""

    tensor: str
    axis: int
    rows: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Birth:
    """Constant values that have no parameter behind them, by the operation that made them."""

    where: str


@dataclass(frozen=True)
class Block:
    """Wires that were made together: `count` of them from `start` on; `first` is the position of the first."""

    start: int
    count: int
    origin: Atom | Birth


@dataclass
class Pairs:
    """Pairs of wires, gathered as arrays: in order (one, other, tag)."""

    parts: list[tuple[Labels, Labels, Labels]] = field(default_factory=list)

    def add(self, one: Labels, other: Labels, tag: Labels | int = 0) -> None:
        """Add pairs, positionwise."""
        one, other, tags = np.broadcast_arrays(one, other, np.asarray(tag, dtype=np.int64))
        real = (one >= 0) & (other >= 0)
        self.parts.append((one[real], other[real], tags[real]))

    def arrays(self) -> tuple[Labels, Labels, Labels]:
        """Return all pairs as three arrays."""
        if not self.parts:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        one, other, tag = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        return one, other, tag


class Wires:
    """All wires of a model, and what is known of them. Nothing is decided before `settled`."""

    def __init__(self) -> None:
        self.count = 0
        self.blocks: list[Block] = []
        self.tied, self.slots, self.members = Pairs(), Pairs(), Pairs()
        self.pinned: list[Labels] = []
        self.sums: list[Labels] = []  # wires of sums, to tell residual streams
        self.heads: list[Labels] = []  # groups that are attention heads
        self.families = 0
        self._atoms: dict[tuple[Atom, int], Labels] = {}
        self._keys: dict[Hashable, int] = {}
        self._parent = np.zeros(0, dtype=np.int64)
        self._key = np.zeros(0, dtype=np.int64)

    def fresh(self, shape: tuple[int, ...], origin: Atom | Birth | None = None) -> Labels:
        """Make new wires."""
        count = int(np.prod(shape))
        labels = np.arange(self.count, self.count + count, dtype=np.int64).reshape(shape)
        if origin is not None:
            self.blocks.append(Block(self.count, count, origin))
        self.count += count
        return labels

    def atoms(self, atom: Atom, size: int) -> Labels:
        """Return the wires of the positions along an axis, the same ones every time."""
        if (atom, size) not in self._atoms:
            self._atoms[atom, size] = self.fresh((size,), atom)
        return self._atoms[atom, size]

    def tie(self, one: Labels, other: Labels) -> None:
        """Let wires move together, positionwise."""
        self.tied.add(one, other)

    def pin(self, labels: Labels) -> None:
        """Let wires stay where they are."""
        self.pinned.append(labels[labels >= 0])

    def gather(self, labels: Labels, groups: Labels) -> None:
        """Put wires into groups, positionwise: they may change places within theirs."""
        self.members.add(labels, groups, self.families)
        self.families += 1

    def slot(self, labels: Labels, keys: Labels) -> Labels:
        """Return the wires that lie within others at these slots; slots of equal key correspond."""
        labels, keys = np.broadcast_arrays(labels, keys)
        within = self.fresh(labels.shape)
        within[labels < 0] = HOLE
        self.slots.add(within, labels, keys)
        self._remember(within, labels, keys)
        return within

    def key(self, name: Hashable) -> int:
        """Return a number for the name of a slot."""
        return self._keys.setdefault(name, len(self._keys) + (1 << 40))

    def outer(self, labels: Labels) -> tuple[Labels, Labels]:
        """Return what wires lie within, and at which slot; HOLE for those that lie in none."""
        self._grow()
        known = np.maximum(labels, 0)
        return np.where(labels >= 0, self._parent[known], HOLE), np.where(labels >= 0, self._key[known], HOLE)

    def _remember(self, within: Labels, labels: Labels, keys: Labels) -> None:
        self._grow()
        real = within >= 0
        self._parent[within[real]] = labels[real]
        self._key[within[real]] = keys[real]

    def _grow(self) -> None:
        missing = self.count - len(self._parent)
        if missing > 0:
            more = np.full(max(missing, len(self._parent)), HOLE, dtype=np.int64)
            self._parent, self._key = np.concatenate([self._parent, more]), np.concatenate([self._key, more])
