"""The attention probabilities of one pass, with their gradients, however the model computes them.

Fused attention keeps no probabilities, so every call of it (of torch's scaled dot products, of its multi-head
attention) is computed here in the open while a pass is watched, with the same result; softmaxes that models write out
themselves are read as they are. The model and its settings are not touched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from probes.attribution.errors import AttributionError
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case

SAME = 1e-3  # scores with fused attention and in the open may differ by so much: rounding, half precision's too
_MHA = inspect.signature(functional.multi_head_attention_forward)


@dataclass(frozen=True)
class Attentions:
    """The attention of every block for one example, in the order in which they ran.

    maps: probabilities (H, T, T), rows are queries. slopes: the score's gradients by them.
    """

    maps: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    def rows(self) -> Tensor:
        """Return the rows (n,) of the last block that the score is read from, those that its gradient reaches.

        The last token of a causal model, the class token, or all tokens where their mean is read.
        """
        reached = (self.slopes[-1] != 0).any(-1).any(0)
        return reached.nonzero().flatten()


def attentions_of(case: Case) -> Attentions:
    """Return the attention of one pass of the example, looked at once for a case.

    Raises AttributionError where the model has no attention between tokens of one sequence.
    """
    return case.once("attentions", lambda: _watched(case))


def probabilities(
    query: Tensor, key: Tensor, mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Return softmax(q k^T scale + mask), (..., T, S), as torch's scaled dot product attention defines it."""
    logits = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    nothing = (logits == -math.inf).all(-1, keepdim=True)  # rows that may look nowhere are zero, as torch has them
    return torch.softmax(logits.masked_fill(nothing, 0), -1).masked_fill(nothing, 0)


class _Watch(TorchFunctionMode):
    """Keep every attention map that is computed, on the path from the features to the score."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._scaled(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self._multi_head(func, _MHA.bind(*args, **kwargs).arguments)
        result = func(*args, **kwargs)
        if func in _SOFTMAXES and _is_attention(result):
            self.found.append(result)
        return result

    def _scaled(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002  models are explained as they predict, without dropout
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:  # several heads of queries share one of keys and values
            times = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        self.found.append(probabilities(query, key, attn_mask, is_causal, scale))
        return self.found[-1] @ value

    def _multi_head(self, func: Callable[..., Any], given: dict[str, Any]) -> Any:
        """Let torch compute the probabilities, and mix the values by them here."""
        if given.get("bias_k") is not None or given.get("add_zero_attn") or given["query"].ndim != 3:
            raise AttributionError(
                "This model's attention adds keys that belong to no token, or has no batches; choose "
                "integrated_gradients."
            )
        asked = {**given, "need_weights": True, "average_attn_weights": False, "dropout_p": 0.0}
        _, weights = func(**asked)
        self.found.append(weights)
        mixed = _mixed(given, weights)
        wanted = given.get("need_weights", True)
        shown = weights.mean(1) if given.get("average_attn_weights", True) else weights
        return mixed, shown if wanted else None


def _mixed(given: Mapping[str, Any], weights: Tensor) -> Tensor:
    """Return the output (T, B, D) of a multi-head attention with these probabilities (B, H, T, S)."""
    value, width = given["value"], given["embed_dim_to_check"]
    apart = given.get("use_separate_proj_weight", False)
    weight: Tensor = given["v_proj_weight"] if apart else given["in_proj_weight"][-width:]
    bias: Tensor | None = given["in_proj_bias"]
    values = functional.linear(value, weight, None if bias is None else bias[-width:])
    S, B, _ = values.shape
    heads = values.view(S, B, given["num_heads"], -1).permute(1, 2, 0, 3)
    joined = (weights @ heads).permute(2, 0, 1, 3).flatten(2)
    return functional.linear(joined, given["out_proj_weight"], given["out_proj_bias"])


def _is_attention(result: Any) -> bool:
    """Tell whether a softmax is over pairs of tokens: its last two sizes are one, above 1."""
    return isinstance(result, Tensor) and result.ndim in (3, 4) and result.shape[-1] == result.shape[-2] > 1


def _watched(case: Case) -> Attentions:
    features = case.features.detach().requires_grad_()
    watch = _Watch()
    with torch.enable_grad(), strict(case.module):
        with watch:
            scores = case.scores(features)
        found = _checked(case, watch.found)
        _compare(float(scores.detach()[0]), case.score)
        slopes = torch.autograd.grad(scores.sum(), found, allow_unused=True, materialize_grads=True)
    maps = tuple(each.detach().reshape(-1, *each.shape[-2:]) for each in found)
    shaped = tuple(each.reshape(-1, *each.shape[-2:]) for each in slopes)
    if not bool(shaped[-1].any()):
        raise AttributionError(
            "The score does not depend on the last attention of this model, so no row of it is the score's own; choose "
            "integrated_gradients."
        )
    return Attentions(maps, shaped)


def _compare(score: float, expected: float) -> None:
    if not abs(score - expected) <= SAME * max(abs(expected), 1.0):
        raise AttributionError(
            f"With its attention computed in the open the model's score is {score:.6g}, not {expected:.6g}: it mixes "
            "tokens in a way that is not known here. Choose integrated_gradients."
        )


def _checked(case: Case, found: list[Tensor]) -> list[Tensor]:
    """Return the maps that are on the path from the features; refuse those that cannot be multiplied in a row."""
    config = getattr(case.module, "config", None)
    used = [each for each in found if each.requires_grad]
    if not used:
        raise AttributionError(WITHOUT)
    shapes = {tuple(each.shape[-2:]) for each in used}
    if getattr(config, "is_encoder_decoder", False) or any(T != S for T, S in shapes):
        raise AttributionError(
            f"Queries and keys of this model's attention are not the same tokens (shapes {sorted(shapes)}), so blocks "
            "cannot be followed one after another; choose integrated_gradients."
        )
    if len(shapes) > 1 or any(each.ndim == 4 and len(each) > 1 for each in used):
        raise AttributionError(
            "This model's attention runs within windows or at several resolutions, so blocks cannot be followed one "
            "after another; choose grad_cam or integrated_gradients."
        )
    return used


WITHOUT = (
    "This model has no attention (neither scaled dot products nor softmaxes over pairs of tokens); choose "
    "integrated_gradients, or grad_cam for images."
)
_SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax)
