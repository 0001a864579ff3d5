"""Predictions of the real digits, by the command line: the accuracies measured elsewhere, and two runs compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from analyzers._gallery import choose
from analyzers.predictions import PredictionsResult
from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import load_model, recognise
from probes.specs import DataSpec
from workspace.command_line import main

ENDS = ("run1/epoch-200.pt", "run2/epoch-200.pt")


@pytest.fixture(scope="module")
def found(real: Path, tmp_path_factory: pytest.TempPathFactory) -> PredictionsResult:
    out = tmp_path_factory.mktemp("out") / "run"
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    words = ["run", "predictions", "--out", str(out), "--device", "cpu"]
    words += [word for each in ENDS for word in ("--checkpoint", str(real / "mnist-cnn" / each))]
    words += [word for each in names for word in ("--data", str(real / "mnist" / each))]
    assert main(words) == 0
    figures = sorted(each.stem for each in (out / "figures").iterdir())
    assert figures == ["classes", "confusion", "disagreement", "losses", "reliability"]
    assert {*figures, "checkpoints", "examples"} == {each.stem for each in (out / "tables").iterdir()}
    result = PredictionsResult.read(out)
    assert isinstance(result, PredictionsResult)
    assert json.loads((out / "result.json").read_text())["values"]["kind"] == "classes"
    return result


def test_accuracy_and_loss_are_those_measured_elsewhere(found: PredictionsResult) -> None:
    values = found.values
    assert [round(each, 4) for each in values["accuracy"]] == [0.9894, 0.9887]  # shared/real/README.md
    assert [round(each, 4) for each in values["loss"]] == [0.0332, 0.0331]
    assert values["wrong"] == [106, 113]
    low, high = binomtest(9894, 10_000).proportion_ci(method="wilson")
    assert (values["accuracy_low"][0], values["accuracy_high"][0]) == pytest.approx((low, high))
    assert 0 <= values["ece_debiased_low"][0] <= values["ece_debiased"][0] <= values["ece"][0] < 0.01


def test_predictions_are_those_of_the_model_alone(found: PredictionsResult, real: Path) -> None:
    files = [real / "mnist" / f"t10k-{each}-ubyte.gz" for each in ("images-idx3", "labels-idx1")]
    data = read_batches(DataSpec(tuple(map(str, files)), examples=1000))
    for place, end in enumerate(ENDS):
        checkpoint = read_checkpoint(real / "mnist-cnn" / end)
        spec = recognise(checkpoint).spec
        assert spec is not None
        with torch.no_grad():
            guess = load_model(spec, checkpoint).eval()(data.inputs).argmax(1).numpy()
        np.testing.assert_array_equal(found.arrays["prediction"][place, :1000], guess)
        expected = confusion_matrix(found.arrays["label"], found.arrays["prediction"][place])
        np.testing.assert_array_equal(found.arrays["confusion"][place], expected)
    assert found.arrays["thumbnails"].shape == (10_000, 28, 28, 3)
    np.testing.assert_array_equal(found.arrays["thumbnails"][77, ..., 0], np.rint(255 * data.inputs[77, 0].numpy()))


def test_the_two_runs_differ_without_one_being_better(found: PredictionsResult) -> None:
    (each,) = found.values["disagreement"]
    one, two = found.arrays["prediction"]
    assert each["differ"] == (one != two).sum()
    assert each["only_first"] - each["only_second"] == 7
    assert each["difference"] == pytest.approx(-0.0007)
    count, fewer = each["only_first"] + each["only_second"], min(each["only_first"], each["only_second"])
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    assert each["p_value"] == pytest.approx(2 * tail) and each["p_value"] > 0.05
    assert choose(found.arrays, "disagreement").total == each["differ"]
    assert choose(found.arrays, "wrong").total == 113
