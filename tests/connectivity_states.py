"""The states of a pair, mixed, permuted and judged by plain loops: oracles of mode connectivity."""

from __future__ import annotations

import torch
from connectivity_runs import Pair, blobs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

State = dict[str, Tensor]


def states(pair: Pair) -> list[State]:
    return [{name: each.double() for name, each in checkpoint.load().items()} for checkpoint in pair[1]]


def loss_of(net: nn.Module, state: State, seed: int = 0, count: int = 200) -> float:
    x, y = blobs(count, seed)
    net = net.double().eval()
    net.load_state_dict(state)
    with torch.no_grad():
        return float(cross_entropy(net(x.double()), y))


def mixed(one: State, other: State, share: float) -> State:
    return {name: (1 - share) * each + share * other[name] for name, each in one.items()}


def in_order(state: State, arrays: dict) -> State:
    """The units of the MLP in the order that was found, written out by hand."""
    first, second = (torch.as_tensor(arrays[f"permutation_{name}"]) for name in ("0", "2"))
    return {
        "0.weight": state["0.weight"][first], "0.bias": state["0.bias"][first],
        "2.weight": state["2.weight"][second][:, first], "2.bias": state["2.bias"][second],
        "4.weight": state["4.weight"][:, second], "4.bias": state["4.bias"],
    }  # fmt: skip
