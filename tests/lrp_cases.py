"""Models and matrices for the tests of LRP."""

from __future__ import annotations

import copy

import numpy as np
import torch
from curvature_oracles import batches
from torch import Tensor, nn

from probes.attribution import Case, case_of
from probes.attribution.lrp_layers import Rules
from probes.objective import Objective

PLAIN = Rules(epsilon=0.0)


def of_images(module: nn.Module, inputs: Tensor) -> Case:
    data = batches(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return case_of(Objective.of(module, data, "cross_entropy", dtype="float64", device="cpu"), 0)


def copied(found: Case) -> nn.Module:
    """A copy of the case's model in its own dtype, with activations out of place."""
    module = copy.deepcopy(found.module).to(found.features.dtype)
    with torch.no_grad():
        for own, theta in zip(module.parameters(), found.objective.theta, strict=True):
            own.copy_(theta)
    for each in module.modules():
        if hasattr(each, "inplace"):
            each.inplace = False
    return module


def dense(layer: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A layer at one input as inputs, matrix and bias, all flat."""
    weight = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0].flatten(), x).flatten(1)
    bias = layer(torch.zeros_like(x)[None])[0].flatten()
    return x.flatten().detach().numpy(), weight.numpy(), bias.detach().numpy()


def one_layer(R: np.ndarray, x: np.ndarray, W: np.ndarray, b: np.ndarray, epsilon: float, gamma: float) -> np.ndarray:
    """Relevance below one layer, contribution by contribution, as the papers write the rules."""
    parts, below = W * x[None], np.zeros_like(x)
    for part, bias, r in zip(parts, b, R, strict=True):
        z = part.sum() + bias
        if r == 0:
            continue
        if gamma:
            more = (part > 0) if z > 0 else (part < 0)
            weighed = part * (1 + gamma * more)
            bias = bias * (1 + gamma * ((bias > 0) if z > 0 else (bias < 0)))
            below += weighed / (weighed.sum() + bias) * r
        else:
            below += part / (z + epsilon * (1 if z >= 0 else -1)) * r
    return below


def by_matrices(found: Case, share: float, gamma: float = 0.0) -> np.ndarray:
    """LRP of a chain by explicit matrices: relevance, not gradients, from the last layer down."""
    chain, x, steps = copied(found), found.features[0], []
    for each in chain:
        steps.append((each, x))
        x = each(x[None])[0].detach()
    R = np.where(np.arange(len(x)) == found.target.index, x.numpy(), 0.0)
    last = True
    for each, given in reversed(steps):
        if isinstance(each, nn.Linear | nn.Conv2d | nn.AvgPool2d):
            x, W, b = dense(each, given)
            epsilon = 0.0 if last or isinstance(each, nn.AvgPool2d) else share * np.sqrt(np.mean((W @ x + b) ** 2))
            R = one_layer(R, x, W, b, epsilon, gamma if isinstance(each, nn.Conv2d) else 0.0)
            last = False
    return R.reshape(found.features.shape[1:])
