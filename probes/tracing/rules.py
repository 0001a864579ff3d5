"""What each operation does to wires. An operation that is not here leaves everything that enters it in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probes.tracing.moving import joined_along, moved
from probes.tracing.values import NoRule, Shape, Value, joined, pinned, spread
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
    "numpy_T mT index_select index diagonal rot90 im2col tile broadcast_to select_copy slice_copy view_copy "
    "unsafe_split unsafe_chunk fliplr flipud"
)
def moving(step: Step) -> Value | list[Value]:
    """Follow the elements."""
    name = next(key for key in ("self", "input") if key in step.given)
    value: Value = step.given[name]
    others = [each for each in step.values() if each is not value]
    if "dtype" in step.given or (any(each.known is None for each in others) and "_as" not in step.target._schema.name):
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
