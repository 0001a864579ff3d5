"""Layers of a model as relevance sees them: what they compute, and how what arrives above is passed below.

All rules are written as a gradient with a changed backward pass (Montavon et al. 2019): relevance is activation times
what arrives, so that sums, pools and views need no rule of their own: they divide relevance by share as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_LAYERS = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "baddbmm", "einsum", "bilinear",
    "batch_norm", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", *_CONVOLUTIONS,
}  # fmt: skip
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Layer:
    """One call of an affine layer. run: its input -> its output. convolve, weight, bias: of convolutions."""

    name: str
    run: Callable[[Tensor], Tensor]
    convolve: Callable[..., Tensor] | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Rules:
    """How relevance passes layers.

    epsilon: dampens small outputs, as a share of the root mean square of a layer's outputs; absolute: the same in units
    of the outputs. gamma: at convolutions, how much more what has the output's sign counts; 0 dampens there too. The
    last layer divides by share, undampened.
    """

    epsilon: float = 0.25
    absolute: float = 0.0
    gamma: float = 0.0


@dataclass(frozen=True)
class Passed:
    """What happened at one layer: the rule in words, the relevance that its biases and the damping kept."""

    layer: str
    rule: str
    by_bias: float
    by_epsilon: float


@dataclass
class Book:
    """What was passed, from the last layer to the first, and what constants added between layers took."""

    rules: Rules
    passed: list[Passed] = field(default_factory=list)
    by_constants: float = 0.0

    @property
    def by_biases(self) -> float:
        """Return the relevance kept by biases and added constants."""
        return self.by_constants + sum(each.by_bias for each in self.passed)

    @property
    def by_epsilon(self) -> float:
        """Return the relevance kept by damping."""
        return sum(each.by_epsilon for each in self.passed)

    def passes(self, layer: Layer, x: Tensor, z: Tensor, above: Tensor) -> Tensor:
        """Return what arrives at a layer's input x, and write down what was kept; z: its output, with its graph."""
        if self.passed and self.rules.gamma and layer.convolve is not None:
            return self._by_sign(layer, x.detach(), z.detach(), above)
        return self._dampened(layer, x, z, above)

    def _dampened(self, layer: Layer, x: Tensor, z: Tensor, above: Tensor) -> Tensor:
        sizes = z.detach().abs()
        epsilon = self.rules.absolute + self.rules.epsilon * float(sizes.square().mean().sqrt())
        epsilon = epsilon if self.passed else 0.0
        held = above * sizes / (sizes + epsilon) if epsilon else above
        (found,) = torch.autograd.grad(z, x, held)
        by_bias = _over(held, layer.bias) if layer.convolve else _total(held * layer.run(torch.zeros_like(x)))
        words = f"ε = {epsilon:.4g}" if epsilon else "by share (ε = 0)"
        self.passed.append(Passed(layer.name, words, by_bias, _total((above - held) * z.detach())))
        return found

    def _by_sign(self, layer: Layer, x: Tensor, z: Tensor, above: Tensor) -> Tensor:
        """Let contributions of an output's own sign count 1 + gamma times; signs of inputs are taken apart.

        So the denominators are never nearer to zero than the outputs, and inputs below zero are allowed.
        """
        gamma, (weight, bias) = self.rules.gamma, (layer.weight, layer.bias)
        convolve: Any = layer.convolve
        up, down = _more(weight, gamma, 1), _more(weight, gamma, -1)
        bias_up, bias_down = _more(bias, gamma, 1), _more(bias, gamma, -1)
        with torch.enable_grad():
            positive, negative = x.clamp(min=0).requires_grad_(), x.clamp(max=0).requires_grad_()
            raised = convolve(positive, up, bias_up) + convolve(negative, down, None)
            lowered = convolve(positive, down, bias_down) + convolve(negative, up, None)
        first = torch.where(z > 0, above * z / torch.where(z > 0, raised.detach(), 1), 0)
        second = torch.where(z < 0, above * z / torch.where(z < 0, lowered.detach(), 1), 0)
        one, other = torch.autograd.grad([raised, lowered], [positive, negative], [first, second])
        by_bias = _over(first, bias_up) + _over(second, bias_down)
        self.passed.append(Passed(layer.name, f"γ = {gamma:g}", by_bias, 0.0))
        return torch.where(x > 0, one, other)


