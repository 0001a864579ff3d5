"""Families as tables: which module of a layer does what, and what reads and writes the stream around the layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from probes.errors import ModelError
from probes.families._attention import ALIBI, Heads, Part, attend, rows_of_heads
from probes.families._draft import STREAM, WAY_OUT, Draft, Kernel, kernel_of
from probes.objective import Objective
from probes.permutations import PermutationSpec

_SIZES = ("head_dim", "head_size", "attention_head_size", "_size")
_TURNED = ("rotary_ndims", "rotary_dim")
_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "_heads")


@dataclass(frozen=True)
class Layout:
    """Where a layer keeps its parts: names of modules or tensors within it; what is absent is passed over.

    classes: a pattern of the layer's class. fused: "blocks" (all queries, all keys, all values) or "interleaved" (a
    query, key and value for each head in turn), where `query` names one layer for all three. stream: norms and scales
    along the residual stream. query_norm, key_norm: of each head, or of all channels. by_head: tables with one column
    for each head.
    """

    classes: str
    attention: str
    query: str
    out: str
    up: tuple[str, ...]
    down: str
    stream: tuple[str, ...]
    key: str = ""
    value: str = ""
    fused: str = ""
    inner_norm: str = ""
    query_norm: str = ""
    key_norm: str = ""
    by_head: str = ""
    rotary: bool = False
    alibi: bool = False

    def fits(self, layer: nn.Module) -> bool:
        """Tell whether a module is such a layer."""
        needed = [each for each in (self.attention, self.query, self.key, self.value, self.out, self.down) if each]
        named = re.fullmatch(self.classes, type(layer).__name__) is not None
        return named and all(found(layer, each) is not None for each in needed) and bool(_present(layer, self.up))


@dataclass(frozen=True)
class Family:
    """A family of models.

    places: outside the layers, the end of a module's or tensor's name -> (permutations that it reads, one that it
    writes), "" for none; of several to read, parted by "|", the first that exists.
    """

    title: str
    layouts: tuple[Layout, ...]
    places: Mapping[str, tuple[str, str]]
    titles: Mapping[str, str]

    def specification(self, objective: Objective) -> PermutationSpec | None:
        """Return the specification of a model of this family, or None; raise ModelError where a part is unknown."""
        layers = list(self._layers(objective.module))
        if not layers:
            return None
        draft = Draft(objective, self._called(layers[0][1]))
        draft.permutation(STREAM, _width(layers[0]), "stream")
        for path, layer, layout in layers:
            add_layer(draft, objective.module, path, layer, layout)
        for ending, (read, written) in self.places.items():
            for each in _ending(objective.module, ending, tuple(f"{path}." for path, _, _ in layers)):
                _add_place(draft, each, read, written)
        return draft.finished()

    def _layers(self, module: nn.Module) -> Iterator[tuple[str, nn.Module, Layout]]:
        for path, layer in module.named_modules():
            layout = next((each for each in self.layouts if each.fits(layer)), None)
            if layout is not None:
                yield path, layer, layout

    def _called(self, layer: nn.Module) -> str:
        stem = re.sub(r"(Decoder|Encoder)?(Layer|Block)$", "", type(layer).__name__)
        return self.titles.get(stem, stem) or self.title


def found(module: nn.Module, path: str) -> Any:
    """Return the module or tensor of this dotted name, or None."""
    for part in path.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return None if isinstance(module, nn.Identity) else module


def add_layer(draft: Draft, model: nn.Module, path: str, layer: nn.Module, layout: Layout) -> None:
    """Add attention, feed-forward layer and norms of one layer; it reads and writes the stream."""
    heads, readers = _heads(draft, model, layer, layout)
    for each in readers:
        draft.reads(STREAM, each)
    draft.writes(STREAM, heads.out)
    attend(draft, path, heads)
    _feed_forward(draft, path, layer, layout)
    for name in layout.stream:
        along(draft, STREAM, found(layer, name))


def along(draft: Draft, name: str, each: Any) -> None:
    """Let a norm, a scale or a tensor follow along its last axis; None is passed over."""
    tensors = [each] if isinstance(each, Tensor) else list(each.parameters(recurse=False)) if each is not None else []
    for tensor in tensors:
        draft.use(name, tensor, tensor.dim() - 1)


def _present(layer: nn.Module, names: tuple[str, ...]) -> list[Any]:
    return [each for each in (found(layer, name) for name in names) if each is not None]


def _width(layer: tuple[str, nn.Module, Layout]) -> int:
    down = kernel_of(found(layer[1], layer[2].down))
    return down.weight.shape[down.out]


def _feed_forward(draft: Draft, path: str, layer: nn.Module, layout: Layout) -> None:
    down = kernel_of(found(layer, layout.down))
    name, size = f"{path}.mlp", down.weight.shape[down.ins]
    draft.permutation(name, size)
    for each in map(kernel_of, _present(layer, layout.up)):
        parts = each.weight.shape[each.out] // size  # two where the gate is in the same weight
        draft.reads(STREAM, each)
        draft.writes(name, each, rows_of_heads(parts, size).T)
    along(draft, name, found(layer, layout.inner_norm) if layout.inner_norm else None)
    draft.reads(name, down)
    draft.writes(STREAM, down)


def _heads(draft: Draft, model: nn.Module, layer: nn.Module, layout: Layout) -> tuple[Heads, list[Kernel]]:
    attention, first = found(layer, layout.attention), found(layer, layout.query)
    if isinstance(attention, nn.MultiheadAttention):
        return of_torch(attention)
    query, out = kernel_of(first), kernel_of(found(layer, layout.out))
    total, width = query.weight.shape[query.out], out.weight.shape[out.ins]
    size = _head_size(draft, attention, width)
    if layout.fused:
        places = _fused(total, width // size, size, layout.fused)
        q, k, v = (Part(query, rows) for rows in places)
        readers = [query]
    else:
        readers = [kernel_of(found(layer, name)) for name in (layout.query, layout.key, layout.value)]
        q, k, v = (Part(each, rows_of_heads(each.weight.shape[each.out] // size, size)) for each in readers)
    table = found(layer, layout.by_head) if layout.by_head else None
    (queries, keys), shared = _normed(draft, layer, layout, (q, k))
    turned, fixed = _turned(model, attention, size) if layout.rotary else 0, ALIBI if layout.alibi else ""
    by_head = () if table is None else ((table, table.dim() - 1),)
    return Heads(queries, keys, (v,), out, turned, by_head, fixed, shared), readers


def _fused(total: int, heads: int, size: int, kind: str) -> Iterator[Any]:
    if kind == "interleaved":
        return (np.arange(total).reshape(heads, 3, size)[:, part] for part in range(3))
    shared = (total // size - heads) // 2
    starts = (0, heads * size, (heads + shared) * size)
    return (rows_of_heads(count, size, start) for count, start in zip((heads, shared, shared), starts, strict=True))


def of_torch(attention: nn.MultiheadAttention) -> tuple[Heads, list[Kernel]]:
    """Return the heads of torch's own attention over one stream, and what reads the stream."""
    count, size = attention.num_heads, attention.head_dim
    fused = Kernel(attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (Part(fused, rows_of_heads(count, size, part * count * size)) for part in range(3))
    return Heads((q,), (k,), (v,), kernel_of(attention.out_proj)), [fused]


def _head_size(draft: Draft, attention: nn.Module, width: int) -> int:
    size = next((value for name in _SIZES if type(value := getattr(attention, name, None)) is int), 0)
    count = next((value for name in _COUNTS if type(value := getattr(attention, name, None)) is int), 0)
    if not size and not count:
        raise ModelError(f"{draft.family}: {type(attention).__name__} does not tell how many heads it has. {WAY_OUT}")
    return size or width // count


def _normed(draft: Draft, layer: nn.Module, layout: Layout, parts: tuple[Part, Part]) -> tuple[list[Any], bool]:
    """Add norms of all queries or keys to them; those that all heads share stay as they are, and that is told."""
    made: list[Any] = []
    shared = False
    for part, name in zip(parts, (layout.query_norm, layout.key_norm), strict=True):
        norm = found(layer, name) if name else None
        tensors = list(norm.parameters(recurse=False)) if norm is not None else []
        of_one_head = [each for each in tensors if each.shape == part.rows.shape[1:]]
        for each in of_one_head:
            draft.keep(each)
        whole = [each for each in tensors if each.shape == (part.rows.size,)] if not of_one_head else []
        made.append((part, *(Part(Kernel(each, None), rows_of_heads(*part.rows.shape)) for each in whole)))
        shared = shared or bool(of_one_head)
    return made, shared


def _turned(model: nn.Module, attention: nn.Module, size: int) -> int:
    """Return how many channels of a head are turned: what the attention says, its table of angles, or all."""
    told = next((value for name in _TURNED if type(value := getattr(attention, name, None)) is int), 0)
    tables = (each for name, each in model.named_buffers() if name.endswith("inv_freq"))
    return told or next((2 * each.numel() for each in tables), size)


def _ending(model: nn.Module, ending: str, layers: tuple[str, ...]) -> Iterator[Any]:
    """Find tensors, and modules with tensors of their own, outside the layers by the end of their names."""
    holding = [pair for pair in model.named_modules() if next(pair[1].parameters(recurse=False), None) is not None]
    for name, each in [*holding, *model.named_parameters()]:
        if (name == ending or name.endswith(f".{ending}")) and not name.startswith(layers):
            yield each


def _add_place(draft: Draft, each: Any, read: str, written: str) -> None:
    if not _is_kernel(each):
        tensor = each if isinstance(each, Tensor) else next(each.parameters(recurse=False))
        name = _one_of(draft, written, tensor.shape[-1])
        along(draft, name, each) if name else draft.keep(tensor)
        return
    kernel = kernel_of(each)
    given = kernel.weight.shape[kernel.ins]
    source = _one_of(draft, read, given)
    target = _one_of(draft, written, kernel.weight.shape[kernel.out])
    if source:
        draft.reads(source, kernel, draft.repeated(source, given))
    if target:
        draft.writes(target, kernel)
    draft.keep(kernel.weight)
    draft.keep(kernel.bias)


def _one_of(draft: Draft, names: str, size: int) -> str:
    """Return the first of these permutations that exists; the last is made where none does."""
    *_, last = options = names.split("|")
    known = next((each for each in options if draft.has(each)), "")
    if last and not known:
        draft.permutation(last, size)
    return known or last


def _is_kernel(each: Any) -> bool:
    weight = None if isinstance(each, Tensor | nn.Embedding) else getattr(each, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1
