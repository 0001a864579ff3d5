"""Class-activation maps: where the channels of one layer speak for a class, weighed by their gradients.

Grad-CAM: Selvaraju et al. (2017). Grad-CAM++: Chattopadhyay et al. (2018). HiResCAM: Draelos and Carin (2020).
Transformers' tokens are put back on the grid of their patches, without class, distillation and register tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.attribution.errors import AttributionError
from probes.attribution.layer_outputs import Layer, evaluated, layer_of, layers_of
from probes.attribution.layer_places import enlarged
from probes.attribution.maps import Map, make_map
from probes.attribution.methods import Method, Settings, Tick

if TYPE_CHECKING:
    from probes.attribution.case import Case

REACHED = 0.5  # the gradient must reach more than this share of the places
_TOLD = 4096  # places whose signed values are told beside the map, at most
Weigh = Callable[[Tensor, Tensor], Tensor]  # activations, slopes (K, h, w) -> (h, w), signed


def cam_layers(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the layers that a map can be made of, with the shapes of their outputs, in the order in which they run."""
    return {each.name: each.shape for each in _usable(case)}


def default_cam_layer(case: Case) -> str:
    """Return the latest layer of use, outside of attentions: queries, keys and values of single heads are no channels.

    Raises AttributionError where the gradient reaches no layer with places.
    """
    found = [each.name for each in _usable(case) if not each.inner]
    if not found:
        raise AttributionError(_WITHOUT)
    return found[-1]


def grad_cam(activations: Tensor, slopes: Tensor) -> Tensor:
    """Weigh channels (K, h, w) by their mean slopes and sum them; (h, w), signed."""
    return (slopes.mean((1, 2), keepdim=True) * activations).sum(0)


def grad_cam_plus_plus(activations: Tensor, slopes: Tensor) -> Tensor:
    """Weigh channels by their positive slopes, those at places where the class's exponential bends most more.

    The weights are the closed form for exp(score) of a piecewise linear net; (h, w), signed.
    """
    bent = 2 * slopes.square() + activations.sum((1, 2), keepdim=True) * slopes**3
    alpha = torch.where(bent != 0, slopes.square() / torch.where(bent != 0, bent, 1), 0)
    return ((alpha * slopes.relu()).sum((1, 2), keepdim=True) * activations).sum(0)


def hires_cam(activations: Tensor, slopes: Tensor) -> Tensor:
    """Multiply activations and slopes (K, h, w) place by place and sum the channels; (h, w), signed."""
    return (slopes * activations).sum(0)


def _run(name: str, case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  one pass, nothing to report
    weigh, signed, title = KINDS[name]
    layer = _chosen(case, settings.layer)
    if layer.layout is None:
        raise ValueError(f"layer {layer.name!r} has no places")
    output, scores, slopes = evaluated(case, layer.name, case.features)
    case.know(case.features, scores[0])
    found = weigh(layer.layout.laid(output)[0], layer.layout.laid(slopes)[0])
    shown = found if signed else found.relu()
    if not bool(shown.any()):
        raise AttributionError(
            f"At the layer {layer.name!r} no place speaks for the target, so {title}, which keeps what is positive, "
            f"is zero everywhere. Choose another target, an earlier layer, or hires_cam, which keeps signs."
        )
    height, width = case.shape[-2:]
    about = {"layer": layer.name, "grid": list(layer.layout.grid), "prefix": layer.layout.prefix, "evaluations": 1}
    if found.numel() <= _TOLD:
        about["signed"] = found.tolist()
    return make_map(case, name, enlarged(shown, (height, width)), signed=signed, about=about)


def _chosen(case: Case, name: str) -> Layer:
    layer = layer_of(case, name or default_cam_layer(case))
    if layer.layout is None:
        raise AttributionError(
            f"The layer {layer.name!r} gives {layer.shape}, which has no places on the image. Choose one of "
            f"{_listed(case)}."
        )
    if layer.reached <= REACHED:
        raise AttributionError(
            f"The gradient reaches {layer.reached:.0%} of the places of the layer {layer.name!r} (behind it the model "
            f"reads few of them, as where only the class token counts). Choose one of {_listed(case)}."
        )
    return layer


def _usable(case: Case) -> list[Layer]:
    return [each for each in layers_of(case).values() if each.layout and each.calls == 1 and each.reached > REACHED]


def _listed(case: Case) -> str:
    return ", ".join([each.name for each in _usable(case) if not each.inner][-8:]) or "none: no layer has them"


def _refuse(case: Case) -> str | None:
    if case.kind == "table":
        return (
            "Class-activation maps need the places of an image; for tables choose integrated_gradients or kernel_shap."
        )
    if case.kind != "image":
        return (
            "Class-activation maps need the places of an image; for text choose integrated_gradients or "
            "layer_conductance."
        )
    return None if any(not each.inner for each in _usable(case)) else _WITHOUT


_WITHOUT = (
    "No layer that runs once gives a picture, or patches, that the gradient reaches at more than half of the places; "
    "choose integrated_gradients or occlusion."
)
KINDS: Mapping[str, tuple[Weigh, bool, str]] = {
    "grad_cam": (grad_cam, False, "Grad-CAM"),
    "grad_cam_plus_plus": (grad_cam_plus_plus, False, "Grad-CAM++"),
    "hires_cam": (hires_cam, True, "HiResCAM"),
}
METHODS = tuple(
    Method(name, title, "cam", partial(_run, name), signed=signed, refuse=_refuse)
    for name, (_, signed, title) in KINDS.items()
)
