"""From classes of wires to permutations: which units look alike, and every position that must follow each."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from probes.permutations import Permutation, Use
from probes.tracing.settling import Classes
from probes.tracing.wires import Atom, Birth, Wires

Place = tuple[Atom, int]  # a position along an axis of a tensor
Spot = tuple[int, int, int]  # (place of the tensor in the model's order, axis, first row)


@dataclass
class _Tree:
    """Classes with what they consist of."""

    order: Mapping[str, int]
    atoms: dict[int, list[Place]] = field(default_factory=dict)
    births: dict[int, list[str]] = field(default_factory=dict)
    slots: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # class -> (key, class within)
    members: dict[int, list[int]] = field(default_factory=dict)
    groups: dict[int, tuple[int, ...]] = field(default_factory=dict)  # movable groups, then those that stay
    pins: dict[int, tuple[int, ...]] = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)
    known: dict[Hashable, int] = field(default_factory=dict)
    spots: dict[int, dict[Spot, list[int]]] = field(default_factory=dict)
    rows: dict[Spot, Atom] = field(default_factory=dict)
    sums: frozenset[int] = frozenset()
    heads: frozenset[int] = frozenset()

    def look(self, one: int) -> int:
        """Return a number that two classes share when one can stand in the other's place."""
        if one not in self.looks:
            atoms = sorted(
                (self.order[atom.tensor], atom.axis, atom.rows is None) for atom, _ in self.atoms.get(one, ())
            )
            slots = sorted((key, self.look(each)) for key, each in self.slots.get(one, ()))
            members = sorted(self.look(each) for each in self.members.get(one, ()))
            births = sorted(set(self.births.get(one, ())))
            found = (tuple(atoms), tuple(births), tuple(slots), tuple(members), self.pins.get(one, ()))
            self.looks[one] = self.known.setdefault(found, len(self.known))
        return self.looks[one]

    def positions(self, one: int) -> dict[Spot, list[int]]:
        """Return the positions that move with a class, in an order that corresponds between classes that look alike."""
        if one not in self.spots:
            found: dict[Spot, list[int]] = {}
            for atom, position in sorted(self.atoms.get(one, ()), key=lambda each: (each[0].tensor, each[1])):
                spot = (self.order[atom.tensor], atom.axis, -1 if atom.rows is None else atom.rows[1])
                self.rows[spot] = atom
                found.setdefault(spot, []).append(position)
            for each in self.parts(one):
                for spot, places in self.positions(each).items():
                    found.setdefault(spot, []).extend(places)
            self.spots[one] = self._moved_with_rows(found)
        return self.spots[one]

    def parts(self, one: int) -> list[int]:
        """Return what lies within a class: slots by key, then members by their looks and places."""
        slots = [each for _, each in sorted(self.slots.get(one, ()))]
        members = sorted(self.members.get(one, ()), key=lambda each: (self.look(each), self.first(each)))
        return list(dict.fromkeys([*slots, *members]))

    def first(self, one: int) -> list[tuple[Spot, int]]:
        """Return where a class comes first."""
        return sorted((spot, min(places)) for spot, places in self.positions(one).items())[:1]

    def _moved_with_rows(self, found: dict[Spot, list[int]]) -> dict[Spot, list[int]]:
        """Leave out what moves with its rows, when all of these move."""
        kept = {}
        for spot, places in found.items():
            rows = self.rows[spot].rows
            if rows is not None:
                moving = set(found.get((spot[0], rows[0], -1), ()))
                if moving.issuperset(range(rows[1], rows[2])):
                    continue
            kept[spot] = places
        return kept


@dataclass(frozen=True)
class _Names:
    """What tensors are called; counted: whose differences count; makers: weight -> the operation it is of."""

    tensors: Sequence[str]
    counted: frozenset[str]
    makers: Mapping[str, str]


def permutations_of(
    wires: Wires, classes: Classes, tensors: Sequence[str], counted: frozenset[str], makers: Mapping[str, str]
) -> list[Permutation]:
    """Return the permutations, outer before inner.

    tensors: all names, in the model's order. counted: those whose differences count. makers: weight -> operation.
    """
    tree = _tree(wires, classes, tensors)
    found: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for one in _tops(tree, classes):
        found.setdefault((tree.groups.get(one, ()), tree.look(one)), []).append(one)
    buckets: dict[int, list[list[int]]] = {}
    for (groups, _), units in found.items():
        if len(units) > 1 and not _idle(tree, makers, units[0]):
            buckets.setdefault(groups[0] if groups else -1, []).append(sorted(units, key=tree.first))
    _promote(tree, buckets)
    return list(_written(tree, _Names(tensors, counted, makers), buckets, -1, {}))


def _idle(tree: _Tree, makers: Mapping[str, str], one: int) -> bool:
    """Tell whether a unit is a constant that weights read, and nothing else."""
    if one not in tree.births:
        return False
    read = [(tree.rows[spot].tensor, spot[1]) for spot in tree.positions(one)]
    return all(tensor in makers and axis != _made_axis(makers[tensor]) for tensor, axis in read)


