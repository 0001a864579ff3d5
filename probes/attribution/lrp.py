"""Layer-wise relevance propagation through the affine layers of a model, wherever it calls them.

Bach et al. (2015); the rules as in Montavon et al. (2019), "Layer-wise relevance propagation: an overview". Batch norm
behind a layer is merged with it; activations pass relevance as it is, sums divide it by share, of a max pool the
largest takes all. What biases and damping keep is written down, so conservation is checked on every map.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from probes.attribution.backprop_graph import (
    POINTWISE,
    Operation,
    kind_of_node,
    labels,
    operations,
    operations_of,
    spoken,
)
from probes.attribution.backprop_rescale import INSTEAD, Seen, Watch
from probes.attribution.errors import AttributionError
from probes.attribution.lrp_layers import Book, Layer, Ruled, Rules, constant_part, differentiable, layer_of, merged
from probes.attribution.maps import Map, make_map
from probes.attribution.methods import Method, Settings, Tick

if TYPE_CHECKING:
    from probes.attribution.case import Case

EPSILON, COMPOSITE = Rules(), Rules(gamma=0.25)
CONSERVED = 1e-3
# activations that are zero at zero: relevance passes them as it is
_PASSES = {"Relu", "Hardtanh", "LeakyRelu", "PreluKernel", "Elu", "Celu", "Gelu", "Silu", "Mish", "Tanh", "Hardswish",
           "Hardshrink", "Softshrink", "Erf"}  # fmt: skip
_MAY_ADD = {"Add", "Sub", "Rsub", "Cat", "Stack", "ConstantPadNd"}
_CONVOLUTION = "Convolution"


class Ruling(Watch):
    """While it is entered, affine layers pass relevance by their rules, and added constants are written down."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self.book = book
        self._layers: dict[Any, tuple[Tensor, int, Layer]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run any function of torch, affine layers by their rules."""
        kwargs = kwargs or {}
        depends = differentiable((args, kwargs)) if torch.is_grad_enabled() else []
        if len(depends) == 1:
            layer = layer_of(func, args, kwargs, depends[0])
            if layer is not None:
                return self._ruled(layer, depends[0], func, args, kwargs)
        found = super().__torch_function__(func, types, args, kwargs)
        if depends and isinstance(found, Tensor) and found.grad_fn is not None:
            self._constants(found, func, args, kwargs)
        return found

    def _ruled(self, layer: Layer, given: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
        before = self._layers.get(given.grad_fn)
        if func is functional.batch_norm and before is not None and before[0]._version == before[1]:
            given, layer = before[0], merged(before[2], layer, args, kwargs)
        found: Tensor = Ruled.apply(given, layer, self.book)
        if layer.name != "batch_norm":
            self._layers[found.grad_fn] = (given, given._version, layer)
        return found

    def _constants(self, found: Tensor, func: Any, args: Any, kwargs: Any) -> None:
        if kind_of_node(found.grad_fn.name()) not in _MAY_ADD:  # type: ignore[union-attr]
            return
        constant = constant_part(func, args, kwargs)
        if constant.shape == found.shape and bool(constant.any()):
            found.register_hook(partial(self._kept, constant))

    def _kept(self, constant: Tensor, above: Tensor) -> None:
        self.book.by_constants += float((above * constant).double().sum())


def relevance(case: Case, rules: Rules) -> tuple[Tensor, Book]:
    """Return the relevance of the case's features, (1, ...), and what the layers kept of the score.

    Raises AttributionError where the relevance of the features and what was kept do not make up the score, or where a
    layer or activation is hidden in a fused operation.
    """
    book = Book(rules)
    features = case.features.detach().clone().requires_grad_()
    ruling = Ruling(book)
    with torch.enable_grad(), ruling:
        score = case.scores(features)
    for each in operations(score):
        _pass(each, ruling.seen.get(each.node))
    (found,) = torch.autograd.grad(score.sum(), features)
    values = found * case.features
    missed = abs(_missing(case, values, book))
    if not missed <= CONSERVED * max(float(values.double().abs().sum()), abs(case.score)):
        raise AttributionError(
            f"The relevance of the features and what biases and damping kept miss the score, {case.score:.4g}, by "
            f"{missed:.2g}: some operation of this model neither is linear nor has a rule. {INSTEAD}"
        )
    return values, book


def _missing(case: Case, values: Tensor, book: Book) -> float:
    return float(values.double().sum()) + book.by_biases + book.by_epsilon - case.score


def _pass(made: Operation, seen: Seen | None) -> None:
    """Let relevance pass an activation as it is: what arrives at its input is output / input times what arrives."""
    hidden = made.kind in ("Addmm", "Mm", "Bmm", "Mv", "Baddbmm", _CONVOLUTION) or "BatchNorm" in made.kind
    if hidden or (made.role == "pointwise" and made.kind != "Relu" and seen is None):
        what = POINTWISE.get(made.kind, made.kind)
        raise AttributionError(
            f"A {what} of this model runs in a fused or compiled operation, where no rule can reach it. {INSTEAD}"
        )
    if made.role != "pointwise" or made.kind == "Relu" or seen is None:  # a rectifier's gradient is its rule
        return
    still = seen.inputs == 0
    share = seen.outputs / torch.where(still, 1, seen.inputs)

    def rule(below: tuple[Any, ...], above: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.where(still, below[0], above[0] * share), *below[1:])

    made.node.register_hook(rule)


def _run(name: str, rules: Rules, case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  one pass
    values, book = relevance(case, rules)
    about = {
        "rules": [asdict(each) for each in reversed(book.passed)],
        "activations": "pass relevance as it is",
        "sums and average pools": "by share",
        "max pools": "all to the largest",
        "kept_by_biases": book.by_biases,
        "kept_by_epsilon": book.by_epsilon,
        "conservation_error": abs(_missing(case, values, book)) / max(abs(case.score), 1e-300),
        "evaluations": 1,
    }
    return make_map(case, name, values, about=about, notes=(_note(case, book),))


def _note(case: Case, book: Book) -> str:
    return (
        f"Of the score, {case.score:.4g}, biases keep {book.by_biases:.4g} and damping {book.by_epsilon:.4g}; the rest "
        "is in the map, so it does not add up to the score."
    )


def _no_rules(case: Case) -> str | None:
    """Refuse operations that LRP has no rule for here."""
    try:
        found = operations_of(case)
    except AttributionError as error:
        return str(error)
    passing = tuple(each for each in found if each.role == "pointwise" and not (each.kind in _PASSES or each.rectifies))
    without = (*labels(found, "other"), *labels(passing, "pointwise"))
    if not without:
        return None
    return (
        "LRP has rules here for affine layers, batch norm, pools, sums and activations that are zero at zero, but this "
        f"model has {spoken(without)}. {INSTEAD}"
    )


def _no_convolutions(case: Case) -> str | None:
    reason = _no_rules(case)
    if reason is None and all(each.kind != _CONVOLUTION for each in operations_of(case)):
        return "The composite's γ rule is for convolutions, and this model has none. Choose LRP-ε instead."
    return reason


METHODS = (
    Method("lrp_epsilon", "LRP-ε", "backprop", partial(_run, "lrp_epsilon", EPSILON), refuse=_no_rules),
    Method("lrp_composite", "LRP (γ at convolutions, ε at linear layers)", "backprop",
           partial(_run, "lrp_composite", COMPOSITE), refuse=_no_convolutions),
)  # fmt: skip
