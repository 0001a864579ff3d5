"""Gradient-weight alignment over a run: its figures against autograd and SciPy, whatever the micro-batch or a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_oracles import EXACTLY, HEADS, a_run, by_autograd, run
from curvature_oracles import Notes, cnn, mlp
from scipy.stats import kurtosis
from sklearn.metrics import roc_auc_score
from torch import nn

from analyzers._base import Quiet
from probes.alignment import relabelled
from probes.errors import ModelError


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_moments_over_time_are_those_of_autograd_and_scipy(name: str, tmp_path: Path) -> None:
    found, net, data, states = run(tmp_path, name)
    values = found.values
    assert (values["times"], values["unit"], values["checkpoints"][0]) == ([0, 10, 20], "step", "step-0.pt")
    for number, state in enumerate(states):
        gamma = by_autograd(net, state, data, (HEADS[name],))
        np.testing.assert_allclose(found.arrays["alignment"][number], gamma, atol=1e-10)
        assert values["mean"][number] == pytest.approx(gamma.mean(), abs=1e-10)
        assert values["mean_stderr"][number] == pytest.approx(gamma.std(ddof=1) / len(gamma) ** 0.5)
        assert values["excess_kurtosis"][number] == pytest.approx(kurtosis(gamma))
        assert values["gwa"][number] == pytest.approx(gamma.mean() / (kurtosis(gamma) + 1.2))
        assert values["gwa_undefined"][number] == (kurtosis(gamma) < -0.7)
        assert values["negative_share"][number] == (gamma < 0).mean()
        for key in ("mean", "gwa", "excess_kurtosis"):
            assert values[f"exact_{key}"][number] == pytest.approx(values[key][number])


def test_the_whole_network_and_its_layers(tmp_path: Path) -> None:
    found, net, data, states = run(tmp_path, "cnn", replace(EXACTLY, scope="layers"))
    values, last = found.values, states[-1]
    whole = by_autograd(net, last, data, None)
    np.testing.assert_allclose(found.arrays["network"][-1], whole, atol=1e-10)
    assert values["network_mean"][-1] == pytest.approx(whole.mean())
    assert values["network_excess_kurtosis"][-1] == pytest.approx(kurtosis(whole))
    assert list(values["layers"]) == ["0.weight", "6.weight"]
    first = by_autograd(net, last, data, ("0.weight",))
    assert values["layers"]["0.weight"][-1] == pytest.approx(first.mean())
    assert values["layers_stderr"]["0.weight"][-1] == pytest.approx(first.std(ddof=1) / len(first) ** 0.5)
    assert values["layers"]["6.weight"] == pytest.approx(values["mean"])
    assert any("Eval mode with BatchNorm2d" in each for each in found.caveats)
    np.testing.assert_array_equal(found.arrays["alignment"], run(tmp_path, "cnn")[0].arrays["alignment"])


def test_a_language_model(tmp_path: Path) -> None:
    found, net, data, states = run(tmp_path, "gpt", replace(EXACTLY, scope="network"))
    whole = by_autograd(net, states[-1], data, None)
    np.testing.assert_allclose(found.arrays["network"][-1], whole, atol=1e-9)
    assert found.values["head"] == {"name": "head", "kind": "Linear", "tied": ["token"]}
    told = " ".join(found.caveats)
    assert "`head` shares its weights with `token`" in told
    assert "averaged over those of a sequence; that of the whole network is of the sequence's own gradient" in told
    example = found.values["examples"][0]
    assert example["label"] is example["prediction"] is None
    assert len(example["text"].split()) >= 2


class Normed(nn.Module):
    """A network whose output is not that of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3), nn.Softplus())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_without_a_linear_head_the_whole_network_is_looked_at(tmp_path: Path) -> None:
    data = mlp()[1]
    objective, checkpoints, states = a_run(tmp_path, Normed(), data, "cross_entropy")
    with pytest.raises(ModelError, match=r"the last layer is `body.3` \(Softplus\). Choose the scope network"):
        EXACTLY.run(objective, checkpoints, Quiet())
    found = replace(EXACTLY, scope="network", flip=0.3).run(objective, checkpoints, Quiet())
    whole = by_autograd(Normed(), states[-1], data, None)
    np.testing.assert_allclose(found.arrays["alignment"][-1], whole, atol=1e-10)
    assert (found.values["scope"], found.values["head"]) == ("network", None)
    assert found.values["mean"] == found.values["network_mean"]
    assert "exact_mean" not in found.values
    assert any("All figures here are of the whole network" in each for each in found.caveats)
    assert "whole network" in found.figures()["alignment"].layout.title.text
    flipped = relabelled(objective, 0.3, 0)
    again = by_autograd(Normed(), states[-1], replace(data, targets=flipped.targets), None)
    assert found.values["auroc_flipped"][-1] == pytest.approx(roc_auc_score(flipped.flipped, -again))


def test_no_number_depends_on_the_micro_batch_or_the_order_given(tmp_path: Path) -> None:
    whole = run(tmp_path, "cnn", replace(EXACTLY, flip=0.3), micro_batch=11)[0]
    other = run(tmp_path, "cnn", replace(EXACTLY, flip=0.3, micro_batch=4), order=(2, 0, 1))[0]
    assert other.values["checkpoints"] == whole.values["checkpoints"]
    for key, value in whole.arrays.items():
        np.testing.assert_allclose(other.arrays[key], value, atol=1e-9)
    for key in ("gwa", "gwa_stderr", "excess_kurtosis", "auroc_flipped", "loss", "accuracy_stderr"):
        assert other.values[key] == pytest.approx(whole.values[key])


def test_a_killed_run_goes_on_with_the_same_answer(tmp_path: Path) -> None:
    net, data = cnn()
    objective, checkpoints, _ = a_run(tmp_path, net, data, "cross_entropy", micro_batch=3)
    ask, whole, notes = replace(EXACTLY, flip=0.3), Notes(), Notes(stop_after=8)
    expected = ask.run(objective, checkpoints, whole)
    with pytest.raises(KeyboardInterrupt):
        ask.run(objective, checkpoints, notes)
    assert list(notes.kept) == ["alignment-0"]
    notes.stop_after, before = None, len(notes.shares)
    again = ask.run(objective, checkpoints, notes)
    assert again.to_json() == expected.to_json()
    assert len(notes.shares) - before < len(whole.shares)
    assert max(whole.shares) <= 1
