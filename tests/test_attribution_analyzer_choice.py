"""Which examples and targets a run of attribution takes, beside a plain loop; and what it says of wrong ones."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attribution_cases import objective_of
from curvature_oracles import batches
from torch import nn

from analyzers._attribution_choice import predicted, rows_asked
from analyzers._base import Quiet
from analyzers.attribution import Attribution
from probes.attribution import AttributionError
from probes.errors import DataError
from probes.objective import Objective

ONE = (SimpleNamespace(name="net.pt", sha256="0" * 64, facts={}),)


@pytest.fixture(scope="module")
def known():
    """120 rows of a net, what it says of each by a plain loop, and the labels."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(120, 4), torch.randint(3, (120,))
    data = replace(batches(x, y), classes=("cat", "a dog", "7"))
    objective = Objective(net, data, "cross_entropy", micro_batch=7, device="cpu")
    logits = np.array([net(row[None])[0].tolist() for row in x])
    return objective, logits, y.numpy()


def asked(objective, text, seed=0):
    return rows_asked(objective, text, seed, lambda *_: None)


def test_rows_and_ranges_keep_their_order(known):
    assert asked(known[0], "5") == (5,) and asked(known[0], " 9, 3-5 ,4, 0,") == (9, 3, 4, 5, 0)


def test_what_the_model_predicts_is_that_of_a_loop(known):
    objective, logits, labels = known
    said = predicted(objective, lambda *_: None)
    ordered = np.sort(logits, 1)
    assert np.array_equal(said.classes, logits.argmax(1)) and np.array_equal(said.labels, labels)
    assert np.allclose(said.margins, ordered[:, -1] - ordered[:, -2], atol=1e-5)


def test_chosen_by_what_is_predicted(known):
    objective, logits, labels = known
    guesses, ordered = logits.argmax(1), np.sort(logits, 1)
    margins = ordered[:, -1] - ordered[:, -2]
    assert asked(objective, "wrong:4") == tuple(np.flatnonzero(guesses != labels)[:4])
    assert asked(objective, "uncertain:6") == tuple(np.argsort(margins, kind="stable")[:6])
    assert asked(objective, "class 1:5") == asked(objective, "class a dog:5") == tuple(np.flatnonzero(labels == 1)[:5])
    assert asked(objective, "class 7:64") == tuple(np.flatnonzero(labels == 2)[:64])  # a name comes before a number
    pair = np.flatnonzero((labels == 0) & (guesses == 1))
    assert asked(objective, "pair 0 1:3") == tuple(pair[:3])


def test_random_ones_are_of_the_seed(known):
    first = asked(known[0], "random:10", 1)
    assert len(set(first)) == 10 and list(first) == sorted(first) and max(first) < 120
    assert first == asked(known[0], "random:10", 1) != asked(known[0], "random:10", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wrong", "The examples are 'wrong'; give rows"),
        ("-3", "The examples are '-3'"),
        ("120", "no example 120; the data has 120 "),
        ("9-3", "run backwards; write 3-9"),
        ("0-99", "are 100 examples; give 1 to 64"),
        ("0-99999999999999", "There is no example"),
        ("random:65", "are 65 examples"),
        ("wrong:0", "are 0 examples"),
        ("class bird:2", "no class 'bird'; the classes are cat, a dog, 7"),
        ("class 44:2", "No example is of class 44 among 120"),
        ("pair 1:2", "The pair is '1'"),
    ],
)
def test_what_cannot_be_chosen_is_said(known, text, words):
    with pytest.raises(DataError, match=words):
        asked(known[0], text)


def test_targets_that_are_not_there():
    run = lambda net, **options: Attribution(judge=False, **options).run(objective_of(net, "float32"), ONE, Quiet())
    with pytest.raises(AttributionError, match="no output 17; the model has 3"):
        run("tabular", target="17")
    with pytest.raises(DataError, match="no class 'nine'"):
        run("tabular", target="nine")
    with pytest.raises(DataError, match="answer is for language models"):
        run("tabular", target="answer")
    with pytest.raises(DataError, match="position is 2, but only language models"):
        run("cnn", position=2)
    with pytest.raises(DataError, match="id of a token"):
        run("gpt2", target="word")
    assert run("tabular", target="label", methods="gradient").values["target"] in (0, 1, 2)


def test_too_many_maps_are_refused(monkeypatch):
    monkeypatch.setattr("analyzers._attribution_measure.MOST_MAPS", 5)
    with pytest.raises(DataError, match="1 checkpoints, 3 examples and 2 methods are 6 maps"):
        Attribution(examples="0-2", methods="gradient,rise").run(objective_of("tabular"), ONE, Quiet())


def test_regression_and_two_classes():
    torch.manual_seed(0)
    x = torch.randn(9, 4)
    net = nn.Linear(4, 1)
    values = Objective(net, batches(x, torch.randn(9)), "mse", device="cpu")
    result = Attribution(methods="gradient,occlusion", examples="2").run(values, ONE, Quiet())
    assert np.allclose(result.arrays["map_0"], net.weight.detach()[0].numpy(), atol=1e-6)
    assert result.values["prediction"][0] == pytest.approx(float(net(x[2]).detach()[0]), rel=1e-5)
    with pytest.raises(DataError, match="mse has no classes"):
        Attribution(examples="wrong:2").run(values, ONE, Quiet())
    labels = (x[:, 0] > 0).float()
    two = Objective(net, batches(x, labels), "bce_with_logits", device="cpu")
    wrong = [row for row in range(9) if (float(net(x[row]).detach()[0]) > 0) != bool(labels[row])]
    found = Attribution(examples="wrong:9", methods="gradient", judge=False).run(two, ONE, Quiet())
    assert [each["row"] for each in found.values["cases"]] == wrong
    assert all(0.5 <= each["probability"] <= 1 for each in found.values["cases"])
