"""What layers do to wires: products, normalisations, attention, pools."""

from __future__ import annotations

from typing import Any

import torch

from probes.tracing.contractions import attention, convolution, embedding, linear, matmul
from probes.tracing.moving import moved
from probes.tracing.rules import RULES, Rule, Step, elementwise, left, moving, rule
from probes.tracing.values import Value, fixed, joined, pinned, reduced, spread


def rule_for(target: Any) -> Rule | None:
    """Return the rule of an operation, None where there is none."""
    found = RULES.get(target._schema.name.rstrip("_") if target._schema.is_mutable else target._schema.name)
    return elementwise if found is None and torch.Tag.pointwise in target.tags else found


@rule("linear")
def _linear(step: Step) -> Value:
    return linear(step.wires, step["input"], step["weight"], step["bias"])


@rule("matmul mm bmm mv dot")
def _matmul(step: Step) -> Value:
    return matmul(step.wires, step["self"], step.value("other", "mat2", "vec", "tensor"))


@rule("addmm baddbmm")
def _addmm(step: Step) -> Value:
    product = matmul(step.wires, step.value("mat1", "batch1"), step.value("mat2", "batch2"))
    return joined(step.wires, [product, step["self"]])


@rule("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d")
def _convolution(step: Step) -> Value | list[Value]:
    inputs, name = step.value("input"), step.target._schema.name
    transposed = bool(step["transposed"]) or "transpose" in name
    if len(inputs.shape) != len(step["weight"].shape):
        return left(step)
    options: dict[str, Any] = {"groups": step["groups"] or 1, "transposed": transposed, "name": step.weight}
    return convolution(step.wires, inputs, step["weight"], step["bias"], step.shape, **options)


@rule("embedding")
def _embedding(step: Step) -> Value:
    return embedding(step.wires, step["weight"], step["indices"])


@rule("scaled_dot_product_attention")
def _attention(step: Step) -> Value:
    parts = [step["query"], step["key"], step["value"]]
    return attention(step.wires, parts, step["attn_mask"], step.where, shared=bool(step["enable_gqa"]))


@rule(
    "batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit _native_batch_norm_legit_functional "
    "native_batch_norm cudnn_batch_norm instance_norm prelu _prelu_kernel"
)
def channelwise(step: Step) -> Value | list[Value]:
    """Apply numbers of each channel to it."""
    inputs, *others = step.values()
    name = step.target._schema.name
    ndim = len(inputs.shape)
    own = (
        range(2, ndim) if "instance" in name else [each for each in range(ndim) if each != 1] if "norm" in name else ()
    )
    inputs = joined(step.wires, [inputs, reduced(step.wires, inputs, own)]) if own else inputs  # by its own statistics
    wide = [each if len(each.shape) == ndim else spread(each, [0, *range(2, ndim)]) for each in others if ndim > 1]
    found = joined(step.wires, [inputs, *wide])
    returns = len(step.target._schema.returns)
    return [found, *[Value((0,))] * (returns - 1)] if returns > 1 else found


@rule("layer_norm rms_norm native_layer_norm")
def normalised(step: Step) -> Value | list[Value]:
    """Normalise over the last axes, then scale each position."""
    inputs, *others = step.values()
    axes = range(-len(step["normalized_shape"]), 0)
    found = joined(step.wires, [inputs, reduced(step.wires, inputs, axes), *others])
    return [found, Value((0,)), Value((0,))] if "native" in step.target._schema.name else found


@rule("group_norm native_group_norm")
def group_normalised(step: Step) -> Value | list[Value]:
    """Normalise over groups of channels: channels stay within theirs."""
    inputs, *others = step.values()
    groups, channels = step.given.get("num_groups", step["group"]), inputs.shape[1]
    parts = moved(step.wires, inputs, lambda each: each.unflatten(1, (groups, channels // groups)), step.where)[0]
    parts = joined(step.wires, [parts, reduced(step.wires, parts, range(2, len(parts.shape)))])
    whole = moved(step.wires, parts, lambda each: each.flatten(1, 2), step.where)[0]
    wide = [spread(each, [0, *range(2, len(inputs.shape))]) for each in others]
    found = joined(step.wires, [whole, *wide])
    return [found, Value((0,)), Value((0,))] if "native" in step.target._schema.name else found


@rule("softmax _softmax log_softmax _log_softmax softmin ")
def softened(step: Step) -> Value:
    """Normalise over an axis."""
    inputs = step.value("self", "input")
    return joined(step.wires, [inputs, reduced(step.wires, inputs, [step["dim"]])])


@rule("mean sum amax amin var std prod logsumexp linalg_vector_norm norm all any var_mean std_mean nansum max min")
def summed(step: Step) -> Value | list[Value]:
    """Sum over axes, or the like: what lies along them may be in any order."""
    if "other" in step.given:
        return elementwise(step)
    inputs = step.value("self", "input")
    axes = step["dim"]
    axes = range(len(inputs.shape)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    found = reduced(step.wires, inputs, list(axes), keep=bool(step["keepdim"]))
    several = len(step.target._schema.returns) > 1
    if several and "mean" not in step.target._schema.name:
        return left(step)  # where the largest lies is a place
    return [found, found] if several else found


@rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d "
    "upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d "
    "reflection_pad2d replication_pad1d replication_pad2d replication_pad3d reflection_pad3d grid_sampler "
    "grid_sampler_2d lp_pool2d adaptive_max_pool3d"
)
def pooled(step: Step) -> Value | list[Value]:
    """Work within each channel: pixels stay, channels pass."""
    inputs, *others = step.values()
    pinned(step.wires, *others)
    spatial = range(2, len(step.shape)) if len(step.shape) > 2 else range(1, len(step.shape))
    still = fixed(step.wires, inputs, spatial)
    found = Value(step.shape, still.components)
    return [found, found] if len(step.target._schema.returns) > 1 else found


@rule("pad")
def padded(step: Step) -> Value | list[Value]:
    """Pad with a constant by following the elements, else within each channel."""
    return moving(step) if step["mode"] in (None, "constant") else pooled(step)


@rule("glu")
def gated(step: Step) -> Value:
    """Multiply one half by the sigmoid of the other."""
    axis = -1 if step["dim"] is None else step["dim"]
    return joined(step.wires, moved(step.wires, step["self"], lambda each: each.chunk(2, axis), step.where))


@rule("cumsum cumprod logcumsumexp")
def ordered(step: Step) -> Value | list[Value]:
    """Work along one axis, whose order counts."""
    found = fixed(step.wires, step.value("self", "input"), [step["dim"]])
    return [found, found] if len(step.target._schema.returns) > 1 else found


@rule("_weight_norm")
def weight_normalised(step: Step) -> Value:
    """Give each slice of a weight its own length."""
    weight = step.value("v")
    others = [axis for axis in range(len(weight.shape)) if axis != (step["dim"] or 0)]
    return joined(step.wires, [weight, step["g"], reduced(step.wires, weight, others)])
