"""How far has each kernel turned away from where it began? Sums over files that are never read whole.

A kernel is followed through all checkpoints in stretches: of each checkpoint only the stretch at hand is in memory, and
two threads read and sum side by side. Every product and every sum is in float64, whatever the files hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from probes.checkpoint import Checkpoint
from probes.kernels import Kernel
from probes.rotation_sums import Floats, Stretch, cut, summed, summed_whole

_JOB = 2**20  # elements of a kernel, or of several small ones, that a thread takes at a time
_SECONDS_BETWEEN_SAVES = 10.0


class Tick(Protocol):
    """What `measure` reports with and keeps its sums in; `analyzers._base.Tick` is one."""

    def __call__(self, share: float, doing: str) -> None:
        """Report the share that is done, and what is being done."""

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays."""

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return what was kept."""


@dataclass(frozen=True)
class Rotation:
    """What was summed over each of L layers at each of K checkpoints, w_0 being the first.

    squares: (L, K) ||w_k||^2. starts: (L, K) <w_k, w_0>. steps: (L, K) ||w_k - w_(k-1)||^2, 0 for the first. What
    follows from them is NaN where it is not defined: for layers of length zero or with values that are not finite.
    """

    squares: Floats
    starts: Floats
    steps: Floats

    @property
    def rotation(self) -> Floats:
        """Return 1 - cos(w_k, w_0), (L, K): 0 at the start, 1 at a right angle, 2 when turned round."""
        with np.errstate(all="ignore"):
            return _finite(np.maximum(1 - self.starts / np.sqrt(self.squares * self.squares[:, :1]), 0))

    @property
    def norm(self) -> Floats:
        """Return ||w_k||, (L, K)."""
        return _finite(np.sqrt(self.squares))

    @property
    def angles(self) -> Floats:
        """Return the angles between neighbours in radians, (L, K), NaN for the first.

        Under a norm layer the length of w does not matter, so that this is the step that the network sees: its
        effective learning rate.
        """
        with np.errstate(all="ignore"):
            before, along = self.squares[:, :-1], self._along()
            across = np.maximum(self.steps[:, 1:] - along**2 / before, 0)
            angles = np.arctan2(np.sqrt(across * before), before + along)
            return _first_unknown(np.where(self.squares[:, 1:] > 0, angles, np.nan))

    @property
    def radial_share(self) -> Floats:
        """Return the share of a step's squared length along the weights, (L, K), NaN where there was no step."""
        with np.errstate(all="ignore"):
            share = np.minimum(self._along() ** 2 / (self.squares[:, :-1] * self.steps[:, 1:]), 1)
            return _first_unknown(np.where(self.steps[:, 1:] > 0, share, np.nan))

    @property
    def random_walk(self) -> Floats:
        """Return the rotation expected of steps by the same angles in directions that know nothing of each other.

        1 - prod_k cos(angle_k), (L, K), which is 1 - prod (1 + rho_k^2)^(-1/2) for tangent steps of size rho_k = tan.
        """
        cosines = np.cos(self.angles)
        cosines[:, 0] = 1
        return np.asarray(1 - np.cumprod(cosines, axis=1))

    def _along(self) -> Floats:
        """Return <w_k - w_(k-1), w_(k-1)>, (L, K - 1)."""
        return np.asarray((self.squares[:, 1:] - self.squares[:, :-1] - self.steps[:, 1:]) / 2)


def measure(checkpoints: Sequence[Checkpoint], kernels: Sequence[Kernel], tick: Tick) -> Rotation:
    """Sum over the kernels of checkpoints in the order of time, w_0 first; raise RefusedCheckpoint.

    In memory are four stretches a thread; of kernels that a file gives up only whole (quantised, strided, merged with
    an adapter), w_0 and two neighbours. A killed measurement goes on from what `tick` kept. The number of threads does
    not change a digit.
    """
    places = _places(kernels)
    sums = np.zeros((places[-1].stop, len(checkpoints), 3))
    readers = [[each.parts(kernel.name) for each in checkpoints] for kernel in kernels]
    jobs = _jobs(kernels, [all(each) for each in readers])
    kept = tick.load("rotation")
    done = int(kept["jobs"][0]) if kept is not None and kept["sums"].shape == sums.shape else 0
    sums += kept["sums"] if kept is not None and done else 0
    total, weights = sum(each.numel for each in kernels), sum(job.weights for job in jobs[:done])
    saved = time.monotonic()
    with _one_thread_each():
        for job, found in _carried_out(jobs[done:], kernels, readers, checkpoints):
            for kernel, part in found:
                sums[places[kernel]] += part
            done, weights = done + 1, weights + job.weights
            tick(weights / total, f"{kernels[job.stretches[-1].kernel].name} through {len(checkpoints)} checkpoints")
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                tick.save("rotation", {"sums": sums, "jobs": np.array([done])})
                saved = time.monotonic()
    return Rotation(sums[..., 0], sums[..., 1], sums[..., 2])


@dataclass(frozen=True)
class _Job:
    """What one thread does at a time. whole: the kernel can only be read whole."""

    stretches: tuple[Stretch, ...]
    whole: bool = False

    @property
    def weights(self) -> int:
        return sum(each.count for each in self.stretches)


_Found = list[tuple[int, Floats]]  # kernels, and what is to be added to the sums of their layers, (layers, K, 3)


def _places(kernels: Sequence[Kernel]) -> list[slice]:
    """Return where the layers of each kernel stand among all layers."""
    ends = np.cumsum([len(each.labels) for each in kernels])
    return [slice(int(end) - len(each.labels), int(end)) for end, each in zip(ends, kernels, strict=True)]


def _jobs(kernels: Sequence[Kernel], in_parts: Sequence[bool]) -> list[_Job]:
    jobs, taken, size = [], [], 0
    for stretch in (each for index in range(len(kernels)) if in_parts[index] for each in cut(kernels[index], index)):
        taken.append(stretch)
        size += stretch.count
        if size >= _JOB:
            jobs.append(_Job(tuple(taken)))
            taken, size = [], 0
    jobs += [_Job(tuple(taken))] if taken else []
    whole = (index for index in range(len(kernels)) if not in_parts[index])
    return jobs + [_Job((Stretch(index, 0, kernels[index].numel),), whole=True) for index in whole]


def _carried_out(
    jobs: Sequence[_Job], kernels: Sequence[Kernel], readers: Sequence[Any], checkpoints: Sequence[Checkpoint]
) -> Iterator[tuple[_Job, _Found]]:
    """Yield what each job found, in their order: those in parts by threads, the whole ones one at a time."""

    def sums(job: _Job) -> _Found:
        return [(each.kernel, summed(kernels[each.kernel], each, readers[each.kernel])) for each in job.stretches]

    in_parts = [job for job in jobs if not job.whole]
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "rotation")
    try:
        yield from zip(in_parts, pool.map(sums, in_parts), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
    for job in jobs[len(in_parts) :]:
        index = job.stretches[0].kernel
        yield job, [(index, summed_whole(kernels[index], checkpoints))]


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _first_unknown(values: Floats) -> Floats:
    return np.concatenate([np.full((len(values), 1), np.nan), _finite(values)], axis=1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep torch from using several threads for each operation: they would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
