"""The gate's verdicts: against stored figures of every spelling, against chance, and how often it is wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.gate import judge, stored_accuracy, stored_loss
from probes.losses import Evaluation
from probes.models import recognise
from probes.objective import build_objective
from probes.specs import DataSpec, ModelSpec


def batches(mean=(0.5,), inputs=None):
    inputs = torch.zeros(2, 3, 4, 4) if inputs is None else inputs
    return SimpleNamespace(about={"mean": list(mean)}, inputs=inputs, doubts=())


def evaluated(accuracy=None, loss=0.3, *, n=1000, chance=0.1, chance_loss=2.3, loss_stderr=0.01, tokens=0):
    stderr = None if accuracy is None else (accuracy * (1 - accuracy) / n) ** 0.5
    return Evaluation(loss, loss_stderr, accuracy, stderr, n, tokens or n, chance, chance_loss)


def judged(evaluation, metrics=None, data=None):
    checkpoint = SimpleNamespace(facts={"metrics": metrics} if metrics else {})
    gate = judge(evaluation, checkpoint, data or batches())
    json.dumps(gate.to_json(), allow_nan=False)
    return gate


def test_a_mismatch_is_said_loudly():
    gate = judged(evaluated(0.81), {"best_prec1": 91.78})
    assert gate.verdict == "differs" and gate.stored == {"best_prec1": 91.78}
    expected = (
        "91.8 % stored (best_prec1), 81.0 % here on 1,000 examples: wrong normalisation, wrong split, lossy images"
    )
    assert gate.sentence.startswith(expected) and gate.sentence.endswith("?")


def test_hints_name_what_was_not_given():
    assert "no mean and std given" in judged(evaluated(0.5), {"acc": 0.9}, batches(mean=())).sentence
    tokens = batches(inputs=torch.zeros(2, 3, dtype=torch.int64))
    assert "another tokenizer" in judged(evaluated(0.2, 5.0), {"val_loss": 1.0}, tokens).sentence


def test_agreement_and_the_training_set():
    assert judged(evaluated(0.915), {"best_prec1": 91.78}).verdict == "agrees"
    gate = judged(evaluated(0.999), {"best_prec1": 91.78})
    assert gate.verdict == "agrees" and "higher than stored: training examples?" in gate.sentence
    gate = judged(evaluated(0.10, 2.31), {"acc": 0.098})
    assert gate.verdict == "agrees" and "no better than chance (10.0 %)" in gate.sentence
    gate = judged(evaluated(0.10, 2.31), {"acc": 0.98})
    assert gate.verdict == "differs" and "no better than chance (10.0 %)" in gate.sentence


def test_a_stored_training_accuracy_is_found_for_training_examples():
    metrics = {"test_accuracy": 0.9178, "train_accuracy": 0.999}
    gate = judged(evaluated(0.998), metrics)
    assert gate.verdict == "agrees" and gate.stored == {"train_accuracy": 0.999} and "they agree" in gate.sentence
    assert judged(evaluated(0.92), metrics).stored == {"test_accuracy": 0.9178}
    gate = judged(evaluated(0.7), metrics)
    assert gate.verdict == "differs" and gate.stored == {"test_accuracy": 0.9178}


@pytest.mark.parametrize(
    ("metrics", "name", "value"),
    [
        ({"best_prec1": 91.78}, "best_prec1", 0.9178),
        ({"accuracy": 0.9}, "accuracy", 0.9),
        ({"val_acc": 1.0, "loss": 0.2}, "val_acc", 1.0),
        ({"test_err1": 8.0}, "test_err1", 0.92),
        ({"error": 0.25}, "error", 0.75),
        ({"best_acc": 93.0, "test_acc": 92.0, "train_acc": 99.0}, "test_acc", 0.92),
        ({"train_acc": 99.0, "best_acc1": 93.0}, "best_acc1", 0.93),
        ({"train_acc": 99.0}, "train_acc", 0.99),
        ({"top5_acc": 99.0, "acc1": 70.0, "prec5": 98.0}, "acc1", 0.7),
    ],
)
def test_stored_accuracies_of_many_spellings(metrics, name, value):
    found = stored_accuracy(metrics)
    assert found.name == name and found.value == pytest.approx(value)


@pytest.mark.parametrize("metrics", [{"loss": 0.3}, {"acc": 250.0}, {"acc": -1.0}, {"top5": 90.0}, {"f1": 0.8}, {}])
def test_what_is_no_accuracy(metrics):
    assert stored_accuracy(metrics) is None


def test_stored_losses():
    assert stored_loss({"train_loss": 0.1, "best_val_loss": 0.4, "acc": 3.0}).value == 0.4
    assert stored_loss({"val_ppl": np.e**2}).value == pytest.approx(2.0)
    assert stored_loss({"best_val_loss": 1e9}) is None and stored_loss({"loss": -0.5}) is None


def test_a_stored_loss_is_compared_when_there_is_no_accuracy():
    tokens = batches(inputs=torch.zeros(2, 3, dtype=torch.int64))
    near = evaluated(0.5, 1.50, tokens=9000, loss_stderr=0.02, chance_loss=4.1)
    gate = judged(near, {"best_val_loss": 1.47}, tokens)
    assert (
        gate.verdict == "agrees"
        and "loss 1.47 stored (best_val_loss), 1.5 here on 1,000 examples (9,000 tokens)" in gate.sentence
    )
    assert judged(evaluated(None, 2.0, chance=None), {"val_loss": 1.47}).verdict == "differs"
    assert "training examples?" in judged(evaluated(None, 0.5, chance=None), {"val_loss": 1.47}).sentence
    gate = judged(evaluated(0.98, 0.9), {"train_loss": 0.1})
    assert gate.verdict == "differs" and "stored figure is of training examples" in gate.sentence


def test_without_stored_metrics_chance_decides():
    gate = judged(evaluated(0.989, 0.033))
    assert gate.verdict == "nothing to compare"
    assert "accuracy 98.9 % and loss 0.033 on 1,000 examples: better than chance (10.0 %, loss 2.3)" in gate.sentence
    gate = judged(evaluated(0.112, 2.305))
    assert gate.verdict == "at chance" and "no better than chance (10.0 %, loss 2.3)" in gate.sentence
    assert judged(evaluated(None, 5.0, chance=None, chance_loss=4.99)).verdict == "at chance"
    assert judged(evaluated(None, 1.0, chance=None, chance_loss=5.0)).verdict == "nothing to compare"


def test_odd_cases_are_not_called_chance():
    few = judged(evaluated(1.0, 0.03, n=5, chance=0.4, chance_loss=1.05, loss_stderr=0.02))
    assert few.verdict == "nothing to compare"
    rare = judged(evaluated(0.95, 0.08, chance=0.95, chance_loss=0.2))
    assert rare.verdict == "nothing to compare"
    confident = judged(evaluated(0.6, 9.0))
    assert confident.verdict == "nothing to compare" and "a constant guess has a lower loss" in confident.sentence
    single = judged(evaluated(1.0, 0.01, chance=1.0, chance_loss=0.0))
    assert single.verdict == "nothing to compare" and "one class" in single.sentence


@pytest.mark.parametrize(("accuracy", "n"), [(0.99, 100), (0.9178, 1000), (0.6, 200), (0.99, 10_000)])
def test_false_alarms_are_rare_and_real_losses_are_found(accuracy, n):
    generator = np.random.default_rng(0)
    same = generator.binomial(n, accuracy, 2000) / n
    worse = generator.binomial(n, accuracy - max(0.12, 8 * (accuracy * (1 - accuracy) / n) ** 0.5), 500) / n
    alarms = sum(judged(evaluated(each, n=n), {"acc": accuracy}).verdict == "differs" for each in same)
    found = sum(judged(evaluated(each, n=n), {"acc": accuracy}).verdict == "differs" for each in worse)
    assert alarms <= 10 and found >= 400


@pytest.mark.parametrize("n", [200, 2000])
def test_an_untrained_model_is_called_at_chance(n):
    generator = np.random.default_rng(1)
    guesses = generator.binomial(n, 0.1, 1000) / n
    assert sum(judged(evaluated(each, 2.305, n=n)).verdict == "at chance" for each in guesses) >= 990


def judged_on(checkpoint, spec, data):
    found = read_batches(data)
    objective = build_objective(spec, checkpoint, found, "cross_entropy", device="cpu")
    return judge(objective.evaluate(), checkpoint, found)


MNIST_CNN = ModelSpec(
    "text",
    text="Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))",
)


@pytest.mark.parametrize(("run", "accuracy"), [("run1", 0.9894), ("run2", 0.9887)])
def test_the_real_mnist_cnn_has_the_accuracies_measured_elsewhere(real, run, accuracy):
    checkpoint = read_checkpoint(real / "mnist-cnn" / run / "epoch-200.pt")
    gate = judged_on(checkpoint, MNIST_CNN, DataSpec((str(real / "mnist"),)))
    assert gate.accuracy == pytest.approx(accuracy, abs=5e-5) and round(gate.loss, 3) == 0.033
    assert gate.verdict == "nothing to compare" and gate.examples == 10_000


def test_the_real_initialisation_is_at_chance(real):
    checkpoint = read_checkpoint(real / "mnist-cnn" / "run1" / "epoch-000.pt")
    assert judged_on(checkpoint, MNIST_CNN, DataSpec((str(real / "mnist"),), examples=1000)).verdict == "at chance"


def test_the_real_resnet_agrees_and_a_wrong_normalisation_is_found(real):
    folder = real / "cifar10-resnet20"
    checkpoint = read_checkpoint(folder / "resnet20-12fca82f.th")
    files = (str(folder / "cifar10-train-1000.npz"),)
    spec = recognise(checkpoint).spec
    right = judged_on(checkpoint, spec, DataSpec(files, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    assert right.accuracy == pytest.approx(0.999) and round(right.loss, 4) == 0.0058
    assert right.verdict == "agrees" and right.stored == {"best_prec1": pytest.approx(91.78)}
    assert right.sentence.startswith("91.8 % stored (best_prec1), 99.9 % here on 1,000 examples")
    assert "training examples?" in right.sentence
    wrong = judged_on(checkpoint, spec, DataSpec(files))
    assert wrong.verdict == "differs" and wrong.accuracy < 0.85
    assert "wrong normalisation (no mean and std given)" in wrong.sentence
