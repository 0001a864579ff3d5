"""Does a specification fit the tensors of a model? Words for the first thing that does not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from probes.errors import ModelError
from probes.objective import Objective
from probes.permutations import Indices, Permutation, PermutationSpec, Use

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(objective: Objective) -> Shapes:
    """Return the shapes of what a permutation can move: parameters and floating-point buffers, by name."""
    theta = {name: tuple(each.shape) for name, each in zip(objective.names, objective.theta, strict=True)}
    buffers = {name for name, each in objective.module.named_buffers() if each.is_floating_point()}
    return {**theta, **{name: tuple(objective.constants[name].shape) for name in sorted(buffers)}}


def fitting(spec: PermutationSpec, shapes: Shapes) -> None:
    """Raise ModelError where a specification names what the model does not have, in words."""
    seen: set[str] = set()
    for each in spec:
        words = f"there are two permutations called {each.name!r:.100}" if each.name in seen else ""
        words = words or next((found for use in each.uses if (found := misfit(use, each.size, shapes))), "")
        words = words or _misfit_inner(each, seen, spec)
        if words:
            raise ModelError(
                f"The permutation {each.name!r:.100} does not fit the model: {words}. Correct its line, or delete it."
            )
        seen.add(each.name)


def misfit(use: Use, size: int, shapes: Shapes) -> str:
    """Say what is wrong with a use, "" when nothing is."""
    shape = shapes.get(use.tensor)
    if shape is None:
        return f"there is no tensor {use.tensor!r:.100}"
    if not 0 <= use.axis < len(shape):
        return f"{use.tensor!r:.100} has {len(shape)} axes, no axis {use.axis}"
    if use.index.ndim != 2 or len(use.index) != size:
        return f"{use.tensor!r:.100} has positions for {len(use.index)} units, but there are {size}"
    wrong = _misplaced(use.index, shape[use.axis])
    if wrong:
        return f"along axis {use.axis} of {use.tensor!r:.100} {wrong}"
    return _misfit_rows(use, shape)


def _misfit_rows(use: Use, shape: tuple[int, ...]) -> str:
    if use.rows is None:
        return ""
    axis, positions = use.rows
    if not 0 <= axis < len(shape) or axis == use.axis:
        return f"{use.tensor!r:.100} cannot be restricted along axis {axis}"
    wrong = _misplaced(positions, shape[axis])
    return f"along axis {axis} of {use.tensor!r:.100} {wrong}" if wrong else ""


def _misplaced(positions: Indices, size: int) -> str:
    flat = positions.reshape(-1)
    if not len(flat):
        return "no position is given"
    if int(flat.min()) < 0 or int(flat.max()) >= size:
        bad = int(flat.min()) if int(flat.min()) < 0 else int(flat.max())
        return f"there is no position {bad}: its size is {size}"
    return "a position is given twice" if len(np.unique(flat)) < len(flat) else ""


def _misfit_inner(each: Permutation, before: set[str], spec: PermutationSpec) -> str:
    if not each.inner:
        return ""
    if len(each.inner) != each.size:
        return f"permutations within {len(each.inner)} units are named, but there are {each.size}"
    sizes = {inner.name: inner.size for inner in spec}
    for slot in each.inner:
        for name in slot:
            if name not in sizes:
                return f"there is no permutation {name!r:.100} within a unit of it"
            if name in before or name == each.name:
                return f"{name!r:.100}, which acts within a unit of it, must come after it"
    kinds = {tuple(sizes[name] for name in slot) for slot in each.inner}
    return "" if len(kinds) == 1 else "the permutations within its units do not correspond from unit to unit"
