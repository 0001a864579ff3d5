"""A loss that the operator brings gives the numbers of the same loss built in, whatever the micro-batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from analyzers import catalogue
from analyzers._base import Quiet
from probes.checkpoint import read_checkpoint
from probes.cross_check import cross_check
from probes.data import Batches
from probes.errors import ModelError, ObjectiveError
from probes.gate import judge
from probes.objective import Objective, build_objective
from probes.operator_models import VARIABLE
from probes.specs import ModelSpec

MODEL = """
import torch
from torch import nn
from torch.nn import functional

def build_model():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

def loss(model, batch):
    inputs, targets = batch
"""
PLAIN = "    return functional.cross_entropy(model(inputs), targets)\n"


def batches(count: int = 11) -> Batches:
    inputs, targets = torch.randn(count, 4), torch.randint(3, (count,))
    return Batches(inputs, targets, tuple(map(str, range(count))), "0" * 64, (), (), {"source": ["x"]})


@pytest.fixture
def objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    module[1].running_var.uniform_(0.5, 2)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine.py"))
    examples = batches()

    def make(body: str, loss: str = "operator", dtype: str = "float64", micro_batch: int = 4) -> Objective:
        (tmp_path / "mine.py").write_text(MODEL + body)
        spec = ModelSpec("operator", "mine:build_model")
        return build_objective(spec, checkpoint, examples, loss, dtype=dtype, micro_batch=micro_batch)

    return make


@pytest.mark.parametrize("micro_batch", [1, 4, 11])
def test_the_numbers_are_those_of_the_same_loss_built_in(objective, micro_batch: int) -> None:
    own, built_in = objective(PLAIN, micro_batch=micro_batch), objective(PLAIN, "cross_entropy", micro_batch=5)
    found, wanted = own.evaluate(), built_in.evaluate()
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
    assert found.loss_stderr == pytest.approx(wanted.loss_stderr, rel=1e-9)
    assert (found.accuracy, found.chance, found.examples) == (None, None, 11)
    assert math.isnan(found.chance_loss)
    assert torch.allclose(own.gradient(), built_in.gradient(), atol=1e-12)


def test_a_spectrum_of_an_own_loss_is_that_of_the_same_loss_built_in(objective) -> None:
    analyzer = catalogue()["hessian_spectrum"](dtype="float64")
    results = [analyzer.run(objective(PLAIN, loss), (), Quiet()) for loss in ("operator", "cross_entropy")]
    assert results[0].values["eigenvalues"] == pytest.approx(results[1].values["eigenvalues"], rel=1e-8)


def test_an_own_loss_may_look_at_the_parameters(objective) -> None:
    decay = "    weights = sum(each.square().sum() for each in model.parameters())\n"
    own = objective(f"{decay}    return functional.cross_entropy(model(inputs), targets) + 0.05 * weights\n")
    plain = objective(PLAIN)
    theta = own.flat(own.theta).detach()
    assert own.evaluate().loss == pytest.approx(plain.evaluate().loss + 0.05 * float(theta.square().sum()), rel=1e-9)
    assert torch.allclose(own.gradient(), plain.gradient() + 0.1 * theta, atol=1e-10)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    return functional.cross_entropy(model(inputs), targets, reduction='sum')\n", "must return the mean"),
        (
            "    return functional.cross_entropy(model(inputs), targets, reduction='none')\n",
            r"a tensor of shape \(2,\)",
        ),
        ("    return 1.0\n", "returns a float"),
        ("    return torch.tensor(3)\n", "returns a tensor"),
        ("    out = model(inputs)\n    return ((out - out.mean(0)) ** 2).mean()\n", "two examples"),
    ],
)
def test_a_loss_that_is_no_mean_over_examples_is_refused(objective, body: str, words: str) -> None:
    with pytest.raises(ObjectiveError, match=words):
        objective(body)


def test_an_error_in_the_loss_names_its_line(objective) -> None:
    with pytest.raises(ModelError, match=r"mine\.py, line 11: loss\(\) fails with RuntimeError"):
        objective("    return model(inputs.flatten()).sum()\n")


def test_a_loss_that_is_not_finite_names_the_layer(objective) -> None:
    body = (
        "    return functional.cross_entropy(model(torch.where(targets[:, None] >= 0, inputs, inputs) / 0), targets)\n"
    )
    with pytest.raises(ObjectiveError):
        objective(body).evaluate()


def test_it_goes_with_a_model_of_the_operators_only(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 3)).state_dict(), tmp_path / "y.pt")
    spec = ModelSpec("text", text="Sequential(Linear(4, 3))")
    with pytest.raises(ObjectiveError, match="choose another loss"):
        build_objective(spec, read_checkpoint(tmp_path / "y.pt"), batches(), "operator")


def test_the_gate_and_pyhessian_say_what_they_cannot_know(objective, tmp_path: Path) -> None:
    own = objective(PLAIN, dtype="float32")
    gate = judge(own.evaluate(), read_checkpoint(tmp_path / "x.pt"), own.batches)
    assert gate.verdict == "nothing to compare"
    assert "not known" in gate.sentence
    assert "nan" not in gate.sentence
    values = {"eigenvalues": [1.0], "eigenvalue_residuals": [0.0], "eigenvalues_min": [],
              "eigenvalues_min_residuals": [], "trace": 1.0, "trace_stderr": 0.1}  # fmt: skip
    assert any("runs the model itself" in note for note in cross_check(own, values)["notes"])
    assert own.card()["loss"] == "operator"
    assert "operator's own loss" in own.card()["reduction"]
