"""What a model predicts: every number against scikit-learn, SciPy, or a loop over the examples."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_cases import IMAGES, LANGUAGE, NETS, TABLES, TEXT, objective_of
from curvature_oracles import Notes, batches, cnn, gpt, mlp
from scipy.stats import binomtest, entropy
from series_runs import a_run, moved
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support
from torch import nn
from torch.nn.functional import cross_entropy

from analyzers._base import Quiet
from analyzers.predictions import Predictions
from probes.calibration import confidences
from probes.errors import ObjectiveError
from probes.objective import Objective

ASKED = Predictions(listed=3)


class Fixed(nn.Module):
    """Logits given as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


class Point:
    """What is asked of a checkpoint that is not loaded."""

    name, sha256, facts = "one", "0" * 64, {}


def of_logits(logits: torch.Tensor, targets: torch.Tensor, loss: str = "cross_entropy", **options):
    objective = Objective.of(Fixed(), batches(logits, targets), loss, dtype="float64", micro_batch=7)
    return replace(ASKED, dtype="float64", **options).run(objective, (Point(),), Quiet())


def three(folder: Path, make=mlp, loss: str = "cross_entropy"):
    module, data = make()
    objective, checkpoints = a_run(folder, module, moved(module, 3, 0.3), data, loss, dtype="float64", micro_batch=5)
    return objective, checkpoints, data


def test_classes_are_those_of_scikit_learn(tmp_path: Path) -> None:
    objective, checkpoints, data = three(tmp_path)
    found = replace(ASKED, dtype="float64").run(objective, checkpoints, Quiet())
    labels = data.targets.numpy()
    for place, checkpoint in enumerate(checkpoints):
        module = objective.load(checkpoint).double().eval()
        p = module(data.inputs.double()).softmax(1).detach().numpy()
        guess = p.argmax(1)
        np.testing.assert_array_equal(found.arrays["prediction"][place], guess)
        np.testing.assert_array_equal(
            found.arrays["confusion"][place], confusion_matrix(labels, guess, labels=range(3))
        )
        precision, recall, _, support = precision_recall_fscore_support(
            labels, guess, labels=range(3), zero_division=np.nan
        )
        np.testing.assert_allclose(found.arrays["recall"][place, :, 0], recall)
        np.testing.assert_allclose(found.arrays["precision"][place, :, 0], precision)
        np.testing.assert_array_equal(found.arrays["support"], support)
        assert found.values["loss"][place] == pytest.approx(log_loss(labels, p, labels=range(3)))
        assert found.values["accuracy"][place] == pytest.approx((guess == labels).mean())
        interval = binomtest(int((guess == labels).sum()), 13).proportion_ci(method="wilson")
        ends = [found.values[f"accuracy_{end}"][place] for end in ("low", "high")]
        assert ends == pytest.approx([interval.low, interval.high])
        assert found.values["wrong"][place] == (guess != labels).sum()


def test_every_number_of_an_example_is_that_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(20, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (20,), generator=generator)
    arrays = of_logits(logits, labels).arrays
    for row in range(20):
        z, y = logits[row].numpy(), int(labels[row])
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        best = np.sort(p)[::-1]
        expected = {
            "prediction": z.argmax(), "probability": best[0], "label_probability": p[y], "loss": -math.log(p[y]),
            "gap": best[0] - best[1], "entropy": entropy(p), "margin": z[y] - np.delete(z, y).max(),
            "right": z.argmax() == y,
        }  # fmt: skip
        for name, value in expected.items():
            assert arrays[name][0, row] == pytest.approx(float(value), abs=1e-12), name
    assert arrays["label"].tolist() == labels.tolist()