class Ruled(torch.autograd.Function):
    """A layer whose backward pass is a rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, book: Book) -> Tensor:
        """Run the layer."""
        ctx.save_for_backward(x)  # so that a change of x in place is found out
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            z = layer.run(inner)
        ctx.kept = (layer, book, inner, z)
        return z.detach().clone()  # may be changed in place by what comes next

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        """Pass what arrives by the rule."""
        _ = ctx.saved_tensors
        layer, book, inner, z = ctx.kept
        return book.passes(layer, inner, z, above[0]), None, None


def layer_of(func: Any, args: Any, kwargs: Any, given: Tensor) -> Layer | None:
    """Return a call of a function of torch as a layer of one of its arguments; None where it is no affine layer."""
    name = getattr(func, "__name__", "")
    if name not in _LAYERS:
        return None

    def run(x: Tensor) -> Tensor:
        made: Tensor = func(*_with(args, given, x), **_with(kwargs, given, x))
        return made

    if name not in _CONVOLUTIONS or not args or args[0] is not given:
        return Layer(name.strip("_"), run)
    known = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    rest = {key: each for key, each in known.items() if key not in _ARGUMENTS[:3]}

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made: Tensor = func(x, weight, bias, **rest)
        return made

    return Layer(name, run, convolve, known["weight"], known.get("bias"))


def merged(layer: Layer, norm: Layer, args: Any, kwargs: Any) -> Layer:
    """Return a layer and the batch norm behind it as one layer; args, kwargs: of `functional.batch_norm`."""
    one = Layer(f"{layer.name} + {norm.name}", lambda x: norm.run(layer.run(x)))
    if layer.weight is None:
        return one
    known = inspect.signature(functional.batch_norm).bind(*args, **kwargs)
    known.apply_defaults()
    named = known.arguments
    scale = torch.rsqrt(named["running_var"] + named["eps"])
    scale = scale if named["weight"] is None else scale * named["weight"]
    shift = -named["running_mean"] if layer.bias is None else layer.bias - named["running_mean"]
    bias = scale * shift if named["bias"] is None else scale * shift + named["bias"]
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    return replace(one, convolve=layer.convolve, weight=weight, bias=bias)


def differentiable(tree: Any) -> list[Tensor]:
    """Return the tensors among nested arguments that depend on the features."""
    found: list[Tensor] = []
    tree_map(lambda each: found.append(each) if isinstance(each, Tensor) and each.requires_grad else None, tree)
    return found


def constant_part(func: Any, args: Any, kwargs: Any) -> Tensor:
    """Return what a sum or concatenation gives where all that depends on the features is zero."""

    def empty(each: Any) -> Any:
        return torch.zeros_like(each) if isinstance(each, Tensor) and each.requires_grad else each

    with torch.no_grad():
        found: Tensor = func(*tree_map(empty, args), **tree_map(empty, kwargs))
    return found


def _with(tree: Any, given: Tensor, x: Tensor) -> Any:
    return tree_map(lambda each: x if each is given else each, tree)


def _more(values: Tensor | None, gamma: float, sign: int) -> Tensor | None:
    if values is None:
        return None
    return values + gamma * (values.clamp(min=0) if sign > 0 else values.clamp(max=0))


def _over(shares: Tensor, bias: Tensor | None) -> float:
    return 0.0 if bias is None else _total(shares * bias.view(-1, *[1] * (shares.ndim - 2)))


def _total(values: Tensor) -> float:
    return float(values.detach().double().sum())
