"""Where token ids become vectors: find that layer, read its output, put other vectors in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.attribution.errors import AttributionError

if TYPE_CHECKING:
    from probes.attribution.case import Case

Run = Callable[[Tensor], Tensor]


def input_embedding(module: nn.Module, run: Run, ids: Tensor) -> str:
    """Return the name of the layer that is fed the token ids, found by watching two passes with different ids.

    run: the model's forward pass. Raises AttributionError where no embedding layer is fed the ids once.
    """
    other = ids.flip(1) if bool((ids.flip(1) != ids).any()) else torch.where(ids > 0, ids - 1, ids + 1)
    first, second = _fed(module, run, ids), _fed(module, run, other)
    found = [name for name in first if name in second]
    if not found:
        raise AttributionError(
            "No embedding layer of this model is fed the token ids, so its tokens have no vectors to differentiate "
            "by. Choose a method that replaces tokens, such as occlusion."
        )
    return found[0]


def embedded(module: nn.Module, run: Run, name: str, ids: Tensor) -> Tensor:
    """Return the vectors that the layer `name` gives for these ids, (B, T, D), detached."""
    kept: list[Tensor] = []
    layer = module.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output.detach().clone()))
    try:
        with torch.no_grad():
            run(ids)
    finally:
        handle.remove()
    return kept[0]


def embed(case: Case, ids: Tensor) -> Tensor:
    """Return the vectors of any token ids (B, T) by the case's embedding layer alone, at the objective's theta."""
    layer, objective = case.module.get_submodule(case.embedding), case.objective
    values = {**objective.constants, **dict(zip(objective.names, objective.theta, strict=True))}
    shared = {id(each): name for name, each in case.module.named_parameters()}  # a tied table has one name
    own = {name: values[shared[id(each)]].detach() for name, each in layer.named_parameters()}
    kept = {name: values[f"{case.embedding}.{name}"] for name, _ in layer.named_buffers()}
    with torch.no_grad():
        return functional_call(layer, {**own, **kept}, (ids.to(case.raw),))  # type: ignore[no-any-return]


@contextmanager
def replaced(module: nn.Module, name: str, features: Tensor) -> Iterator[None]:
    """Let the layer `name` give these vectors (B, T, D) whatever its ids are; position and type vectors stay."""
    handle = module.get_submodule(name).register_forward_hook(lambda *_: features)
    try:
        yield
    finally:
        handle.remove()


def _fed(module: nn.Module, run: Run, ids: Tensor) -> list[str]:
    """Name the embedding layers that are fed exactly these ids, in the order in which they run."""
    found: list[str] = []

    def look(name: str, args: tuple[object, ...]) -> None:
        given = args[0] if args else None
        if isinstance(given, Tensor) and given.shape == ids.shape and torch.equal(given, ids):
            found.append(name)

    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: look(name, args))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding)
    ]
    try:
        with torch.no_grad():
            run(ids)
    finally:
        for handle in handles:
            handle.remove()
    return found
