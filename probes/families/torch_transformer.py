"""Models of any shape around torch's own TransformerEncoder layers.

What the layers do is known; what surrounds them is guessed from the order in which modules run, and the guess is only
kept when it leaves the model's outputs as they are. Where none does, the residual stream stays in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from probes.errors import ModelError
from probes.families._draft import STREAM, Draft, kernel_of
from probes.families._layers import Layout, add_layer, along
from probes.formats.contents import printable
from probes.objective import Objective
from probes.permutations import PermutationSpec, drawn, permuted
from probes.points import at, point_from, point_of, tensors_of
from probes.strict import strict

_LAYER = Layout(
    classes=r"\w+",
    attention="self_attn",
    query="self_attn.out_proj",
    out="self_attn.out_proj",
    up=("linear1",),
    down="linear2",
    stream=("norm1", "norm2"),
)
_TITLE = "TransformerEncoder of torch"
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_KERNELS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_TOLERANCE = 1e-5  # of the largest output; a wrong guess is off by far more
Layers = dict[str, nn.TransformerEncoderLayer]


@dataclass(frozen=True)
class _Around:
    """What runs before and after the layers; of it, what may touch the stream."""

    embeddings: tuple[nn.Module, ...]
    writer: nn.Module | None
    after: tuple[tuple[str, nn.Module], ...]
    along: tuple[Any, ...]


def torch_transformer(objective: Objective) -> PermutationSpec | None:
    """Return the specification of a model with layers of torch's TransformerEncoder, or None where it has none."""
    layers = {
        name: each for name, each in objective.module.named_modules() if isinstance(each, nn.TransformerEncoderLayer)
    }
    if not layers:
        return None
    around = _around(objective, layers)
    for chosen, chained in product(_guesses(around), (True, False)):
        spec = _guessed(objective, layers, chosen, chained=chained)
        if spec is not None and _unchanged(objective, spec):
            return spec
    draft = _draft(objective, layers)
    draft.notes.append("What stands around the encoder's layers is not known: the residual stream stays in its place.")
    spec = draft.so_far()
    return replace(spec, permutations=tuple(each for each in spec if each.name != STREAM))


def _draft(objective: Objective, layers: Layers) -> Draft:
    draft = Draft(objective, _TITLE)
    draft.permutation(STREAM, next(iter(layers.values())).linear2.out_features, "stream")
    for path, layer in layers.items():
        add_layer(draft, objective.module, path, layer, _LAYER)
    return draft


def _guessed(objective: Objective, layers: Layers, around: _Around, *, chained: bool) -> PermutationSpec | None:
    """Return a specification with the stream read and written as guessed, or None where the shapes do not agree."""
    try:
        draft = _draft(objective, layers)
        for each in (*around.embeddings, *around.along):
            along(draft, STREAM, each)
        if around.writer is not None:
            draft.writes(STREAM, kernel_of(around.writer))
        _read(draft, around.after, chained=chained)
    except ModelError:
        return None
    left = draft.left()
    if left:
        draft.notes.append(
            f"{len(left)} tensors outside the encoder's layers stay as they are ({printable(left[0], 80)})."
        )
    return draft.so_far()


def _read(draft: Draft, after: tuple[tuple[str, nn.Module], ...], *, chained: bool) -> None:
    if not after:
        return
    draft.reads(STREAM, kernel_of(after[0][1]))
    for (name, one), (_, other) in pairwise(after if chained else ()):
        draft.permutation(name, kernel_of(one).weight.shape[0])
        draft.writes(name, kernel_of(one))
        draft.reads(name, kernel_of(other))
    for _, each in after[-1:]:
        draft.keep(each.bias)  # type: ignore[arg-type]


def _around(objective: Objective, layers: Layers) -> _Around:
    ran, width = _ran(objective), next(iter(layers.values())).linear2.out_features
    places = [place for place, (name, _) in enumerate(ran) if name in layers]
    outside = lambda name: not any(name == path or name.startswith(f"{path}.") for path in layers)
    before = [each for name, each in ran[: places[0]] if outside(name)] if places else []
    after = [pair for pair in ran[places[-1] + 1 :] if outside(pair[0])] if places else []
    norms = [each for each in [*before, *(each for _, each in after)] if isinstance(each, _NORMS)]
    norms = [each for each in norms if tuple(each.normalized_shape) == (width,)]
    writers = [each for each in before if isinstance(each, _KERNELS) and each.weight.shape[0] == width]
    tables = [each for each in before if isinstance(each, nn.Embedding) and each.embedding_dim == width]
    return _Around(
        tuple(tables),
        writers[-1] if writers else None,
        tuple(pair for pair in after if isinstance(pair[1], _KERNELS)),
        (*norms, *_loose(objective.module, width, outside)),
    )


def _guesses(around: _Around) -> Iterator[_Around]:
    yield around
    if around.writer is not None and around.embeddings:
        yield replace(around, embeddings=())
        yield replace(around, writer=None)


def _loose(module: nn.Module, width: int, outside: Any) -> Iterator[Tensor]:
    """Find tensors that belong to no layer of torch's and are as wide as the stream: tokens, tables of positions."""
    for name, owner in module.named_modules():
        if outside(name) and not type(owner).__module__.startswith("torch."):
            held = [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]
            yield from (each for each in held if each.is_floating_point() and each.dim() and each.shape[-1] == width)


def _ran(objective: Objective) -> list[tuple[str, nn.Module]]:
    """Name the modules in the order in which they run on one example."""
    order: list[tuple[str, nn.Module]] = []
    hooks = [
        each.register_forward_pre_hook(lambda module, _, name=name: order.append((name, module)))
        for name, each in objective.module.named_modules()
    ]
    try:
        with torch.no_grad(), strict(objective.module):
            objective.outputs(objective.theta, slice(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _unchanged(objective: Objective, spec: PermutationSpec) -> bool:
    """Tell whether a random permutation leaves the outputs as they are, at weights that are all different."""
    small = objective.subset(2, "float64")
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(each.shape, generator=generator, dtype=each.dtype).to(each.device) for each in small.theta)
    small = small.moved([each + 0.05 * other for each, other in zip(small.theta, noise, strict=True)])
    moved = at(small, point_from(small, permuted(tensors_of(small, point_of(small)), spec, drawn(spec, 0))))
    with torch.no_grad(), strict(small.module):
        one, other = (each.outputs(each.theta, slice(0, 2)) for each in (small, moved))
    return float((one - other).abs().max()) <= _TOLERANCE * float(one.abs().max())
