"""What the tests of gradient-weight alignment share: runs of small networks, and the cosines by autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import series_runs
import torch
from curvature_oracles import cnn, gpt, mlp
from series_runs import moved
from torch import nn
from torch.nn import functional

from analyzers._base import Quiet
from analyzers.gradient_alignment import GradientAlignment

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}
HEADS = {"mlp": "4.weight", "cnn": "6.weight", "gpt": "head.weight"}
EXACTLY = GradientAlignment(dtype="float64", listed=4)


def a_run(folder: Path, net: nn.Module, data: Any, loss: str, count: int = 3, **options: Any) -> tuple[Any, ...]:
    """An objective at the first of some states of a module, each moved at random, the checkpoints, and the states."""
    torch.manual_seed(7)
    states = moved(net, count, 0.2)
    return *series_runs.a_run(folder, net, states, data, loss, every=10, **options), states


def run(folder: Path, name: str, ask: GradientAlignment = EXACTLY, order: tuple[int, ...] = (0, 1, 2), **options: Any):
    net, data = NETS[name][0]()
    objective, checkpoints, states = a_run(folder, net, data, NETS[name][1], **options)
    given = tuple(checkpoints[place] for place in order)
    objective = objective if order[0] == 0 else objective.at(given[0])
    return ask.run(objective, given, Quiet()), net, data, states


def by_autograd(net: nn.Module, state: dict[str, Any], data: Any, names: tuple[str, ...] | None) -> np.ndarray:
    """Cosines of each example's negative gradient with these parameters (all: None), by one backward pass for each."""
    net = copy.deepcopy(net)
    net.load_state_dict(state, strict=False)
    net = net.double().eval()
    chosen = [each for name, each in net.named_parameters() if names is None or name in names]
    found = []
    for x, y in zip(data.inputs, data.targets, strict=True):
        outputs = net(x[None].double() if x.is_floating_point() else x[None])[0]
        loss = functional.cross_entropy(outputs, y, reduction="sum", ignore_index=-100)
        grads = torch.autograd.grad(loss, chosen)
        dot = sum(float((g * w.detach()).sum()) for g, w in zip(grads, chosen, strict=True))
        norms = [sum(float(each.detach().square().sum()) for each in some) ** 0.5 for some in (grads, chosen)]
        found.append(-dot / norms[0] / norms[1])
    return np.array(found)
