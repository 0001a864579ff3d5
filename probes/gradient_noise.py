"""How much the gradients of single examples differ: the trace of their covariance, the noise scale, their errors.

McCandlish, Kaplan, Amodei 2018 (An Empirical Model of Large-Batch Training) for the noise scale and its estimate from
two batch sizes; that estimate, taken over disjoint batches, is the one-way analysis of variance done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.errors import DataError, ObjectiveError
from probes.memory import spare_bytes
from probes.objective import Objective
from probes.per_sample import per_example

Floats = NDArray[np.float64]
Said = Callable[[float, str], None]
FEWEST = 4  # blocks below which a standard error from them says nothing
RESOLVED = 2.0  # standard errors by which ||g||^2 must stand out of zero before anything is divided by it


@dataclass(frozen=True)
class Blocks:
    """What is kept of the gradients of N examples: in K random blocks, for each of L parameter tensors.

    The gradient g_i of an example is that of its share in the mean loss, times N: their mean is the gradient of the
    mean loss. S_b is their sum over block b, S that over all.
    sizes: (K,) examples of each block. norms: (K, L) ||S_b||^2. dots: (K, L) <S_b, S>. squares: (K, L) the sums over
    a block of ||g_i||^2, or None where they were not taken. halves: (3, L) <A, A>, <A, B>, <B, B> of the sums over the
    first half of the blocks and the second. doubts: sentences for the reader.
    """

    sizes: Floats
    norms: Floats
    dots: Floats
    squares: Floats | None
    halves: Floats
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Noise:
    """What blocks tell of some parameters, or of all.

    raw: ||g||^2 of the mean gradient as it is. squared: without the part that noise alone adds to it, tr C / N; may
    fall below 0. trace: tr C, C the covariance of the gradients of single examples. scale: tr C / ||g||^2 in examples,
    None where ||g||^2 does not stand out of zero. scale_at_least: tr C / (||g||^2 + 2 standard errors); None where even
    that is not above zero. half_cosine: of the mean gradients of two halves of the examples; None where one vanishes.
    """

    raw: float
    squared: Estimate
    trace: Estimate
    scale: Estimate | None
    scale_at_least: float | None
    half_cosine: float | None


def gradient_blocks(objective: Objective, count: int, *, ghost: bool, seed: int, tick: Said) -> Blocks:
    """Take the gradients of `count` random blocks of examples, and with `ghost` the norm of each example's too.

    Costs one gradient over all examples, a second where the blocks' do not fit into memory, and the norms. Raises
    DataError (too few examples), ObjectiveError.
    """
    n = len(objective.inputs)
    if n < FEWEST:
        raise DataError(f"There are {n} examples; the spread of their gradients needs at least {FEWEST}. Give more.")
    parts = np.array_split(np.random.default_rng(seed).permutation(n), min(count, n))
    share = 0.5 if ghost else 1.0

    def sums(doing: str, start: float, width: float) -> Iterable[Tensor]:
        for done, rows in enumerate(parts):
            tick(share * (start + width * done / len(parts)), doing)
            yield _sum_of(objective, rows.tolist())

    fits = len(parts) * sum(each.nbytes for each in objective.theta) < spare_bytes(objective.device) / 4
    kept: list[Tensor] = []
    halves = torch.zeros(2, objective.size, dtype=torch.float64, device=objective.device)
    for place, each in enumerate(sums("gradients of random blocks", 0.0, 0.9 if fits else 0.5)):
        halves[2 * place // len(parts)] += each
        kept += [each] if fits else []
    total = halves.sum(0)
    sizes = [each.numel() for each in objective.theta]
    pairs = [(each, total) for each in kept] if fits else ((each, total) for each in sums("once more", 0.5, 0.5))
    rows = [(_by_tensor(each, each, sizes), _by_tensor(each, whole, sizes)) for each, whole in pairs]
    across = [_by_tensor(halves[a], halves[b], sizes) for a, b in ((0, 0), (0, 1), (1, 1))]
    squares, doubts = _squares(objective, parts, tick) if ghost else (None, ())
    norms, dots = (np.array(each) for each in zip(*rows, strict=True))
    if not np.isfinite(norms).all():
        raise ObjectiveError("A gradient is not finite although the losses are. Check the checkpoint, or take float64.")
    lengths = np.array([len(each) for each in parts], np.float64)
    return Blocks(lengths, norms, dots, squares, np.array(across), doubts)


def noise(blocks: Blocks, columns: Sequence[int] | None = None) -> Noise:
    """Estimate what there is to know of these parameter tensors together, of all when None.

    With the squares of single examples these give tr C, without them the spread of the blocks' means does. Standard
    errors are those of the jackknife that leaves out one block at a time.
    """
    chosen = list(range(blocks.norms.shape[1])) if columns is None else list(columns)
    norms, dots = blocks.norms[:, chosen].sum(1), blocks.dots[:, chosen].sum(1)
    within = norms / blocks.sizes if blocks.squares is None else blocks.squares[:, chosen].sum(1)
    each = np.ones_like(blocks.sizes) if blocks.squares is None else blocks.sizes  # what is compared in a block
    n, total = blocks.sizes.sum(), dots.sum()
    raw, trace, squared = _moments(n, within.sum(), total, each.sum())
    left = _moments(n - blocks.sizes, within.sum() - within, total - 2 * dots + norms, each.sum() - each)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = left[1] / left[2]
    found = Estimate(float(squared), _jackknife(left[2]))
    spread = Estimate(float(trace), _jackknife(left[1]))
    resolved = found.value > RESOLVED * found.stderr and bool(np.isfinite(ratios).all())
    above = found.value + RESOLVED * found.stderr
    return Noise(
        raw=float(raw),
        squared=found,
        trace=spread,
        scale=Estimate(spread.value / found.value, _jackknife(ratios)) if resolved else None,
        scale_at_least=spread.value / above if above > 0 else None,
        half_cosine=_cosine(*blocks.halves[:, chosen].sum(1)),
    )


def layers_of(names: Iterable[str]) -> dict[str, list[int]]:
    """Group parameters by the module that holds them: {"conv1": the places of its weight and bias}, in order."""
    layers: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(place)
    return layers


def _moments(n: Floats, within: Floats, total: Floats, units: Floats) -> tuple[Floats, Floats, Floats]:
    """Return ||g||^2, tr C and the unbiased ||g||^2 of n examples; total: ||S||^2; units: what is compared."""
    trace = (within - total / n) / (units - 1)
    return total / n**2, trace, total / n**2 - trace / n


def _jackknife(left: Floats) -> float:
    return math.sqrt((len(left) - 1) / len(left) * float(((left - left.mean()) ** 2).sum()))


def _cosine(aa: float, ab: float, bb: float) -> float | None:
    return float(ab / math.sqrt(aa * bb)) if aa > 0 and bb > 0 else None


def _sum_of(objective: Objective, rows: list[int]) -> Tensor:
    """Return the sum of the gradients g_i of these examples, flat (P,)."""
    chosen = objective.chosen(rows)
    if not chosen.units:  # sequences without a token that is predicted
        return torch.zeros(objective.size, dtype=objective.dtype, device=objective.device)
    return chosen.gradient() * (chosen.units * len(objective.inputs) / objective.units)


def _by_tensor(one: Tensor, other: Tensor, sizes: list[int]) -> Floats:
    """Return the inner products of two flat vectors over each parameter tensor, (L,), added up in float64."""
    pieces = zip(one.split(sizes), other.split(sizes), strict=True)
    return torch.stack([torch.dot(a.double(), b.double()) for a, b in pieces]).cpu().numpy()  # type: ignore[no-any-return]


def _squares(objective: Objective, parts: list[NDArray[np.int64]], tick: Said) -> tuple[Floats, tuple[str, ...]]:
    found = per_example(objective, lambda share, doing: tick(0.5 + 0.5 * share, doing))
    scale = (len(objective.inputs) / objective.units) ** 2
    return scale * np.array([found.squares[rows].sum(0) for rows in parts]), found.doubts
