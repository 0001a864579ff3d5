"""Nets, plain loops over their examples and retrained models: shared by the tests of influence."""

from __future__ import annotations

import copy

import numpy as np
import torch
from curvature_oracles import batches, cnn, gpt, mlp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

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


DIGITS = 300  # training examples, of which 30 have a wrong label


def digits():
    """Training and test digits of 8 x 8 pixels."""
    order = np.random.default_rng(0).permutation(1797)
    found = load_digits()
    x = torch.tensor(found.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(found.target[order])
    draw = torch.Generator().manual_seed(1)
    wrong = torch.randperm(DIGITS, generator=draw)[:30]
    labels = y[:DIGITS].clone()
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (30,), generator=draw)) % 10
    return batches(x[:DIGITS], labels), batches(x[DIGITS : DIGITS + 200], y[DIGITS : DIGITS + 200])


def retrained(kind, out, steps, rate, saved):
    """Train on the digits but for some rows, from the same start; return the model after these steps."""
    data, _ = digits()
    torch.manual_seed(3)
    net = nn.Linear(64, 10) if kind == "logistic" else nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    kept = np.setdiff1d(np.arange(DIGITS), [] if out is None else out)
    x, y, states = data.inputs[kept], data.targets[kept], []
    optimiser = torch.optim.SGD(net.parameters(), lr=rate, weight_decay=1e-3)
    for step in range(steps + 1):
        if step in saved:
            states.append(copy.deepcopy(net))
        optimiser.zero_grad()
        (functional.cross_entropy(net(x), y, reduction="sum") / DIGITS).backward()
        optimiser.step()
    return states


def losses(net):
    """The loss of each test digit."""
    _, test = digits()
    with torch.no_grad():
        return functional.cross_entropy(net(test.inputs), test.targets, reduction="none").numpy()
