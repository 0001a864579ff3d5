"""Influence by the inverse of the empirical Fisher, which is never made: M-FAC's matrix-free product.

F = lam I + G'G / m of m gradients, the rows of G (m, P), has the inverse (Woodbury)
F^-1 x = (x - G' (m lam I + G G')^-1 G x) / lam, one Cholesky factor of an m x m matrix (Frantar, Kurtic, Alistarh 2021,
"M-FAC: Efficient Matrix-Free Approximations of Second-Order Information"). Influence functions: Koh, Liang 2017, with
F in place of the Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from probes.errors import ObjectiveError
from probes.influence.products import Floats, Places, Products, Report, gradient_of, products, quiet
from probes.losses import counted, total_loss
from probes.memory import is_out_of_memory, spare_bytes
from probes.objective import Objective
from probes.one_by_one import REFUSALS
from probes.strict import strict

CHUNK = 1 << 22  # numbers of G that are taken to float64 at once
TOGETHER = 64  # gradients that are taken at once
SAME = {torch.float32: 1e-3, torch.float64: 1e-7}  # relative, of a gradient taken with others and alone


@dataclass(frozen=True, eq=False)
class InverseFisher:
    """The inverse of lam I + G'G / m as an operator on vectors (P,) or columns (P, k).

    gradients: G (m, P). damping: lam. factor: the Cholesky factor of m lam I + G G', float64. eigenvalues: of G'G / m,
    those that may differ from zero, rising (m,).
    """

    gradients: Tensor
    damping: float
    factor: Tensor
    eigenvalues: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return F^-1 x, float64."""
        columns = x.double().reshape(len(x), -1)
        inner = torch.cholesky_solve(_times(self.gradients, columns), self.factor)
        back = torch.cat([part.double().mT @ inner for part in _columns(self.gradients)])
        return ((columns - back) / self.damping).reshape(x.shape)

    @property
    def directions(self) -> float:
        """Return how many directions the gradients tell about beyond the damping: sum of e / (e + lam)."""
        return float((self.eigenvalues / (self.eigenvalues + self.damping)).sum())


def inverse_fisher(gradients: Tensor, damping: float, *, relative: bool = False) -> InverseFisher:
    """Factor the m x m matrix of gradients (m, P).

    damping: lam, above zero; with `relative` in units of the mean of the m eigenvalues of G'G / m. Raises
    ObjectiveError (damping not above zero, all gradients zero).
    """
    m = len(gradients)
    gram = torch.zeros(m, m, dtype=torch.float64, device=gradients.device)
    for part in _columns(gradients):
        wide = part.double()
        gram += wide @ wide.mT
    lam = damping * float(gram.diagonal().mean()) / m if relative else damping
    if not lam > 0:
        raise ObjectiveError(
            f"The damping of the Fisher matrix is {lam:.3g}; it must be above zero, and of the gradients one at least "
            "must not be zero. Give a larger damping."
        )
    factor, failed = torch.linalg.cholesky_ex(gram + m * lam * torch.eye(m, dtype=gram.dtype, device=gram.device))
    if int(failed):
        raise ObjectiveError(f"The damping {lam:.3g} of the Fisher matrix is lost in rounding. Give a larger one.")
    return InverseFisher(gradients, lam, factor, torch.linalg.eigvalsh(gram).clamp(min=0) / m)


