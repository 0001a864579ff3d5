"""The real networks that tests of attribution look at, with some of their data."""

from __future__ import annotations

from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import recognise
from probes.objective import build_objective
from probes.specs import DataSpec, ModelSpec

MNIST_CNN = ModelSpec(
    "text",
    text="Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))",
)


def mnist(real, dtype="float32"):
    found = read_batches(DataSpec((str(real / "mnist"),), examples=8))
    checkpoint = read_checkpoint(real / "mnist-cnn" / "run1" / "epoch-200.pt")
    return build_objective(MNIST_CNN, checkpoint, found, "cross_entropy", device="cpu", dtype=dtype)


def resnet20(real, count=4):
    folder = real / "cifar10-resnet20"
    checkpoint = read_checkpoint(folder / "resnet20-12fca82f.th")
    files = (str(folder / "cifar10-train-1000.npz"),)
    data = read_batches(DataSpec(files, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), examples=count))
    return build_objective(recognise(checkpoint).spec, checkpoint, data, "cross_entropy", device="cpu")
