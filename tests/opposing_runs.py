"""Runs of small networks, and one worked out by hand: shared by the tests of opposing signals."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from curvature_oracles import batches, cnn, gpt, mlp
from torch import nn

from analyzers.opposing_signals import OpposingSignals
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.objective import Objective

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}
FEW = OpposingSignals(null_groups=10, dtype="float64")


def a_run(folder: Path, module: nn.Module, states, data, loss="cross_entropy", **options):
    """An objective at the first of these states of a module, and the checkpoints of all."""
    checkpoints = []
    for step, state in enumerate(states):
        torch.save({"model": state, "step": step}, folder / f"step-{step}.pt")
        checkpoints.append(read_checkpoint(folder / f"step-{step}.pt"))

    def load(checkpoint: Checkpoint) -> nn.Module:
        other = copy.deepcopy(module)
        other.load_state_dict(checkpoint.load(), strict=False)
        return other

    objective = Objective.of(load(checkpoints[0]), data, loss, **options)
    objective.load = load
    return objective, tuple(checkpoints)


def moved(module: nn.Module, count: int, size: float = 0.05):
    """States of a module, each moved at random from the one before."""
    states = [copy.deepcopy(module.state_dict())]
    for _ in range(count - 1):
        state = {k: v + size * torch.randn_like(v) if v.is_floating_point() else v for k, v in states[-1].items()}
        if "head.weight" in state:
            state["head.weight"] = state["token.weight"]
        states.append(state)
    return states


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
