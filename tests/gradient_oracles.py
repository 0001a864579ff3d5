"""Gradients of every example, materialised by autograd one example at a time: no code is shared with the probes."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


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
