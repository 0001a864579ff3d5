"""The example: two runs of a small CNN on scikit-learn's handwritten digits, trained here in some seconds.

The digits ship inside scikit-learn (1797 images of 8 x 8, values 0 to 16, from the UCI archive): real data, no
download. Both runs see the same split and differ in their seed: initialisation and order of the batches. The same
seed gives the same bytes on the same machine.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from analyzers._base import Tick
from probes.models import build
from probes.specs import DataSpec, ModelSpec
from workspace.store import Store

MODEL = ModelSpec(
    source="text",
    text="Sequential(Conv2d(1, 8, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(8, 32, 3, padding=1), ReLU(), "
    "MaxPool2d(2), Flatten(), Linear(128, 10))",
)
SEEDS = (1, 2)
KEPT = (0, 2, 5, 10, 20, 40)  # epochs whose weights are kept; 0 is the initialisation
TESTED = 397
BATCH = 32
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4


@dataclass(frozen=True)
class Digits:
    """The split: images float32 (N, 1, 8, 8) in [0, 1], labels int64 (N,)."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def train(store: Store, folder: Path, tick: Tick) -> dict[str, Any]:  # noqa: ARG001
    """Train and store what the example consists of; return checkpoints, data, model and loss as JSON.

    A run that an earlier attempt finished is taken from `tick` and not trained again.
    """
    tick(0.0, "reading the digits")
    digits = load_digits()
    files = {name: store.add_bytes(_npz(*part), f"digits-{name}.npz") for name, part in _parts(digits)}
    checkpoints: list[dict[str, Any]] = []
    with _one_thread():
        for number, seed in enumerate(SEEDS):
            report = _reporter(tick, number)
            checkpoints += _run(store, digits, seed, number + 1, tick, report)
    data = {name: DataSpec((each.sha256,), format="npz").to_json() for name, each in files.items()}
    tick(1.0, "done")
    return {
        "checkpoints": checkpoints,
        "data": data["train"],
        "test_data": data["test"],
        "model": MODEL.to_json(),
        "loss": "cross_entropy",
    }


def load_digits() -> Digits:
    """Return the digits, split at random (always the same way) into 1400 to train on and 397 to test with."""
    from sklearn.datasets import load_digits as read

    images, labels = read(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy((images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    y = torch.from_numpy(labels[order].astype(np.int64))
    return Digits((x[TESTED:], y[TESTED:]), (x[:TESTED], y[:TESTED]))


def train_once(digits: Digits, seed: int, report: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Train from one seed; yield (epoch, safetensors) of the initialisation and of every epoch in `KEPT`."""
    module, generator = _untrained(seed), torch.Generator().manual_seed(seed)
    yield 0, _checkpoint(module, digits, 0, seed)
    optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, KEPT[-1])
    for epoch in range(1, KEPT[-1] + 1):
        _epoch(module, optimizer, *digits.train, generator)
        schedule.step()
        report(epoch)
        if epoch in KEPT:
            yield epoch, _checkpoint(module, digits, epoch, seed)


def _untrained(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(MODEL)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
    return module.train()


def _epoch(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, order: torch.Generator) -> None:
    for rows in torch.randperm(len(x), generator=order).split(BATCH):
        optimizer.zero_grad()
        cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()


def _run(
    store: Store, digits: Digits, seed: int, number: int, tick: Tick, report: Callable[[int], None]
) -> list[dict[str, Any]]:
    kept = tick.load(f"run{number}")
    if kept is not None:
        return list(json.loads(str(kept["checkpoints"])))
    found = []
    for epoch, content in train_once(digits, seed, report):
        name = f"digits-run{number}-epoch{epoch:02d}.safetensors"
        stored = store.add_bytes(content, name)
        found.append({"sha256": stored.sha256, "name": name, "run": number, "epoch": epoch})
    tick.save(f"run{number}", {"checkpoints": np.array(json.dumps(found))})
    return found


def _reporter(tick: Tick, number: int) -> Callable[[int], None]:
    def report(epoch: int) -> None:
        share = (number + epoch / KEPT[-1]) / len(SEEDS)
        tick(min(share, 0.99), f"training run {number + 1} of {len(SEEDS)}: epoch {epoch} of {KEPT[-1]}")

    return report


def _checkpoint(module: nn.Module, digits: Digits, epoch: int, seed: int) -> bytes:
    """Return the weights with epoch and metrics under names that `probes.checkpoint` reads back."""
    metrics = {}
    for name, (x, y) in _parts(digits):
        with torch.no_grad():
            logits = module(x)
        metrics[f"{name}_accuracy"] = f"{float((logits.argmax(1) == y).float().mean()):.6f}"
        metrics[f"{name}_loss"] = f"{float(cross_entropy(logits, y)):.6f}"
    about = {"epoch": str(epoch), "seed": str(seed), "model": MODEL.text, **metrics}
    return _ordered(save({name: each.contiguous() for name, each in module.state_dict().items()}, about))


def _ordered(content: bytes) -> bytes:
    """Write the header of a safetensors file anew with sorted keys: the library orders metadata at random."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def _parts(digits: Digits) -> tuple[tuple[str, tuple[Tensor, Tensor]], ...]:
    return ("train", digits.train), ("test", digits.test)


def _npz(images: Tensor, labels: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.numpy(), labels=labels.numpy())
    return buffer.getvalue()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, which is quicker for layers this small and gives the same bytes everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
