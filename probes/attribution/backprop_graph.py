"""The operations between the features and a score, as autograd recorded them: nothing that ran can hide there.

Modules tell what a model could call, the graph of its backward pass what it did call: functional activations, modules
used twice and operators between modules all are nodes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from probes.attribution.errors import AttributionError
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case

Role = Literal["linear", "pointwise", "max pool", "other"]

# linear in all their differentiable inputs together
_SUM_NAMES = """
    AccumulateGrad Add Sub Rsub Neg View UnsafeView ReshapeAlias Transpose T Permute Squeeze Unsqueeze Expand Select
    Slice Narrow Index IndexSelect Gather Cat Stack Split SplitWithSizes SafeSplit Unbind Mean Sum AvgPool2D
    AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D ConstantPadNd ReflectionPad1D
    ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D UpsampleNearest1D
    UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D
    UpsampleLinear1D UpsampleBilinear2D UpsampleBilinear2DAa UpsampleBicubic2D UpsampleTrilinear3D Clone Copy
    Contiguous ToCopy Alias AsStrided Repeat Flip Roll PixelShuffle PixelUnshuffle Cumsum Diagonal Unfold Im2Col
    Col2Im Flatten Movedim Trace
"""
_SUMS = frozenset(_SUM_NAMES.split())
# linear in each of these inputs while the others are constant: of a product only one may depend on the features
_FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("Mul", "Mm", "Bmm", "Mv", "Dot", "Linear", "MkldnnLinear", "Convolution", "ConvolutionOverrideable"), (0, 1)
    ),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm", "Addmv", "Addcmul"), (1, 2)),
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNorm"), (0, 1)),
}
# functions of one number, by the names that people know
POINTWISE = {
    "Relu": "ReLU", "Threshold": "threshold", "ClampMin": "clamp", "ClampMax": "clamp", "Clamp": "clamp",
    "Hardtanh": "hardtanh (ReLU6)", "LeakyRelu": "leaky ReLU", "PreluKernel": "PReLU", "RreluWithNoise": "RReLU",
    "Elu": "ELU", "Celu": "CELU", "Gelu": "GELU", "Silu": "SiLU", "Mish": "Mish", "Tanh": "tanh",
    "Sigmoid": "sigmoid", "LogSigmoid": "log-sigmoid", "Softplus": "softplus", "Hardswish": "hard swish",
    "Hardsigmoid": "hard sigmoid", "Hardshrink": "hard shrink", "Softshrink": "soft shrink", "Exp": "exp",
    "Log": "log", "Log1P": "log", "Sqrt": "square root", "Rsqrt": "inverse square root", "Reciprocal": "reciprocal",
    "Pow": "power", "Abs": "absolute value", "Erf": "erf", "Sin": "sine", "Cos": "cosine",
}  # fmt: skip
MAX_POOLS = {"MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D"}
_SAID = {
    "NativeLayerNorm": "layer norm", "FusedRmsNorm": "RMS norm", "NativeGroupNorm": "group norm",
    "Softmax": "softmax", "SafeSoftmax": "softmax (attention)", "LogSoftmax": "log-softmax",
    "Glu": "gated linear units", "Max": "maximum over an axis", "Amax": "maximum over an axis",
    "Where": "a choice by condition", "Maximum": "maximum of two tensors", "CopySlices": "changes in place of a part",
    "LinalgVectorNorm": "vector norm",
}  # fmt: skip
_PRODUCT = "activations multiplied with each other (attention, gates, norms)"
_QUOTIENT = "division by activations"
_BATCH_STATISTICS = "normalisation by the statistics of the activations"


@dataclass(frozen=True)
class Operation:
    """One node. kind: autograd's name without "Backward"; label: its name for people; role: how rules see it.

    rectifies: it is max(x, 0), perhaps with a ceiling. node: None where only the names are kept.
    """

    kind: str
    label: str
    role: Role
    node: Any
    rectifies: bool = False


def operations(score: Tensor) -> list[Operation]:
    """List every operation between a score and the tensors it was differentiated from, in one order for one model."""
    found: list[Operation] = []
    seen: set[Any] = set()
    waiting = [score.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(operation(node))
        waiting += [each[0] for each in node.next_functions]
    return found


def operation(node: Any) -> Operation:
    """Say what a node of the backward graph does."""
    kind = kind_of_node(node.name())
    depends = [at for at, each in enumerate(node.next_functions) if each[0] is not None]
    if kind in POINTWISE:
        role: Role = "pointwise" if depends == [0] else "other"
        return Operation(kind, POINTWISE[kind], role, node, _rectifies(kind, node))
    if kind in MAX_POOLS:
        return Operation(kind, "max pool", "max pool", node)
    label = _not_linear(kind, depends, node)
    return Operation(kind, label or kind, "other" if label else "linear", node)


@lru_cache(maxsize=1024)
def kind_of_node(name: str) -> str:
    """Return autograd's name of an operation without "Backward" and its overload's number."""
    return re.sub(r"Backwards?\d*$", "", name.rsplit("::", 1)[-1])


def _rectifies(kind: str, node: Any) -> bool:
    if kind in ("ClampMin", "Clamp"):
        return getattr(node, "_saved_min", None) == 0
    return kind == "Relu" or (kind == "Hardtanh" and node._saved_min_val == 0)


def _not_linear(kind: str, depends: list[int], node: Any) -> str:
    """Return why a node is not linear in what depends on the features; "" where it is."""
    if kind in _SUMS:
        return ""
    if kind in _FACTORS:
        if getattr(node, "_saved_training", False):
            return _BATCH_STATISTICS
        return _PRODUCT if len(set(depends) & set(_FACTORS[kind])) > 1 else ""
    if kind == "Div":
        return "" if depends == [0] else _QUOTIENT
    return _SAID.get(kind, f"{kind} (an operation without a rule)")


def operations_of(case: Case) -> tuple[Operation, ...]:
    """Return the operations of a case's model, without their nodes; found once for a case."""
    return case.once("operations", lambda: _found(case))


def labels(found: tuple[Operation, ...], *roles: Role) -> tuple[str, ...]:
    """Return the names for people of the operations of these roles, each once."""
    return tuple(dict.fromkeys(each.label for each in found if each.role in roles))


def spoken(names: tuple[str, ...]) -> str:
    """Join names as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _found(case: Case) -> tuple[Operation, ...]:
    score = differentiated(case)[1]
    return tuple(replace(each, node=None) for each in operations(score))


def differentiated(case: Case) -> tuple[Tensor, Tensor]:
    """Return the example's features as a leaf (1, ...) and its score (1,) with the graph between them."""
    features = case.features.detach().clone().requires_grad_()
    with torch.enable_grad(), strict(case.module):
        score = case.scores(features)
    if not score.requires_grad:
        raise AttributionError(
            "The score does not depend on the features by any path that can be differentiated; choose a method that "
            "only runs the model forward, such as occlusion."
        )
    return features, score
