"""A specification in the making: permutations are named, tensors are added to them, none is forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from probes.errors import ModelError
from probes.formats.contents import printable
from probes.objective import Objective
from probes.permutations import Indices, Permutation, PermutationSpec, Use

STREAM = "stream"
WAY_OUT = "Write the specification by hand, as a table, or compare the checkpoints without matching units."
_TRANSPOSED = ("Conv1D", "Transposed")


@dataclass(frozen=True, eq=False)
class Kernel:
    """The weight and bias of a linear layer or convolution; out, ins: the axes of the weight."""

    weight: Tensor
    bias: Tensor | None
    out: int = 0
    ins: int = 1


class Draft:
    """Collects the permutations of a family's model; tensors are given as they stand in its module.

    family: for messages. Two permutations of the same whole axis become one: that is how tied weights join theirs.
    """

    def __init__(self, objective: Objective, family: str) -> None:
        self.family = family
        self.notes: list[str] = []
        buffers = [pair for pair in objective.module.named_buffers() if pair[1].is_floating_point()]
        parameters = objective.module.named_parameters()
        self._names: dict[int, str] = {id(each): name for name, each in [*buffers, *parameters]}
        self._parameters = set(objective.names)
        self._seen: set[str] = set()
        self._permutations: dict[str, Permutation] = {}
        self._uses: list[tuple[str, Use]] = []
        self._owners: dict[tuple[str, int], str] = {}
        self._joined: dict[str, str] = {}

    def permutation(self, name: str, size: int, kind: str = "units", inner: Sequence[tuple[str, ...]] = ()) -> None:
        """Name a permutation, or find it again; raise ModelError where it had another size."""
        known = self._permutations.setdefault(name, Permutation(name, size, (), kind, tuple(inner)))
        if known.size != size:
            raise ModelError(
                f"{self.family}: {name} has {known.size} units in one place and {size} in another. {WAY_OUT}"
            )

    def has(self, name: str) -> bool:
        """Tell whether a permutation has been named."""
        return name in self._permutations

    def repeated(self, name: str, size: int) -> Indices | None:
        """Return the index of an axis that holds all units several times over, one after the other; None for once."""
        units = self._permutations[name].size
        return None if size == units or size % units else np.arange(size).reshape(-1, units).T

    def use(self, name: str, tensor: Tensor | None, axis: int, index: Indices | None = None) -> None:
        """Let a tensor follow along an axis; None is passed over. index: (units, slots), the whole axis by default."""
        if tensor is None:
            return
        called = self._called(tensor)
        if index is None:
            index = self._whole(name, tensor, axis, called)
        self._uses.append((name, Use(called, axis, index, counts=called in self._parameters)))

    def keep(self, tensor: Tensor | None) -> None:
        """Leave a tensor as it is: none of its axes can be permuted."""
        if tensor is not None:
            self._called(tensor)

    def reads(self, name: str, layer: Kernel, index: Indices | None = None) -> None:
        """Let the inputs of a layer follow."""
        self.use(name, layer.weight, layer.ins, index)

    def writes(self, name: str, layer: Kernel, index: Indices | None = None) -> None:
        """Let the outputs of a layer follow, the bias with them."""
        self.use(name, layer.weight, layer.out, index)
        self.use(name, layer.bias, 0, index)

    def left(self) -> list[str]:
        """Name the parameters that no rule has seen."""
        return sorted(self._parameters - self._seen)

    def finished(self) -> PermutationSpec:
        """Return the specification; raise ModelError where a parameter was not seen."""
        left = self.left()
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise ModelError(
                f"{self.family}: how units move in the tensor {printable(left[0], 80)}{more} is not known. {WAY_OUT}"
            )
        return self.so_far()

    def so_far(self) -> PermutationSpec:
        """Return the specification of what was seen; the rest stays as it is."""
        uses: dict[str, list[Use]] = {}
        for name, use in self._uses:
            uses.setdefault(self._stands_for(name), []).append(use)
        made = [replace(each, uses=tuple(_merged(uses.get(name, [])))) for name, each in self._permutations.items()]
        used = [each for each in made if each.uses and each.size > 1]
        return PermutationSpec(tuple(used), self.family, tuple(dict.fromkeys(self.notes)))

    def _called(self, tensor: Tensor) -> str:
        name = self._names.get(id(tensor))
        if name is None:
            raise ModelError(
                f"{self.family}: a weight of shape {tuple(tensor.shape)} is computed from other parameters (by weight "
                f"norm, a parametrization or a quantised layer). {WAY_OUT}"
            )
        self._seen.add(name)
        return name

    def _whole(self, name: str, tensor: Tensor, axis: int, called: str) -> Indices:
        size = self._permutations[name].size
        if tensor.shape[axis] != size:
            along = f"{tensor.shape[axis]} positions along axis {axis}"
            raise ModelError(f"{self.family}: {printable(called, 80)} has {along}, {name} has {size} units. {WAY_OUT}")
        owner = self._owners.setdefault((called, axis), name)
        self._join(self._stands_for(owner), self._stands_for(name))
        return np.arange(size)[:, None]

    def _join(self, one: str, other: str) -> None:
        if one != other:
            order = list(self._permutations)
            first, then = sorted((one, other), key=order.index)
            self._joined[then] = first

    def _stands_for(self, name: str) -> str:
        while name in self._joined:
            name = self._joined[name]
        return name


def kernel_of(layer: nn.Module) -> Kernel:
    """Return the kernel of a linear layer, of GPT-2's transposed one, or of a convolution."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    turned = type(layer).__name__ in _TRANSPOSED
    return Kernel(weight, bias, int(turned), int(not turned))  # type: ignore[arg-type]


def _merged(uses: Iterable[Use]) -> Iterator[Use]:
    """Put the places of one tensor's axis side by side; the same places count once."""
    places: dict[tuple[str, int], list[Use]] = {}
    for use in uses:
        known = places.setdefault((use.tensor, use.axis), [])
        if not any(np.array_equal(use.index, each.index) for each in known):
            known.append(use)
    for same in places.values():
        yield replace(same[0], index=np.hstack([each.index for each in same]))