def test_the_standard_error_of_the_loss_is_that_of_the_mean() -> None:
    logits, labels = torch.randn(30, 4, dtype=torch.float64), torch.randint(4, (30,))
    values = of_logits(logits, labels).values
    losses = cross_entropy(logits, labels, reduction="none").numpy()
    assert values["loss_stderr"][0] == pytest.approx(losses.std(ddof=1) / math.sqrt(30))


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_model_is_looked_at(name: str) -> None:
    objective = objective_of(name)
    objective.micro_batch = 3
    before = {key: each.clone() for key, each in objective.module.state_dict().items()}
    found = replace(ASKED, dtype="float64").run(objective, (Point(),), Quiet())
    evaluated = objective.evaluate()
    assert found.values["loss"] == pytest.approx([evaluated.loss])
    assert found.values["loss_stderr"] == pytest.approx([evaluated.loss_stderr])
    assert found.values["accuracy"] == pytest.approx([evaluated.accuracy])
    binned = confidences(objective, 15)
    sums = {"counts": binned.counts, "confidence": binned.confidence, "accuracy": binned.right}
    for key, each in sums.items():
        total = each.sum(0) / (1 if key == "counts" else binned.counts.sum(0).clip(1))
        ours = [0.0 if one is None else one for one in found.values["reliability"][0][key]]
        np.testing.assert_allclose(ours, total, atol=1e-12)
    assert ("thumbnails" in found.arrays) == (name in IMAGES)
    assert ("raw" in found.arrays) == (name in TABLES)
    assert ("texts" in found.values) == (name in TEXT | LANGUAGE)
    assert set(found.figures()) <= set(found.tables())
    assert all(torch.equal(each, before[key]) for key, each in objective.module.state_dict().items())


def test_language_models_by_sequence_and_by_place(tmp_path: Path) -> None:
    net, data = gpt()
    net = net.double()
    objective = Objective.of(net, data, "causal_lm", dtype="float64", micro_batch=2)
    found = replace(ASKED, dtype="float64").run(objective, (Point(),), Quiet())
    logits = net(data.inputs).detach()
    losses = torch.stack([cross_entropy(one, y, reduction="none", ignore_index=-100)
                          for one, y in zip(logits, data.targets, strict=True)]).numpy()  # fmt: skip
    counted = data.targets.numpy() != -100
    tokens = np.where(counted, losses, np.nan)
    np.testing.assert_allclose(found.arrays["token_loss"][0], tokens, rtol=1e-6)
    np.testing.assert_allclose(found.arrays["loss"][0], np.nanmean(tokens, 1))
    guess, labels = logits.argmax(-1).numpy(), data.targets.numpy()
    last = counted.shape[1] - 1 - counted[:, ::-1].argmax(1)
    rows = np.arange(len(labels))
    np.testing.assert_array_equal(found.arrays["label"], labels[rows, last])
    np.testing.assert_array_equal(found.arrays["prediction"][0], guess[rows, last])
    np.testing.assert_array_equal(found.arrays["token_prediction"][0][counted], guess[counted])
    mean = losses[counted].mean()
    assert found.values["perplexity"][0] == pytest.approx(math.exp(mean))
    assert found.values["accuracy"][0] == pytest.approx((guess == labels)[counted].mean())
    residuals = (losses * counted).sum(1) - mean * counted.sum(1)  # of the ratio of sums over sequences
    stderr = math.sqrt((residuals**2).sum() * 5 / 4) / counted.sum()
    assert found.values["perplexity_stderr"][0] == pytest.approx(math.exp(mean) * stderr)
    place = found.arrays["position_loss"][0]
    np.testing.assert_allclose(place[:, 0], np.nanmean(tokens, 0))
    np.testing.assert_allclose(place[:, 1], np.nanstd(tokens, 0, ddof=1) / np.sqrt(counted.sum(0)))
    np.testing.assert_array_equal(place[:, 2], counted.sum(0))


