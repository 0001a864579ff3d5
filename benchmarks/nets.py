"""The nets that the benchmark measures on: an MLP on digits, ResNet-20 on CIFAR-10 images, a tiny GPT on text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.data import Batches, read_batches
from probes.objective import Objective, build_objective
from probes.specs import DataSpec

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batches_of(inputs: Tensor, targets: Tensor) -> Batches:
    """Wrap tensors as Batches."""
    digest = hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
    ids = tuple(str(i) for i in range(len(inputs)))
    return Batches(inputs=inputs, targets=targets, ids=ids, sha256=digest, classes=(), doubts=(), about={})


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> the same."""
        n, t, width = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class TinyGPT(nn.Module):
    """A language model with tied embedding and output weights."""

    def __init__(self, vocabulary: int, context: int, width: int = 16, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight
        nn.init.normal_(self.token.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T) token ids -> (N, T, vocabulary) logits."""
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


def train(module: nn.Module, inputs: Tensor, targets: Tensor, steps: int, rate: float = 0.01) -> nn.Module:
    """Train with Adam on batches of 64."""
    generator = torch.Generator().manual_seed(1)
    adam = torch.optim.Adam(module.parameters(), lr=rate)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (64,), generator=generator)
        adam.zero_grad()
        logits = module(inputs[rows])
        functional.cross_entropy(logits.flatten(0, -2), targets[rows].flatten()).backward()
        adam.step()
    return module


def mlp(dtype: str = "float32", tanh: bool = False) -> Objective:
    """64-32-32-10 on 800 of scikit-learn's digits; 3 466 parameters."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.data[:800]).float() / 16
    y = torch.from_numpy(digits.target[:800]).long()
    torch.manual_seed(0)
    act = nn.Tanh if tanh else nn.ReLU
    net = nn.Sequential(nn.Linear(64, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 10))
    return Objective.of(train(net, x, y, 300), batches_of(x, y), "cross_entropy", dtype=dtype)


def gpt(dtype: str = "float32") -> Objective:
    """Two layers of width 16 on the characters of descriptions of data sets; some 7 500 parameters."""
    text = _text()[:6500]
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(each) for each in text])
    x, y = ids[: 200 * 32].view(200, 32), ids[1 : 200 * 32 + 1].view(200, 32)
    torch.manual_seed(0)
    net = train(TinyGPT(len(characters), 32), x, y, 300)
    return Objective.of(net, batches_of(x, y), "causal_lm", dtype=dtype)


def _text() -> str:
    """Real text that ships inside scikit-learn: the descriptions of its data sets, letters and spaces only."""
    from sklearn import datasets

    loaders = (datasets.load_digits, datasets.load_breast_cancer, datasets.load_diabetes, datasets.load_wine)
    raw = " ".join(load().DESCR for load in loaders).lower()
    return " ".join("".join(each if "a" <= each <= "z" else " " for each in raw).split())


def resnet20(dtype: str = "float32", examples: int = 200) -> Objective:
    """The real ResNet-20 on the first 200 CIFAR-10 training images; 269 722 parameters."""
    from probes.checkpoint import read_checkpoint
    from probes.models import recognise

    checkpoint = read_checkpoint(REAL / "cifar10-resnet20" / "resnet20-12fca82f.th")
    spec = recognise(checkpoint).spec
    if spec is None:
        raise ValueError("ResNet-20 was not recognised")
    images = str(REAL / "cifar10-resnet20" / "cifar10-train-1000.npz")
    data = read_batches(DataSpec(files=(images,), mean=MEAN, std=STD, examples=examples))
    return build_objective(spec, checkpoint, data, "cross_entropy", dtype=dtype)


def resident(field: str) -> float:
    """Return the memory of this process, in MiB: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
