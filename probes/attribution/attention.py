"""Attention, shown as what it is: where tokens look, block after block. It is no attribution.

Rollout: Abnar and Zuidema (2020). Gradient × attention: Chefer, Gur and Wolf (2021), the rule for self-attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.attribution.attention_maps import Attentions, attentions_of
from probes.attribution.errors import AttributionError
from probes.attribution.layer_outputs import grids_of
from probes.attribution.layer_places import Layout, enlarged, patch_layout
from probes.attribution.maps import Map, make_map
from probes.attribution.methods import Method, Settings, Tick

if TYPE_CHECKING:
    from probes.attribution.case import Case


def rollout(maps: tuple[Tensor, ...]) -> Tensor:
    """Multiply the blocks' attention (H, T, T), averaged over heads and with the residual path as half of it; (T, T).

    Rows add up to one: the share of each input token in what a token of the last block has mixed.
    """
    total = torch.eye(maps[0].shape[-1], dtype=torch.float64, device=maps[0].device)
    for each in maps:
        total = (each.double().mean(0) + torch.eye(len(total), dtype=torch.float64, device=each.device)) / 2 @ total
    return total


def relevance(found: Attentions) -> Tensor:
    """Add up the positive parts of gradient × attention, averaged over heads, along the blocks; (T, T).

    R starts as the identity, and each block adds mean_h(relu(dS/dA · A)) R. The identity is taken off at the end.
    """
    start = torch.eye(found.maps[0].shape[-1], dtype=torch.float64, device=found.maps[0].device)
    total = start
    for attention, slopes in zip(found.maps, found.slopes, strict=True):
        total = total + (slopes.double() * attention.double()).relu().mean(0) @ total
    return total - start


def _run_rollout(case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  one pass, nothing to choose
    found = attentions_of(case)
    return _shown(case, "attention_rollout", found, rollout(found.maps), (_ATTENTION, _TARGETS))


def _run_relevance(case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  one pass, nothing to choose
    found = attentions_of(case)
    values = relevance(found)
    if not bool(values[found.rows()].any()):
        raise AttributionError(
            "No attention of this model speaks for the target, so gradient × attention, which keeps what is positive, "
            "is zero everywhere; choose another target, or integrated_gradients, which keeps signs."
        )
    return _shown(case, "gradient_x_attention", found, values, (_POSITIVE,))


def _shown(case: Case, name: str, found: Attentions, pairs: Tensor, notes: tuple[str, ...]) -> Map:
    """Make the map of (T, T) shares: the mean over the rows that the score is read from."""
    rows = found.rows()
    values = pairs[rows].mean(0)
    about: dict[str, Any] = {"blocks": len(found.maps), "heads": len(found.maps[0]), "rows": rows.tolist()}
    if case.kind != "image":
        special = torch.tensor(case.special, device=values.device)
        about |= {
            "evaluations": 1,
            "first_token": _share(values[:1], values),
            "special": _share(values[special], values),
        }
        return make_map(case, name, values, signed=False, about=about, notes=notes)
    layout = _patches(case, len(values))
    grid = layout.laid(values[None, :, None])[0, 0]
    about |= {"evaluations": 1, "grid": list(layout.grid), "prefix": layout.prefix}
    about["prefix_share"] = _share(values[: layout.prefix], values)
    height, width = case.shape[-2:]
    return make_map(case, name, enlarged(grid, (height, width)), signed=False, about=about, notes=notes)


def _share(some: Tensor, values: Tensor) -> float:
    return float(some.sum() / values.sum())


def _patches(case: Case, tokens: int) -> Layout:
    height, width = case.shape[-2:]
    layout = patch_layout(tokens, (height, width), grids_of(case))
    if layout is None:
        raise AttributionError(
            f"The {tokens} tokens of this model are no grid of patches of the {height} × {width} image; choose "
            "integrated_gradients."
        )
    return layout


def _refuse(case: Case) -> str | None:
    if case.kind == "table":
        return "Attention is shown between tokens or patches; for tables choose integrated_gradients or kernel_shap."
    try:
        tokens = len(attentions_of(case).maps[0][0])
        if case.kind == "image":
            _patches(case, tokens)
        elif tokens != case.raw.shape[1]:
            return (
                f"This model's attention is between {tokens} tokens, but the text has {case.raw.shape[1]}; choose "
                "integrated_gradients."
            )
    except AttributionError as error:
        return str(error)
    return None


_ATTENTION = (
    "This is attention, not attribution: it says which tokens are mixed, not what the score owes them. Values, "
    "projections and feed-forward layers do not enter."
)
_TARGETS = "It is the same for every target."
_POSITIVE = (
    "Attention weighed by the target's gradient, positive parts only; it does not add up to the score, and values "
    "that flow around the attention do not enter."
)
METHODS = (
    Method("attention_rollout", "Attention rollout (attention, not attribution)", "attention", _run_rollout,
           signed=False, refuse=_refuse),
    Method("gradient_x_attention", "Gradient × attention (attention weighed by gradients)", "attention",
           _run_relevance, signed=False, refuse=_refuse),
)  # fmt: skip
