"""A score split exactly over the input and every unit of the model that is not linear in what it receives.

Full gradients (Srinivas & Fleuret 2019) write f(x) = <df/dx, x> + sum over units u of <df/dz_u, b_u>. The paper's
biases are parameters; the implicit bias b_u = u(h) - J_u(h) h generalises them to any operation. All of them come out
of one forward-mode pass: the tangent starts as the input itself and, at every entry and exit of a module, is set back
to the value that passes there. What the tangent lacked is the implicit bias of the operations since the last such
place: of the module itself at its exit, of its container's own operations (functional activations, position tables,
softmax attention) at the entry of the next module. A linear operation without bias lacks nothing.

The places are known by module and call, so modules may be called often and in any order; nothing depends on how a
container is written, and no units need to be chosen: those of a part of the model add up to the part taken as one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from probes.attribution.errors import AttributionError

Score = Callable[[Tensor], Tensor]
Key = tuple[str, int, str, int]  # module, call, entry or exit, which tensor
Layout = Literal["first", "last", ""]  # where the channels are, as far as the module's type tells
ROUNDING = 16  # differences of so many units in the last place are no bias
MASKED = 1e30  # larger values are masks, not signals
OWN = " (own operations)"
SCORE = "score"
_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.GroupNorm,
    nn.Upsample,
)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Term:
    """What one unit adds at one place: `values` (1, ...) are gradient times implicit bias there.

    kind: the class of the module; own: it is of a container's own operations, not of a module without parts.
    """

    unit: str
    kind: str
    own: bool
    layout: Layout
    values: Tensor

    @property
    def total(self) -> float:
        """Return the sum, in float64."""
        return float(self.values.double().sum())


@dataclass(frozen=True)
class Split:
    """A score and its terms. inputs: gradient times input (1, ...). grids: sizes (H, W) of pictures in the model."""

    score: float
    inputs: Tensor
    terms: tuple[Term, ...]
    grids: tuple[tuple[int, int], ...]

    @property
    def total(self) -> float:
        """Return the sum of all terms, which should be the score."""
        return float(self.inputs.double().sum()) + sum(each.total for each in self.terms)

    @property
    def residual(self) -> float:
        """Return |sum of the terms - score|."""
        return abs(self.total - self.score)

    def contributions(self) -> dict[str, float]:
        """Return what the input and each unit add to the score, in the order of the model."""
        found = {"input": float(self.inputs.double().sum())}
        for each in self.terms:
            found[each.unit] = found.get(each.unit, 0.0) + each.total
        return found

    def kinds(self) -> dict[str, float]:
        """Return what the input and each class of modules add to the score."""
        found = {"input": float(self.inputs.double().sum())}
        for each in self.terms:
            found[each.kind] = found.get(each.kind, 0.0) + each.total
        return found


@dataclass
class _Place:
    unit: str
    kind: str
    own: bool
    layout: Layout
    bias: Tensor


def split(score: Score, module: nn.Module, features: Tensor) -> Split:
    """Split the score of one example, score(features (1, ...)) -> (1,), over the input and the units of the module.

    Raises AttributionError where an operation has no forward-mode derivative, or the model does not run the same with
    its tensors copied on the way (it changes its input in place and throws the answer away).
    """
    features = features.detach()
    forward = _Forward()
    with _differentiable(module):
        with torch.no_grad():
            plain = score(features)
        _forward(forward, score, module, features)
        value, gradients = _backward(forward.places, score, module, features)
    if not torch.allclose(plain, value, rtol=1e-4, atol=1e-6):
        raise AttributionError(
            f"The score is {float(plain):.6g}, but {float(value):.6g} when tensors are copied between modules: the "
            "model changes them in place. Choose integrated gradients instead."
        )
    terms = [_term(place, g) for place, g in zip(forward.places.values(), gradients[1:], strict=True) if g is not None]
    first = torch.zeros_like(features) if gradients[0] is None else gradients[0] * features
    return Split(float(plain), first.detach(), tuple(terms), tuple(forward.grids))


def _term(place: _Place, gradient: Tensor) -> Term:
    return Term(place.unit, place.kind, place.own, place.layout, (gradient * place.bias).detach())


def _forward(forward: _Forward, score: Score, module: nn.Module, features: Tensor) -> None:
    try:
        with torch.no_grad(), forward_ad.dual_level(), _hooked(module, forward.visit):
            found = score(forward_ad.make_dual(features, features.clone()))
            forward.place(found, (SCORE, 0, "exit", 0), SCORE, "score", own=True, layout="")
    except (NotImplementedError, RuntimeError) as error:
        if "forward" not in str(error).lower():
            raise
        reason = " ".join(str(error).split())[:200]
        raise AttributionError(
            f"An operation of this model has no forward-mode derivative, which full gradients need ({reason}). "
            "Choose integrated gradients instead."
        ) from error


def _backward(
    places: dict[Key, _Place], score: Score, module: nn.Module, features: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the score and its gradient by the features and at each place."""
    points = {key: torch.zeros_like(place.bias, requires_grad=True) for key, place in places.items()}

    def visit(z: Tensor, key: Key, *_: Any) -> Tensor:
        return z + points[key] if key in points else z

    x = features.detach().clone().requires_grad_()
    with torch.enable_grad(), _hooked(module, visit):
        value = visit(score(x), (SCORE, 0, "exit", 0))
        found = torch.autograd.grad(value.sum(), [x, *points.values()], allow_unused=True)
    return value.detach(), list(found)


