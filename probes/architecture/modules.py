"""The modules of the built-in catalogue: chains of layers, CIFAR ResNets and a small GPT.

Each keeps the parameter names of the code that such checkpoints come from, so that a state dict fits by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


class Chain(nn.Module):
    """Layers one after the other, those with parameters under dotted names of any depth."""

    def __init__(self, layers: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self._order: list[nn.Module] = []
        for count, (name, layer) in enumerate(layers):
            _place(self, name or f"step{count}", layer)
            self._order.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ...) to logits (N, K)."""
        for layer in self._order:
            x = layer(x)
        return x


def mlp(widths: Sequence[int], names: Sequence[str], bias: bool = True, activation: str = "relu") -> nn.Module:
    """Build a perceptron: widths from the input to the logits, one name for each linear layer."""
    layers: list[tuple[str, nn.Module]] = [("", nn.Flatten())]
    for count, (inputs, outputs, name) in enumerate(zip(widths[:-1], widths[1:], names, strict=True)):
        layers += [("", ACTIVATIONS[activation]())] if count else []
        layers.append((name, nn.Linear(inputs, outputs, bias)))
    return Chain(layers)


def lenet(
    channels: Sequence[int],
    kernels: Sequence[int],
    paddings: Sequence[int],
    pools: Sequence[bool],
    widths: Sequence[int],
    names: Sequence[str],
    activation: str = "relu",
    pool: str = "max",
    bias: bool = True,
) -> nn.Module:
    """Build convolutions, each with its activation and perhaps a pool of 2, then linear layers.

    channels: from the image on; kernels, paddings, pools: one per convolution; widths: from the flattened image on.
    """
    pooling = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
    layers: list[tuple[str, nn.Module]] = []
    for count, kernel in enumerate(kernels):
        inputs, outputs = channels[count], channels[count + 1]
        layers.append((names[count], nn.Conv2d(inputs, outputs, kernel, padding=paddings[count], bias=bias)))
        layers += [("", ACTIVATIONS[activation]())] + ([("", pooling(2))] if pools[count] else [])
    layers.append(("", nn.Flatten()))
    for count, name in enumerate(names[len(kernels) :]):
        layers += [("", ACTIVATIONS[activation]())] if count else []
        layers.append((name, nn.Linear(widths[count], widths[count + 1], bias)))
    return Chain(layers)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016): A subsamples and pads with zeros, B projects."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self._stride, self._added, self._shortcut = stride, outputs - inputs, shortcut
        self._projects = option == "B" and (stride != 1 or inputs != outputs)
        if self._projects:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.add_module(shortcut, nn.Sequential(project, nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outputs, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self._side(x))

    def _side(self, x: Tensor) -> Tensor:
        if self._projects:
            return self.get_submodule(self._shortcut)(x)  # type: ignore[no-any-return]
        if self._stride == 1 and not self._added:
            return x
        before = self._added // 2
        return functional.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, before, self._added - before))


class CifarResNet(nn.Module):
    """The ResNet for 32 x 32 images of He et al. (2016), section 4.2: 6n + 2 layers."""

    def __init__(
        self,
        depth: int,
        option: str = "A",
        classes: int = 10,
        width: int = 16,
        channels: int = 3,
        shortcut: str = "shortcut",
        head: str = "linear",
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(BasicBlock(inputs, outputs, stride, option, shortcut))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", layer)
        self._head = head
        self.add_module(head, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.get_submodule(self._head)(x.mean((2, 3)))  # type: ignore[no-any-return]


class Norm(nn.Module):
    """Layer normalisation with or without a bias."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Transposed(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs), as OpenAI's GPT-2 does."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return functional.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int, context: int, bias: bool, transposed: bool, mask: bool) -> None:
        super().__init__()
        linear = Transposed if transposed else nn.Linear
        self.c_attn = linear(width, 3 * width, bias)
        self.c_proj = linear(width, width, bias)
        self._heads = heads
        if mask:  # kept in old files; the mask itself is `is_causal`
            self.register_buffer("bias", torch.ones(1, 1, context, context).tril())

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D)."""
        N, T, D = x.shape
        q, k, v = (
            each.view(N, T, self._heads, D // self._heads).transpose(1, 2) for each in self.c_attn(x).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(N, T, D))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind its norm and beside a residual path."""

    def __init__(
        self,
        width: int,
        heads: int,
        context: int,
        hidden: int,
        bias: bool,
        activation: str,
        transposed: bool,
        mask: bool,
    ) -> None:
        super().__init__()
        linear = Transposed if transposed else nn.Linear
        self.ln_1 = Norm(width, bias)
        self.attn = Attention(width, heads, context, bias, transposed, mask)
        self.ln_2 = Norm(width, bias)
        self.mlp = nn.ModuleDict({"c_fc": linear(width, hidden, bias), "c_proj": linear(hidden, width, bias)})
        self._activation = nn.GELU(approximate="tanh") if activation == "gelu_tanh" else ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D)."""
        x = x + self.attn(self.ln_1(x))
        inner = self._activation(self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["c_proj"](inner)  # type: ignore[no-any-return]


class SmallGPT(nn.Module):
    """A decoder with the names of nanoGPT: token ids (N, T) to logits (N, T, V)."""

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        hidden: int = 0,
        bias: bool = True,
        tied: bool = True,
        activation: str = "gelu",
        transposed: bool = False,
        mask: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        tokens, positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        for embedding in (tokens, positions):
            nn.init.normal_(embedding.weight, std=0.02)
        blocks = [Block(width, heads, context, hidden, bias, activation, transposed, mask) for _ in range(layers)]
        self._blocks = blocks
        parts = {"wte": tokens, "wpe": positions, "h": nn.ModuleList(blocks), "ln_f": Norm(width, bias)}
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, T) to logits (N, T, V)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](positions)
        for block in self._blocks:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))  # type: ignore[no-any-return]


def _place(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Add a layer under a dotted name, making the modules on the way."""
    *folders, last = name.split(".")
    for folder in folders:
        if folder not in parent._modules:
            parent.add_module(folder, nn.Module())
        parent = parent.get_submodule(folder)
    parent.add_module(last, layer)
