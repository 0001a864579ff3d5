"""The time axis of a training run: typed, in the files, in the names, or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from probes.checkpoint import read_checkpoint
from probes.errors import DataError
from probes.series import series


@dataclass
class One:
    name: str
    facts: dict[str, Any] = field(default_factory=dict)


def named(*names: str) -> list[One]:
    return [One(name) for name in names]


@pytest.mark.parametrize(
    ("names", "times", "unit"),
    [
        (["epoch-200.pt", "epoch-000.pt", "epoch-050.pt"], (0, 50, 200), "epoch"),
        (["model_epoch_1.5.pt", "model_epoch_2.pt"], (1.5, 2), "epoch"),
        (["checkpoint-500.zip", "checkpoint-1000.zip"], (500, 1000), "step"),
        (["ckpt_step100.safetensors", "init.safetensors"], (0, 100), "step"),
        (["resnet18-ep3.pth", "resnet18-ep12.pth"], (3, 12), "epoch"),
        (["run2-epoch=10-step=300.ckpt", "run2-epoch=9-step=270.ckpt"], (9, 10), "epoch"),
        (["a.pt", "b.pt"], (0, 1), "position"),
        (["resnet20.pt", "resnet32.pt"], (0, 1), "position"),
    ],
)
def test_times_are_read_from_names(names: list[str], times: tuple[float, ...], unit: str) -> None:
    found = series(named(*names))
    assert (found.times, found.unit) == (times, unit)
    assert found.source == ("order" if unit == "position" else "name")
    assert bool(found.doubts) == (unit == "position")


def test_what_the_files_say_counts_more_than_their_names() -> None:
    found = series([One("epoch-9.pt", {"epoch": 3}), One("epoch-1.pt", {"epoch": 7, "step": 1})])
    assert (found.times, found.order, found.source, found.starts) == ((3, 7), (0, 1), "file", False)


def test_a_number_that_all_files_share_is_no_time() -> None:
    found = series([One("step-20.pt", {"epoch": 0}), One("step-10.pt", {"epoch": 0})])
    assert (found.times, found.order, found.unit) == ((10, 20), (1, 0), "step")


def test_typed_times_win() -> None:
    found = series([One("a", {"epoch": 3}), One("b", {"epoch": 7})], "steps 500, 0")
    assert (found.times, found.order, found.unit, found.source) == ((0, 500), (1, 0), "step", "typed")
    assert found.starts
    assert found.labels == ("step 0", "step 500")
    assert series(named("a", "b"), "1e1 20").times == (10, 20)


@pytest.mark.parametrize(
    ("typed", "words"),
    [("1, 2, 3", "3 epochs or steps for 2 checkpoints"), ("1, x", "give numbers"), ("1, -2", "give numbers"),
     ("4 4", "a and b are both of epoch 4"), ("1, nan", "give numbers"), ("1, 1e999", "give numbers")],
)  # fmt: skip
def test_typed_times_that_do_not_fit_are_refused(typed: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        series(named("a", "b"), typed)


def test_no_checkpoint_is_no_run() -> None:
    with pytest.raises(DataError, match="at least one"):
        series([])


def test_the_real_run(real: Path) -> None:
    files = [real / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt" for epoch in (200, 0, 100)]
    found = series([read_checkpoint(each) for each in files])
    assert (found.times, found.order, found.unit, found.source) == ((0, 100, 200), (1, 2, 0), "epoch", "file")
    assert found.starts


def test_long_steps_are_told_apart() -> None:
    found = series([One("a.pt", {"step": 1_234_567}), One("b.pt", {"step": 1_234_568})])
    assert found.labels == ("step 1234567", "step 1234568")