def test_a_sequence_without_tokens_has_no_numbers() -> None:
    logits, targets = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(5, (3, 4))
    targets[1] = -100
    found = of_logits(logits, targets, "causal_lm")
    assert found.arrays["label"][1] == found.arrays["prediction"][0, 1] == -1
    assert np.isnan(found.arrays["loss"][0, 1]) and np.isfinite(found.arrays["loss"][0, [0, 2]]).all()
    assert found.values["loss"][0] == pytest.approx(
        cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    )  # fmt: skip
    assert 1 not in [each["row"] for each in found.values["examples"]]
    assert found.figures()


def test_yes_or_no_is_two_classes() -> None:
    logits, labels = torch.tensor([[2.0], [-1.0], [0.5], [-3.0]]).double(), torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    found = of_logits(logits, labels, "bce_with_logits")
    assert found.values["kind"] == "classes" and found.values["classes"] == ["0", "1"]
    assert found.arrays["confusion"][0].tolist() == [[1, 1], [1, 1]]
    p = 1 / (1 + np.exp(-logits[:, 0].numpy()))
    np.testing.assert_allclose(found.arrays["label_probability"][0], [p[0], p[1], 1 - p[2], 1 - p[3]])
    np.testing.assert_allclose(found.arrays["gap"][0], abs(2 * p - 1))
    np.testing.assert_allclose(found.arrays["entropy"][0], [entropy([each, 1 - each]) for each in p])


def test_several_answers_are_averaged() -> None:
    logits = torch.tensor([[2.0, -1.0, 3.0], [1.0, 1.0, -2.0]]).double()
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = of_logits(logits, targets, "bce_with_logits")
    assert found.values["kind"] == "outputs" and found.values["classes"] == []
    assert found.arrays["right"][0].tolist() == pytest.approx([2 / 3, 1.0])
    assert found.values["accuracy"] == pytest.approx([5 / 6]) and found.values["wrong"] == [1]
    assert sum(found.values["reliability"][0]["counts"]) == 6
    assert [each["row"] for each in found.values["examples"] if each["group"] == "most wrong"] == [0]
    assert set(found.figures()) == {"reliability", "losses"}


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_independent_outputs_for_classes_choose_the_highest(loss: str) -> None:
    logits, labels = torch.randn(9, 3, dtype=torch.float64), torch.randint(3, (9,))
    found = of_logits(logits, labels, loss)
    assert found.values["kind"] == "classes"
    np.testing.assert_array_equal(found.arrays["prediction"][0], logits.argmax(1))
    assert found.values["accuracy"][0] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert ("reliability" in found.values) == (loss == "bce_with_logits")
    top = np.sort(logits.numpy() if loss == "mse" else torch.sigmoid(logits).numpy(), 1)
    np.testing.assert_allclose(found.arrays["gap"][0], top[:, -1] - top[:, -2])


def test_values_are_neither_right_nor_wrong() -> None:
    outputs, targets = torch.randn(9, 1, dtype=torch.float64), torch.randn(9)
    found = of_logits(outputs, targets, "mse")
    squares = (outputs[:, 0] - targets).square()
    assert found.values["kind"] == "values" and "accuracy" not in found.values
    assert found.values["rmse"] == pytest.approx([math.sqrt(squares.mean())])
    np.testing.assert_allclose(found.arrays["prediction"][0], outputs[:, 0])
    np.testing.assert_allclose(found.arrays["label"], targets, rtol=1e-6)
    assert set(found.figures()) == {"values", "losses"}
    worst = [each["row"] for each in found.values["examples"] if each["group"] == "most wrong"]
    assert worst == np.argsort(-squares.numpy())[:3].tolist()


