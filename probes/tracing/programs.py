"""Write a model down as a list of basic operations on its parameters, buffers and inputs."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from probes.errors import ModelError
from probes.objective import Objective
from probes.own_loss import OwnLoss
from probes.tracing.following import Program

_WORDS = "The model's operations cannot be written down ({reason}). Give the permutations by hand, as a table."


Given = tuple[Tensor, ...]


class _Judged(nn.Module):
    """A model with the operator's loss behind it, for losses that run the model themselves."""

    def __init__(self, model: nn.Module, own: OwnLoss) -> None:
        super().__init__()
        self.model = model
        self._own = own

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss."""
        return self._own.function(self.model, (inputs, targets))


def written_down(objective: Objective) -> tuple[Program, list[str]]:
    """Return the model's operations on two examples, and doubts in sentences; raise ModelError where it cannot be."""
    module, inputs = _on_cpu(objective)
    names = _canonical(objective)
    kernels = _kernels(module, names)
    canonical = names
    given: Given = (inputs,)
    if objective.own is not None:
        module, given = _Judged(module, objective.own), (inputs, objective.targets[:2].detach().cpu())
        canonical = {f"model.{name}": first for name, first in names.items()}
    failures = []
    for write in (_exported, _recorded):
        try:
            with _quietly():
                program = write(module, given, canonical)
            return replace(program, kernels=kernels, fixed=_fixed(objective.module, names)), _doubts(write is _recorded)
        except Exception as error:  # noqa: BLE001 - the model's own code runs, and may fail in any way
            failures.append(error)
    reason = " ".join(str(failures[-1]).split())[:300] or type(failures[-1]).__name__
    raise ModelError(_WORDS.format(reason=reason)) from failures[0]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torch tells about itself out of the log; what matters is raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _doubts(recorded: bool) -> list[str]:
    words = "The model's path depends on the data: the permutations hold for the path that the first two examples take."
    return [words] if recorded else []


def _on_cpu(objective: Objective) -> tuple[nn.Module, Tensor]:
    """Return the module in float32, a copy where it is in another type, with two examples."""
    inputs = objective.inputs[:2].detach().cpu()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    tensors = [*objective.module.parameters(), *objective.module.buffers()]
    plain = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in tensors if _floats(each))
    return (objective.module if plain else copy.deepcopy(objective.module).cpu().float()), inputs


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _canonical(objective: Objective) -> dict[str, str]:
    """Map every name of a tensor to its first one; only of tensors that can be moved."""
    module = objective.module
    first: dict[int, str] = {}
    found = {}
    for name, each in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if each.is_floating_point():
            found[name] = first.setdefault(id(each), name)
    return found


def _kernels(module: nn.Module, canonical: dict[str, str]) -> frozenset[str]:
    convolutions = [name for name, each in module.named_modules() if isinstance(each, _ConvNd)]
    return frozenset(canonical[f"{name}.weight"] for name in convolutions if f"{name}.weight" in canonical)


def _fixed(module: nn.Module, names: dict[str, str]) -> frozenset[str]:
    """Return the buffers that are no running statistics."""
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    running = {name for name in buffers if name.rpartition(".")[2].startswith(("running_", "moving_"))}
    return frozenset(names[name] for name in buffers - running if name in names)


def _exported(module: nn.Module, given: Given, canonical: dict[str, str]) -> Program:
    exported = torch.export.export(module, given, strict=False).run_decompositions({})
    kinds = {InputKind.PARAMETER, InputKind.BUFFER}
    tensors, constants = {}, {}
    for each in exported.graph_signature.input_specs:
        if each.kind in kinds and each.target in canonical:
            tensors[each.arg.name] = canonical[each.target]
        elif each.target is not None:
            held = exported.constants.get(each.target, exported.state_dict.get(each.target))
            if isinstance(held, Tensor):
                constants[each.arg.name] = held
    return Program(exported.graph, tensors, constants)


def _recorded(module: nn.Module, given: Given, canonical: dict[str, str]) -> Program:
    """Record the operations of one run with real numbers, for models whose path depends on the data."""
    from torch.fx.experimental.proxy_tensor import make_fx

    held: dict[str, Tensor] = dict(sorted([*module.named_parameters(), *module.named_buffers()]))

    def run(values: dict[str, Tensor], given: Given) -> Any:
        return functional_call(module, values, given)

    options: dict[str, Any] = {"pre_dispatch": True, "tracing_mode": "real"}
    if "_error_on_data_dependent_ops" in inspect.signature(make_fx).parameters:
        options["_error_on_data_dependent_ops"] = False
    graph = make_fx(run, **options)({name: each.detach() for name, each in held.items()}, given)
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    named = dict(zip((node.name for node in places), held, strict=False))
    tensors = {place: canonical[name] for place, name in named.items() if name in canonical}
    constants = {place: held[name] for place, name in named.items() if name not in canonical}
    constants |= {node.target: getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"}
    return Program(_with_shapes(graph), tensors, constants)


def _with_shapes(graph: fx.GraphModule) -> fx.Graph:
    """Put the examples of all results where the export has them."""
    for node in graph.graph.nodes:
        if "val" not in node.meta and "tensor_meta" in node.meta:
            node.meta["val"] = node.meta["tensor_meta"]
    return graph.graph
