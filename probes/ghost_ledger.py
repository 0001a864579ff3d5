"""Where the operations that use a parameter hand in what they know of its gradients, and the sums are made.

A parameter that is used once needs no gradients at all: its rule hands in inner products and squared norms. One that
is used several times (tied weights, a module called twice) needs the norm of a sum: cross terms between linear layers
and embeddings, or else the gradients themselves.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from probes import ghost_norms
from probes.memory import is_out_of_memory


@dataclass(frozen=True, eq=False)
class Source:
    """A parameter, or a tensor computed from parameters alone, without an axis of examples.

    parents: which parameters; function: the parents' tensors -> value; selects: every element of the value is an
    element of the one parent, and none occurs twice.
    """

    value: Tensor
    parents: tuple[int, ...]
    function: Callable[..., Tensor]
    selects: bool

    def place(self) -> tuple[object, ...]:
        """Return where the elements lie, for comparison."""
        each = self.value
        return each.untyped_storage().data_ptr(), each.storage_offset(), tuple(each.shape), each.stride()

    def extent(self) -> tuple[int, int, int]:
        """Return the storage, and where the elements begin and end in it."""
        each = self.value
        start = int(each.storage_offset())
        span = sum((size - 1) * step for size, step in zip(each.shape, each.stride(), strict=True))
        return each.untyped_storage().data_ptr(), start, start + int(span)


@dataclass(eq=False)
class Slot:
    """One use of a source. kind: "linear", "lookup" or "dense"; how: "alone", "tied" or "added", settled later."""

    ledger: Ledger
    source: Source
    kind: str
    ids: Tensor | None = None
    how: str = "added"

    @property
    def alone(self) -> bool:
        """Tell whether inner products and squared norms are enough."""
        return self.how == "alone"

    def known(self, dots: Tensor, squares: Tensor) -> None:
        """Hand in inner products with the value and squared norms, each (B,), of a use that is alone."""
        self.ledger.add(self.source.parents[0], dots, squares)

    def dense(self, gradients: Tensor) -> None:
        """Hand in the gradients by the value, (B, *value.shape)."""
        if self.alone:
            flat = gradients.flatten(1)
            self.known(flat @ self.source.value.reshape(-1), ghost_norms.row_squares(flat))
        else:
            self.ledger.pull(self.source, gradients)

    def linear(self, a: Tensor, d: Tensor, dots: Callable[[], Tensor]) -> None:
        """Hand in a linear layer: inputs a (B, T, n), output gradients d (B, T, m), inner products (B,) on demand."""
        if self.alone:
            self.known(dots(), ghost_norms.token_squares(a, d))
        elif self.how == "tied":
            self.ledger.tied(self).linear(a, d, dots())
        else:
            self.ledger.pull(self.source, ghost_norms.token_gradients(a, d))

    def lookup(self, ids: Tensor, d: Tensor, dots: Tensor) -> None:
        """Hand in an embedding: gradients d (B, T, n) of the rows at ids (B, T), inner products (B,)."""
        if self.alone:
            self.known(dots, ghost_norms.lookup_squares(ids, d))
        elif self.how == "tied":
            self.ledger.tied(self).lookup(self, d, dots)
        else:
            rows = torch.arange(len(d), device=d.device)[:, None].expand_as(ids)
            gradients = d.new_zeros(len(d), *self.source.value.shape)
            self.ledger.pull(self.source, gradients.index_put_((rows, ids), d, accumulate=True))


@dataclass(eq=False)
class Tied:
    """The linear layers and embeddings that share a matrix: squares of each kind, and the terms between the kinds."""

    layers: int
    embeddings: list[Slot]
    dots: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    picked: list[tuple[Slot, Tensor, Tensor]] = field(default_factory=list)
    found: dict[Slot, Tensor] = field(default_factory=dict)

    def linear(self, a: Tensor, d: Tensor, dots: Tensor) -> None:
        """Take in a layer; where it is the only one, of d no more is kept than what the embeddings' ids pick."""
        self.dots.append(dots)
        if self.layers == 1:
            self.squares.append(ghost_norms.token_squares(a, d))
        else:
            self.kept.append((a, d))
        for slot in self.embeddings:
            ids = _ids(slot)[:, None, :].expand(-1, d.shape[1], -1)
            self.picked.append((slot, a, d.gather(2, ids)))

    def lookup(self, slot: Slot, d: Tensor, dots: Tensor) -> None:
        """Take in an embedding."""
        self.dots.append(dots)
        self.found[slot] = d

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return inner products and squared norms of the sums, each (B,)."""
        squares = list(self.squares)
        if self.kept:
            a, d = _joined(self.kept)
            squares.append(ghost_norms.token_squares(a, d))
        if self.found:
            ids, d = _joined([(_ids(slot), d) for slot, d in self.found.items()])
            squares.append(ghost_norms.lookup_squares(ids, d))
        for slot, a, picked in self.picked:
            if slot in self.found:
                squares.append(2 * ghost_norms.cross_products(a, picked, self.found[slot]))
        return torch.stack(self.dots).sum(0), torch.stack(squares).sum(0).clamp(min=0)


class Ledger:
    """The sums for one micro-batch: dots and squares, parameter -> (B,) float64; failed: no sum can be made."""

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        self.parameters = parameters
        self.dots: dict[int, Tensor] = {}
        self.squares: dict[int, Tensor] = {}
        self.failed: set[int] = set()
        self._slots: dict[int, list[Slot]] = defaultdict(list)
        self._tied: dict[int, Tied] = {}
        self._added: dict[int, Tensor] = {}

    def slot(self, source: Source, kind: str, ids: Tensor | None = None) -> Slot:
        """Announce a use, in the forward pass."""
        slot = Slot(self, source, kind, ids)
        for parent in source.parents:
            self._slots[parent].append(slot)
        return slot

    def settle(self) -> None:
        """Decide, when the forward pass is over, how the uses of each parameter are summed."""
        for parent, slots in self._slots.items():
            if not all(slot.source.selects for slot in slots):
                continue
            if _apart(slots):
                how = "alone"
            elif all(slot.kind != "dense" and slot.source.place() == slots[0].source.place() for slot in slots):
                how = "tied"
                embeddings = [slot for slot in slots if slot.kind == "lookup"]
                self._tied[parent] = Tied(len(slots) - len(embeddings), embeddings)
            else:
                how = "added"
            for slot in slots:
                slot.how = how

    def tied(self, slot: Slot) -> Tied:
        """Return the sum that a use belongs to."""
        return self._tied[slot.source.parents[0]]

    def add(self, parent: int, dots: Tensor, squares: Tensor) -> None:
        """Add to a parameter's sums."""
        self.dots[parent] = self.dots.get(parent, 0) + dots.double()
        self.squares[parent] = self.squares.get(parent, 0) + squares.double()

    def pull(self, source: Source, gradients: Tensor) -> None:
        """Turn gradients by a source's value into gradients by its parents, and add them up."""
        parents = [self.parameters[parent] for parent in source.parents]
        try:
            with quiet():
                pulled = torch.func.vjp(source.function, *parents)[1]
                found = torch.vmap(pulled)(gradients)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.failed.update(source.parents)
            return
        for parent, each in zip(source.parents, found, strict=True):
            before = self._added.get(parent)
            self._added[parent] = each if before is None else before + each

    def finish(self) -> None:
        """Make the sums of what is used several times, when the backward pass is over."""
        for parent, tied in self._tied.items():
            if tied.dots:
                dots, squares = tied.sums()
                self.add(parent, dots, squares)
        for parent, gradients in self._added.items():
            flat = gradients.flatten(1)
            self.add(parent, flat @ self.parameters[parent].reshape(-1), ghost_norms.row_squares(flat))
        self._tied.clear()
        self._added.clear()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of torch.func that one of its rules is slow."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _apart(slots: list[Slot]) -> bool:
    """Tell whether no two uses share an element of the parameter."""
    if len(slots) == 1:
        return True
    extents = sorted(slot.source.extent() for slot in slots)
    return all(first[0] == second[0] and first[2] < second[1] for first, second in pairwise(extents))


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*pairs, strict=True)
    return torch.cat(first, 1), torch.cat(second, 1)


def _ids(slot: Slot) -> Tensor:
    if slot.ids is None:
        raise ValueError("an embedding without ids")
    return slot.ids
