"""Gradients of every example against autograd, one example at a time."""

from __future__ import annotations

import numpy as np
import pytest
from curvature_oracles import cnn, gpt, mlp

from probes.objective import Objective
from probes.per_sample import per_example

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}


@pytest.mark.parametrize("name", NETS)
def test_they_add_up_to_the_gradient_of_the_mean_loss(name) -> None:
    make, loss = NETS[name]
    net, data = make()
    objective = Objective.of(net, data, loss, dtype="float64", micro_batch=4)
    found = per_example(objective)
    flat = objective.like_theta(objective.gradient())
    expected = [float((g * w.detach()).sum()) for g, w in zip(flat, objective.theta, strict=True)]
    np.testing.assert_allclose(found.dots.sum(0) / objective.units, expected, rtol=1e-10, atol=1e-13)
    assert found.losses.sum() / objective.units == pytest.approx(objective.evaluate().loss, rel=1e-12)
