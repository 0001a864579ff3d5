"""How each example's gradient in the final linear layer is aligned with the weights there, without a backward pass.

With z the input of the head, W its kernel and d the derivative of an example's loss by the outputs, the gradient by W
is d z^T, so that -<d z^T, W> / (|d z^T| |W|) = -(z . W^T d) / (|z| |d| |W|). The bias is left out, of the gradient and
of the norm (Hölzl et al. 2025, "Gradient-Weight Alignment as a Train-Time Proxy for Generalization in Classification
Tasks", NeurIPS). Their code adds 1e-12 to the denominator; here a gradient of zero has the alignment 0.

For the own class d is softmax minus one. In float32 that is multiples of 6e-8 and nothing below: of an example with a
loss under some 1e-6 the direction of d is made of rounding, in the published code as in any training in float32. So
there are two alignments here: with d as the precision has it, and exact, with d as the sum over the other classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from probes.head import Head, Logits, logits_of
from probes.losses import IGNORED, Evaluation, Tally, counted, evaluation
from probes.objective import Objective
from probes.strict import strict

Floats = NDArray[np.float64]
Report = Callable[[float, str], None]
ROWS, COLUMNS = 1024, 4096  # examples (or tokens), and classes (or words), that are looked at at a time


@dataclass(frozen=True)
class Aligned:
    """What is known of each example, (N,) each, the predicted tokens of a sequence averaged.

    alignment: in [-1, 1], of the gradient as the objective's dtype rounds it; exact: without that rounding of the
    derivative; both NaN without a head. losses: finite unless the model is broken. right: 1 or 0, or the share of
    outputs or tokens that are right; NaN where nothing is right or wrong. predicted: the class (of one output 0 or 1,
    or its value); NaN where there is not one. margins: logit of the label less the highest other one, of binary outputs
    the least logit in the direction of the target; NaN for values. counts: units of the loss, 1 or tokens. zeros: how
    many of them have no gradient. All is NaN in a sequence without tokens to predict.
    """

    alignment: Floats
    exact: Floats
    losses: Floats
    right: Floats
    predicted: Floats
    margins: Floats
    counts: Floats
    zeros: Floats

    def evaluation(self, objective: Objective) -> Evaluation:
        """Return loss and accuracy as `objective.evaluate()` does, without running the model again."""
        counts = torch.from_numpy(self.counts)
        losses, right = (torch.from_numpy(np.nan_to_num(each) * self.counts) for each in (self.losses, self.right))
        known = None if np.isnan(self.right).all() else right
        return evaluation(objective.loss, [Tally(counts, losses, known)], objective.targets)


def align(
    objective: Objective, head: Head | None, targets: Sequence[Tensor] = (), tick: Report | None = None
) -> list[Aligned]:
    """Return the alignment of every example in the head, and how well it is predicted, from one forward pass.

    head: None leaves the alignment out. targets: the labels to take, as many sets of them as answers are wanted; the
    objective's own when there are none. Computed in the objective's dtype and summed up in float64, ROWS by COLUMNS at
    a time: no (tokens, vocabulary) array is made. Raises ObjectiveError (out of memory) or ModelError.
    """
    if objective.own is not None:
        return [_of_own_loss(objective, tick)]
    return objective.in_memory(lambda: _align(objective, head, targets or (objective.targets,), tick))


def class_of(targets: Tensor) -> Tensor:
    """Return the class (N,) float64 of each example: as it is, or the place of the one in a one-hot row; else NaN."""
    rows = targets.double().flatten(1) if targets.ndim > 1 else targets.double()[:, None]
    if rows.shape[1] == 1:
        return rows[:, 0]
    hot = ((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1) & targets.is_floating_point()
    return rows.argmax(1).double().masked_fill(~hot, math.nan)


def _align(objective: Objective, head: Head | None, targets: Sequence[Tensor], tick: Report | None) -> list[Aligned]:
    found: list[list[list[Tensor]]] = [[] for _ in targets]
    judge = _judge_values if objective.loss in ("mse", "bce_with_logits") else _judge_classes
    for part in objective.parts():
        with torch.no_grad(), strict(objective.module):
            logits = logits_of(objective, head, part)
            for labels, parts in zip(targets, found, strict=True):
                judged = judge(objective.loss, logits, labels[part].to(objective.device))
                parts.append([each.cpu() for each in judged])
        if tick is not None:
            tick(part.stop / len(objective.inputs), "gradient-weight alignment")
    return [Aligned(*(torch.cat(each).double().numpy() for each in zip(*parts, strict=True))) for parts in found]


def _of_own_loss(objective: Objective, tick: Report | None) -> Aligned:
    losses = objective.example_losses(tick)
    unknown, ones = np.full(len(losses), math.nan), np.ones(len(losses))
    return Aligned(unknown, unknown, losses, unknown, unknown, unknown, ones, 0 * ones)


def _judge_classes(loss: str, logits: Logits, targets: Tensor) -> list[Tensor]:
    """Return the fields of Aligned, in their order: cross-entropy of an example, or of the tokens of a sequence."""
    n, length = logits.z.shape[:2]
    y, z = targets.reshape(n * length), logits.z.reshape(n * length, -1)
    counts = counted("causal_lm", targets.reshape(n, length)).double()
    sums = torch.zeros(6, n, dtype=torch.float64, device=y.device)
    predicted = torch.full_like(counts, math.nan)
    for rows in (y != IGNORED).nonzero()[:, 0].split(ROWS):
        found = _of_rows(logits, z[rows], y[rows])
        aligned = torch.stack([found.aligned(found.d_own / found.share), found.aligned(-found.total)])
        each = [*aligned.nan_to_num(0.0), found.loss, found.guess == y[rows], found.margin, aligned[1].isnan()]
        sums.index_add_(1, rows // length, torch.stack([one.double() for one in each]))
        if loss == "cross_entropy":
            predicted[rows] = found.guess.double()
    alignment, exact, losses, right, margins, _ = sums / counts
    unknown = torch.full_like(alignment, math.nan)
    alignment, exact = (alignment, exact) if logits.weight is not None else (unknown, unknown)
    return [alignment, exact, losses, right, predicted, margins, counts, sums[5]]


@dataclass(frozen=True)
class _Rows:
    """Sums over the classes but the own one, (R,) each, of p_c relative to the highest of them.

    total: of p_c. dots: of p_c (w_c . z). squares: of p_c^2. share: the highest p_c itself. d_own: p_y - 1 as the dtype
    has it, not relative. own_plain: w_y . z. length: |z| |W|.
    """

    total: Tensor
    dots: Tensor
    squares: Tensor
    share: Tensor
    d_own: Tensor
    own_plain: Tensor
    length: Tensor
    loss: Tensor
    guess: Tensor
    margin: Tensor

    def aligned(self, relative: Tensor) -> Tensor:
        """Return the alignment for a derivative by the own logit, relative likewise; NaN where all are zero."""
        relative = relative.nan_to_num(0.0)  # 0 / 0
        norms = self.length * (self.squares + relative.square()).sqrt()
        return torch.where(norms > 0, -(self.dots + relative * self.own_plain) / norms, math.nan)


def _of_rows(logits: Logits, z: Tensor, y: Tensor) -> _Rows:
    """Sum up over the classes, some at a time, for rows z (R, D) of classes y (R,)."""
    y, lowest = y[:, None], torch.full((len(z), 1), -torch.inf, dtype=torch.float64, device=z.device)
    top, own, own_plain, guess = lowest, lowest, lowest, torch.zeros_like(y)
    total, dots, squares = (torch.zeros_like(lowest) for _ in range(3))
    for start in range(0, logits.width, COLUMNS):
        plain, scores = logits.scores(z, slice(start, start + COLUMNS))
        place = (y - start).clamp(0, scores.shape[1] - 1)
        mine = place == y - start
        own, own_plain = (torch.where(mine, a.gather(1, place), b) for a, b in ((scores, own), (plain, own_plain)))
        others = scores.scatter(1, place, scores.gather(1, place).masked_fill(mine, -torch.inf))
        highest, where = others.max(1, keepdim=True)
        guess, higher = torch.where(highest > top, where + start, guess), torch.maximum(top, highest)
        shift = higher.masked_fill(higher == -torch.inf, 0.0)  # of no others: not inf - inf
        scale, p = (top - shift).exp(), (others - shift).exp()
        total, squares = total * scale + p.sum(1, True), squares * scale**2 + _inner(p, p)
        dots, top = dots * scale + _inner(p, plain), higher
    loss = torch.logaddexp(top + total.log() - own, torch.zeros_like(own))
    if logits.width <= COLUMNS:
        d_own = scores.to(z.dtype).softmax(1).gather(1, place).double() - 1
    else:
        d_own = (1 / (1 + loss.expm1().to(z.dtype)) - 1).double()
    ahead = (own > top) | ((own == top) & (y < guess))
    guess, margin = torch.where(ahead, y, guess), (own - top).nan_to_num(posinf=math.nan)
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True, dtype=torch.float64) * _norm(logits.weight)
    found = (total, dots, squares, (top - own - loss).exp(), d_own, own_plain, length, loss, guess, margin)
    return _Rows(*(each[:, 0] for each in found))


def _judge_values(loss: str, logits: Logits, targets: Tensor) -> list[Tensor]:
    """Return the fields of Aligned, in their order: mean squared error, or binary cross-entropy."""
    plain, outputs = logits.scores(logits.z, slice(None))
    n, length, width = outputs.shape
    t = targets.double()
    t = t.reshape(n, width, length).mT if logits.by_channel else t.reshape(n, length, width)
    nothing = torch.full((n,), math.nan, dtype=torch.float64, device=t.device)
    if loss == "mse":
        losses, d, right, margins = (outputs - t).square(), outputs - t, nothing, nothing
        rounded = d
    else:
        losses = softplus(-outputs.abs(), threshold=1e3) + outputs.clamp(min=0) - outputs * t
        d = outputs.sigmoid() * (1 - t) - (-outputs).sigmoid() * t  # nothing cancels
        rounded = (outputs.to(logits.z.dtype).sigmoid() - t.to(logits.z.dtype)).double()
        right = ((outputs > 0) == (t > 0.5)).double().flatten(1).mean(1)
        margins = (outputs * (2 * t - 1)).flatten(1).amin(1)
    alignment, exact = (_aligned(logits, plain, each) for each in (rounded, d))
    predicted, ones = _guess(loss, outputs.flatten(1), t.flatten(1)), torch.ones_like(nothing)
    kept = [alignment.nan_to_num(0.0), exact.nan_to_num(0.0)] if logits.weight is not None else [nothing, nothing]
    return [*kept, losses.flatten(1).mean(1), right, predicted, margins, ones, ones * exact.isnan()]


def _aligned(logits: Logits, plain: Tensor, d: Tensor) -> Tensor:
    """Return the alignment for derivatives d (n, T, C), NaN where there is no gradient; plain: W z, likewise."""
    norms = _norms(d, logits.z.double()) * _norm(logits.weight)
    return torch.where(norms > 0, -(d * plain).sum((1, 2)) / norms, math.nan)


def _guess(loss: str, outputs: Tensor, t: Tensor) -> Tensor:
    if outputs.shape[1] == 1:
        return outputs[:, 0] if loss == "mse" else (outputs[:, 0] > 0).double()
    return outputs.argmax(1).double().masked_fill(class_of(t).isnan(), math.nan)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    sums: Tensor = torch.linalg.vecdot(a, b, dim=1)
    return sums[:, None]


def _norms(d: Tensor, z: Tensor) -> Tensor:
    """Return the norm of sum_t d_t z_t^T of each example; d (n, T, C), z (n, T, D)."""
    if d.shape[1] == 1:
        lengths: Tensor = torch.linalg.vector_norm(d, dim=(1, 2)) * torch.linalg.vector_norm(z, dim=(1, 2))
        return lengths
    return torch.stack([torch.linalg.matrix_norm(one.mT @ other) for one, other in zip(d, z, strict=True)])


def _norm(weight: Tensor | None) -> Any:
    return 1.0 if weight is None else torch.linalg.vector_norm(weight, dtype=torch.float64)
