"""Runs of opposing signals: killed, ordered, refused, drawn, saved and read again, and on the real checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, cnn, mlp
from opposing_runs import FEW, constructed, larger
from series_runs import a_run, moved

from analyzers._base import Quiet
from analyzers.opposing_signals import OpposingSignals, OpposingSignalsResult
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.errors import DataError
from probes.objective import build_objective
from probes.opposing import group_size
from probes.specs import DataSpec, ModelSpec


class Stopped(Notes):
    """A tick that stops the run in the gradients of the second pair."""

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        super().__call__(share, doing, seconds_left)
        if doing == "gradients of random groups, pair 2":
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_and_gives_the_same(tmp_path) -> None:
    module, data = larger(mlp)
    states = moved(module, 4)
    ask = replace(FEW, group=4)
    whole = ask.run(*a_run(tmp_path, module, states, data), Notes())
    stopped = Stopped()
    with pytest.raises(KeyboardInterrupt):
        ask.run(*a_run(tmp_path, module, states, data), stopped)
    assert set(stopped.kept) == {"losses_0", "losses_1", "losses_2", "losses_3", "pair_0"}
    tick = Notes()
    tick.kept = stopped.kept
    again = ask.run(*a_run(tmp_path, module, states, data), tick)
    assert again.to_json() == whole.to_json()
    assert tick.shares == sorted(tick.shares)
    assert len(tick.shares) < len(stopped.shares) + 20


def test_checkpoints_are_put_in_the_order_of_time(tmp_path) -> None:
    module, data = larger(cnn)
    objective, (first, second, third) = a_run(tmp_path, module, moved(module, 3), data)
    ask = replace(FEW, group=4, pair=1)
    ordered = ask.run(objective, (first, second, third), Quiet())
    turned = ask.run(objective.at(third), (third, first, second), Quiet())
    assert turned.values == ordered.values
    typed = replace(ask, times="steps 5 1 3").run(objective.at(third), (third, first, second), Quiet())
    assert typed.values["times"] == [1.0, 3.0, 5.0]
    assert typed.values["cosine"] == ordered.values["cosine"]
    assert any("not single steps apart" in each for each in typed.caveats)


def test_what_cannot_be_asked_is_refused_in_words(tmp_path) -> None:
    objective, checkpoints = constructed(tmp_path)
    with pytest.raises(DataError, match="two checkpoints or more; there is 1"):
        FEW.run(objective, checkpoints[:1], Quiet())
    with pytest.raises(DataError, match="Pair 2 was asked for, the last is 1"):
        replace(FEW, pair=2).run(objective, checkpoints, Quiet())
    with pytest.raises(DataError, match="Two groups of 9 examples were asked for, there are 16; give 8 or less"):
        replace(FEW, group=9).run(objective, checkpoints, Quiet())
    with pytest.raises(DataError, match="There are 7 examples"):
        group_size(7, 0)


def test_classes_are_named_and_nothing_from_files_is_taken_for_markup(tmp_path) -> None:
    module, data = larger(mlp)
    data = replace(data, classes=("<b>cat</b>", "dog", "$x$"))
    objective, checkpoints = a_run(tmp_path, module, moved(module, 3, 0.3), data)
    objective.about["model"] = "<b>net</b>"
    found = replace(FEW, group=4).run(objective, checkpoints, Quiet())
    rows = found.values["examples"]
    assert {each["label"] for each in rows} <= set(data.classes)
    module.load_state_dict(checkpoints[1].load())
    logits = module.double()(data.inputs.double()).detach()
    for each in rows:
        row = int(each["id"][8:])
        label = int(data.targets[row])
        others = np.delete(logits[row].numpy(), label)
        assert each["prediction"] == data.classes[int(logits[row].argmax())]
        assert each["margin"] == pytest.approx(float(logits[row, label]) - others.max(), rel=1e-9)
    for figure in found.figures().values():
        text = figure.to_json()
        assert "<b>net" not in text and "\\u003cb\\u003enet" not in text
        assert figure.layout.template.layout.colorway
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


def test_a_result_is_saved_read_and_drawn_again(tmp_path) -> None:
    found = replace(FEW, group=4).run(*constructed(tmp_path), Quiet())
    found.save(tmp_path / "result")
    again = OpposingSignalsResult.read(tmp_path / "result")
    assert again.to_json() == found.to_json()
    assert {name: each.to_json() for name, each in again.figures().items()} == {
        name: each.to_json() for name, each in found.figures().items()
    }
    tables = again.tables()
    assert set(tables) == {"opposition", "loss_change", "groups", "examples"}
    assert len(tables["opposition"]) == 1 and len(tables["groups"]) == 2 and len(tables["examples"]) == 8
    ranked = tables["loss_change"]
    assert ranked["change"].is_monotonic_decreasing
    assert ranked["group"].tolist() == ["rising"] * 4 + ["rest"] * 8 + ["falling"] * 4


MNIST_CNN = ModelSpec(
    "text",
    text="Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))",
)


def test_the_real_training_run(real) -> None:
    checkpoints = tuple(
        read_checkpoint(real / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt") for epoch in (200, 0, 50)
    )
    data = read_batches(DataSpec((str(real / "mnist"),), examples=400))
    objective = build_objective(MNIST_CNN, checkpoints[0], data, "cross_entropy", device="cpu")
    found = OpposingSignals(null_groups=10, group=16, listed=4).run(objective, checkpoints, Quiet())
    values = found.values
    assert values["times"] == [0.0, 50.0, 200.0]
    assert values["share_of_top_1_percent"][1] > 0.3 > 0.05 > values["share_of_top_1_percent"][0]
    assert values["loss"][0] == pytest.approx(2.305, abs=0.01)
    assert found.arrays["pictures"].shape == (8, 28, 28, 3)
    first = values["examples"][0]
    row = data.ids.index(first["id"])
    pixels = (data.inputs[row, 0] * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(found.arrays["pictures"][0, :, :, 0], pixels)
    assert first["checkpoint"] == "epoch-050.pt"
    assert first["rise"] == pytest.approx(first["loss_after"] - first["loss"])
    assert first["rise"] == pytest.approx(found.arrays["changes"].max())
    json.dumps(found.to_json(), allow_nan=False)
