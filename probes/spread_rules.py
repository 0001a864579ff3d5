"""Rules for parameters that are broadcast onto examples: every example gets its own copy, and autograd does the rest.

Scales and biases of norms, embeddings of positions, class tokens, scales of layers, learnt biases of attention. A rule
answers NotImplemented where it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.ghost_rules import Layout

if TYPE_CHECKING:
    from probes.parameter_watch import Watch

Function = Callable[..., Any]


def pointwise(watch: Watch, function: Function, *args: Any, **kwargs: Any) -> Any:
    """Follow what is broadcast onto examples and taken entry by entry: every example gets its own copy."""
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    if all(watch.source(each) for each in tensors) or (_in_place(function) and watch.source(args[0])):
        return NotImplemented
    layout = watch.layout(*tensors)
    if layout is None:
        return NotImplemented
    axes = max(each.ndim for each in tensors)
    if not all(layout.spreads(each, axes) for each in tensors if watch.source(each)):
        return NotImplemented
    given = [watch.spread(each, axes, layout) for each in args]
    return function(*given, **{key: watch.spread(each, axes, layout) for key, each in kwargs.items()})


def attention(
    watch: Watch, function: Function, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Follow a mask that was learnt (biases by relative position): every example gets its own copy."""
    layout = watch.layout(query)
    if layout is None or not (args or "attn_mask" in kwargs) or any(map(watch.source, (query, key, value))):
        return NotImplemented
    mask = args[0] if args else kwargs["attn_mask"]
    if not isinstance(mask, Tensor) or not layout.spreads(mask, query.ndim):
        return NotImplemented
    rest = {name: each for name, each in kwargs.items() if name != "attn_mask"}
    return function(query, key, value, watch.spread(mask, query.ndim, layout), *args[1:], **rest)


def group_norm(
    watch: Watch,
    function: Function,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Follow group normalisation: weight and bias apart."""
    layout = watch.layout(input)
    if layout is None or not layout.leads:
        return NotImplemented
    return _affine(watch, function(input, num_groups, None, None, eps), weight, bias, layout, input.ndim - 2)


def instance_norm(
    watch: Watch,
    function: Function,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Follow instance normalisation: weight and bias apart."""
    layout = watch.layout(input)
    if layout is None or not layout.leads:
        return NotImplemented
    plain = function(input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return _affine(watch, plain, weight, bias, layout, input.ndim - 2)


def rms_norm(
    watch: Watch,
    function: Function,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """Follow root-mean-square normalisation: the weight apart."""
    layout = watch.layout(input)
    if layout is None or not layout.before(input, len(normalized_shape)):
        return NotImplemented
    return _affine(watch, function(input, normalized_shape, None, eps), weight, None, layout, 0)


def prelu(watch: Watch, _: Function, input: Tensor, weight: Tensor) -> Any:
    """Follow `x where x > 0, else w x`, with a weight for each channel or one for all."""
    layout = watch.layout(input)
    if layout is None or not layout.leads:
        return NotImplemented
    return torch.where(input > 0, input, _affine(watch, input, weight, None, layout, max(input.ndim - 2, 0)))


def _affine(
    watch: Watch, x: Tensor, weight: Tensor | None, bias: Tensor | None, layout: Layout, trailing: int
) -> Tensor:
    """Return x w + b, every example with its own copy of w and b, which have no entries for the last axes."""
    for function, each in ((torch.mul, weight), (torch.add, bias)):
        if each is not None:
            shaped = watch.chosen(lambda value: value.reshape(*value.shape, *[1] * trailing), each)
            x = function(x, watch.spread(shaped, x.ndim, layout))
    return x


def _in_place(function: Function) -> bool:
    name = function.__name__
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
