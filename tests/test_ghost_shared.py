"""Norms of the gradients of parameters that are used more than once, in parts, or without an axis of examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracles import IDS, Over, check, read
from torch import Tensor, nn
from torch.nn import functional

N = 5  # no micro-batch of 2 or 3 divides it


class Tied(nn.Module):
    """Embedding and output layers of one matrix, as often as is said; perhaps a bias."""

    def __init__(self, embeddings: int, heads: int, transposed: bool = False) -> None:
        super().__init__()
        self.token, self.mix = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.bias = nn.Parameter(torch.zeros(7))
        self.embeddings, self.heads, self.transposed = embeddings, heads, transposed

    def forward(self, ids: Tensor) -> Tensor:
        x = sum(self.token((ids + i) % 7) * (i + 1) for i in range(self.embeddings))
        for _ in range(self.heads - 1):
            x = functional.linear(functional.linear(self.mix(x), self.token.weight).softmax(-1), self.token.weight.t())
        return (
            x @ self.token.weight.t() + self.bias
            if self.transposed
            else functional.linear(x, self.token.weight, self.bias)
        )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("embeddings", [1, 2])
def test_tied_weights_have_their_cross_terms(embeddings: int, transposed: bool) -> None:
    check(Tied(embeddings, 1, transposed), IDS)


def test_a_tied_matrix_that_is_also_used_the_other_way_round() -> None:
    check(Tied(1, 2), IDS)


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(x).tanh()).flatten(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 6), (6,)),
        (nn.Linear(6, 6), (3, 6)),
        (nn.Conv1d(3, 3, 3, padding=1), (3, 6)),
        (nn.LayerNorm(6), (6,)),
        (nn.BatchNorm1d(6), (6,)),
    ],
    ids=str,
)
def test_a_module_called_twice_is_summed_before_the_norm(layer: nn.Module, shape: tuple[int, ...]) -> None:
    check(Twice(layer, nn.Linear(int(np.prod(shape)), 3)), torch.randn(N, *shape))


def test_two_embeddings_and_two_linear_layers_of_one_matrix() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.mix = nn.Embedding(6, 6), nn.Linear(6, 6)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.token(ids) + self.mix(self.token(ids.flip(1)))
            return functional.linear(functional.linear(x, self.token.weight).tanh(), self.token.weight)

    check(Both(), IDS)


def test_layers_on_parts_of_one_matrix() -> None:
    rows = lambda layer, x: (
        functional.linear(x, layer.weight[:2]).tanh() @ layer.weight[2:4, :2].t() + x @ layer.weight[4:].t()
    )
    check(Over(nn.Linear(5, 6), lambda layer, x: rows(layer, x)), torch.randn(N, 5))  # its bias is not used
    halves = lambda layer, x: sum(each(x) for each in [lambda x, w=w: x @ w for w in layer.weight.t().chunk(2, 1)])
    check(Over(nn.Linear(5, 6), halves), torch.randn(N, 5))


@pytest.mark.parametrize("grown", ["added", "arange", "row", "expanded", "concatenated", "scale", "repeated"])
def test_parameters_without_an_axis_of_examples(grown: str) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Embedding(4, 6)
            self.token, self.last = nn.Linear(3, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x, n, t = self.token(x), len(x), x.shape[1]
            p = self.position.weight
            x = {
                "added": lambda: x + p[:t],
                "arange": lambda: x + self.position(torch.arange(t)),
                "row": lambda: x + self.position(torch.arange(t)[None]),
                "expanded": lambda: x * p[None, :t].expand(n, -1, -1),
                "concatenated": lambda: torch.cat([p[None, :2].expand(n, -1, -1), x], 1),
                "scale": lambda: x * p[0] + x.square() * p[1].exp(),
                "repeated": lambda: x + self.position(torch.tensor([1, 1, 0])),
            }[grown]()
            return self.last(x.tanh()).sum(1)

    check(Positions(), torch.randn(N, 3, 3))


def test_weights_that_are_computed_from_others() -> None:
    check(Over(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), read), torch.randn(N, 3, 6))
    check(
        Over(nn.Linear(6, 4), lambda layer, x: x @ (layer.weight / layer.weight.norm()).t() + 2 * layer.bias),
        torch.randn(N, 6),
    )
    gemma = lambda layer, x: functional.rms_norm(x, (6,)) * (1 + layer.weight)
    check(Over(nn.LayerNorm(6, bias=False), gemma), torch.randn(N, 6))


def test_attention_with_its_examples_along_the_second_axis() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12)
    check(Over(layer, lambda layer, x: layer(x.transpose(0, 1)).mean(0)), torch.randn(N, 3, 8))
    check(
        Over(nn.MultiheadAttention(8, 2, batch_first=True), lambda layer, x: layer(x[:, :2], x, x)[0].mean(1)),
        torch.randn(N, 3, 8),
    )


def test_learnt_biases_of_attention() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.table = nn.Linear(6, 6), nn.Embedding(3, 2)
            self.register_buffer("apart", torch.tensor([[0, 1, 2], [1, 0, 1], [2, 1, 0]]))

        def forward(self, x: Tensor) -> Tensor:
            q = self.mix(x).unflatten(2, (2, 3)).transpose(1, 2)
            bias = self.table(self.apart).permute(2, 0, 1)[None]
            return functional.scaled_dot_product_attention(q, q, q, attn_mask=bias).flatten(1)

    check(Biased(), torch.randn(N, 3, 6))
