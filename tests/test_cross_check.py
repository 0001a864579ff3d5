"""PyHessian beside ours: the same numbers where it works, words where it does not."""

from __future__ import annotations

import pytest
import torch
from curvature_oracles import batches, cnn, gpt, mlp
from torch import nn

from analyzers._base import Quiet
from analyzers.hessian_spectrum import HessianSpectrum
from probes.cross_check import cross_check
from probes.objective import Objective

ASK = HessianSpectrum(top=3, bottom=3, dtype="float64", tolerance=1e-6, probes=2, steps=10, trace_probes=20)


@pytest.mark.parametrize(("make", "loss"), [(mlp, "cross_entropy"), (cnn, "cross_entropy"), (gpt, "causal_lm")])
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_both_find_the_same_numbers(make, loss, micro_batch) -> None:
    objective = Objective.of(*make(), loss, dtype="float64", micro_batch=micro_batch)
    values = ASK.run(objective, (), Quiet()).values
    found = cross_check(objective, values)
    assert any("torch.eig" in note for note in found["notes"])
    *eigenvalues, trace = found["rows"]
    assert len(eigenvalues) >= 2
    for row in eigenvalues:
        assert abs(row["difference"]) < 0.02 * abs(row["ours"])
    spread = (trace["ours_uncertainty"] ** 2 + trace["pyhessian_uncertainty"] ** 2) ** 0.5
    assert abs(trace["difference"]) < 4 * spread


def test_unused_parameters_are_explained_in_words() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.first(x)

    objective = Objective.of(Spare(), batches(torch.randn(7, 3), torch.randint(2, (7,))), "cross_entropy")
    values = ASK.run(objective, (), Quiet()).values
    found = cross_check(objective, values)
    assert any("the loss does not use all parameters" in note for note in found["notes"])
    assert all(row["pyhessian"] is None for row in found["rows"])
    assert all(each.grad is None for each in objective.module.parameters())
