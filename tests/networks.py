"""Networks as people write them, saved and compared with what is recognised: shared by the tests of models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.checkpoint import Checkpoint, read_checkpoint
from probes.models import load_model, recognise


def saved(module: nn.Module, tmp_path: Path, **more: object) -> Checkpoint:
    torch.save({"state_dict": module.state_dict(), **more}, tmp_path / "x.pt")
    return read_checkpoint(tmp_path / "x.pt")


def stir(module: nn.Module) -> nn.Module:
    """Give every norm its own statistics, so that a wrong order shows."""
    for name, tensor in module.state_dict().items():
        if "running" in name or tensor.ndim == 1:
            tensor.uniform_(0.2, 2.0)
    return module


def same(module: nn.Module, checkpoint: Checkpoint, inputs: Tensor) -> None:
    """Check that what is recognised gives the outputs of the module that was saved."""
    found = recognise(checkpoint)
    assert found.spec is not None, found
    with torch.no_grad():
        assert torch.allclose(load_model(found.spec, checkpoint)(inputs), module.eval()(inputs), atol=1e-6)


class LeNet5(nn.Module):
    """LeCun's network as tutorials write it."""

    def __init__(self, padding: int = 0, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


class Digits(nn.Module):
    """PyTorch's MNIST example: no pool after the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(9216, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        x = functional.relu(self.fc1(functional.max_pool2d(x, 2).flatten(1)))
        return self.fc2(x)


class Deep(nn.Module):
    """An MLP whose layers lie two names deep."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.body.layers
        return last(second(first(x).relu()).relu())


class Features(nn.Module):
    """A network in two numbered parts, as torchvision's VGG has them."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [(3, 4), (4, 6)]
        layers = [[nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)] for a, b in blocks]
        self.features = nn.Sequential(*layers[0], *layers[1])
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(6 * 64, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class IndependentGPT(nn.Module):
    """An independent GPT: nanoGPT's names, attention written out."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int, bias: bool) -> None:
        super().__init__()
        block = lambda: nn.ModuleDict(
            {
                "ln_1": nn.LayerNorm(width, bias=bias),
                "attn": nn.ModuleDict(
                    {"c_attn": nn.Linear(width, 3 * width, bias), "c_proj": nn.Linear(width, width, bias)}
                ),
                "ln_2": nn.LayerNorm(width, bias=bias),
                "mlp": nn.ModuleDict(
                    {"c_fc": nn.Linear(width, 4 * width, bias), "c_proj": nn.Linear(4 * width, width, bias)}
                ),
            }
        )
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList([block() for _ in range(layers)]),
                "ln_f": nn.LayerNorm(width, bias=bias),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        t = self.transformer
        x = t.wte(tokens) + t.wpe.weight[: tokens.shape[1]]
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        for h in t.h:
            q, k, v = h.attn.c_attn(h.ln_1(x)).split(x.shape[-1], -1)
            outs = []
            for i in range(self.heads):
                part = slice(i * x.shape[-1] // self.heads, (i + 1) * x.shape[-1] // self.heads)
                scores = q[..., part] @ k[..., part].mT / (q[..., part].shape[-1] ** 0.5)
                outs.append((scores + mask).softmax(-1) @ v[..., part])
            x = x + h.attn.c_proj(torch.cat(outs, -1))
            x = x + h.mlp.c_proj(functional.gelu(h.mlp.c_fc(h.ln_2(x))))
        return self.lm_head(t.ln_f(x))
