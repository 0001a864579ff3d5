"""DeepLIFT's rescale rule on every function of one number and every max pool, wherever the model calls it.

Shrikumar, Greenside and Kundaje (2017): behind a non-linearity y = f(x) the multiplier is (y - y') / (x - x'), the
primes at the reference; linear operations keep their gradient, so multipliers are one backward pass. Of a max pool
what the maximum gains goes to its place in the example, what it loses to its place in the reference.

The model runs on the references, then on the example; the k-th function of the one belongs to the k-th of the other,
so no axis of the model's tensors needs to be the batch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probes.attribution.backprop_graph import POINTWISE, Operation, kind_of_node, operations
from probes.attribution.errors import AttributionError

Score = Callable[[Tensor], Tensor]
# where x = x' these functions' gradient stands for the multiplier: with a kink only there, smooth ones to rounding
_KINKED = {"Relu", "Threshold", "ClampMin", "ClampMax", "Clamp", "Hardtanh", "LeakyRelu", "PreluKernel", "Elu", "Celu",
           "RreluWithNoise", "Hardswish", "Hardsigmoid", "Hardshrink", "Softshrink", "Abs"}  # fmt: skip
NO_CHANGE = 1e-10
INSTEAD = "Choose integrated gradients instead."


@dataclass(frozen=True)
class Seen:
    """What a function of one number was given and gave, copied before anything could change it."""

    inputs: Tensor
    outputs: Tensor


class Watch(TorchFunctionMode):
    """While it is entered, keep what functions of one number are given and give, by their node of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, Seen] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run any function of torch, then look at what it made."""
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input")
        if not isinstance(given, Tensor) or not torch.is_grad_enabled() or not given.requires_grad:
            return func(*args, **kwargs)
        before, version = given.grad_fn, given._version
        copied = _in_place(func, args, kwargs)
        kept = given.detach().clone() if copied else given.detach()
        found = func(*args, **kwargs)
        if isinstance(found, Tensor) and found.grad_fn is not None and (copied or given._version == version):
            self._keep(found, kept, before)
        return found

    def _keep(self, found: Tensor, kept: Tensor, before: Any) -> None:
        node: Any = found.grad_fn
        if (
            node is before
            or node in self.seen
            or kind_of_node(node.name()) not in POINTWISE
            or found.shape != kept.shape
        ):
            return
        parent = node.next_functions[0][0]
        if parent is before or (before is None and parent.name().endswith("AccumulateGrad")):
            self.seen[node] = Seen(kept.clone(), found.detach().clone())


def _in_place(func: Any, args: Any, kwargs: Any) -> bool:
    name = getattr(func, "__name__", "")
    asked = kwargs.get("inplace") is True or any(each is True for each in args[1:])
    return asked or (name.endswith("_") and not name.endswith("__"))


def watched(score: Score, features: Tensor) -> tuple[Tensor, list[tuple[Operation, Seen | None]]]:
    """Run score(features (B, ...)) -> (B,) and return it with its operations and what was seen of each."""
    watch = Watch()
    with torch.enable_grad(), watch:
        scores = score(features)
    return scores, [(each, watch.seen.get(each.node)) for each in operations(scores)]


def multipliers(score: Score, features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return DeepLIFT's multipliers of one example (1, ...) against references (R, ...), (R, ...), and the scores of
    references and example, (2, R).

    score: features (B, ...) -> (B,). Raises AttributionError where the two runs differ in their operations, or a
    non-linearity ran where its input cannot be read (compiled code, fused layers).
    """
    before, there = watched(score, references.detach().clone().requires_grad_())
    x = features.detach().expand_as(references).clone().requires_grad_()
    scores, here = watched(score, x)
    if [each.kind for each, _ in here] != [each.kind for each, _ in there]:
        raise AttributionError(
            "The model runs other operations on the baseline than on the example, so its activations cannot be "
            f"compared. {INSTEAD}"
        )
    for (made, one), (other, reference) in zip(here, there, strict=True):
        if made.role == "pointwise":
            _rescale(made, one, reference)
        elif made.role == "max pool":
            _pool(made, other)
    (found,) = torch.autograd.grad(scores.sum(), x)
    return found, torch.stack([before.detach(), scores.detach()])


def _rescale(made: Operation, one: Seen | None, reference: Seen | None) -> None:
    if one is None or reference is None:
        raise AttributionError(
            f"A {POINTWISE[made.kind]} of this model runs inside a fused or compiled operation, where its input cannot "
            f"be read, so the rescale rule cannot be applied to it. {INSTEAD}"
        )
    change = one.inputs - reference.inputs
    least = NO_CHANGE if made.kind in _KINKED else torch.finfo(change.dtype).eps ** 0.5 * (1 + one.inputs.abs())
    still = change.abs() < least
    slope = (one.outputs - reference.outputs) / torch.where(still, 1, change)

    def rule(gradients: tuple[Any, ...], above: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.where(still, gradients[0], above[0] * slope), *gradients[1:])

    made.node.register_hook(rule)


def _pool(made: Operation, other: Operation) -> None:
    """Give what the maximum gains to its place in the example, and what it loses to its place in the reference."""
    axes = 3 if "3D" in made.kind else 2
    inputs, places = made.node._saved_self.detach(), made.node._saved_result1
    before, before_places = other.node._saved_self.detach(), other.node._saved_result1
    largest, first = _at(inputs, places, axes), _at(before, before_places, axes)
    most = torch.maximum(largest, first)
    change = inputs - before
    still = change.abs() < NO_CHANGE

    def rule(gradients: tuple[Any, ...], above: tuple[Any, ...]) -> tuple[Any, ...]:
        gained = _scattered(above[0] * (most - first), places, change, axes)
        lost = _scattered(above[0] * (largest - most), before_places, change, axes)
        return (torch.where(still, gradients[0], (gained + lost) / torch.where(still, 1, change)),)

    made.node.register_hook(rule)


def _at(inputs: Tensor, places: Tensor, axes: int) -> Tensor:
    """Read maxima at their places, which count along the last axes of the inputs taken as one."""
    return inputs.flatten(-axes).gather(-1, places.flatten(-axes)).view_as(places)


def _scattered(values: Tensor, places: Tensor, like: Tensor, axes: int) -> Tensor:
    """Add values at their places; windows that overlap may share one."""
    empty = torch.zeros_like(like).flatten(-axes)
    return empty.scatter_add(-1, places.flatten(-axes), values.flatten(-axes)).view_as(like)