class _Forward:
    """The forward-mode pass: finds the implicit biases, and the sizes of the pictures in the model."""

    def __init__(self) -> None:
        self.places: dict[Key, _Place] = {}
        self.grids: dict[tuple[int, int], None] = {}

    def visit(self, z: Tensor, key: Key, unit: str, module: nn.Module, container: nn.Module | None) -> Tensor:
        own = key[2] == "entry" or next(module.children(), None) is not None
        of = container if key[2] == "entry" else module
        layout: Layout = "first" if isinstance(module, _FIRST) else "last" if isinstance(module, _LAST) else ""
        if layout == "first" and z.ndim == 4:
            self.grids[z.shape[2], z.shape[3]] = None
        kind = type(of).__name__ if of is not None else "score"
        return self.place(z, key, unit, kind, own=own, layout=layout)

    def place(self, z: Tensor, key: Key, unit: str, kind: str, *, own: bool, layout: Layout) -> Tensor:
        """Keep what the tangent lacks, and give it to the tangent."""
        value, tangent = forward_ad.unpack_dual(z)
        if tangent is None:
            return z
        seen = value.isfinite() & (value.abs() < MASKED)
        bias = torch.where(seen, value - tangent, 0)
        size = torch.where(seen, value, 0).abs().amax() if value.numel() else value.sum()
        if not bool(bias.abs().amax() > ROUNDING * torch.finfo(value.dtype).eps * size):
            return z
        self.places[key] = _Place(unit + OWN if own and unit != SCORE else unit, kind, own, layout, bias)
        dual: Tensor = forward_ad.make_dual(value, tangent + bias)
        return dual


@contextmanager
def _hooked(module: nn.Module, visit: Callable[..., Tensor]) -> Iterator[None]:
    """Let `visit` replace each floating tensor that enters or leaves a module of the model."""
    calls: Counter[str] = Counter()
    stack: list[tuple[str, nn.Module | None, int]] = [(SCORE, None, 0)]

    def entry(name: str) -> Callable[..., Any]:
        def hook(each: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            (container, parent, _), call = stack[-1], calls[name]
            stack.append((name, each, call))
            calls[name] += 1
            return _over((args, kwargs), lambda z, at: visit(z, (name, call, "entry", at), container, each, parent))

        return hook

    def leave(name: str) -> Callable[..., Any]:
        def hook(each: nn.Module, _: Any, output: Any) -> Any:
            call = stack.pop()[2]
            return _over(output, lambda z, at: visit(z, (name, call, "exit", at), name, each, None))

        return hook

    handles: list[Any] = []
    try:
        for name, each in module.named_modules():
            name = name or type(module).__name__
            handles.append(each.register_forward_pre_hook(entry(name), with_kwargs=True))
            handles.append(each.register_forward_hook(leave(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _over(tree: Any, visit: Callable[[Tensor, int], Tensor]) -> Any:
    """Replace the floating tensors in a nest of lists, tuples and mappings; None where nothing changed."""
    leaves, shape = tree_flatten(tree)
    after = [visit(z, at) if isinstance(z, Tensor) and z.is_floating_point() else z for at, z in enumerate(leaves)]
    if all(one is other for one, other in zip(leaves, after, strict=True)):
        return None
    return tree_unflatten(after, shape)


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Switch off what has no forward-mode derivative (fused attention and LSTM); drop torch's words on its own code."""
    recurrent = any(isinstance(each, nn.RNNBase) for each in module.modules())
    before = torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(torch.jit.script.* is deprecated|TF32 acceleration)")
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
