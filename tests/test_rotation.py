"""Rotation, steps and random walk against dense float64, closed forms and simulation; what is read and held."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rotation_oracles import dense, followed, held, series_of
from safetensors.torch import save_file
from torch import nn

from analyzers._base import Quiet
from probes import rotation
from probes.checkpoint import read_checkpoint
from probes.formats import raw
from probes.kernels import Kernel, kernels
from probes.rotation import measure
from probes.rotation_sums import BLOCK, STRETCH

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_equals_torch_in_float64(dtype: torch.dtype, count: int) -> None:
    tensors = series_of(37, 5, 3, count=count, dtype=dtype)
    found = followed(tensors)
    turned, norms, angles = dense(tensors)
    np.testing.assert_allclose(found.rotation[0], turned, atol=1e-13)
    np.testing.assert_allclose(found.norm[0], norms, rtol=1e-13)
    np.testing.assert_allclose(found.angles[0], angles, rtol=1e-9)


@pytest.mark.parametrize(
    "size", [1, BLOCK - 1, BLOCK, BLOCK + 1, STRETCH - 1, STRETCH, STRETCH + 1, 2 * STRETCH + BLOCK + 7]
)
@pytest.mark.parametrize("in_parts", [True, False])
def test_stretches_end_anywhere(size: int, in_parts: bool) -> None:
    tensors = series_of(1, size, count=3)
    found = followed(tensors, in_parts)
    turned, norms, _ = dense(tensors)
    np.testing.assert_allclose(found.rotation[0], turned, atol=1e-12)
    np.testing.assert_allclose(found.norm[0], norms, rtol=1e-12)
    steps = [float((b.double() - a.double()).norm() ** 2) for a, b in pairwise(tensors)]
    np.testing.assert_allclose(found.steps[0], [0, *steps], rtol=1e-9)


def test_the_smallest_steps_keep_their_digits() -> None:
    start = torch.randn(300, 500, dtype=torch.float64)
    step = torch.randn(300, 500, dtype=torch.float64)
    step -= (step * start).sum() / start.square().sum() * start
    for size in (1e-3, 1e-6, 1e-9):
        tangent = size * float(start.norm() / step.norm())
        found = followed([start, start + tangent * step])
        np.testing.assert_allclose(found.angles[0, 1], np.arctan(size), rtol=1e-6)


def test_a_frozen_kernel_does_not_turn() -> None:
    found = followed([series_of(400, 500)[0]] * 5)
    assert found.steps.tolist() == [[0.0] * 5]
    assert found.angles[0, 1:].tolist() == [0.0] * 4
    assert found.rotation.max() < 1e-14
    assert np.isnan(found.radial_share).all()


def test_along_the_weights_nothing_turns() -> None:
    start = series_of(20, 30, dtype=torch.float64)[0]
    found = followed([start, 3 * start, 0.5 * start])
    np.testing.assert_allclose(found.rotation[0], 0, atol=1e-15)
    np.testing.assert_allclose(found.angles[0, 1:], 0, atol=1e-7)
    np.testing.assert_allclose(found.radial_share[0, 1:], 1, rtol=1e-12)
    np.testing.assert_allclose(found.norm[0] / found.norm[0, 0], [1, 3, 0.5], rtol=1e-14)


@pytest.mark.parametrize("angle", [0.001, 0.5, np.pi / 2, 2.5, np.pi])
def test_a_turn_by_a_known_angle(angle: float) -> None:
    one, two = torch.linalg.qr(torch.randn(600, 2, dtype=torch.float64))[0].T
    turned = 2 * (np.cos(angle) * one + np.sin(angle) * two)
    found = followed([one.reshape(20, 30), turned.reshape(20, 30)])
    assert found.angles[0, 1] == pytest.approx(angle, rel=1e-9, abs=1e-7)
    assert found.rotation[0, 1] == pytest.approx(1 - np.cos(angle), rel=1e-9)
    assert found.random_walk[0].tolist() == pytest.approx([0, 1 - np.cos(angle)], rel=1e-9)


def test_the_random_walk_is_that_of_simulated_walks() -> None:
    """Tangent steps of size rho in random directions, the length kept: the formula is the mean of 1 - cos."""
    generator = np.random.default_rng(0)
    walks, size, rho = 400, 50, np.array([0.3, 0.3, 0.2, 0.5, 0.1, 0.3, 0.4, 0.3])
    start = generator.standard_normal((walks, size))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    paths = [start]
    for each in rho:
        step = generator.standard_normal((walks, size))
        step -= (step * paths[-1]).sum(1, keepdims=True) * paths[-1]
        new = paths[-1] + each * step / np.linalg.norm(step, axis=1, keepdims=True)
        paths.append(new / np.linalg.norm(new, axis=1, keepdims=True))
    turned = 1 - (paths[-1] * start).sum(1)
    formula = 1 - np.prod((1 + rho**2) ** -0.5)
    assert abs(turned.mean() - formula) < 4 * turned.std() / np.sqrt(walks)
    found = followed([torch.from_numpy(path[:1]).reshape(5, 10) for path in paths])
    assert found.random_walk[0, -1] == pytest.approx(formula, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_what_has_no_direction_is_not_known(value: float) -> None:
    tensors = series_of(4, 5, count=3)
    tensors[1] = torch.full((4, 5), value)
    found = followed(tensors)
    assert np.isfinite(found.rotation[0]).tolist() == [True, False, True]
    assert np.isnan(found.angles).all()


def test_threads_and_interruptions_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Notes(Quiet):
        def __init__(self, after: int = 10**6) -> None:
            self.kept: dict[str, Any] = {}
            self.after = after
            self.shares: list[float] = []

        def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
            self.shares.append(share)
            if len(self.shares) == self.after:
                raise KeyboardInterrupt

        def save(self, key: str, arrays: Any) -> None:
            self.kept[key] = {name: each.copy() for name, each in arrays.items()}

        def load(self, key: str) -> Any:
            return self.kept.get(key)

    monkeypatch.setattr(rotation, "_JOB", 4000)
    monkeypatch.setattr(rotation, "_SECONDS_BETWEEN_SAVES", 0)
    states = [
        {f"{index}.weight": each for index, each in enumerate(row)}
        for row in zip(*(series_of(50, 30 + index) for index in range(12)), strict=True)
    ]
    checkpoints = [held(state, in_parts=True) for state in states]
    found, _ = kernels(checkpoints)
    monkeypatch.setattr(rotation.os, "cpu_count", lambda: 1)
    whole = Notes()
    expected = measure(checkpoints, found, whole)
    monkeypatch.setattr(rotation.os, "cpu_count", lambda: 3)
    killed = Notes(after=4)
    with pytest.raises(KeyboardInterrupt):
        measure(checkpoints, found, killed)
    killed.after, killed.shares = 10**6, []
    again = measure(checkpoints, found, killed)
    assert whole.shares == sorted(whole.shares) and whole.shares[-1] == 1
    assert len(killed.shares) == len(whole.shares) - 3
    assert all(np.array_equal(getattr(again, name), getattr(expected, name)) for name in ("squares", "starts", "steps"))


def test_torch_has_its_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        followed(series_of(4, 5))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_only_the_kernels_are_read_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(600, 500), nn.BatchNorm1d(500), nn.Linear(500, 7))
    paths = [tmp_path / f"epoch-{index}.safetensors" for index in range(3)]
    for path in paths:
        save_file({**module.state_dict(), "optimizer.exp_avg": torch.ones(500_000)}, path)
    seen: list[int] = []
    plain = raw.span_of

    def watched(path: Path, name: str, start: int = 0) -> Any:
        span = plain(path, name, start)
        return lambda first, count: (seen.append(count), span(first, count))[1]

    monkeypatch.setattr("probes.formats.safe.span_of", watched)
    checkpoints = [read_checkpoint(path) for path in paths]
    measure(checkpoints, kernels(checkpoints)[0], Quiet())
    assert sum(seen) == 3 * 4 * (600 * 500 + 500 * 7)
    assert max(seen) == 4 * STRETCH


FRESH = """
import sys
from pathlib import Path
import torch
from analyzers._base import Quiet
from analyzers.layer_rotation import LayerRotation
from probes.checkpoint import read_checkpoint
import probes.rotation, probes.kernels, probes.gate, probes.seed_match
held = lambda key: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))
checkpoints = tuple(read_checkpoint(Path(each), sha256=each) for each in sys.argv[1:])
torch.dot(torch.ones(9), torch.ones(9))
before = held("VmRSS")
LayerRotation().run(None, checkpoints, Quiet())
print(held("VmHWM") - before)
"""


def test_memory_is_that_of_stretches(tmp_path: Path) -> None:
    """Six checkpoints of 40 MB and 80 MB of optimizer state; a shell stands between, whose peak is small."""
    weights = torch.randn(2500, 4000)
    paths = [tmp_path / f"epoch-{index}.pt" for index in range(6)]
    for path in paths:
        torch.save({"model": {"a.weight": weights}, "optimizer": {"m": weights, "v": weights.clone()}}, path)
    line = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", FRESH, *map(str, paths)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 100e6


def test_what_a_kernel_tells_of_its_size() -> None:
    assert Kernel("a", (6, 4), "kernel", ("a",)).weights == 24
    assert Kernel("a", (6, 2), "kernel", ("q", "k", "v"), (0, 1, 2)).weights == 4
