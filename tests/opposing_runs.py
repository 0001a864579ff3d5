"""Runs of small networks, and one worked out by hand: shared by the tests of opposing signals."""

from __future__ import annotations

from pathlib import Path

import torch
from curvature_oracles import batches, cnn, gpt, mlp
from series_runs import a_run
from torch import nn

from analyzers.opposing_signals import OpposingSignals

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}
FEW = OpposingSignals(null_groups=10, dtype="float64")


def larger(net):
    """A net of `curvature_oracles` with 23 examples or sequences."""
    module, data = net()
    rows = torch.arange(23) % len(data.inputs)
    shape = (23, *data.inputs.shape[1:])
    return module, batches(torch.randint(7, shape) if net is gpt else torch.randn(shape), data.targets[rows])


def constructed(folder: Path):
    """Squared error of w x at w = (0, 0) and (0.1, 0): who rises, who falls and all gradients are known."""
    kinds = [((1.0, 1.0), -1.0)] * 4 + [((1.0, 0.5), 1.0)] * 4 + [((0.0, 1.0), 0.5)] * 8
    x, y = torch.tensor([each[0] for each in kinds]), torch.tensor([each[1] for each in kinds])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    states = [{"weight": torch.tensor([[w, 0.0]])} for w in (0.0, 0.1)]
    return a_run(folder, nn.Linear(2, 1, bias=False), states, batches(x[order], y[order]), "mse")
