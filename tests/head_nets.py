"""Networks with every kind of final linear head, their examples and losses: shared by the tests of the head."""

from __future__ import annotations

import torch
from curvature_oracles import batches, cnn, gpt, mlp
from torch import Tensor, nn

from probes.objective import Objective

Net = tuple[nn.Module, object, str, str]


class Squeezed(nn.Module):
    """One logit an example, without a last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(5, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x).tanh()).squeeze(-1)


class Conv1D(nn.Module):
    """The layer that transformers' GPT-2 is made of: a kernel (in, out)."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, out)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def net_of(name: str) -> Net:
    """A network, its examples, its loss, and the name of its head's kernel."""
    torch.manual_seed(5)
    x, y = torch.randn(13, 5), torch.randint(4, (13,))
    pictures, values = torch.randn(7, 2, 4, 4), torch.randn(7, 3, 4, 4)
    if name in ("mlp", "cnn", "gpt"):
        made = {"mlp": mlp, "cnn": cnn, "gpt": gpt}[name]()
        last = {"mlp": "4.weight", "cnn": "6.weight", "gpt": "head.weight"}[name]
        return *made, "causal_lm" if name == "gpt" else "cross_entropy", last
    pointwise = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 3, 1))
    pooled = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 4, 1), nn.Flatten())
    tokens = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return {
        "bce": (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), batches(x, torch.rand(13, 4)),
                "bce_with_logits", "2.weight"),
        "bce one": (Squeezed(), batches(x, (y > 1).float()), "bce_with_logits", "out.weight"),
        "mse": (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False)), batches(x, torch.randn(13, 4)),
                "mse", "2.weight"),
        "mse labels": (nn.Linear(5, 4), batches(x, y), "mse", "weight"),
        "mse tokens": (tokens, batches(torch.randn(6, 5, 4), torch.randn(6, 5, 3)), "mse", "2.weight"),
        "mse map": (pointwise, batches(pictures, values), "mse", "2.weight"),
        "conv": (pooled, batches(pictures, torch.randint(4, (7,))), "cross_entropy", "2.weight"),
        "conv1d": (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), Conv1D(4, 6)), batches(x, y), "cross_entropy", "2.weight"),
    }[name]  # type: ignore[return-value]  # fmt: skip


def objective_of(name: str, micro_batch: int = 4, dtype: str = "float64") -> Objective:
    net, data, loss, _ = net_of(name)
    return Objective.of(net, data, loss, micro_batch=micro_batch, dtype=dtype)  # type: ignore[arg-type]
