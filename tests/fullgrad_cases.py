"""Networks for the tests of full gradients."""

from __future__ import annotations

import torch
from curvature_oracles import batches
from torch import nn

from probes.attribution import case_of
from probes.objective import Objective


def made(module, inputs, dtype="float64"):
    """A case of the first of these inputs."""
    data = batches(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return case_of(Objective.of(module, data, "cross_entropy", dtype=dtype, device="cpu"), 0)


def explicit_terms(module, features, target):
    """Gradient times explicit bias at every convolution, linear layer and batch norm, by hooks; the oracle."""
    outputs, handles = {}, []

    def keep(name, z):
        outputs[name] = z
        return z.clone()  # what comes next may change it in place

    for name, each in module.named_modules():
        if isinstance(each, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            handles.append(each.register_forward_hook(lambda _, __, z, name=name: keep(name, z)))
    x = features.clone().requires_grad_()
    score = module(x)[0, target]
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(score, [x, *outputs.values()])
    terms = {"input": (gradients[0] * x).detach()}
    for (name, z), g in zip(outputs.items(), gradients[1:], strict=True):
        bias = bias_of(module.get_submodule(name))
        if bias is not None:
            terms[name] = (g * (bias.view(1, -1, 1, 1) if z.ndim == 4 else bias)).detach()
    return score.item(), terms


def bias_of(layer):
    if isinstance(layer, nn.BatchNorm2d):
        return layer.bias - layer.running_mean * layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return layer.bias
