"""Networks for the tests of permutations, and the function they compute, written without the project's machinery."""

from __future__ import annotations

import copy

import torch
from curvature_oracles import batches
from torch import Tensor, nn
from torch.nn import functional

from probes.objective import Objective
from probes.permutations import Found, PermutationSpec, permuted
from probes.points import point_of, tensors_of


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic values of its own, so that nothing is equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in [*module.named_parameters(), *module.named_buffers()]:
            if each.is_floating_point():
                noise = torch.rand(each.shape, generator=generator)
                each.copy_(0.5 + noise if name.endswith(("var", "norm.weight")) else each + 0.4 * (noise - 0.5))
    return module.eval()


def objective_of(module: nn.Module, inputs: Tensor, classes: int = 3) -> Objective:
    targets = torch.arange(len(inputs)) % classes
    return Objective.of(stirred(module), batches(inputs, targets), "cross_entropy", micro_batch=4)


def change(module: nn.Module, objective: Objective, spec: PermutationSpec, found: Found, inputs: Tensor) -> float:
    """Return by how much permuted weights change the module's outputs, in float64, relative to the largest."""
    held = {name: each.double() for name, each in tensors_of(objective, point_of(objective)).items()}
    other, plain = copy.deepcopy(module).double(), copy.deepcopy(module).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        other.load_state_dict(permuted(held, spec, found), strict=False)
        before, after = plain(inputs), other(inputs)
    return float((after - before).abs().max() / before.abs().max())


class GroupNormed(nn.Module):
    """Two convolutions; GroupNorm of two groups, and of one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.GroupNorm(1, 4), nn.ReLU()
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Clashing(nn.Module):
    """A grouped convolution into three groups, and a GroupNorm of two that cuts across them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 1), nn.Conv2d(6, 12, 3, groups=3), nn.GroupNorm(2, 12), nn.ReLU(), nn.Conv2d(12, 3, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)


class Standardised(nn.Module):
    """Convolutions whose weights are standardised before each use, as ResNetV2-BiT and NFNet have them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def _run(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        flat = conv.weight.reshape(1, conv.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, training=True).reshape_as(conv.weight)
        return functional.conv2d(x, weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self._run(self.two, functional.relu(self._run(self.one, x)))).mean((2, 3)))


class SkipCat(nn.Module):
    """A small U-Net: down, up by a transposed convolution, the skip concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.leave = nn.Conv2d(9, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.relu(self.enter(x))
        up = functional.relu(self.up(functional.relu(self.down(wide))))
        return self.leave(torch.cat([wide, up], 1)).amax((2, 3))


class NextBlock(nn.Module):
    """ConvNeXt's block: depthwise, LayerNorm with the channels last, MLP, layer scale, residual."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, stride=2)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(functional.gelu(self.widen(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


class Mixer(nn.Module):
    """An MLP-Mixer of one block: patches become tokens, then tokens are mixed, then channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 5, 2, stride=2)
        self.norms = nn.ModuleList([nn.LayerNorm(5), nn.LayerNorm(5)])
        self.tokens = nn.Sequential(nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 9))
        self.channels = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(x.mean(1))


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight transposed, by plain functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.deeper = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(functional.linear(torch.tanh(functional.linear(x, self.weight)), self.deeper))
        return torch.tanh(code @ self.deeper) @ self.weight


class Written(nn.Module):
    """Attention of two heads written out by hand, behind learned positions, and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(11, 8)
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.gate, self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place
        q, k, v = (each.view(-1, 5, 2, 4).transpose(1, 2) for each in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = ((q @ k.mT) / 2.0).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(-1, 5, 8))
        x = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        return self.head(x[:, 0])


class OptionA(nn.Module):
    """Two stages of a CIFAR ResNet with option-A shortcuts: strided, and padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.second = self._block(4, 4, 1), self._block(4, 8, 2)
        self.head = nn.Linear(8, 3)

    def _block(self, inside: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inside, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.enter(x)))
        x = functional.relu(x + self.first(x))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = functional.relu(short + self.second(x))
        return self.head(x.mean((2, 3)))


class Overwriting(nn.Module):
    """Writes into a tensor of zeros, the same channels twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 4)
        self.leave = nn.Linear(12, 3)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.zeros(len(x), 12, dtype=x.dtype)
        wide[:, 2:6] = functional.relu(self.enter(x) + self.shift)
        wide[:, 8:12] = self.enter(x).sigmoid()
        return self.leave(wide)


class Sorting(nn.Module):
    """Uses an operation whose symmetries nobody knows here."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(functional.relu(self.second(torch.fft.rfft(self.first(x), n=10).abs())))
