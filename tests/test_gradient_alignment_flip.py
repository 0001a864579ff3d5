"""The flip test of gradient-weight alignment: which labels are changed, and how well they are found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignment_oracles import EXACTLY, by_autograd, run
from curvature_oracles import batches
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from probes.alignment import relabelled
from probes.errors import ObjectiveError
from probes.objective import Objective


def test_flipping_changes_a_share_of_the_labels_to_other_classes_and_nothing_else(tmp_path: Path) -> None:
    plain, net, data, states = run(tmp_path, "cnn")
    found = run(tmp_path, "cnn", replace(EXACTLY, flip=0.4))[0]
    for key, value in plain.values.items():
        assert found.values[key] == value, key
    flip = relabelled(Objective.of(net, data, "cross_entropy"), 0.4, 0)
    rows = flip.flipped
    assert rows.sum() == 4
    assert found.values["flipped_share"] == 4 / 11
    np.testing.assert_array_equal(flip.targets[~rows], data.targets[~rows])
    assert (flip.targets[rows] != data.targets[rows]).all()
    assert set(flip.targets.tolist()) <= set(data.targets.tolist())
    gamma = by_autograd(net, states[-1], replace(data, targets=flip.targets), ("6.weight",))
    np.testing.assert_allclose(found.arrays["flipped"][-1], gamma, atol=1e-10)
    assert found.values["auroc_flipped"][-1] == pytest.approx(roc_auc_score(rows, -gamma))
    assert found.values["flipped_mean"][-1] == pytest.approx(gamma[rows].mean())
    assert found.values["kept_mean"][-1] == pytest.approx(gamma[~rows].mean())
    assert (run(tmp_path, "cnn", replace(EXACTLY, flip=0.4, seed=1))[0].arrays["flipped_rows"] != rows).any()


@pytest.mark.parametrize("kind", ["one-hot", "binary", "labels"])
def test_other_targets_can_be_flipped_too(kind: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    width = 1 if kind == "binary" else 3
    targets = {"one-hot": functional.one_hot(y, 3).float(), "binary": (y > 0).float()[:, None], "labels": y}[kind]
    objective = Objective.of(nn.Linear(4, width), batches(x, targets), "bce_with_logits")
    flip = relabelled(objective, 0.25, 3)
    moved = (flip.targets != objective.targets).flatten(1).any(1)
    assert moved.numpy().tolist() == flip.flipped.tolist()
    assert flip.flipped.sum() == 5
    if width > 1:
        assert (flip.targets.sum(1) == 1).all()
    assert set(flip.targets.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("net", "targets", "loss", "words"),
    [
        (nn.Linear(4, 3), torch.zeros(6, dtype=torch.long), "cross_entropy", "All 6 examples are of one class"),
        (nn.Linear(4, 1), torch.randn(6, 1), "mse", "needs a class for each example"),
        (nn.Linear(4, 1), torch.ones(6), "mse", "needs a class for each example"),
        (nn.Linear(4, 3), torch.rand(6, 3), "bce_with_logits", "needs a class for each example"),
    ],
)
def test_what_has_no_classes_cannot_be_flipped(net: nn.Module, targets: Any, loss: Any, words: str) -> None:
    objective = Objective.of(net, batches(torch.randn(6, 4), targets), loss)
    with pytest.raises(ObjectiveError, match=words):
        relabelled(objective, 0.2, 0)