def fisher_gradients(objective: Objective, rows: Sequence[int], chosen: Places, tick: Report | None = None) -> Tensor:
    """Return the gradients h_i of these examples by the chosen parameters, (m, P).

    h_i: of an example's share in the mean loss, times N. Raises ObjectiveError where they do not fit into memory.
    """
    width = sum(objective.theta[place].numel() for place in chosen)
    needed = 2 * len(rows) * width * objective.theta[0].element_size()
    if needed > spare_bytes(objective.device):
        raise ObjectiveError(
            f"{len(rows)} gradients of {width:,} parameters need {needed / 2**30:.1f} GiB, which is not there. Take "
            "fewer gradients, or the parameters of a few layers only (the last one, say)."
        )
    counts = counted(objective.loss, objective.targets)
    kept = torch.empty(len(rows), width, dtype=objective.dtype, device=objective.device)
    together, start = objective.own is None, 0
    while start < len(rows):
        some = rows[start : start + (min(TOGETHER, objective.micro_batch) if together else 1)]
        found = objective.in_memory(partial(_together, objective, some, chosen)) if together else None
        if together and (found is None or (start == 0 and not _agrees(objective, found, some, chosen, counts))):
            together = False
            continue
        part = _singly(objective, some[0], chosen, counts) if found is None else found
        kept[start : start + len(part)] = part * (len(objective.inputs) / objective.units)
        start += len(part)
        if tick is not None:
            tick(start / len(rows), "gradients of the Fisher matrix")
    return kept


def influences(
    objective: Objective, target: Objective, rows: Sequence[int], chosen: Places, fisher: InverseFisher,
    tick: Report | None = None,
) -> Products:  # fmt: skip
    """Return g_q' F^-1 h_i / N, (N, Q): by how much the loss of row q would rise were example i left out.

    Above zero the example helps, as with TracIn; minus this is the influence function of more weight on the example.
    target: the model on the data that the rows are of. Raises ObjectiveError.
    """
    sizes = [objective.theta[place].shape for place in chosen]
    directions = []
    for row in rows:
        flat = torch.cat([each.reshape(-1) for each in gradient_of(target, row, chosen)])
        pieces = fisher(flat).to(objective.dtype).split([each.numel() for each in sizes])
        directions.append([piece.view(size) for piece, size in zip(pieces, sizes, strict=True)])
    found = products(objective, directions, chosen, tick)
    values: Floats = found.values / len(objective.inputs)
    return Products(values, found.singly)


def some_rows(count: int, most: int, seed: int) -> list[int]:
    """Draw `most` of `count` examples at random, or take all; in rising order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:most].tolist())


def _columns(gradients: Tensor) -> Sequence[Tensor]:
    parts: tuple[Tensor, ...] = gradients.split(max(1, CHUNK // len(gradients)), 1)
    return parts


def _times(gradients: Tensor, columns: Tensor) -> Tensor:
    parts = _columns(gradients)
    pieces = columns.split([part.shape[1] for part in parts])
    return torch.stack([part.double() @ piece for part, piece in zip(parts, pieces, strict=True)]).sum(0)


def _together(objective: Objective, rows: Sequence[int], chosen: Places) -> Tensor | None:
    """Return the gradients of the sums over the examples' units, (B, P), by torch.func; None where that fails."""
    constant = [each.detach() for each in objective.theta]
    at = torch.tensor(list(rows), device=objective.inputs.device)

    def loss_of(pieces: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        values = list(constant)
        for place, piece in zip(chosen, pieces, strict=True):
            values[place] = piece
        outputs = functional_call(objective.module, objective._values(values), (x[None],))
        return total_loss(objective.loss, outputs, y[None])

    batch = objective.inputs[at].to(objective.device), objective.targets[at].to(objective.device)
    try:
        with strict(objective.module), quiet():
            found = vmap(grad(loss_of), (None, 0, 0))([constant[place] for place in chosen], *batch)
    except REFUSALS as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return None
    return torch.cat([each.flatten(1) for each in found], 1)


def _singly(objective: Objective, row: int, chosen: Places, counts: Tensor) -> Tensor:
    units = int(counts[row])
    return units * torch.cat([each.reshape(-1) for each in gradient_of(objective, row, chosen)])[None]


def _agrees(objective: Objective, found: Tensor, rows: Sequence[int], chosen: Places, counts: Tensor) -> bool:
    truth = _singly(objective, rows[-1], chosen, counts)[0]
    off = torch.linalg.vector_norm(found[-1] - truth)
    return bool(off <= SAME[objective.dtype] * torch.linalg.vector_norm(truth) + 1e-12)
