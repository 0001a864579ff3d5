"""The permutations of a model's units: of its family where that is known, else traced from its operations."""

from __future__ import annotations

from probes.errors import ModelError
from probes.objective import Objective
from probes.permutations import PermutationSpec
from probes.specification_text import as_rows, as_text, from_rows, from_text

__all__ = ["as_rows", "as_text", "from_rows", "from_text", "specification"]


def specification(objective: Objective) -> PermutationSpec:
    """Return the permutations of a model: those of its family, else those that its operations show.

    Raises ModelError where the model's operations cannot be followed, or nothing in it can be permuted.
    """
    from probes.families import family
    from probes.tracing import traced

    found = family(objective) or traced(objective)
    if not found.permutations:
        notes = f" {' '.join(found.notes)}" if found.notes else ""
        raise ModelError(
            "No units of this model can change places without changing its function: every layer between input and "
            f"output is tied to both.{notes} Compare the checkpoints as they are, or give the permutations by hand."
        )
    return found
