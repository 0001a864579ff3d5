"""What tests of language models share: texts as objectives, teacher forcing token by token, passes counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attribution_cases import LENGTH, VOCABULARY
from curvature_oracles import batches
from torch import Tensor, nn

from probes.objective import Objective

START = 4


def texts(module: nn.Module, ids: Tensor, first: int = 1, **options: Any) -> Objective:
    """An objective of whole texts: every token but the first is predicted; those before `first` do not count."""
    targets = ids[:, 1:].clone()
    targets[:, : first - 1] = -100
    return Objective(module, batches(ids[:, :-1], targets), "causal_lm", dtype="float64", device="cpu", **options)


class Bag(nn.Module):
    """Logits are a linear map of the sum of all vectors so far: every attribution of a logit has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCABULARY, 5), nn.Linear(5, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).cumsum(1))


def bag() -> Objective:
    torch.manual_seed(3)
    return texts(Bag(), torch.randint(1, VOCABULARY, (3, LENGTH)))


@contextmanager
def counting(objective: Objective) -> Iterator[list[tuple[int, int]]]:
    """Note the rows and tokens of every pass through the token table."""
    seen: list[tuple[int, int]] = []
    table = next(each for each in objective.module.modules() if isinstance(each, nn.Embedding))
    handle = table.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    try:
        yield seen
    finally:
        handle.remove()


def forced(objective: Objective, ids: Tensor, start: int) -> list[float]:
    """The oracle: a pass over all tokens before it for every token."""
    with torch.no_grad():
        rows = [last_row(objective, ids[:, :place]) for place in range(start, ids.shape[1])]
        return [float(row.log_softmax(-1)[token]) for row, token in zip(rows, ids[0, start:], strict=True)]


def last_row(objective: Objective, ids: Tensor) -> Tensor:
    values = {**objective.constants, **dict(zip(objective.names, objective.theta, strict=True))}
    return torch.func.functional_call(objective.module, values, (ids,))[0, -1]
