"""An analyzer asked: over a training run the gate judges the last checkpoint; without an objective nothing is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from analyzers._base import Analyzer, Quiet, Result, option
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.data import Batches
from probes.errors import ModelError
from probes.gate import Gate
from probes.objective import Objective, build_objective
from probes.specs import ModelSpec
from workspace.answering import answered
from workspace.requests import analysis

SPEC = ModelSpec("text", text="Sequential(Linear(4, 5), BatchNorm1d(5), Linear(5, 3))")


@dataclass(frozen=True)
class Plain(Result):
    def figures(self, **view: Any) -> Mapping[str, Any]:
        return {}

    def tables(self) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True)
class Overtime(Analyzer):
    name: ClassVar[str] = "overtime"
    title: ClassVar[str] = "Overtime"
    question: ClassVar[str] = "What?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = Plain
    series: ClassVar[bool] = True

    times: str = option("", "Epochs", "One each.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Any) -> Result:
        losses = [objective.at(each).evaluate().loss for each in checkpoints]
        return Plain(self.name, {}, {"losses": losses}, {})


@dataclass(frozen=True)
class Names(Overtime):
    needs_objective: ClassVar[bool] = False

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Any) -> Result:
        return Plain(self.name, {}, {"objective": objective, "names": [each.name for each in checkpoints]}, {})


def trained(path: Path, seed: int, epoch: int, width: int = 4) -> Checkpoint:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(width, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    for each in module.buffers():
        each.copy_(torch.rand(each.shape) + 0.5)
    torch.save({"model": module.state_dict(), "epoch": epoch}, path)
    return read_checkpoint(path)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Checkpoint, ...]:
    return tuple(trained(tmp_path / f"{epoch}.pt", seed, epoch) for seed, epoch in enumerate((20, 30, 10)))


@pytest.fixture
def batches() -> Batches:
    torch.manual_seed(1)
    inputs, targets = torch.randn(20, 4), torch.randint(0, 3, (20,))
    ids = tuple(map(str, range(20)))
    return Batches(inputs, targets, ids, "0" * 64, ("a", "b", "c"), (), {"mean": [], "std": []})


def test_an_objective_at_another_checkpoint_is_that_made_of_it(run: tuple[Checkpoint, ...], batches: Batches) -> None:
    first, other = run[:2]
    objective = build_objective(SPEC, first, batches, "cross_entropy", dtype="float64")
    before = objective.evaluate()
    moved = objective.at(other)
    anew = build_objective(SPEC, other, batches, "cross_entropy", dtype="float64")
    assert moved.evaluate() == anew.evaluate() != before
    assert torch.equal(moved.gradient(), anew.gradient())
    assert moved.card() == anew.card()
    assert objective.evaluate() == before
    assert objective.at(first).evaluate() == before


def test_what_does_not_fit_the_model_is_refused(run: tuple[Checkpoint, ...], batches: Batches, tmp_path: Path) -> None:
    objective = build_objective(SPEC, run[0], batches, "cross_entropy")
    with pytest.raises(ModelError):
        objective.at(trained(tmp_path / "wide.pt", 0, 1, width=6))


@pytest.mark.parametrize(("times", "last"), [("", 1), ("3 2 1", 0), ("1 2 3", 2)])
def test_the_gate_judges_the_last_of_a_run(
    run: tuple[Checkpoint, ...], batches: Batches, times: str, last: int
) -> None:
    heard: list[Gate] = []
    result = answered(
        Overtime(times),
        run,
        lambda first: build_objective(SPEC, first, batches, "cross_entropy"),
        Quiet(),
        heard.append,
    )
    assert [each.loss for each in heard] == [result.values["losses"][last]]
    assert len(set(result.values["losses"])) == 3


def test_nothing_is_built_where_names_and_tensors_are_enough(run: tuple[Checkpoint, ...]) -> None:
    def refused(_: Checkpoint) -> Objective:
        raise AssertionError("no objective is needed")

    assert answered(Names(), run, refused, Quiet()).values == {"objective": None, "names": ["20.pt", "30.pt", "10.pt"]}


def test_a_request_holds_model_and_data_only_where_they_are_needed() -> None:
    payload = analysis(Names(), ["0" * 64], None, None, None, "t").payload
    assert not {"model", "data", "loss"} & set(payload)
    with pytest.raises(ValueError, match="needs model"):
        analysis(Overtime(), ["0" * 64], None, None, None, "t")
