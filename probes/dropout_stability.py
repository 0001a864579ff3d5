"""Dropout stability: how much the loss changes when only some hidden units are kept, their signal scaled up.

Kuditipudi et al. 2019 (Explaining Landscape Connectivity of Low-cost Solutions for Multilayer Nets); Shevchenko,
Mondelli 2020 (Landscape Connectivity and Dropout Stability of SGD Solutions). Of N units of a layer a random set A is
kept, their outgoing signal multiplied by N / |A|, the others silent. Nothing is copied: the inputs of the layers that
read the units are masked on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.errors import ModelError
from probes.layer_moments import layout, places, removed_after
from probes.objective import Objective
from probes.paths import Floats, Readings, read
from probes.permutations import Indices, Permutation, PermutationSpec
from probes.points import Point

Tick = Callable[[float, str], None]
KEPT = (0.9, 0.75, 0.5, 0.25)
DRAWS = 10
LAYER_DRAWS = 3


@dataclass(frozen=True, eq=False)
class Silenced:
    """A layer of hidden units and who reads them: (module, positions of each unit in its input, (units, slots))."""

    name: str
    size: int
    readers: tuple[tuple[str, Indices], ...]


@dataclass(frozen=True, eq=False)
class DropoutStability:
    """What is left of a network when F shares of its hidden units are kept, D draws each.

    kept: (F,) shares asked for (at least one unit stays). loss, accuracy: of the whole network. losses, accuracies:
    (F, D), all layers thinned at once. layers, units: the L layers and their sizes. layer_losses: (L, F, D'), that
    layer thinned alone. Losses may be infinite or NaN where the network overflows. notes: what was left out.
    """

    kept: tuple[float, ...]
    loss: float
    accuracy: float | None
    losses: Floats
    accuracies: Floats | None
    layers: tuple[str, ...]
    units: tuple[int, ...]
    layer_losses: Floats
    notes: tuple[str, ...]

    @property
    def epsilon(self) -> Floats:
        """The mean over draws of |L(theta) - L(theta_A)|, (F,)."""
        return np.abs(self.losses - self.loss).mean(1)  # type: ignore[no-any-return]

    @property
    def stderr(self) -> Floats:
        """The standard error of `epsilon` over draws, (F,); NaN for a single draw."""
        return _stderr(np.abs(self.losses - self.loss))

    @property
    def layer_epsilon(self) -> Floats:
        """The same as `epsilon` for each layer alone, (L, F)."""
        return np.abs(self.layer_losses - self.loss).mean(2)  # type: ignore[no-any-return]

    @property
    def layer_stderr(self) -> Floats:
        """The standard error of `layer_epsilon`, (L, F)."""
        return _stderr(np.abs(self.layer_losses - self.loss))


def dropout_stability(
    objective: Objective,
    point: Point,
    spec: PermutationSpec | None,
    tick: Tick,
    *,
    kept: Sequence[float] = KEPT,
    draws: int = DRAWS,
    layer_draws: int = LAYER_DRAWS,
    seed: int = 0,
) -> DropoutStability:
    """Thin all hidden layers at once, then each alone, and read the loss.

    spec: its hidden units and channels are thinned (not residual streams, heads, or what lies within them); None thins
    the inputs of every linear and convolutional layer but the first. BatchNorm keeps its statistics. Costs
    F (draws + L layer_draws) + 1 evaluations. Raises ModelError where there are no hidden units.
    """
    hidden, notes = silenced(objective, spec)
    generator, whole = np.random.default_rng(seed), read(objective, point)
    said = _counted(tick, len(kept) * (draws + len(hidden) * layer_draws))

    def thinned(layers: Sequence[Silenced], share: float, what: str, times: int) -> list[Readings]:
        found = []
        for _ in range(times):
            chosen = {each.name: drawn(each.size, share, generator) for each in layers}
            found.append(read_masked(objective, point, layers, chosen))
            said(f"{share:.0%} of {what} kept")
        return found

    together = [thinned(hidden, share, "all hidden units", draws) for share in kept]
    alone = [[thinned([layer], share, layer.name, layer_draws) for share in kept] for layer in hidden]
    accuracies = None if whole.accuracy is None else np.array([[_accuracy(each) for each in row] for row in together])
    return DropoutStability(
        kept=tuple(kept), loss=_loss(whole), accuracy=_accuracy(whole),
        losses=np.array([[_loss(each) for each in row] for row in together]), accuracies=accuracies,
        layers=tuple(each.name for each in hidden), units=tuple(each.size for each in hidden),
        layer_losses=np.array([[[_loss(each) for each in row] for row in rows] for rows in alone]), notes=tuple(notes),
    )  # fmt: skip


def silenced(objective: Objective, spec: PermutationSpec | None) -> tuple[list[Silenced], list[str]]:
    """Find the hidden units that can be silenced, and say what is left out; raise ModelError where there are none."""
    hidden, notes = _inputs(objective) if spec is None else _of_spec(objective.module, spec)
    if not hidden:
        raise ModelError(
            "The model has no hidden units or channels that can be left out; dropout stability needs some."
        )
    return hidden, notes


def drawn(size: int, share: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw which units are kept: a share of them, at least one, in ascending order."""
    left = min(size, max(1, round(share * size)))
    return np.sort(generator.permutation(size)[:left]).astype(np.int64)


def read_masked(
    objective: Objective, point: Point, layers: Sequence[Silenced], kept: dict[str, NDArray[np.int64]]
) -> Readings:
    """Read the losses (1, N) of a network in which only the units `kept` of these layers are heard, scaled up."""
    modules, masks = dict(objective.module.named_modules()), dict[str, Tensor]()
    for layer in layers:
        for name, index in layer.readers:
            mask = masks.setdefault(name, torch.ones(_inputs_of(modules[name]), dtype=torch.float64))
            mask[index.ravel()] = 0.0
            mask[index[kept[layer.name]].ravel()] = layer.size / len(kept[layer.name])

    def masked(name: str, mask: Tensor) -> Any:
        axis = (places(modules[name]) or (1, 0))[0]

        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            shape = [1] * args[0].ndim
            shape[axis] = -1
            return (args[0] * mask.to(args[0].device, args[0].dtype).view(shape), *args[1:])

        return hook

    with removed_after([modules[name].register_forward_pre_hook(masked(name, mask)) for name, mask in masks.items()]):
        return read(objective, point)


def readers(module: nn.Module, permutation: Permutation) -> tuple[tuple[str, Indices], ...]:
    """Return the layers that read the units of a permutation, and where in their inputs each unit lies."""
    modules, found = dict(module.named_modules()), []
    for use in permutation.uses:
        layer, _, kind = use.tensor.rpartition(".")
        where = places(modules[layer]) if layer in modules else None
        if kind != "weight" or where is None or use.axis != 1 - where[1]:
            continue
        if use.rows is not None or getattr(modules[layer], "groups", 1) != 1:
            return ()
        found.append((layer, use.index))
    return tuple(found)


def _of_spec(module: nn.Module, spec: PermutationSpec) -> tuple[list[Silenced], list[str]]:
    hidden, left = [], []
    for each in spec:
        found = readers(module, each) if each.kind in ("units", "channels") and not each.inner else ()
        if found:
            hidden.append(Silenced(each.name, each.size, found))
        elif each.kind in ("units", "channels"):
            left.append(each.name)
    streams = sum(each.kind not in ("units", "channels") for each in spec)
    notes = [f"Residual streams and attention heads ({streams} permutations) keep all units."] if streams else []
    if left:
        notes.append(f"All units kept, as no plain layer reads them: {', '.join(left)}.")
    return hidden, notes


def _inputs(objective: Objective) -> tuple[list[Silenced], list[str]]:
    modules = dict(objective.module.named_modules())
    plain = [each.name for each in layout(objective).layers[1:] if getattr(modules[each.name], "groups", 1) == 1]
    sizes = {name: _inputs_of(modules[name]) for name in plain}
    whole = lambda size: np.arange(size)[:, None]
    hidden = [Silenced(name, size, ((name, whole(size)),)) for name, size in sizes.items()]
    note = "Units are the inputs of each layer but the first; channels that are flattened count by the pixel."
    return hidden, [note]


def _inputs_of(module: nn.Module) -> int:
    where, weight = places(module), module.weight
    if where is None or not isinstance(weight, Tensor):
        raise ValueError(f"{type(module).__name__} is no linear or convolutional layer")
    return int(weight.shape[1 - where[1]])


def _loss(found: Readings) -> float:
    return float(found.loss[0])


def _accuracy(found: Readings) -> float | None:
    return None if found.accuracy is None else float(found.accuracy[0])


def _counted(tick: Tick, total: int) -> Callable[[str], None]:
    done = count(1)
    return lambda words: tick(next(done) / total, words)


def _stderr(values: Floats) -> Floats:
    draws = values.shape[-1]
    if draws < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(-1, ddof=1) / np.sqrt(draws)  # type: ignore[no-any-return]