def _promote(tree: _Tree, buckets: dict[int, list[list[int]]]) -> None:
    """Let what lies within a group that has no like lie where the group does."""
    while True:
        units = {-1, *(unit for found in buckets.values() for each in found for unit in each)}
        lonely = [group for group in buckets if group not in units]
        for group in lonely:
            outer = tree.groups.get(group, ())
            buckets.setdefault(outer[0] if outer else -1, []).extend(buckets.pop(group))
        if not lonely:
            return


def _written(
    tree: _Tree,
    names: _Names,
    buckets: Mapping[int, list[list[int]]],
    group: int,
    taken: dict[str, int],
    prefix: str = "",
) -> Iterator[Permutation]:
    """Yield the permutations within a group (-1: of the whole model), each followed by those within its units."""
    for place, units in enumerate(sorted(buckets.get(group, ()), key=lambda each: tree.first(each[0]))):
        name = f"{prefix}/{place}" if prefix else _named(_origin(tree, names, units[0]), taken)
        inner = [list(_written(tree, names, buckets, unit, taken, f"{name}/{slot}")) for slot, unit in enumerate(units)]
        slots = tuple(
            tuple(each.name for each in found if each.name.count("/") == name.count("/") + 2) for found in inner
        )
        yield _permutation(tree, names, name, units, slots if any(slots) else ())
        for found in inner:
            yield from found


def _tree(wires: Wires, classes: Classes, tensors: Sequence[str]) -> _Tree:
    tree = _Tree({name: place for place, name in enumerate(tensors)})
    for block in wires.blocks:
        origin = block.origin
        for position, one in enumerate(classes.of[block.start : block.start + block.count].tolist()):
            if isinstance(origin, Birth):
                tree.births.setdefault(one, []).append(origin.where)
            else:
                tree.atoms.setdefault(one, []).append((origin, position))
    for within, outer, key in classes.slots.tolist():
        if not classes.pinned[outer]:
            tree.slots.setdefault(outer, []).append((key, within))
    slotted = set(classes.slots[:, 0].tolist())
    free: dict[int, list[int]] = {}
    still: dict[int, list[int]] = {}
    for member, group in classes.members.tolist():
        if member not in slotted:
            (still if classes.pinned[group] else free).setdefault(member, []).append(group)
    tree.groups = {one: tuple(found) for one, found in free.items()}
    tree.pins = {one: tuple(found) for one, found in still.items()}
    for one, groups in tree.groups.items():
        tree.members.setdefault(groups[0], []).append(one)
    tree.sums, tree.heads = (
        frozenset(one for each in found for one in classes.of[each[each >= 0]].tolist())
        for found in (wires.sums, wires.heads)
    )
    return tree


def _tops(tree: _Tree, classes: Classes) -> Iterator[int]:
    """Yield the classes that are units of their own: not pinned, in no slot, with a position somewhere."""
    slotted = set(classes.slots[:, 0].tolist())
    for one in range(len(classes.pinned)):
        held = one in tree.atoms or one in tree.slots or one in tree.members
        if held and not classes.pinned[one] and one not in slotted and tree.positions(one):
            yield one


def _origin(tree: _Tree, names: _Names, unit: int) -> str:
    """Return the first tensor that makes a unit, or else follows it."""
    spots = sorted(tree.positions(unit))
    made = [spot for spot in spots if spot[1] == _made_axis(names.makers.get(names.tensors[spot[0]], ""))]
    return names.tensors[(made or spots)[0][0]]


def _named(tensor: str, taken: dict[str, int]) -> str:
    """Name permutations by the layer in which their units come first, told apart by numbers."""
    name = tensor.rpartition(".")[0] or tensor
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"


def _permutation(
    tree: _Tree, names: _Names, name: str, units: Sequence[int], inner: tuple[tuple[str, ...], ...]
) -> Permutation:
    spots = [tree.positions(each) for each in units]
    uses = []
    for spot in sorted(spots[0], key=lambda each: (names.tensors[each[0]] not in names.counted, each)):
        index = np.array([each[spot] for each in spots], dtype=np.int64)
        rows = tree.rows[spot].rows
        only = None if rows is None else (rows[0], np.arange(rows[1], rows[2], dtype=np.int64))
        tensor = names.tensors[spot[0]]
        uses.append(Use(tensor, spot[1], index, only, tensor in names.counted))
    return Permutation(name, len(units), tuple(uses), _kind(tree, uses, units[0], names.makers), inner)


def _kind(tree: _Tree, uses: Sequence[Use], unit: int, makers: Mapping[str, str]) -> str:
    groups = tree.groups.get(unit, ())
    if unit in tree.heads:
        return "heads"
    if groups:
        return "within a head" if tree.heads.intersection(groups) else "within a group"
    made = {use.tensor: makers[use.tensor] for use in uses if use.axis == _made_axis(makers.get(use.tensor, ""))}
    if tree.members.get(unit):
        return "groups"
    if len(made) > 1 and unit in tree.sums:
        return "stream"
    return "channels" if any("conv" in each for each in made.values()) else "units"


def _made_axis(operation: str) -> int:
    """Return the axis of a weight along which an operation makes new units; -1 where it makes none."""
    if operation.startswith("conv"):
        return 1 if "transpose" in operation else 0
    return {"linear": 0, "embedding": 1}.get(operation, -1)
