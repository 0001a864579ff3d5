"""Small models, batches and dense Hessians that share no code with the probes they check."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from probes.data import Batches, hash_of


def batches(inputs: Tensor, targets: Tensor) -> Batches:
    """Tensors as Batches."""
    ids = tuple(f"example {i}" for i in range(len(inputs)))
    return Batches(
        inputs=inputs,
        targets=targets,
        ids=ids,
        sha256=hash_of(inputs, targets),
        classes=(),
        doubts=(),
        about={},
    )


class TinyGPT(nn.Module):
    """One block, tied weights, LayerNorm, fused attention, 2 heads."""

    def __init__(self, vocabulary: int = 7, context: int = 6, width: int = 8) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        n, t = ids.shape
        x = self.token(ids) + self.position(torch.arange(t))
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, 2, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(n, t, -1))
        return self.head(self.norm2(x))


def mlp() -> tuple[nn.Module, Batches]:
    """Tanh MLP on 13 examples of 3 classes: no micro-batch divides it evenly."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
    return net, batches(2 * torch.randn(13, 6), torch.randint(3, (13,)))


def cnn() -> tuple[nn.Module, Batches]:
    """CNN with BatchNorm, whose running statistics are not the trivial ones, and dropout."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(),
        nn.Linear(36, 4),
    )  # fmt: skip
    x = torch.randn(11, 1, 8, 8)
    net.train()(1 + 2 * x)
    return net, batches(x, torch.randint(4, (11,)))


def gpt() -> tuple[nn.Module, Batches]:
    """Tiny GPT on 5 sequences, some with padding that does not count."""
    torch.manual_seed(3)
    x, y = torch.randint(7, (5, 6)), torch.randint(7, (5, 6))
    y[1, 2:], y[4, 5:] = -100, -100
    net = TinyGPT()
    for each in net.parameters():
        nn.init.normal_(each, std=0.4)
    return net, batches(x, y)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, mean over everything that counts."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=-100)


def dense_hessian(
    net: nn.Module, data: Batches, loss: Callable[[Tensor, Tensor], Tensor] = mean_loss
) -> np.ndarray[Any, Any]:
    """The dense float64 Hessian of the loss over all examples at once, by torch.func, or row by row."""
    net = net.double().eval()
    theta = {name: each.detach() for name, each in net.named_parameters()}
    buffers = {name: each.detach() for name, each in net.named_buffers()}
    shapes = {name: each.shape for name, each in theta.items()}
    sizes = [each.numel() for each in theta.values()]
    x = data.inputs.double() if data.inputs.is_floating_point() else data.inputs

    def value(flat: Tensor) -> Tensor:
        pieces = zip(shapes, flat.split(sizes), strict=True)
        values: Mapping[str, Tensor] = {name: piece.view(shapes[name]) for name, piece in pieces}
        return loss(functional_call(net, {**values, **buffers}, (x,)), data.targets)

    flat = torch.cat([each.reshape(-1) for each in theta.values()])
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.func scripts its own rules
        if any(isinstance(each, nn.LayerNorm) for each in net.modules()):  # vmap has no right rule for it
            return _by_rows(value, flat)
        return hessian(value)(flat).numpy()


def _by_rows(value: Callable[[Tensor], Tensor], flat: Tensor) -> np.ndarray[Any, Any]:
    flat = flat.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(flat), flat, create_graph=True)
    rows = [torch.autograd.grad(each, flat, retain_graph=True)[0] for each in gradient]
    return torch.stack(rows).numpy()


class Notes:
    """A tick that keeps arrays in a dict, and can stop a run after some calls."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.kept: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        self.shares: list[float] = []
        self.seconds: list[float | None] = []
        self.stop_after = stop_after

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        assert doing
        self.shares.append(share)
        self.seconds.append(seconds_left)
        if self.stop_after is not None and len(self.shares) >= self.stop_after:
            raise KeyboardInterrupt

    def save(self, key: str, arrays: Mapping[str, Any]) -> None:
        self.kept[key] = {name: np.array(value) for name, value in arrays.items()}

    def load(self, key: str) -> Mapping[str, Any] | None:
        return self.kept.get(key)
