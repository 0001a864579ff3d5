"""What each operation does to wires. An operation that is not here leaves everything that enters it in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probes.tracing.contractions import attention, convolution, embedding, linear, matmul
from probes.tracing.moving import joined_along, moved
from probes.tracing.values import NoRule, Shape, Value, fixed, joined, pinned, reduced, spread
from probes.tracing.wires import Wires


@dataclass(frozen=True, eq=False)
class Step:
    """An operation: its arguments by the names of its schema, tensors as values; shape: of its (first) result.

    weight: the name of the parameter that is its weight, where it is one as it is.
    """

    wires: Wires
    target: Any
    given: Mapping[str, Any]
    shape: Shape
    where: str
    weight: str | None = None

    def __getitem__(self, name: str) -> Any:
        """Return an argument, None where it is left out."""
        return self.given.get(name)

    def value(self, *names: str) -> Value:
        """Return the tensor argument of the first of these names that is given."""
        found: Value = next(self.given[name] for name in names if name in self.given)
        return found

    def values(self) -> list[Value]:
        """Return all tensor arguments, also those in lists."""
        flat = [each for part in self.given.values() for each in (part if isinstance(part, list | tuple) else [part])]
        return [each for each in flat if isinstance(each, Value)]


Rule = Callable[[Step], Value | list[Value]]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys((f"aten::{name}" for name in names.split()), function))
        return function

    return register


def rule_for(target: Any) -> Rule | None:
    """Return the rule of an operation, None where there is none."""
    found = RULES.get(target._schema.name.rstrip("_") if target._schema.is_mutable else target._schema.name)
    return elementwise if found is None and torch.Tag.pointwise in target.tags else found


@rule(
    "clone contiguous detach alias dropout feature_dropout alpha_dropout _to_copy to type_as relu6 hardswish gelu "
    "_assert_tensor_metadata lift_fresh_copy where masked_fill sub rsub add addcmul addcdiv lerp softplus mish selu "
    "celu elu rrelu logit square positive"
)
def elementwise(step: Step) -> Value:
    """Pass wires on; those of two tensors that meet move together."""
    found = joined(step.wires, step.values())
    if step.target._schema.name == "aten::add":
        step.wires.sums.extend(found.components)
    return found


@rule(
    "view _unsafe_view reshape permute transpose t slice select unsqueeze squeeze expand expand_as repeat split "
    "split_with_sizes chunk tensor_split unbind flip roll constant_pad_nd pixel_shuffle pixel_unshuffle "
    "channel_shuffle unfold narrow movedim repeat_interleave flatten unflatten view_as reshape_as swapaxes "
    "numpy_T mT as_strided index_select index diagonal rot90 im2col tile broadcast_to select_copy slice_copy view_copy "
    "unsafe_split unsafe_chunk fliplr flipud"
)
def moving(step: Step) -> Value | list[Value]:
    """Follow the elements."""
    name = next(key for key in ("self", "input") if key in step.given)
    value: Value = step.given[name]
    others = [each for each in step.values() if each is not value]
    if any(each.known is None for each in others) and "_as" not in step.target._schema.name:
        return left(step)
    found = moved(step.wires, value, lambda numbers: step.target(**_numbers(step, name, numbers)), step.where)
    return found if isinstance(step.target._schema.returns[0].type, torch.ListType) else found[0]


@rule("new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like")
def constant(step: Step) -> Value:
    """Make a constant of a tensor's kind, whose numbers do not count."""
    return Value(step.shape, (), frozenset(range(len(step.shape))))


@rule("cat concat")
def concatenated(step: Step) -> Value:
    """Put tensors side by side."""
    return joined_along(step.wires, step["tensors"], step["dim"] or 0, step.where)


@rule("stack")
def stacked(step: Step) -> Value:
    """Put tensors side by side along a new axis."""
    axis = (step["dim"] or 0) % len(step.shape)
    return joined_along(step.wires, [spread(each, [axis]) for each in step["tensors"]], axis, step.where)


@rule("slice_scatter")
def overwritten(step: Step) -> Value | list[Value]:
    """Put a tensor in the place of a part of another."""
    whole, part, axis = step.value("self"), step.value("src"), step["dim"] or 0
    size = whole.shape[axis]
    start, stop, _ = slice(step["start"], step["end"]).indices(size)
    if (step["step"] or 1) != 1:
        return left(step)
    cut = lambda a, b: moved(step.wires, whole, lambda numbers: numbers.narrow(axis, a, b - a), step.where)
    pieces = [*(cut(0, start) if start else []), part, *(cut(stop, size) if stop < size else [])]
    return joined_along(step.wires, pieces, axis, step.where)


@rule("select_scatter")
def overwritten_one(step: Step) -> Value | list[Value]:
    """Put a tensor in the place of one position of another."""
    axis = step["dim"] % len(step.shape)
    index = step["index"] % step.shape[axis]
    given = {"self": step["self"], "src": spread(step["src"], [axis]), "dim": axis, "start": index, "end": index + 1}
    return overwritten(Step(step.wires, step.target, given, step.shape, step.where))


@rule("copy expand_copy")
def copied(step: Step) -> Value:
    """Take the numbers of the second tensor."""
    source = step.value("src")
    return joined(step.wires, [source, Value(step.shape, (), frozenset(range(len(step.shape))))])


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


def left(step: Step) -> Value | list[Value]:
    """Leave what enters an operation in its place; the results start anew, each position in its own place."""
    pinned(step.wires, *step.values())
    raise NoRule


def _numbers(step: Step, name: str, numbers: Tensor) -> dict[str, Any]:
    """Return the arguments of an operation that only moves elements, with their numbers in the tensor's place."""

    def concrete(given: Any) -> Any:
        if isinstance(given, Value):
            return given.known if given.known is not None else torch.empty(given.shape)
        return [concrete(each) for each in given] if isinstance(given, list | tuple) else given

    given = {key: concrete(each) for key, each in step.given.items() if key != name}
    if "pad" in step.target._schema.name:
        given["value"] = -1
    return {**given, name: numbers}
