"""Gradients of every example, materialised by autograd one example at a time: no code is shared with the probes."""

from __future__ import annotations

import copy

import numpy as np
import torch
from curvature_oracles import batches
from torch import Tensor, nn
from torch.nn import functional

from probes.objective import Objective
from probes.per_sample import PerExample, per_example

IDS = torch.tensor([[1, 1, 4, 0], [2, 2, 2, 2], [0, 3, 4, 1], [3, 3, 0, 0], [4, 0, 1, 1]])


def losses_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over what counts."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum")


def materialised(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """Parameter -> (N, *shape) float64."""
    net = copy.deepcopy(net).double().eval()
    x = x.double() if x.is_floating_point() else x
    names, parameters = zip(*net.named_parameters(), strict=True)
    rows = []
    for row in range(len(x)):
        loss = losses_of(net(x[row : row + 1]), y[row : row + 1])
        rows.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    return {name: torch.stack(each).numpy() for name, each in zip(names, zip(*rows, strict=True), strict=True)}


def figures(net: nn.Module, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Dots and squares, each (N, L), of the materialised gradients."""
    gradients = materialised(net, x, y)
    weights = {name: each.detach().double().numpy() for name, each in net.named_parameters()}
    flat = {name: each.reshape(len(x), -1) for name, each in gradients.items()}
    dots = np.stack([each @ weights[name].reshape(-1) for name, each in flat.items()], 1)
    return dots, np.stack([(each**2).sum(1) for each in flat.values()], 1)


def stirred(net: nn.Module) -> nn.Module:
    """Uneven weights and statistics everywhere, so that a wrong order shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, each in net.state_dict().items():
            if "running_var" in name:
                each.copy_(torch.rand(each.shape, generator=generator) + 0.5)
            elif each.is_floating_point():
                each += 0.3 * torch.randn(each.shape, generator=generator)
    return net


def check(net: nn.Module, x: Tensor, fallback: tuple[str, ...] = (), y: Tensor | None = None) -> PerExample:
    """Compare with the materialised gradients, in micro-batches of 3, 2 (uneven) and 1."""
    net = stirred(net)
    classes = net(x[:2]).shape[-1]
    if y is None:
        y = torch.randint(classes, (len(x),)) if net(x[:2]).ndim == 2 else torch.randint(classes, x.shape[:2])
    dots, squares = figures(net, x, y)
    scale = np.sqrt(squares).max(0) + 1e-30
    for micro_batch in (3, 2, 1):
        loss = "cross_entropy" if y.ndim == 1 else "causal_lm"
        found = per_example(Objective.of(net, batches(x, y), loss, dtype="float64", micro_batch=micro_batch))
        assert found.fallback == fallback
        assert found.doubts == ()
        np.testing.assert_allclose(np.sqrt(found.squares) / scale, np.sqrt(squares) / scale, atol=1e-10)
        np.testing.assert_allclose(found.dots / scale, dots / scale, atol=1e-10)
    return found


def objective_of(net: nn.Module, x: Tensor, y: Tensor, **options) -> Objective:
    loss = "causal_lm" if y.ndim == 2 else "cross_entropy"
    return Objective.of(net, batches(x, y), loss, **{"dtype": "float64", "micro_batch": 3, **options})


def same(found: PerExample, net: nn.Module, x: Tensor, y: Tensor, tolerance: float = 1e-9) -> None:
    """Compare with materialised gradients, each relative to the largest of its parameter (and 1e-6 of the whole)."""
    dots, squares = figures(net, x, y)
    scale = np.sqrt(squares).max(0) + 1e-6 * np.sqrt(squares.sum(1).max())
    sizes = np.sqrt(found.weights) + 1e-300
    np.testing.assert_allclose(np.sqrt(found.squares) / scale, np.sqrt(squares) / scale, atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.dots / scale / sizes, dots / scale / sizes, atol=tolerance, rtol=0)


class Over(nn.Module):
    """A module and what is done with it."""

    def __init__(self, layer: nn.Module, forward) -> None:
        super().__init__()
        self.layer = layer
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.layer, x)


def read(layer: nn.Module, x: Tensor) -> Tensor:
    """Three logits from whatever the layer gives: no entry is like another."""
    out = layer(x).flatten(1)
    return out @ torch.arange(3 * out.shape[1], dtype=out.dtype).sin().view(-1, 3)
