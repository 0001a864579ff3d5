"""Follow every parameter through a forward pass, into whatever function it goes, and let a rule take its part there.

Parameters are constants in that pass, so that no gradient of a weight is computed on the way back; the rules see the
gradients of the outputs instead. Whether every use was seen is checked elsewhere, against autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probes.ghost_ledger import Ledger, Slot, Source
from probes.ghost_rules import Layout, Seed, Site, Use
from probes.parameter_steps import OPENED, Call, Function, Growth, Unfollowed, tensors_in


class Watch(TorchFunctionMode):
    """Follow parameters through the forward pass of `count` examples.

    parameters: index -> the very tensors that the model is given. calls: the steps of that pass. rules: torch
    function -> what to do where a parameter goes into it. lost: parameters that went where nothing follows them.
    """

    def __init__(
        self, parameters: Mapping[int, Tensor], calls: Sequence[Call], count: int, rules: Mapping[Function, Any]
    ) -> None:
        super().__init__()
        self.ledger = Ledger(parameters)
        self.lost: set[int] = set()
        self.root = torch.zeros((), device=next(iter(parameters.values())).device, requires_grad=True)
        self._count, self._calls, self._rules = count, calls, rules
        self._sources = {
            id(each): Source(each, (index,), lambda value: value, selects=True) for index, each in parameters.items()
        }
        self._position = 0
        self._now: dict[int, Growth | None] = {}

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, by its rule where a parameter goes in."""
        kwargs = kwargs or {}
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        call = self._step(func)
        tensors = list(tensors_in((args, kwargs)))
        if not any(id(each) in self._sources for each in tensors) or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if len(tensors) != len(call.inputs):
            raise Unfollowed
        self._now = {id(each): growth for each, growth in zip(tensors, call.inputs, strict=True)}
        rule = self._rules.get(func)
        result = NotImplemented if rule is None else rule(self, func, *args, **kwargs)
        return self._unruled(call, args, kwargs) if result is NotImplemented else result

    def finish(self) -> None:
        """Say that the forward pass is over; raise Unfollowed where it had fewer steps than that of one example."""
        if self._position != len(self._calls):
            raise Unfollowed
        self._sources.clear()
        self.ledger.settle()

    def source(self, each: object) -> Source | None:
        """Return what is known of a tensor: None for one that no followed parameter is in."""
        return self._sources.get(id(each))

    def slot(self, each: object, kind: str, ids: Tensor | None = None) -> Slot | None:
        """Announce a use of a tensor; None where no followed parameter is in it."""
        source = self.source(each)
        return None if source is None else self.ledger.slot(source, kind, ids)

    def layout(self, *tensors: Tensor) -> Layout | None:
        """Say where the examples are in an argument of the present call, or in several broadcast; None for nowhere."""
        axes = max(each.ndim for each in tensors)
        grown = {self._layout(self._now[id(each)], axes - each.ndim) for each in tensors} - {None}
        if len(grown) > 1:
            raise Unfollowed
        return next(iter(grown), None)

    def chosen(self, function: Function, each: Tensor) -> Tensor:
        """Compute something that only selects or reorders entries, each at most once, and follow that, too."""
        result: Tensor = function(each)
        source = self.source(each)
        if source is not None:
            inner = source.function
            follow = lambda *parents: function(inner(*parents))
            self._sources[id(result)] = Source(result, source.parents, follow, source.selects)
        return result

    def site(self, use: Use, x: Tensor) -> Tensor:
        """Run an operation on examples by its rule."""
        return Site.apply(self.root, use, x)  # type: ignore[no-any-return]

    def spread(self, each: Any, axes: int, layout: Layout) -> Any:
        """Give every example its own copy of what broadcasts onto a tensor of so many axes; other things stay."""
        source = self.source(each)
        if source is None:
            return each
        wide = each[(None,) * (axes - each.ndim)]
        value = wide.expand([layout.count * layout.inner if i == layout.axis else -1 for i in range(axes)])
        return Seed.apply(self.root, value, self.ledger.slot(source, "dense"), layout)

    def _step(self, func: Function) -> Call:
        if self._position >= len(self._calls) or self._calls[self._position].function != func:
            raise Unfollowed
        self._position += 1
        return self._calls[self._position - 1]

    def _layout(self, growth: Growth | None, shift: int = 0) -> Layout | None:
        return None if growth is None else Layout(self._count, growth.axis + shift, growth.inner, growth.apart)

    def _unruled(self, call: Call, args: Any, kwargs: Any) -> Any:
        """Follow what is computed of parameters alone or copied for each example; give up what goes elsewhere."""
        result = call.function(*args, **kwargs)
        found = list(tensors_in(result))
        if not any(each.is_floating_point() for each in found) or call.function in CONSTANT:
            return result
        if len(found) != len(call.outputs):
            raise Unfollowed
        grown = any(growth is not None for growth in call.outputs)
        if not any(each.requires_grad for each in found):
            if not grown:
                return self._derived(call.function, args, kwargs, result)
            if call.function in COPYING and self.source(args[0]) is not None:
                return self._copied(call, args, kwargs, result)
        known = [source for source in map(self.source, tensors_in((args, kwargs))) if source is not None]
        self.lost.update(index for source in known for index in source.parents)
        return result

    def _copied(self, call: Call, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        """Follow what the model itself copies for every example: each uses the first copy."""
        layout = self._layout(call.outputs[0])
        if layout is None:
            raise Unfollowed
        first = lambda *given, **named: layout.split(call.function(*given, **named))[0]
        base, value = self._sources[id(args[0])], layout.split(result)[0]
        parents, follow = self._replay(first, args, kwargs)
        source = Source(value, parents, follow, base.selects and value.numel() == base.value.numel())
        return Seed.apply(self.root, result, self.ledger.slot(source, "dense"), layout)  # type: ignore[no-any-return]

    def _derived(self, function: Function, args: Any, kwargs: Any, result: Any) -> Any:
        """Follow the tensors of a result that was computed of parameters alone."""
        parents, replay = self._replay(function, args, kwargs)
        base = self.source(args[0]) if args and function in SELECTING else None
        for place, each in enumerate(tensors_in(result)):
            follow = lambda *tensors, place=place: list(tensors_in(replay(*tensors)))[place]
            selects = base is not None and base.selects and _once(base.value, each)
            self._sources[id(each)] = Source(each, parents, follow, selects)
        return result

    def _replay(self, function: Function, args: Any, kwargs: Any) -> tuple[tuple[int, ...], Function]:
        """Return the parents of the arguments, and the call as a function of them."""
        found = [source for source in map(self.source, tensors_in((args, kwargs))) if source is not None]
        parents = tuple(dict.fromkeys(index for source in found for index in source.parents))

        def replay(*tensors: Tensor) -> Any:
            given = dict(zip(parents, tensors, strict=True))
            values = {id(each.value): each.function(*(given[index] for index in each.parents)) for each in found}
            put = lambda each: values.get(id(each), each)
            return function(*_mapped(args, put), **_mapped(kwargs, put))

        return parents, replay


def _once(base: Tensor, each: Tensor) -> bool:
    """Tell whether a view or a copy has every entry at most once."""
    if each.untyped_storage().data_ptr() == base.untyped_storage().data_ptr():
        return all(step for size, step in zip(each.shape, each.stride(), strict=True) if size > 1)
    return each.numel() == base.numel()


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple | list):
        return type(value)([_mapped(each, change) for each in value])
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    return change(value)


def _named(names: str) -> tuple[Function, ...]:
    owners = [(owner, name) for name in names.split() for owner in (torch, Tensor)]
    return tuple(getattr(owner, name) for owner, name in owners if hasattr(owner, name))


def _getters(names: str) -> tuple[Function, ...]:
    return tuple(getattr(Tensor, name).__get__ for name in names.split())


CONSTANT = {*_named("detach"), *_getters("data")}
COPYING = set(_named("expand expand_as repeat tile broadcast_to"))
SELECTING = {
    *_named(
        "view view_as reshape t transpose permute unsqueeze squeeze flatten unflatten select narrow chunk split unbind "
        "tensor_split swapaxes movedim contiguous clone to float double type_as"
    ),
    *_getters("T mT"),
    Tensor.__getitem__,  # slices share the storage; what lists pick does not, and may pick twice
}
