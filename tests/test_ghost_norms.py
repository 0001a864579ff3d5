"""Norms and inner products of every example's gradient, layer by layer, against materialised gradients in float64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gradient_oracles import IDS, Over, check, read
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from probes import ghost_norms

N = 5  # no micro-batch of 2 or 3 divides it


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


@pytest.mark.parametrize("padding", [None, 0, -1])
def test_embeddings_with_repeated_tokens_and_padding(padding: int | None) -> None:
    found = check(Over(nn.Embedding(5, 6, padding_idx=padding), read), IDS)
    assert np.all(found.squares > 0)
    check(Over(nn.Embedding(5, 6), lambda layer, ids: layer.weight[ids].tanh().mean(1)), IDS)


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
