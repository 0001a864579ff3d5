"""Matching the two real runs on MNIST to the figures measured elsewhere, and copies of real and random networks."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from matching_oracles import TICK, rows
from torch import Tensor, nn

from probes.checkpoint import read_checkpoint
from probes.matching import Matching, weight_matching
from probes.matching_activations import activation_matching
from probes.objective import Objective
from probes.paths import Readings, readings
from probes.permutations import Permutation, PermutationSpec, Use, composed, drawn, permuted
from probes.points import between, point_from, point_of, tensors_of
from probes.specifications import specification


def images(real: Path, count: int = 10_000) -> tuple[Tensor, Tensor]:
    raw = lambda name, skip: gzip.decompress((real / "mnist" / name).read_bytes())[skip:]
    pixels = np.frombuffer(raw("t10k-images-idx3-ubyte.gz", 16), np.uint8).reshape(-1, 1, 28, 28)[:count]
    labels = np.frombuffer(raw("t10k-labels-idx1-ubyte.gz", 8), np.uint8)[:count]
    return torch.from_numpy(pixels / np.float32(255)), torch.from_numpy(labels.astype(np.int64))


def pair(real: Path, count: int = 10_000) -> tuple[Objective, dict[str, Tensor], dict[str, Tensor]]:
    a, b = (read_checkpoint(real / "mnist-cnn" / run / "epoch-200.pt").load() for run in ("run1", "run2"))
    pooled = (nn.ReLU(), nn.MaxPool2d(2))
    net = nn.Sequential(nn.Conv2d(1, 32, 3), *pooled, nn.Conv2d(32, 64, 3), *pooled, nn.Flatten(), nn.Linear(1600, 10))
    net.load_state_dict(a)
    return Objective.of(net, batches(*images(real, count)), "cross_entropy", device="cpu"), dict(a), dict(b)


def spec() -> PermutationSpec:
    channels = lambda size, *places: tuple(Use(tensor, axis, rows(size)) for tensor, axis in places)
    first = channels(32, ("0.weight", 0), ("0.bias", 0), ("3.weight", 1))
    second = (*channels(64, ("3.weight", 0), ("3.bias", 0)), Use("7.weight", 1, rows(64, slots=25)))
    return PermutationSpec((Permutation("first", 32, first), Permutation("second", 64, second)), "by hand")


def line(objective: Objective, a: dict[str, Tensor], b: dict[str, Tensor], places: list[float]) -> Readings:
    ends = point_from(objective, a), point_from(objective, b)
    return readings(objective, [between(*ends, place) for place in places], len(places), TICK)


def barrier(read: Readings) -> float:
    return float(read.loss.max() - (read.loss[0] + read.loss[-1]) / 2)


def test_five_seeds_find_one_permutation_at_the_known_distance(real: Path) -> None:
    _, a, b = pair(real, 10)
    ends: list[Matching] = [weight_matching(a, b, spec(), seed=seed, tick=TICK) for seed in range(5)]
    for each in ends:
        assert round(each.distance, 4) == 4.9958
        assert {round(one.distance, 4) for one in each.restarts} == {4.9958} and each.agreement == 1.0
        assert all(np.array_equal(each.found[name], ends[0].found[name]) for name in each.found)


def test_the_barrier_after_weight_matching_is_the_one_measured_elsewhere(real: Path) -> None:
    objective, a, b = pair(real)
    found = weight_matching(a, b, spec(), tick=TICK)
    read = line(objective, a, permuted(b, spec(), found.found), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert [round(each, 4) for each in read.loss[1:4]] == [0.0339, 0.0350, 0.0341]
    assert read.accuracy is not None
    assert [round(100 * each, 2) for each in read.accuracy[1:4]] == [98.94, 98.86, 98.89]
    assert round(barrier(read), 4) == 0.0018


def test_the_barrier_after_activation_matching_is_the_one_measured_elsewhere(real: Path) -> None:
    objective, a, b = pair(real, 2000)
    found = activation_matching(objective, point_of(objective), point_from(objective, b), spec(), TICK)
    read = line(objective, a, permuted(b, spec(), found.found), [0.0, 0.5, 1.0])
    assert round(barrier(read), 4) == 0.0072


def resnet20(real: Path) -> Objective:
    from probes.data import read_batches
    from probes.models import recognise
    from probes.objective import build_objective
    from probes.specs import DataSpec

    checkpoint = read_checkpoint(real / "cifar10-resnet20" / "resnet20-12fca82f.th")
    model = recognise(checkpoint).spec
    assert model is not None
    files = (str(real / "cifar10-resnet20" / "cifar10-train-1000.npz"),)
    data = read_batches(DataSpec(files=files, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), examples=64))
    return build_objective(model, checkpoint, data, "cross_entropy", device="cpu")


def found_again(objective: Objective, plan: PermutationSpec, seed: int) -> Matching:
    """Plant a permutation of a network in a copy, match the copy, and compare."""
    a, planted = tensors_of(objective, point_of(objective)), drawn(plan, seed)
    b = permuted(a, plan, planted)
    found = weight_matching(a, b, plan, seed=seed, tick=TICK)
    back = composed(plan, planted, found.found)
    assert found.distance == 0
    assert all(np.array_equal(pi, np.arange(len(pi))) for pi in back.values())
    assert any(not np.array_equal(pi, np.arange(len(pi))) for pi in planted.values())
    assert barrier(line(objective, a, permuted(b, plan, found.found), [0.0, 0.5, 1.0])) < 1e-3
    return found


def test_planted_permutations_of_the_real_networks_are_found(real: Path) -> None:
    """A flattened map; BatchNorm and shortcuts that pad with zeros, so that stages share channels."""
    objective, _, _ = pair(real, 50)
    for each in (objective, resnet20(real)):
        plan = specification(each)
        assert all(one.agreement == 1 for one in found_again(each, plan, 0).restarts[:2])
        found_again(each, plan, 1)


class Residual(nn.Module):
    """Two residual blocks with BatchNorm and a projected shortcut, a mean over the map, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = lambda inputs, outputs, size=3: nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.one, self.one_norm, self.two, self.two_norm = conv(8, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8)
        self.three, self.three_norm = conv(8, 12), nn.BatchNorm2d(12)
        self.four, self.four_norm, self.short = conv(12, 12), nn.BatchNorm2d(12), conv(8, 12, 1)
        self.head = nn.Linear(12, 5)
        for each in self.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.running_mean = 0.1 * torch.randn(each.num_features)
                each.running_var = 1 + 0.2 * torch.rand(each.num_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.two_norm(self.two(self.one_norm(self.one(x)).relu()))).relu()
        x = (self.short(x) + self.four_norm(self.four(self.three_norm(self.three(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(2))
def test_planted_permutations_of_an_mlp_and_a_residual_network_are_found(seed: int) -> None:
    torch.manual_seed(1)
    mlp = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
    for net, x in ((mlp, torch.randn(8, 6)), (Residual(), torch.randn(8, 3, 6, 6))):
        objective = Objective.of(net, batches(x, torch.arange(8) % 3), "cross_entropy", device="cpu")
        found_again(objective, specification(objective), seed)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "torch encoder"])
def test_planted_permutations_of_transformers_are_found(name: str) -> None:
    """Heads with free orders within; query heads over shared keys and values with rotary positions and SwiGLU."""
    import family_nets

    objective = family_nets.objective_of(name)
    for seed in (0, 1):
        found_again(objective, specification(objective), seed)
