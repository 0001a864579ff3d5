"""The piecewise-linear path between two dropout-stable networks, built through their halves; no training.

Kuditipudi et al. 2019 (Explaining Landscape Connectivity of Low-cost Solutions for Multilayer Nets), theorem 1.
Half of the units of every hidden layer are enough for a dropout-stable network; the other half is free to be rewritten
without a change of the function. Every segment either rewrites free units, where the loss stays as it is, or moves the
last layer alone, where a convex loss lies below the line between the ends of the segment. So the loss on the path is
nowhere above the largest of those of A, B and their networks thinned from the last hidden layer downwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.dropout_stability import drawn, read_masked, readers, silenced
from probes.errors import ModelError
from probes.layer_moments import layout, places, run
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, Use
from probes.points import Point, between, point_from, point_of, tensors_of

Tensors = dict[str, Tensor]
Halves = list[NDArray[np.int64]]
CONVEX = ("cross_entropy", "causal_lm", "mse", "bce_with_logits")


@dataclass(frozen=True)
class DropoutPath:
    """The corners of the path from A to B.

    labels: what each corner is. halves: the units that A keeps and those that B keeps, in each hidden layer. notes:
    what the bound does not cover.
    """

    points: tuple[Point, ...]
    labels: tuple[str, ...]
    halves: tuple[Halves, Halves]
    notes: tuple[str, ...] = ()

    def along(self, steps: int) -> Iterator[Point]:
        """Yield the points of the path: the first corner, then `steps` points on each segment, its end the last."""
        yield self.points[0]
        for one, other in zip(self.points[:-1], self.points[1:], strict=True):
            for step in range(1, steps + 1):
                yield between(one, other, step / steps)

    def count(self, steps: int) -> int:
        """Return how many points `along` yields."""
        return 1 + steps * (len(self.points) - 1)


@dataclass(frozen=True, eq=False)
class Hidden:
    """A hidden layer of a chain: the tensors that make its units (weights, biases, norms), and the weight that reads
    them.
    """

    name: str
    size: int
    weight: Use
    vectors: tuple[Use, ...]
    reader: Use


def dropout_path(
    objective: Objective, point_a: Point, point_b: Point, spec: PermutationSpec, *, seed: int = 0, tries: int = 8
) -> DropoutPath:
    """Build the path for a plain chain of layers (MLP, VGG-like CNN), 4m + 1 segments for m hidden layers.

    seed: of which half of each layer A keeps; B keeps the other half. tries: random halves, of which those are taken
    whose thinned networks have the lowest loss (of the worse of the two). BatchNorm keeps the statistics of the points,
    which move with their units: read the path without measuring them anew. Raises ModelError where the model is no such
    chain (residual connections, attention, embeddings) or a layer has but one unit.
    """
    chain = chain_of(objective, spec)
    one, other = tensors_of(objective, point_a), tensors_of(objective, point_b)
    halves_a, halves_b = _halves(objective, (point_a, point_b), spec, chain, seed, tries)
    first, _ = _thinned(one, chain, halves_a, halves_b, "A")
    last, slots_b = _thinned(other, chain, halves_b, halves_a, "B")
    written = _written(first[-1][1], last[-1][1], chain, slots_b, slots_b, 0)
    switched = _switched(written, last[-1][1], chain, slots_b[-1], slots_b[-1])
    middle = [("half of A, half of B written beside it", written), ("half of B, half of A unused beside it", switched)]
    corners = [*first, *middle, *reversed(last)]
    notes = () if objective.loss in CONVEX else ("The loss is not known to be convex; it may rise within a segment.",)
    points = tuple(point_from(objective, tensors) for _, tensors in corners)
    return DropoutPath(points, tuple(label for label, _ in corners), (halves_a, halves_b), notes)


def chain_of(objective: Objective, spec: PermutationSpec) -> list[Hidden]:
    """Return the hidden layers in order; raise ModelError where the model is no plain chain that ends in its logits."""
    found = [_hidden(objective, each) for each in spec]
    written = {each.weight.tensor: each for each in found}
    starts = [each for each in found if each.weight.tensor not in {other.reader.tensor for other in found}]
    if len(starts) != 1 or len(written) != len(found):
        raise _unfit("its hidden layers do not follow one another in a single chain")
    chain = [starts[0]]
    while (after := written.get(chain[-1].reader.tensor)) is not None:
        chain.append(after)
    used = {use.tensor for each in chain for use in (each.weight, *each.vectors)}
    final = chain[-1].reader.tensor.rpartition(".")[0]
    spare = [name for name in objective.names if name not in used and name.rpartition(".")[0] != final]
    if len(chain) != len(found) or spare:
        raise _unfit(f"{spare[0] if spare else 'a layer'} belongs to no layer of the chain")
    if not _is_output(objective, final):
        raise _unfit(f"its outputs are not those of its last layer ({final})")
    return chain


def _hidden(objective: Objective, permutation: Permutation) -> Hidden:
    if permutation.inner or permutation.kind not in ("units", "channels"):
        raise _unfit(f"{permutation.name} is of the kind {permutation.kind}")
    modules = dict(objective.module.named_modules())
    reading = {(f"{name}.weight", id(index)) for name, index in readers(objective.module, permutation)}
    inner = [use for use in permutation.uses if (use.tensor, id(use.index)) in reading]
    rest = [use for use in permutation.uses if (use.tensor, id(use.index)) not in reading]
    wide = [use for use in rest if use.tensor in objective.names and use.tensor.endswith("weight")]
    wide = [use for use in wide if places(modules.get(use.tensor.rpartition(".")[0])) is not None]
    if len(inner) != 1 or len(wide) != 1 or any(use.rows is not None or use.index.shape[1] != 1 for use in rest):
        raise _unfit(f"the units of {permutation.name} are written by {len(wide)} layers and read by {len(inner)}")
    if permutation.size < 2:
        raise _unfit(f"{permutation.name} has a single unit")
    vectors = tuple(use for use in rest if use is not wide[0])
    return Hidden(permutation.name, permutation.size, wide[0], vectors, inner[0])


def _unfit(reason: str) -> ModelError:
    return ModelError(
        "The path through half-networks is defined for plain chains of linear and convolutional layers; "
        f"here {reason}. Train a curve between the two instead."
    )


def _is_output(objective: Objective, layer: str) -> bool:
    """Tell whether the model returns what its last layer does, no other layer coming after it."""
    seen: list[Tensor] = []
    module = objective.module.get_submodule(layer)
    hook = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        returned = run(objective, point_of(objective), objective.inputs[:1])
    finally:
        hook.remove()
    last = layout(objective).layers[-1].name == layer
    return last and len(seen) == 1 and torch.is_tensor(returned) and torch.equal(returned.flatten(), seen[0].flatten())


def _halves(
    objective: Objective, points: tuple[Point, Point], spec: PermutationSpec, chain: list[Hidden], seed: int, tries: int
) -> tuple[Halves, Halves]:
    """Return which units of each layer A keeps and which B: disjoint halves, the best of some random ones."""
    generator = np.random.default_rng(seed)
    layers, best = silenced(objective, spec)[0], np.inf
    chosen: tuple[Halves, Halves] | None = None
    for number in range(max(tries, 1)):
        kept = [drawn(each.size, (each.size // 2) / each.size, generator) for each in chain]
        rest = [np.setdiff1d(np.arange(each.size), mine) for each, mine in zip(chain, kept, strict=True)]
        rest = [other[: len(mine)] for other, mine in zip(rest, kept, strict=True)]
        names = [each.name for each in chain]
        worst = max(
            float(read_masked(objective, point, layers, dict(zip(names, half, strict=True))).loss[0])
            for point, half in zip(points, (kept, rest), strict=True)
        ) if tries > 1 else 0.0  # fmt: skip
        if number == 0 or worst < best:
            best, chosen = worst, (kept, rest)
    if chosen is None:
        raise ValueError("no halves were tried")
    return chosen


def _thinned(
    tensors: Tensors, chain: list[Hidden], kept: Halves, other: Halves, name: str
) -> tuple[list[tuple[str, Tensors]], Halves]:
    """Go from a whole network to its half, from the last hidden layer downwards; return corners and the units in use.

    The half of the layers above moves from one side to the other each time a layer below is thinned: the side that is
    not in use takes the thinned copy, then the last layer turns to it.
    """
    corners = [(name, dict(tensors))]
    slots = list(kept)
    state = _switched(corners[0][1], _dropped(tensors, chain, kept, len(chain) - 1), chain, kept[-1], kept[-1])
    corners.append((f"{name}, half of {chain[-1].name}", state))
    for level in range(len(chain) - 2, -1, -1):
        source = _dropped(tensors, chain, kept, level)
        for at in range(level + 1, len(chain)):
            slots[at] = other[at] if slots[at] is kept[at] else kept[at]
        written = _written(state, source, chain, kept, slots, level)
        state = _switched(written, source, chain, kept[-1], slots[-1])
        corners.append((f"{name}, its half thinned in {chain[level].name} written beside it", written))
        corners.append((f"{name}, half of {chain[level].name} and all later layers", state))
    return corners, slots


def _dropped(tensors: Mapping[str, Tensor], chain: list[Hidden], kept: Halves, level: int) -> Tensors:
    """Silence the units that are not kept in the layers from `level` on, and scale the others up."""
    changed = dict(tensors)
    for each, units in zip(chain[level:], kept[level:], strict=True):
        held = changed[each.reader.tensor]
        weight, where = torch.zeros_like(held), _positions(each.reader, units, held)
        axis = each.reader.axis
        changed[each.reader.tensor] = weight.index_copy(
            axis, where, held.index_select(axis, where) * each.size / len(units)
        )
    return changed


def _written(
    state: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    chain: list[Hidden],
    kept: Halves,
    slots: Halves,
    level: int,
) -> Tensors:
    """Write the units `kept` of the source, thinned from `level` on, into `slots`; they read one another only.

    Layers up to `level` are in place already, but for `kept is slots`, where all are written.
    """
    changed = dict(state)
    for at in range(level if kept is slots else level + 1, len(chain)):
        each = chain[at]
        for use in each.vectors:
            changed[use.tensor] = _moved(changed[use.tensor], source[use.tensor], use, kept[at], slots[at])
        held = source[each.weight.tensor]
        if at > 0 and slots[at - 1] is not kept[at - 1]:
            held = _moved(torch.zeros_like(held), held, chain[at - 1].reader, kept[at - 1], slots[at - 1])
        changed[each.weight.tensor] = _moved(changed[each.weight.tensor], held, each.weight, kept[at], slots[at])
    return changed


def _switched(
    state: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    chain: list[Hidden],
    kept: NDArray[np.int64],
    slots: NDArray[np.int64],
) -> Tensors:
    """Let the last layer be the source's, reading `slots` where that reads the units `kept`."""
    reader = chain[-1].reader
    layer = reader.tensor.rpartition(".")[0]
    changed = {name: source[name] if name.rpartition(".")[0] == layer else each for name, each in state.items()}
    held = source[reader.tensor]
    changed[reader.tensor] = _moved(torch.zeros_like(held), held, reader, kept, slots)
    return changed


def _moved(state: Tensor, source: Tensor, use: Use, kept: NDArray[np.int64], slots: NDArray[np.int64]) -> Tensor:
    """Copy the source's positions of the units `kept` to those of the units `slots`."""
    taken = source.index_select(use.axis, _positions(use, kept, source))
    return state.index_copy(use.axis, _positions(use, slots, state), taken)


def _positions(use: Use, units: Sequence[int] | NDArray[np.int64], tensor: Tensor) -> Tensor:
    return torch.as_tensor(use.index[units].ravel(), device=tensor.device)
