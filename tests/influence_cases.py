"""Nets, plain loops over their examples and retrained models: shared by the tests of influence."""

from __future__ import annotations

import copy

import torch
from curvature_oracles import cnn, gpt, mlp
from torch import nn

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}


def example_loss(net, x, y, loss):
    """The sum over an example's units, written out."""
    logits = net(x[None])
    log = logits.log_softmax(-1)
    if loss == "cross_entropy":
        return -log[0, y]
    counted = y != -100
    return -log[0][counted].gather(1, y[counted][:, None]).sum()


def loops(net, data, loss):
    """The gradient of every example in its share of the mean loss, times N: (N, P), by a plain loop in float64."""
    net = copy.deepcopy(net).double().eval()
    parameters, rows = list(net.parameters()), []
    units = int((data.targets != -100).sum())
    for x, y in zip(data.inputs, data.targets, strict=True):
        x = x.double() if x.is_floating_point() else x
        found = torch.autograd.grad(example_loss(net, x, y, loss), parameters)
        rows.append(torch.cat([each.flatten() for each in found]) * len(data.inputs) / units)
    return torch.stack(rows).numpy()


def share(data, row):
    """From the example's share in the mean loss, times N, to its own mean over its units."""
    counts = (data.targets != -100).reshape(len(data.inputs), -1).sum(1)
    return float(counts.sum() / len(counts) / counts[row])


class OnlyBackward(torch.autograd.Function):
    """The square, without a rule for forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        return 2 * x * d


class OnlyOnce(torch.autograd.Function):
    """The square, which can be differentiated once and no more."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        return 2 * x * d


class With(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.one, self.two = function, nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.two(self.function.apply(self.one(x)))


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x - x.mean(0))
