"""Norms and inner products of every example's gradient, layer by layer, against materialised gradients in float64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from gradient_oracles import figures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from probes import ghost_norms
from probes.objective import Objective
from probes.per_sample import PerExample, per_example

N = 5  # no micro-batch of 2 or 3 divides it


def stirred(net: nn.Module) -> nn.Module:
    """Uneven weights and statistics everywhere, so that a wrong order shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, each in net.state_dict().items():
            if "running_var" in name:
                each.copy_(torch.rand(each.shape, generator=generator) + 0.5)
            elif each.is_floating_point():
                each += 0.3 * torch.randn(each.shape, generator=generator)
    return net


def check(net: nn.Module, x: Tensor, fallback: tuple[str, ...] = (), y: Tensor | None = None) -> PerExample:
    """Compare with the materialised gradients, in micro-batches of 3, 2 (uneven) and 1."""
    net = stirred(net)
    classes = net(x[:2]).shape[-1]
    if y is None:
        y = torch.randint(classes, (len(x),)) if net(x[:2]).ndim == 2 else torch.randint(classes, x.shape[:2])
    dots, squares = figures(net, x, y)
    scale = np.sqrt(squares).max(0) + 1e-30
    for micro_batch in (3, 2, 1):
        loss = "cross_entropy" if y.ndim == 1 else "causal_lm"
        found = per_example(Objective.of(net, batches(x, y), loss, dtype="float64", micro_batch=micro_batch))
        assert found.fallback == fallback
        assert found.doubts == ()
        np.testing.assert_allclose(np.sqrt(found.squares) / scale, np.sqrt(squares) / scale, atol=1e-10)
        np.testing.assert_allclose(found.dots / scale, dots / scale, atol=1e-10)
    return found


class Over(nn.Module):
    """A module and what is done with it."""

    def __init__(self, layer: nn.Module, forward) -> None:
        super().__init__()
        self.layer = layer
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.layer, x)


def read(layer: nn.Module, x: Tensor) -> Tensor:
    """Three logits from whatever the layer gives: no entry is like another."""
    out = layer(x).flatten(1)
    return out @ torch.arange(3 * out.shape[1], dtype=out.dtype).sin().view(-1, 3)


@pytest.mark.parametrize(("tokens", "n", "m"), [(1, 4, 3), (2, 9, 8), (30, 4, 3), (301, 700, 700)])
def test_squares_of_tokens_whichever_way_is_cheaper(tokens: int, n: int, m: int) -> None:
    a, d = (torch.randn(2, tokens, size, dtype=torch.float64) for size in (n, m))
    expected = torch.einsum("btm,btn->bmn", d, a).square().sum((1, 2))
    assert ghost_norms.gram_is_less(tokens, n, m) == (tokens != 30)
    torch.testing.assert_close(ghost_norms.token_squares(a, d), expected, rtol=1e-12, atol=0)


def test_blocks_of_gradients_do_not_change_the_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    a, d = torch.randn(7, 30, 4, dtype=torch.float64), torch.randn(7, 30, 3, dtype=torch.float64)
    whole = ghost_norms.token_squares(a, d)
    monkeypatch.setattr(ghost_norms, "CHUNK", 24)
    torch.testing.assert_close(ghost_norms.token_squares(a, d), whole, rtol=1e-12, atol=0)


