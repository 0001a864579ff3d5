"""The steps that a model takes: its calls of torch functions, and where in their tensors the examples are.

A pass with one example is compared with a pass with two: the axis that grows is that of the examples.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]


class Unfollowed(RuntimeError):
    """The model does not take the same steps for every number of examples."""


@dataclass(frozen=True)
class Growth:
    """The axis of a tensor that grows with the examples: `inner` rows for each, together or `apart`."""

    axis: int
    inner: int
    apart: bool


@dataclass(frozen=True)
class Call:
    """One call of a torch function: how the tensors that go in and come out grow, None for those that do not."""

    function: Function
    inputs: tuple[Growth | None, ...]
    outputs: tuple[Growth | None, ...]


class Recorder(TorchFunctionMode):
    """Note the calls of a forward pass of one example, and then compare them with those of two."""

    def __init__(self, one: Recorder | None = None) -> None:
        super().__init__()
        self.notes: list[tuple[Function, list[Tensor], list[Tensor]]] = []
        self.calls: list[Call] = []
        self._one = one

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and note it."""
        kwargs = kwargs or {}
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        inputs = list(tensors_in((args, kwargs)))
        result = func(*args, **kwargs)
        outputs = list(tensors_in(result))
        if self._one is None:
            self.notes.append((func, inputs, outputs))
        else:
            self.calls.append(self._compared(self._one, func, inputs, outputs))
        return result

    def _compared(self, one: Recorder, func: Function, inputs: list[Tensor], outputs: list[Tensor]) -> Call:
        function, before, after = one.notes[len(self.calls)] if len(self.calls) < len(one.notes) else (None, [], [])
        if function != func:
            raise Unfollowed
        return Call(func, _growths(before, inputs), _growths(after, outputs))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results, however they are nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def _growths(one: Sequence[Tensor], two: Sequence[Tensor]) -> tuple[Growth | None, ...]:
    """Compare the tensors of a call with one example and with two."""
    if len(one) != len(two):
        raise Unfollowed
    return tuple(_growth(*pair) for pair in zip(one, two, strict=True))


def _growth(one: Tensor, two: Tensor) -> Growth | None:
    if one.ndim != two.ndim:
        raise Unfollowed
    grown = [axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]]
    if not grown:
        return None
    axis, inner = grown[0], one.shape[grown[0]]
    if len(grown) > 1 or two.shape[axis] != 2 * inner:
        raise Unfollowed
    if inner == 1:
        return Growth(axis, 1, apart=False)
    rows = two.movedim(axis, 0)
    together, apart = (
        (one.movedim(axis, 0).double() - each.double()).abs().sum() for each in (rows[:inner], rows[::2])
    )
    return Growth(axis, inner, bool(apart < together))


def _opened(function: Any) -> Function:
    """Return a function of functions that does not hand itself over whole, so that its parts are seen."""
    scope = {**function.__globals__, "has_torch_function": lambda _: False}
    return types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


OPENED = {functional.multi_head_attention_forward: _opened(functional.multi_head_attention_forward)}
