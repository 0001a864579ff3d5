"""Influence: retraining without the listed examples, ranking, refusals, and runs that are killed, saved and read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, gpt, mlp
from influence_cases import DIGITS, digits, loops, losses, retrained, share
from scipy.stats import spearmanr
from series_runs import a_run, moved

from analyzers._base import Quiet
from analyzers.influence import Influence, InfluenceResult
from probes.errors import DataError, ModelError, ObjectiveError
from probes.influence.inverse_fisher import fisher_gradients, influences, inverse_fisher
from probes.influence.products import chosen_parameters
from probes.influence.ranking import beside, ranking
from probes.influence.tracin import tracin
from probes.objective import Objective

ROWS = [16, 149, 92, *range(12)]  # of the test digits: those of the highest losses, then the first twelve
FEW = Influence(top=3, null_examples=3, dtype="float64")


def scores_of(kind: str, rows):
    """The influences on some test digits by the method that fits the run, and the losses of the model."""
    data, test = digits()
    steps, rate, saved = (30, 0.2, range(0, 31, 3)) if kind == "short" else (200, 0.5, (200,))
    states = retrained(kind, None, steps, rate, saved)
    objectives = [Objective.of(each, data, "cross_entropy").with_test(test) for each in states]
    last = objectives[-1]
    places = chosen_parameters(last)
    if kind == "short":
        rates = [rate * 3 / DIGITS] * (len(saved) - 1)
        found = tracin(objectives[:-1], rows, rates, test=True)
    else:
        fisher = inverse_fisher(fisher_gradients(last, range(DIGITS), places), 0.1, relative=True)
        found = influences(last, last.on_test(), rows, places, fisher).values
    return found, lambda out: losses(retrained(kind, out, steps, rate, (steps,))[0])[rows]


@pytest.mark.parametrize("kind", ["short", "logistic"])
def test_retraining_without_examples_does_what_was_said(kind) -> None:
    """TracIn of a short run, the inverse Fisher of one that has settled; rank correlation above .5 (.87 and .78)."""
    found, without = scores_of(kind, ROWS)
    whole, rng = without([]), np.random.default_rng(0)
    groups = [rng.choice(DIGITS, 60, replace=False) for _ in range(16)]
    changes = np.array([without(each) for each in groups]) - whole
    said = np.array([found[each].sum(0) for each in groups])
    correlations = [spearmanr(*each)[0] for each in zip(said.T, changes.T, strict=True)]
    assert np.mean(correlations) > 0.5
    shuffled = found[rng.permutation(DIGITS)]  # the null: the same influences of other examples
    null = [spearmanr(shuffled[np.array(groups)].sum(1)[:, k], changes[:, k])[0] for k in range(len(ROWS))]
    assert abs(np.mean(null)) < 0.3 < np.mean(correlations) - np.mean(null)
    for column in range(3):
        listed = ranking(found[:, column], 60)
        helped, hurt = (without(list(each))[column] - whole[column] for each in (listed.helped, listed.hurt))
        assert helped > 0 > hurt  # the sign that was said
        assert helped > changes[:, column].max()  # and more than any random group of the same size
        assert hurt < changes[:, column].min()


def test_the_ranking_is_by_sign_and_size() -> None:
    found = ranking(np.array([0.0, 2.0, -1.0, 5.0, -3.0, np.nan]), 2)
    assert (found.helped, found.hurt) == ((3, 1), (4, 2))
    assert ranking(np.array([1.0, 2.0, -1.0]), 5, without=[1]).helped == (0,)
    assert ranking(np.zeros(3), 5).helped == ()


def test_lists_that_are_the_same_for_all_are_told_from_those_that_are_not() -> None:
    rng = np.random.default_rng(0)
    influence = rng.normal(size=400)
    same = beside(influence, np.stack([influence * 2, influence + 0.001], 1), 10)
    assert (same.shared, same.shared_helped, same.shared_hurt) == (1.0, 1.0, 1.0)
    turned = beside(influence, -influence[:, None], 10)
    assert (turned.shared, turned.shared_helped, turned.shared_hurt) == (1.0, 0.0, 0.0)
    assert same.correlation == pytest.approx(1.0)
    other = beside(influence, rng.normal(size=(400, 30)), 40)
    assert other.chance == 0.1
    assert abs(other.shared_helped - 0.1) < 0.05
    assert abs(other.correlation) < 4 / np.sqrt(400 * 30)
    own = rng.normal(size=(400, 2))
    own[7, 0] = np.nan
    np.testing.assert_allclose(beside(influence, own, 5).typical[[7, 8]], [own[7, 1], own[8].mean()])
    assert beside(influence, own, 5).correlation == pytest.approx(
        np.mean([spearmanr(np.delete(influence, 7), np.delete(own[:, 0], 7))[0], spearmanr(influence, own[:, 1])[0]])
    )


def run_of(folder, net=mlp, loss="cross_entropy", count=3):
    module, data = net()
    return (*a_run(folder, module, moved(module, count), data, loss), module, data)


def test_the_values_are_those_of_the_loop(tmp_path) -> None:
    objective, checkpoints, module, data = run_of(tmp_path)
    found = replace(FEW, example="4", learning_rates="0.1 0.2 0.3").run(objective, checkpoints, Notes())
    exact = 0.0
    for rate, each in zip((0.1, 0.2, 0.3), checkpoints, strict=True):
        module.load_state_dict(each.load())
        gradients = loops(module, data, "cross_entropy")
        exact = exact + rate * gradients @ gradients[4]
    np.testing.assert_allclose(found.arrays["influence"], exact, rtol=1e-6)
    assert found.values["self_influence"] == pytest.approx(exact[4])
    order = [row for row in np.argsort(-exact) if row != 4]
    helped, hurt = ([each for each in found.values["examples"] if each["group"] == name] for name in ("helped", "hurt"))
    assert [each["row"] for each in helped] == order[:3]
    assert [each["row"] for each in hurt] == order[::-1][:3]
    assert [each["id"] for each in helped] == [f"example {row}" for row in order[:3]]
    assert helped[0]["label"] == int(data.targets[order[0]])
    parts = np.array(found.values["contributions_helped"]) + found.values["contributions_hurt"]
    assert parts.sum() == pytest.approx(np.delete(exact, 4).sum())
    assert found.values["example"]["of"] == "the data themselves"
    assert any("one of the training examples" in each for each in found.caveats)
    random = ~np.isfinite(found.arrays["null"])
    assert random.sum() == 3  # each of the random examples on itself


def test_relative_influence_is_divided_by_the_length_of_the_gradients(tmp_path) -> None:
    objective, checkpoints, module, data = run_of(tmp_path, gpt, "causal_lm", 2)
    found = replace(FEW, example="example 1", relative=True, learning_rates="0.5").run(objective, checkpoints, Quiet())
    total, squares = 0.0, 0.0
    for each in checkpoints:
        module.load_state_dict(each.load(), strict=False)
        gradients = loops(module, data, "causal_lm")
        total, squares = total + 0.5 * gradients @ gradients[1] * share(data, 1), squares + 0.5 * (gradients**2).sum(1)
    np.testing.assert_allclose(found.arrays["influence"], total / np.sqrt(squares), rtol=1e-5)


def test_the_inverse_fisher_looks_at_the_last_checkpoint_and_test_data(tmp_path) -> None:
    objective, checkpoints, module, data = run_of(tmp_path, cnn)
    torch.manual_seed(8)
    test = batches(torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0]))
    ask = replace(FEW, method="inverse fisher", damping=0.5)
    found = ask.run(objective.with_test(test), checkpoints, Quiet())
    module.load_state_dict(checkpoints[-1].load())
    H, T = loops(module, data, "cross_entropy"), loops(module, test, "cross_entropy")
    lam = 0.5 * (H**2).sum(1).mean() / len(H)
    dense = np.linalg.inv(lam * np.eye(H.shape[1]) + H.T @ H / len(H))
    row = found.values["example"]["row"]
    np.testing.assert_allclose(found.arrays["influence"], H @ dense @ T[row] / len(H), rtol=1e-6, atol=1e-12)
    assert found.values["fisher_damping"] == pytest.approx(lam)
    assert found.values["self_influence"] is None
    assert found.values["example"]["of"] == "the test data"
    module.double().eval()
    with torch.no_grad():
        worst = torch.nn.functional.cross_entropy(module(test.inputs.double()), test.targets, reduction="none").argmax()
    assert row == int(worst)
    few = replace(ask, gradients=4).run(objective, checkpoints, Quiet())
    assert few.values["fisher_gradients"] == 4
    assert any("made of 4 of 11 examples" in each for each in few.caveats)


class Stopped(Notes):
    """A tick that stops the run at the second checkpoint."""

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        super().__call__(share, doing, seconds_left)
        if "checkpoint 2" in doing:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_and_gives_the_same(tmp_path) -> None:
    objective, checkpoints, *_ = run_of(tmp_path)
    whole = FEW.run(objective, checkpoints, Notes())
    stopped = Stopped()
    with pytest.raises(KeyboardInterrupt):
        FEW.run(objective, checkpoints, stopped)
    assert set(stopped.kept) == {"tracin_0"}
    tick = Notes()
    tick.kept = stopped.kept
    assert FEW.run(objective, checkpoints, tick).to_json() == whole.to_json()
    assert tick.shares == sorted(tick.shares)


def test_checkpoints_and_their_learning_rates_are_put_in_the_order_of_time(tmp_path) -> None:
    objective, (first, second, third), *_ = run_of(tmp_path)
    ordered = replace(FEW, learning_rates="0.1 0.2 0.3").run(objective, (first, second, third), Quiet())
    turned = replace(FEW, learning_rates="0.3 0.1 0.2").run(objective.at(third), (third, first, second), Quiet())
    assert turned.values == ordered.values
    assert ordered.values["learning_rates"] == [0.1, 0.2, 0.3]


def test_what_cannot_be_asked_is_refused_in_words(tmp_path) -> None:
    objective, checkpoints, *_ = run_of(tmp_path)
    for ask, error, words in (
        (replace(FEW, example="nobody"), ObjectiveError, "No example is called 'nobody'; the first is 'example 0'"),
        (replace(FEW, example="13"), ObjectiveError, "a number from 0 to 12"),
        (replace(FEW, learning_rates="1 2"), ObjectiveError, "2 learning rates for 3 checkpoints"),
        (replace(FEW, layers="9"), ModelError, "No parameter or layer is called '9'"),
        (replace(FEW, times="1 2"), DataError, "2 epochs or steps for 3"),
    ):
        with pytest.raises(error, match=words):
            ask.run(objective, checkpoints, Quiet())
    with pytest.raises(DataError, match="one example only"):
        FEW.run(objective.with_test(batches(torch.randn(1, 6), torch.tensor([1]))), checkpoints, Quiet())
    module, data = gpt()
    empty = replace(data, targets=data.targets.index_fill(0, torch.tensor([2]), -100))
    sequences, more = a_run(tmp_path, module, moved(module, 2), empty, "causal_lm")
    with pytest.raises(ObjectiveError, match="has no loss"):
        replace(FEW, example="2").run(sequences, more, Quiet())
    assert np.isfinite(FEW.run(sequences, more, Quiet()).arrays["influence"]).all()


def test_results_are_saved_and_read_again(tmp_path) -> None:
    objective, checkpoints, *_ = run_of(tmp_path, cnn)
    found = FEW.run(objective, checkpoints, Quiet())
    found.save(tmp_path / "result")
    again = InfluenceResult.read(tmp_path / "result")
    assert again.to_json() == json.loads(json.dumps(found.to_json()))
    assert again.arrays["pictures"].shape == (len(found.values["examples"]), 8, 8, 3)
    assert found.arrays["example_picture"].shape == (1, 8, 8, 3)


def test_the_model_is_left_as_it_was(tmp_path) -> None:
    objective, checkpoints, *_ = run_of(tmp_path, cnn)
    before = {name: each.clone() for name, each in objective.module.state_dict().items()}
    theta = [each.detach().clone() for each in objective.theta]
    for method in ("tracin", "inverse fisher"):
        replace(FEW, method=method, relative=True).run(objective, checkpoints, Quiet())
    assert all(torch.equal(before[name], each) for name, each in objective.module.state_dict().items())
    assert all(torch.equal(one, two) for one, two in zip(theta, objective.theta, strict=True))
    assert all(each.requires_grad for each in objective.theta)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in objective.module.modules())


def test_gradients_of_any_prediction_are_named_as_such(tmp_path) -> None:
    """Three training examples with huge inputs lead every list, on one side or the other."""
    torch.manual_seed(0)
    _, data = mlp()
    data.inputs[[2, 5, 8]] *= 40
    objective, checkpoints = a_run(tmp_path, torch.nn.Linear(6, 3), moved(torch.nn.Linear(6, 3), 2), data)
    found = replace(FEW, top=2, null_examples=12).run(objective, checkpoints, Quiet())
    assert found.values["null_shared"] > 0.5
    assert any("matter to any prediction" in each for each in found.caveats)
