"""Calibration: by hand, for tokens and yes or no, and of a network that is calibrated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from torch import nn

from probes.calibration import calibration, confidences
from probes.objective import Objective
from probes.paths import resamples


class Fixed(nn.Module):
    """Logits given as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_the_calibration_error_is_that_of_a_hand_computation() -> None:
    sure = torch.tensor([0.55, 0.55, 0.65, 0.9, 0.9, 0.9], dtype=torch.float64)
    logits = torch.stack([torch.log(sure), torch.log(1 - sure)], 1)
    right = torch.tensor([1, 0, 1, 1, 1, 0], dtype=torch.bool)
    objective = Objective.of(Fixed(), batches(logits, (~right).long()), "cross_entropy", dtype="float64", micro_batch=4)
    found = calibration(confidences(objective, bins=10), resamples(6, 0))
    truth = (abs(1 - 1.1) + abs(1 - 0.65) + abs(2 - 2.7)) / 6  # the bins (.5, .6], (.6, .7], (.8, .9]
    assert found.error == pytest.approx(truth, rel=1e-9)
    assert found.low <= found.error <= found.high
    assert found.overconfidence == pytest.approx(float(sure.mean()) - 4 / 6)
    np.testing.assert_array_equal(found.counts, [0, 0, 0, 0, 0, 2, 1, 0, 3, 0])
    assert found.accuracy[5] == 0.5 and found.confidence[8] == pytest.approx(0.9) and math.isnan(found.accuracy[0])


def test_tokens_that_do_not_count_are_not_judged() -> None:
    logits, targets = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    targets[0, 1:] = -100
    objective = Objective.of(Fixed(), batches(logits, targets), "causal_lm", dtype="float64")
    found = confidences(objective, 15)
    np.testing.assert_array_equal(found.counts.sum(1), [1, 4, 4])
    probability = logits.double().softmax(-1)
    kept = targets != -100
    assert found.confidence.sum() == pytest.approx(probability.amax(-1)[kept].sum().item())
    assert found.right.sum() == (logits.argmax(-1) == targets)[kept].sum()


def test_yes_and_no_answers_are_judged_by_the_surer_side() -> None:
    logits, targets = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1.0], [1.0], [0.0]])
    objective = Objective.of(Fixed(), batches(logits, targets), "bce_with_logits", dtype="float64")
    found = confidences(objective, 15)
    assert found.confidence.sum() == pytest.approx(torch.sigmoid(logits.double().abs()).sum().item())
    assert found.right.sum(1).tolist() == [1, 0, 0]


def test_a_calibrated_network_has_the_error_that_it_is_said_to_have() -> None:
    """Answers are drawn with the stated confidence: the error is noise, and its size is foretold."""
    draw = np.random.default_rng(3)
    sure = torch.tensor(draw.uniform(0.5, 1, 2000))
    logits = torch.stack([torch.log(sure), torch.log(1 - sure)], 1)
    errors, foretold = [], 0.0
    for _ in range(12):
        wrong = torch.tensor(draw.uniform(size=2000)) > sure
        objective = Objective.of(Fixed(), batches(logits, wrong.long()), "cross_entropy", dtype="float64")
        found = calibration(confidences(objective), resamples(2000, 0, 50))
        errors.append(found.error)
        foretold = found.if_calibrated
    assert np.mean(errors) == pytest.approx(foretold, abs=4 * np.std(errors) / math.sqrt(12))
