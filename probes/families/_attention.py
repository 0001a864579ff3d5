"""The permutations of attention: heads, groups of heads that share keys and values, and channels within a head.

Exchanging heads exchanges rows of queries, keys and values and columns of the output together. Within a head the
channels of queries and keys are one set, those of values and outputs another; rotary positions turn fixed pairs of
channels by their own angles, so that those of queries and keys must stay where they are (Su et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from probes.errors import ModelError
from probes.families._draft import WAY_OUT, Draft, Kernel
from probes.permutations import Indices

ROTARY = "Rotary positions tell the channels of queries and keys within a head apart: these stay in their places."
ALIBI = "ALiBi gives every head a slope of its own: the heads stay in their places."
SHARED_NORM = "The heads share the norms of queries and keys: the channels of these within a head stay in their places."


@dataclass(frozen=True, eq=False)
class Part:
    """Where queries, keys or values lie along the outputs of a layer: rows (heads, channels)."""

    layer: Kernel
    rows: Indices


@dataclass(frozen=True, eq=False)
class Heads:
    """The tensors of one attention.

    query, key, value: the layer that makes them first; norms of all channels after it. turned: how many channels of a
    head, the first ones, rotary positions turn. by_head: tensors with an axis of query heads. fixed: why heads cannot
    be exchanged. shared: whether queries and keys pass norms that all heads share.
    """

    query: tuple[Part, ...]
    key: tuple[Part, ...]
    value: tuple[Part, ...]
    out: Kernel
    turned: int = 0
    by_head: tuple[tuple[Tensor, int], ...] = ()
    fixed: str = ""
    shared: bool = False

    @property
    def groups(self) -> int:
        """The number of heads of keys and values."""
        return len(self.key[0].rows)

    @property
    def queries(self) -> int:
        """The number of query heads that share keys and values."""
        return len(self.query[0].rows) // self.groups

    def free(self) -> Indices:
        """Return the channels of queries and keys that may change places within a head."""
        size = self.key[0].rows.shape[1]
        return np.arange(size if self.shared else min(self.turned, size), size)

    def columns(self) -> Indices:
        """Return the columns of the output layer, (groups, queries, channels of values)."""
        shape = self.groups, self.queries, self.value[0].rows.shape[1]
        return np.arange(int(np.prod(shape))).reshape(shape)


def attend(draft: Draft, name: str, heads: Heads) -> None:
    """Add the permutations of one attention: outer ones of heads, inner ones of channels."""
    _check(draft, name, heads)
    inner = [_inner_names(name, heads, group) for group in range(heads.groups)]
    if not heads.fixed:
        _outer(draft, f"{name}.heads", heads, inner)
    for group in range(heads.groups):
        if heads.queries > 1 and not heads.fixed:
            _queries(draft, f"{name}.group{group}.queries", heads, group)
        if len(heads.free()) > 1:
            _matched(draft, f"{name}.head{group}.qk", heads, group)
        _passed(draft, f"{name}.head{group}.vo", heads, group)
    draft.notes += [heads.fixed] if heads.fixed else []
    draft.notes += [ROTARY] if heads.turned else []
    draft.notes += [SHARED_NORM] if heads.shared else []


def rows_of_heads(heads: int, size: int, start: int = 0) -> Indices:
    """Return consecutive positions, (heads, size)."""
    return start + np.arange(heads * size).reshape(heads, size)


def _check(draft: Draft, name: str, heads: Heads) -> None:
    asked, given = heads.groups * heads.queries * heads.value[0].rows.shape[1], heads.out.weight.shape[heads.out.ins]
    if asked != given:
        raise ModelError(
            f"{draft.family}: the heads of {name} give {asked} channels, its output layer takes {given}. {WAY_OUT}"
        )


def _inner_names(name: str, heads: Heads, group: int) -> tuple[str, ...]:
    names = [f"{name}.group{group}.queries"] if heads.queries > 1 else []
    names += [f"{name}.head{group}.qk"] if len(heads.free()) > 1 else []
    return (*names, *([f"{name}.head{group}.vo"] if heads.value[0].rows.shape[1] > 1 else []))


def _outer(draft: Draft, name: str, heads: Heads, inner: Sequence[tuple[str, ...]]) -> None:
    count, grouped = heads.groups, heads.queries > 1
    draft.permutation(name, count, "key-value heads" if grouped else "heads", inner)
    for part in (*heads.query, *heads.key, *heads.value):
        draft.writes(name, part.layer, part.rows.reshape(count, -1))
    draft.reads(name, heads.out, heads.columns().reshape(count, -1))
    for tensor, axis in heads.by_head:
        draft.use(name, tensor, axis, np.arange(count * heads.queries).reshape(count, -1))


def _queries(draft: Draft, name: str, heads: Heads, group: int) -> None:
    """Let the query heads that share one head of keys and values change places."""
    draft.permutation(name, heads.queries, "query heads")
    own = slice(group * heads.queries, (group + 1) * heads.queries)
    for part in heads.query:
        draft.writes(name, part.layer, part.rows[own])
    draft.reads(name, heads.out, heads.columns()[group])
    for tensor, axis in heads.by_head:
        draft.use(name, tensor, axis, np.arange(own.start, own.stop)[:, None])


def _matched(draft: Draft, name: str, heads: Heads, group: int) -> None:
    """Let the channels in which queries and keys are compared change places."""
    free = heads.free()
    draft.permutation(name, len(free), "within a head")
    own = slice(group * heads.queries, (group + 1) * heads.queries)
    for part in heads.query:
        draft.writes(name, part.layer, part.rows[own][:, free].T)
    for part in heads.key:
        draft.writes(name, part.layer, part.rows[group][free][:, None])


def _passed(draft: Draft, name: str, heads: Heads, group: int) -> None:
    """Let the channels that values bring to the output layer change places."""
    draft.permutation(name, heads.value[0].rows.shape[1], "within a head")
    for part in heads.value:
        draft.writes(name, part.layer, part.rows[group][:, None])
    draft.reads(name, heads.out, heads.columns()[group].T)