def test_two_checkpoints_are_compared_by_example(tmp_path: Path) -> None:
    objective, checkpoints, data = three(tmp_path)
    found = ASKED.run(objective, checkpoints, Quiet())
    pairs = {(each["first"], each["second"]): each for each in found.values["disagreement"]}
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)}
    one, two = found.arrays["prediction"][[0, 2]]
    labels, each = data.targets.numpy(), pairs[0, 2]
    assert each["differ"] == (one != two).sum() > 0
    both = [int(((one == labels) == a).astype(bool)[((two == labels) == b)].sum()) for a, b in
            ((True, True), (True, False), (False, True), (False, False))]  # fmt: skip
    assert [each[key] for key in ("both_right", "only_first", "only_second", "both_wrong")] == both
    change = (two == labels).astype(float) - (one == labels)
    assert each["difference"] == pytest.approx(change.mean())
    assert each["difference_stderr"] == pytest.approx(change.std() / math.sqrt(13))
    losses = found.arrays["loss"][2] - found.arrays["loss"][0]
    assert each["loss_difference"] == pytest.approx(losses.mean())
    assert each["loss_difference_stderr"] == pytest.approx(losses.std(ddof=1) / math.sqrt(13))


def test_the_order_given_is_kept_and_times_are_names(tmp_path: Path) -> None:
    objective, checkpoints, _ = three(tmp_path)
    turned = ASKED.run(objective.at(checkpoints[2]), checkpoints[::-1], Quiet())
    assert turned.values["checkpoints"] == ["step-2.pt", "step-1.pt", "step-0.pt"]
    assert turned.values["labels"] == ["step 2", "step 1", "step 0"]
    straight = ASKED.run(objective, checkpoints, Quiet())
    np.testing.assert_array_equal(turned.arrays["loss"], straight.arrays["loss"][::-1])


def test_micro_batches_and_precision_do_not_matter(tmp_path: Path) -> None:
    objective, checkpoints, _ = three(tmp_path, cnn)
    exact = replace(ASKED, dtype="float64", micro_batch=1).run(objective, checkpoints, Quiet())
    other = replace(ASKED, dtype="float32", micro_batch=11).run(objective, checkpoints, Quiet())
    np.testing.assert_array_equal(exact.arrays["prediction"], other.arrays["prediction"])
    np.testing.assert_allclose(exact.arrays["loss"], other.arrays["loss"], rtol=1e-4)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    objective, checkpoints, _ = three(tmp_path)
    whole, notes = Notes(), Notes(stop_after=4)
    expected = ASKED.run(objective, checkpoints, whole)
    with pytest.raises(KeyboardInterrupt):
        ASKED.run(objective, checkpoints, notes)
    assert sorted(notes.kept) == ["predictions-0"]
    notes.stop_after, already = None, len(notes.shares)
    found = ASKED.run(objective, checkpoints, notes)
    assert len(notes.shares) - already < len(whole.shares)
    assert found.values == expected.values
    assert whole.shares == sorted(whole.shares) and whole.shares[-1] == 1.0
    for name, each in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], each)


def test_a_loss_that_is_not_finite_names_checkpoint_and_layer(tmp_path: Path) -> None:
    objective, checkpoints, _ = three(tmp_path)
    broken = copy.copy(objective)
    states = copy.deepcopy(objective.module)
    with torch.no_grad():
        states[0].weight[0, 0] = math.nan
    broken.load = lambda _: states
    with pytest.raises(ObjectiveError, match=r"step-1.pt: The loss of examples .* the first layer .* is `0`"):
        ASKED.run(broken, checkpoints[:2], Quiet())


def test_a_loss_of_the_operator_leaves_only_losses() -> None:
    from probes.own_loss import OwnLoss

    data = batches(torch.randn(5, 3), torch.randn(5, 3))
    own = OwnLoss(lambda model, batch: (model(batch[0]) - batch[1]).abs().mean())
    objective = Objective(Fixed(), data, "operator", own=own, micro_batch=2)
    found = ASKED.run(objective, (Point(),), Quiet())
    np.testing.assert_allclose(found.arrays["loss"][0], (data.inputs - data.targets).abs().mean(1), rtol=1e-6)
    assert found.values["kind"] == "loss" and set(found.figures()) == {"losses"}
    assert any("takes the model itself" in each for each in found.caveats)
