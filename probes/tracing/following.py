"""A model's operations, as torch.export writes them down, followed one by one with the wires of each tensor."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from probes.tracing.rules import Step
from probes.tracing.rules_of_layers import rule_for
from probes.tracing.values import NoRule, Shape, Value, pinned
from probes.tracing.wires import Atom, Wires

_KNOWN = 1 << 22  # elements of a constant that is computed


@dataclass(frozen=True)
class Program:
    """A model written down: its operations, and what each placeholder stands for.

    tensors: placeholder -> the name of a parameter or buffer. constants: placeholder or attribute -> its numbers.
    kernels: the names of convolutions' weights, whose axes from the third on are places. fixed: the names of buffers
    that are no statistics: tables and masks, the same in every checkpoint.
    """

    graph: fx.Graph
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    kernels: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()


@dataclass
class Followed:
    """The wires of a model; unknown: (operation, layer) that had no rule; makers: weight -> the operation it is of."""

    wires: Wires = field(default_factory=Wires)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    makers: dict[str, str] = field(default_factory=dict)


def follow(program: Program) -> Followed:
    """Follow the wires from parameters to outputs."""
    found = Followed()
    held: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            held[node] = _placeholder(program, node)
        elif node.op == "get_attr":
            held[node] = _constant(program.constants.get(str(node.target)))
        elif node.op == "call_function":
            held[node] = _called(found, held, node)
        elif node.op == "output":
            for each in node.all_input_nodes:
                pinned(found.wires, *_tensors(_seen(found.wires, held[each])))
    found.makers |= {name: "conv" for name in program.kernels if name not in found.makers}
    return found


@dataclass(frozen=True)
class _Named:
    """A parameter or buffer as it is; its wires are made when it is first used."""

    name: str
    shape: Shape
    kernel: bool
    fixed: bool


def _placeholder(program: Program, node: fx.Node) -> Any:
    if node.name in program.tensors and isinstance(node.meta.get("val"), Tensor):
        name = program.tensors[node.name]
        return _Named(name, tuple(node.meta["val"].shape), name in program.kernels, name in program.fixed)
    if node.name in program.constants:
        return _constant(program.constants[node.name])
    return _plain(node.meta.get("val"))


def _constant(tensor: Tensor | None) -> Value:
    if tensor is None:
        return Value(())
    equal = frozenset(axis for axis in range(tensor.ndim) if bool((tensor == tensor[_first(axis)]).all()))
    return Value(tuple(tensor.shape), (), equal, tensor)


def _first(axis: int) -> tuple[slice, ...]:
    """Take the first along an axis, as a slice; nothing where there is none."""
    return (*[slice(None)] * axis, slice(0, 1))


def _plain(val: Any) -> Any:
    """Return values of which nothing is known but the shapes."""
    if isinstance(val, Tensor):
        return Value(tuple(int(each) for each in val.shape))
    return [_plain(each) for each in val] if isinstance(val, list | tuple) else val


def _called(found: Followed, held: dict[fx.Node, Any], node: fx.Node) -> Any:
    target: Any = node.target
    if target is operator.getitem:
        listed, place = held[node.args[0]], node.args[1]  # type: ignore[index]
        return listed[place] if isinstance(listed, list | tuple) else _plain(node.meta.get("val"))  # type: ignore[index]
    look = lambda each: _seen(found.wires, held[each])
    args, kwargs = fx.map_arg(node.args, look), fx.map_arg(node.kwargs, look)
    values = _tensors([*args, *kwargs.values()])
    if not hasattr(target, "_schema"):
        return _unknown(found, node, values)
    known = _computed(node, args, kwargs, values)
    if known is not None:
        return _constant(known)
    names = [each.name for each in target._schema.arguments]
    given = {**kwargs, **dict(zip(names, args, strict=False))}
    step = _step(found, held, node, {name: each for name, each in given.items() if each is not None})
    rule = rule_for(target)
    if isinstance(node.meta.get("val"), Tensor) and not node.meta["val"].numel():
        return _plain(node.meta["val"])  # nothing in it to follow
    if rule is None:
        return _unknown(found, node, values)
    try:
        result = rule(step)
    except (NoRule, RuntimeError, ValueError, IndexError, TypeError, KeyError):  # arguments that nobody foresaw
        return _unknown(found, node, values)
    if target._schema.is_mutable:
        _spoil(found, held, node)
    return result


def _spoil(found: Followed, held: dict[fx.Node, Any], node: fx.Node) -> None:
    """Leave in its place what is written to through a view of it."""
    args: Any = node.args
    view: Any = args[0]
    while isinstance(view, fx.Node) and view.op == "call_function" and _is_view(view.target):
        args = view.args
        view = args[0]
        if isinstance(view, fx.Node):
            pinned(found.wires, *_tensors(_seen(found.wires, held[view])))
            pinned(found.wires, *_tensors([_seen(found.wires, held[each]) for each in node.all_input_nodes]))
            held[view] = _plain(view.meta.get("val"))


def _is_view(target: Any) -> bool:
    returns: Any = target._schema.returns if hasattr(target, "_schema") else ()
    return bool(returns) and returns[0].alias_info is not None and not target._schema.is_mutable


def _step(found: Followed, held: Mapping[fx.Node, Any], node: fx.Node, given: Mapping[str, Any]) -> Step:
    val = node.meta.get("val")
    first = val[0] if isinstance(val, list | tuple) else val
    weight = _weight(held, node)
    if weight:
        name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
        found.makers.setdefault(weight, name if given.get("groups", 1) == 1 else "")
    return Step(found.wires, node.target, given, tuple(getattr(first, "shape", ())), node.name, weight)


def _weight(held: Mapping[fx.Node, Any], node: fx.Node) -> str | None:
    """Return the name of the parameter that is the weight of an operation."""
    weight = node.kwargs.get("weight")
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    if weight is None and "weight" in names and names.index("weight") < len(node.args):
        weight = node.args[names.index("weight")]
    named = held.get(weight) if isinstance(weight, fx.Node) else None
    return named.name if isinstance(named, _Named) else None


def _seen(wires: Wires, held: Any) -> Any:
    if isinstance(held, list | tuple):
        return [_seen(wires, each) for each in held]
    return _with_wires(wires, held) if isinstance(held, _Named) else held


def _with_wires(wires: Wires, named: _Named) -> Value:
    components = []
    for axis, size in enumerate(named.shape):
        if size > 1 and not (named.kernel and axis > 1):
            sizes = [size if each == axis else 1 for each in range(len(named.shape))]
            labels = wires.atoms(Atom(named.name, axis), size).reshape(sizes)
            components.append(labels)
            if named.fixed:
                wires.pin(labels)
    return Value(named.shape, tuple(components))


def _tensors(found: Any) -> list[Value]:
    if isinstance(found, Value):
        return [found]
    return [value for each in found for value in _tensors(each)] if isinstance(found, list | tuple) else []


def _computed(node: fx.Node, args: Any, kwargs: Any, values: Sequence[Value]) -> Tensor | None:
    """Compute what depends on constants alone."""
    val = node.meta.get("val")
    if not isinstance(val, Tensor) or val.numel() > _KNOWN or any(each.known is None for each in values):
        return None
    if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
        return None
    target: Any = node.target
    found = target(*(_numbers(each) for each in args), **{name: _numbers(each) for name, each in kwargs.items()})
    return found if isinstance(found, Tensor) and tuple(found.shape) == tuple(val.shape) else None


def _numbers(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [_numbers(each) for each in part]
    return part.known if isinstance(part, Value) else part


def _unknown(found: Followed, node: fx.Node, values: Sequence[Value]) -> Any:
    if pinned(found.wires, *values):
        name = getattr(getattr(node.target, "_schema", None), "name", str(node.target)).removeprefix("aten::")
        found.unknown.append((name, _layer(node)))
    return _plain(node.meta.get("val"))


def _layer(node: fx.Node) -> str:
    """Return the name of the innermost module in which an operation runs, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""
