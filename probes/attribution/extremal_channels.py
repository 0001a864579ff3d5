"""A layer whose channels are kept or put to zero by masks: where extremal perturbations act inside the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.attribution.errors import AttributionError
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case

FEWEST = 2  # channels


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a model that sees images. output: of the example, (1, K, h, w)."""

    name: str
    output: Tensor

    @property
    def channels(self) -> int:
        """Return K."""
        return self.output.shape[1]

    def play(self, case: Case, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores with the layer's channels multiplied by masks (A, K), and their gradients by the masks."""
        pairs = [self._play(case, part) for part in masks.split(case.chunk())]
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])

    def _play(self, case: Case, masks: Tensor) -> tuple[Tensor, Tensor]:
        masks = masks.detach().requires_grad_()
        with strict(case.module), torch.enable_grad(), self._masked(case.module, masks):
            scores = case.scores(case.features.expand(len(masks), -1, -1, -1))
            (found,) = torch.autograd.grad(scores.sum(), masks)
        return scores.detach(), found

    @contextmanager
    def _masked(self, module: nn.Module, masks: Tensor) -> Iterator[None]:
        layer = module.get_submodule(self.name)
        handle = layer.register_forward_hook(lambda _, __, z: z * masks[:, :, None, None])
        try:
            yield
        finally:
            handle.remove()


def layer_of(case: Case, name: str = "") -> Layer:
    """Return the layer of this name, or, for "", the last one that gives a picture with channels.

    A picture is (1, K, h, w) with more than one pixel. Raises AttributionError, naming layers that there are.
    """
    found = _pictures(case)
    if not found:
        raise AttributionError(_WITHOUT)
    if name and name not in found:
        known = ", ".join(list(found)[-8:])
        raise AttributionError(f"The layer {name!r} gives no picture with channels. Choose one of {known}.")
    name = name or list(found)[-1]
    return Layer(name, found[name])


def refuse_channels(case: Case) -> str | None:
    """Say why a model has no layer with channels, or None."""
    if case.kind != "image":
        return "Extremal channels are those of layers that see images; choose layer conductance for other models."
    return None if _pictures(case) else _WITHOUT


_WITHOUT = (
    "No layer of this model that runs once gives pictures with channels (as in a ViT, which has tokens); "
    "choose layer conductance."
)


def _pictures(case: Case) -> dict[str, Tensor]:
    """Return the pictures that layers give, in the order in which they run; layers used twice are left out."""
    return case.once("pictures", lambda: _watch(case))


def _watch(case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    often: set[str] = set()

    def look(name: str, output: Any) -> None:
        often.update([name] if name in found else [])
        if isinstance(output, Tensor) and _is_picture(output, case.shape):
            found[name] = output.detach()

    layers = [(name, each) for name, each in case.module.named_modules() if name]
    handles = [each.register_forward_hook(lambda _, __, output, name=name: look(name, output)) for name, each in layers]
    try:
        with torch.no_grad(), strict(case.module):
            case.scores(case.features)
    finally:
        for handle in handles:
            handle.remove()
    return {name: each for name, each in found.items() if name not in often}


def _is_picture(output: Tensor, shape: tuple[int, ...]) -> bool:
    """Tell whether an output is (1, K, h, w) with the proportions of the image and more than one pixel."""
    if output.ndim != 4 or output.shape[0] != 1 or output.shape[1] < FEWEST:
        return False
    height, width = output.shape[2:]
    same = abs(height * shape[2] - width * shape[1]) <= max(shape[1:])
    return bool(1 < height * width <= 4 * shape[1] * shape[2]) and same
