"""Which rule goes with which torch function, its arguments as the function takes them.

A rule answers NotImplemented where it does not hold (where the examples are not along the axis that it needs, say).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from probes.ghost_convolution import Convolve, Steps
from probes.ghost_rules import BatchNorm, LayerNorm, Linear, Lookup
from probes.spread_rules import attention, group_norm, instance_norm, pointwise, prelu, rms_norm

if TYPE_CHECKING:
    from probes.parameter_watch import Watch

Function = Callable[..., Any]


def linear(watch: Watch, _: Function, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Follow `x W' + b`."""
    layout = watch.layout(input)
    if layout is None or watch.source(input) or weight.ndim != 2 or not layout.before(input, 1):
        return NotImplemented
    slots = watch.slot(weight, "linear"), watch.slot(bias, "dense")
    return watch.site(Linear(layout, weight, bias, *slots), input)


def matmul(watch: Watch, function: Function, input: Tensor, other: Tensor) -> Any:
    """Follow `x @ W`, a linear layer whose matrix is stored the other way round."""
    if watch.source(other) is None or other.ndim != 2 or input.ndim < 2:
        return NotImplemented
    return linear(watch, function, input, watch.chosen(torch.t, other))


def addmm(
    watch: Watch, function: Function, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    """Follow `b + x @ W`, as the layers of OpenAI's GPT-2 have it."""
    if (beta, alpha) != (1, 1) or input.ndim != 1:
        return NotImplemented
    return linear(watch, function, mat1, watch.chosen(torch.t, mat2), input)


def embedding(
    watch: Watch,
    _: Function,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001
) -> Any:
    """Follow a look-up of rows, with ids for every example."""
    layout = watch.layout(input)
    if max_norm is not None or scale_grad_by_freq or weight.ndim != 2:
        return NotImplemented
    if layout is None:  # positions, say: the same rows for every example
        once = padding_idx is None and len(input.unique()) == input.numel()
        return watch.chosen(lambda rows: functional.embedding(input, rows), weight) if once else NotImplemented
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    ids = layout.split(input).reshape(layout.count, -1)
    slot = watch.slot(weight, "lookup", ids)
    return NotImplemented if slot is None else watch.site(Lookup(layout, weight, padding_idx, slot), input)


def getitem(watch: Watch, function: Function, input: Tensor, index: Any) -> Any:
    """Follow `W[ids]`, with ids for every example."""
    if (
        not isinstance(index, Tensor)
        or index.is_floating_point()
        or index.dtype == torch.bool
        or bool((index < 0).any())
    ):
        return NotImplemented
    return embedding(watch, function, index, input)


def convolution(
    watch: Watch,
    _: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Any:
    """Follow a convolution in any number of dimensions."""
    layout = watch.layout(input)
    if layout is None or watch.source(input) or not layout.leads or input.ndim != weight.ndim:
        return NotImplemented
    axes = weight.ndim - 2
    strides, dilations = _each(stride, axes), _each(dilation, axes)
    if isinstance(padding, str):
        input, paddings = _padded(input, padding, weight, dilations)
    else:
        paddings = _each(padding, axes)
    steps = Steps(strides, paddings, dilations, groups)
    slots = watch.slot(weight, "dense"), watch.slot(bias, "dense")
    return watch.site(Convolve(layout, steps, weight, bias, *slots), input)


def transposed_convolution(
    watch: Watch,
    _: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Any:
    """Follow a transposed convolution."""
    layout = watch.layout(input)
    if layout is None or watch.source(input) or not layout.leads or input.ndim != weight.ndim:
        return NotImplemented
    strides, paddings, extra, dilations = (
        _each(given, weight.ndim - 2) for given in (stride, padding, output_padding, dilation)
    )
    steps = Steps(strides, paddings, dilations, groups, transposed=True, extra=extra)
    slots = watch.slot(weight, "dense"), watch.slot(bias, "dense")
    return watch.site(Convolve(layout, steps, weight, bias, *slots), input)


def layer_norm(
    watch: Watch,
    _: Function,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Follow layer normalisation."""
    layout, shape = watch.layout(input), tuple(normalized_shape)
    if layout is None or watch.source(input) or not layout.before(input, len(shape)):
        return NotImplemented
    slots = watch.slot(weight, "dense"), watch.slot(bias, "dense")
    return watch.site(LayerNorm(layout, shape, weight, bias, eps, *slots), input)


def batch_norm(
    watch: Watch,
    _: Function,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Any:
    """Follow batch normalisation by running statistics."""
    layout = watch.layout(input)
    if layout is None or training or running_mean is None or running_var is None or not layout.leads:
        return NotImplemented
    slots = watch.slot(weight, "dense"), watch.slot(bias, "dense")
    return watch.site(BatchNorm(layout, running_mean, running_var, weight, bias, eps, *slots), input)


def _padded(input: Tensor, how: str, weight: Tensor, dilations: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """Turn "same" and "valid" into numbers; where the sides differ, pad the input by the difference."""
    if how == "valid":
        return input, (0,) * len(dilations)
    totals = [step * (size - 1) for step, size in zip(dilations, weight.shape[2:], strict=True)]
    if any(total % 2 for total in totals):
        input = functional.pad(input, [side for total in reversed(totals) for side in (0, total % 2)])
    return input, tuple(total // 2 for total in totals)


def _each(given: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (given,) if isinstance(given, int) else tuple(given)
    return values * axes if len(values) == 1 else values


_POINTWISE = (
    "add sub mul div true_divide addcmul addcdiv lerp where maximum minimum rsub subtract multiply divide "
    "add_ sub_ mul_ div_ addcmul_ lerp_ __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ "
    "__truediv__ __rtruediv__ __itruediv__"
)


def _named(names: str, *owners: Any) -> Iterator[Function]:
    for name in names.split():
        yield from (getattr(owner, name) for owner in owners if hasattr(owner, name))


RULES: Mapping[Function, Callable[..., Any]] = {
    functional.linear: linear,
    **dict.fromkeys(_named("matmul mm __matmul__", torch, Tensor), matmul),
    **dict.fromkeys(_named("addmm", torch, Tensor), addmm),
    functional.embedding: embedding,
    Tensor.__getitem__: getitem,
    **dict.fromkeys(_named("conv1d conv2d conv3d", torch, functional), convolution),
    **dict.fromkeys(
        _named("conv_transpose1d conv_transpose2d conv_transpose3d", torch, functional), transposed_convolution
    ),
    functional.layer_norm: layer_norm,
    functional.batch_norm: batch_norm,
    functional.group_norm: group_norm,
    functional.instance_norm: instance_norm,
    functional.rms_norm: rms_norm,
    functional.prelu: prelu,
    functional.scaled_dot_product_attention: attention,
    **dict.fromkeys(_named(_POINTWISE, torch, Tensor), pointwise),
}