def test_squares_of_rows_looked_up_more_than_once() -> None:
    ids, d = torch.tensor([[0, 3, 3, 1], [2, 2, 2, 2], [4, 3, 1, 0]]), torch.randn(3, 4, 5, dtype=torch.float64)
    expected = [
        float(torch.zeros(5, 5).double().index_add(0, i, e).square().sum()) for i, e in zip(ids, d, strict=True)
    ]
    np.testing.assert_allclose(ghost_norms.lookup_squares(ids, d), expected, rtol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (20, 6), (2, 3, 6)], ids=str)
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    check(Over(nn.Linear(6, 4, bias=bias), read), torch.randn(N, *shape))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    axes=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3]),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    size=st.integers(6, 8),
)
def test_convolutions(axes, groups, inputs, outputs, kernel, stride, dilation, padding, mode, bias, size) -> None:
    if padding == "same":
        stride = 1
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode, "bias": bias}
    layer = kind(groups * inputs, groups * outputs + groups, kernel, groups=groups, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on even kernels with padding "same"
        check(Over(layer, read), torch.randn(N, groups * inputs, *[size] * axes))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(12, 10, 3, padding=1, bias=False),  # a grouped convolution of all examples
        nn.Conv2d(130, 4, 1),  # wide: patches
        nn.Conv2d(12, 40, (4, 3), stride=(3, 2), padding=(2, 1)),  # few places: products between them
        nn.Conv2d(24, 48, 5, stride=4, groups=2),
        nn.Conv2d(12, 12, 3, groups=12, padding="same", dilation=(1, 2)),
    ],
    ids=str,
)
def test_every_way_of_taking_a_convolution(layer: nn.Conv2d) -> None:
    check(Over(layer, read), torch.randn(N, layer.in_channels, 7, 6))


def test_a_convolution_over_frames_that_were_folded_into_the_examples() -> None:
    fold = lambda layer, x: read(lambda x: layer(x.flatten(0, 1)).unflatten(0, (len(x), -1)), x)
    check(Over(nn.Conv2d(2, 3, 3), fold), torch.randn(N, 4, 2, 6, 6))
    check(Over(nn.Conv2d(2, 30, 3, stride=4), fold), torch.randn(N, 2, 2, 6, 6))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ConvTranspose2d(3, 2, (3, 2), stride=2, dilation=2, bias=False),
    ],
    ids=str,
)
def test_transposed_convolutions(layer: nn.Module) -> None:
    check(Over(layer, read), torch.randn(N, layer.in_channels, *[5] * (layer.weight.ndim - 2)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (4, 6)),
        (nn.LayerNorm(6, bias=False), (6,)),
        (nn.LayerNorm((4, 6)), (3, 4, 6)),
        (nn.RMSNorm(6), (4, 6)),
        (nn.GroupNorm(2, 4), (4, 5, 6)),
        (nn.BatchNorm1d(6), (6,)),
        (nn.BatchNorm1d(4), (4, 6)),
        (nn.BatchNorm2d(4), (4, 5, 6)),
        (nn.InstanceNorm1d(4, affine=True), (4, 6)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 5, 6)),
        (nn.PReLU(4), (4, 6)),
        (nn.PReLU(), (4, 6)),
    ],
    ids=str,
)
def test_norms_and_scales(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(int(np.prod(shape)), int(np.prod(shape))), nn.Unflatten(1, shape), layer
    )
    check(Over(net, read), 1 + torch.randn(N, *shape))


IDS = torch.tensor([[1, 1, 4, 0], [2, 2, 2, 2], [0, 3, 4, 1], [3, 3, 0, 0], [4, 0, 1, 1]])


@pytest.mark.parametrize("padding", [None, 0, -1])
def test_embeddings_with_repeated_tokens_and_padding(padding: int | None) -> None:
    found = check(Over(nn.Embedding(5, 6, padding_idx=padding), read), IDS)
    assert np.all(found.squares > 0)
    check(Over(nn.Embedding(5, 6), lambda layer, ids: layer.weight[ids].tanh().mean(1)), IDS)


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


def test_parameters_that_are_not_used_have_no_gradient() -> None:
    class Spare(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 4)
            self.spare, self.shift = nn.Linear(2, 2), nn.Parameter(torch.ones(4), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.shift.detach() * 2

    net = Spare()
    net.shift.requires_grad_(True)
    found = check(net, torch.randn(N, 6))
    unused = [found.names.index(name) for name in ("spare.weight", "spare.bias", "shift")]
    assert not found.squares[:, unused].any()
    assert not found.dots[:, unused].any()
