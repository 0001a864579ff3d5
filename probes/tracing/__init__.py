"""Which units of a model may change places? Found by following every tensor from the parameters to the outputs.

`traced` writes the model down as torch.export does, follows along every axis of every tensor what moves together, and
makes a permutation of the units that can stand in one another's place. What it does not know it leaves where it is.
"""

from __future__ import annotations

from collections import defaultdict

from probes.objective import Objective
from probes.permutations import PermutationSpec
from probes.tracing.following import follow
from probes.tracing.programs import written_down
from probes.tracing.settling import settle
from probes.tracing.units import permutations_of

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
    permutations = permutations_of(found.wires, settle(found.wires), tensors, counted, found.makers)
    return PermutationSpec(tuple(permutations), "traced", (*doubts, *_notes(found.unknown)))


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
