"""An objective at every checkpoint of a run that is made of states: shared by the tests of analyzers over time."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from probes.checkpoint import Checkpoint, read_checkpoint
from probes.objective import Objective


def a_run(folder: Path, module: nn.Module, states, data, loss="cross_entropy", *, every=1, **options):
    """An objective at the first of these states of a module, and the checkpoints of all, so many steps apart."""
    checkpoints = []
    for step, state in enumerate(states):
        torch.save({"model": state, "step": every * step}, folder / f"step-{every * step}.pt")
        checkpoints.append(read_checkpoint(folder / f"step-{every * step}.pt"))

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
        state = {k: v.abs() if "running_var" in k else v for k, v in state.items()}
        if "token.weight" in state:
            state["head.weight"] = state["token.weight"]
        states.append(state)
    return states
