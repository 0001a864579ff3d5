"""Which units of a model may change places? Found by following every tensor from the parameters to the outputs.

`traced` writes the model down as torch.export does, follows along every axis of every tensor what moves together, and
makes a permutation of the units that can stand in one another's place. What it does not know it leaves where it is.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from probes.objective import Objective
from probes.permutations import PermutationSpec
from probes.tracing.following import follow
from probes.tracing.programs import written_down
from probes.tracing.settling import Classes, settle
from probes.tracing.units import permutations_of
from probes.tracing.wires import Atom, Wires

__all__ = ["traced"]


def traced(objective: Objective) -> PermutationSpec:
    """Derive the permutations of a model's units from its operations.

    Raises ModelError where the operations cannot be written down.
    """
    program, doubts = written_down(objective)
    found = follow(program)
    buffers = [name for name, each in objective.module.named_buffers() if each.is_floating_point()]
    counted = frozenset(objective.names)
    tensors = [*objective.names, *buffers]
    classes = settle(found.wires)
    permutations = permutations_of(found.wires, classes, tensors, counted, found.makers)
    notes = (*doubts, *_notes(found.unknown), *_held(found.wires, classes, program.fixed))
    return PermutationSpec(tuple(permutations), "traced", notes)


def _held(wires: Wires, classes: Classes, fixed: frozenset[str]) -> list[str]:
    """Say which tables keep units of parameters in their place."""
    blocks = [(block, block.origin) for block in wires.blocks if isinstance(block.origin, Atom)]
    free = [np.arange(each.start, each.start + each.count) for each, atom in blocks if atom.tensor not in fixed]
    units = set(classes.of[np.concatenate(free)].tolist()) if free else set()
    holding = [
        atom.tensor
        for each, atom in blocks
        if atom.tensor in fixed and units.intersection(classes.of[each.start : each.start + each.count].tolist())
    ]
    return [
        f"The buffer `{name}` is a table, the same in every checkpoint: the units that meet it stay in their place."
        for name in dict.fromkeys(holding)
    ]


def _notes(unknown: list[tuple[str, str]]) -> list[str]:
    """Say which operations were not known, and where."""
    places: dict[str, list[str]] = defaultdict(list)
    for operation, layer in dict.fromkeys(unknown):
        places[operation].append(f"`{layer}`" if layer else "the model itself")
    return [
        f"The operation {operation} in {', '.join(layers[:3])}{f' and {len(layers) - 3} more' if layers[3:] else ''} "
        "is not one whose symmetries are known here: the units that enter it stay in their place."
        for operation, layers in places.items()
    ]
