"""How a checkpoint differs from a model, tensor by tensor. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probes.architecture.layers import Shape


@dataclass(frozen=True)
class Mismatch:
    """How a checkpoint differs from a model; false when it does not.

    missing: the model has them, the file does not; unexpected: the reverse; shapes: (name, model's, file's). absent:
    batch counters that older files lack and that no result needs; they make no difference.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[tuple[str, Shape, Shape], ...] = ()
    absent: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    def to_json(self) -> dict[str, Any]:
        """Return JSON for the page."""
        rows = [[name, list(model), list(file)] for name, model, file in self.shapes]
        parts = {"missing": list(self.missing), "unexpected": list(self.unexpected), "shapes": rows}
        return {**parts, "absent": list(self.absent), "exact": not self, "sentence": self.sentence()}

    def sentence(self) -> str:
        """Say it in one sentence."""
        if not self:
            old = f" (but for {len(self.absent)} batch counters, which older files lack)" if self.absent else ""
            return f"Every tensor fits by name and shape{old}."
        shapes = [f"{name} is {list(file)} where {list(model)} is needed" for name, model, file in self.shapes]
        parts = (
            _listed("missing from the file", self.missing),
            _listed("not in the model", self.unexpected),
            _listed("of another shape", shapes),
        )
        return "The file does not fit: " + "; ".join(part for part in parts if part) + "."


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more})" if names else ""
