"""Concepts: planted ones are found by the analyzer, others are insignificant, and what is asked is read in words."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_cases import objective_of
from curvature_oracles import Notes, batches
from torch import nn

from analyzers._base import Quiet
from analyzers._concepts_asked import rows_of
from analyzers.concepts import Concepts, ConceptsResult
from probes.attribution.concept_layers import activations, some_layers
from probes.attribution.concept_vectors import cav
from probes.attribution.concepts import along, tcav
from probes.errors import DataError, ModelError
from probes.objective import Objective

FEW = Concepts(concept="0-39", target="1", vectors=10, controls=19, dtype="float64")


class Two(nn.Module):
    """Logits of h: of class 0 h1, of class 1 h0, of class 2 h3; two layers that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        for each in (self.first, self.second):
            each.weight.data, each.bias.data = torch.eye(6), torch.zeros(6)

    def forward(self, x):
        h = self.second(self.first(x))
        return torch.stack([h[:, 1], h[:, 0], h[:, 3]], 1)


@pytest.fixture(scope="module")
def planted():
    """220 examples of six numbers, the first 40 of them far out along the first."""
    torch.manual_seed(3)
    x = torch.randn(220, 6)
    x[:40, 0] += 8
    data = batches(x, torch.arange(220) % 3)
    data = replace(data, classes=("<b>no</b>", "yes", "$x$"))
    return Objective.of(Two(), data, "cross_entropy", micro_batch=50, about={"checkpoint": {"name": "<i>a</i>.pt"}})


@pytest.fixture(scope="module")
def found(planted):
    return FEW.run(planted, (), Quiet())


def test_a_planted_concept_is_found_at_every_layer(found) -> None:
    values = found.values
    assert values["layers"] == ["first", "second"]
    assert values["scores"] == [1.0, 1.0]
    assert values["significant"] == [True, True] and values["significant_layers"] == 2
    assert values["p_controls"] == [1 / 20] * 2
    assert min(values["accuracies"]) > 0.9
    assert values["sentences"][0].startswith("The logit of class yes rises along the concept for 100%")
    assert (values["concept_examples"], values["class_examples"]) == (40, 73)
    assert values["random_examples"] == 180


def test_the_numbers_are_those_of_the_probe(planted, found) -> None:
    own = [row for row in range(220) if row % 3 == 1]
    direct = tcav(planted.converted("float64"), "second", range(40), range(40, 220), 1, class_rows=own, runs=10,
                  controls=19)  # fmt: skip
    for name in ("scores", "random_scores", "derivatives", "control_scores", "control_derivatives", "accuracies"):
        np.testing.assert_allclose(found.arrays[f"all_{name}"][1], getattr(direct, name), err_msg=name)
    assert found.values["p"][1] == pytest.approx(direct.p)
    low, high = np.quantile(direct.accuracies, (0.025, 0.975))
    assert (found.values["accuracy_low"][1], found.values["accuracy_high"][1]) == pytest.approx((low, high))


def test_a_concept_that_is_not_used_has_no_score(planted) -> None:
    values = replace(FEW, target="<b>no</b>").run(planted, (), Quiet()).values
    assert values["scores"] == [None, None] and values["significant_layers"] == 0
    assert all(0 <= each <= 1 for each in values["score_means"])
    assert values["sentences"][0].startswith("Not significant")
    assert min(values["accuracies"]) > 0.9


def test_the_class_that_is_not_named_is_the_one_predicted_for_the_concept(planted) -> None:
    values = replace(FEW, target="", layers="second").run(planted, (), Quiet()).values
    assert values["class"] == "yes"  # the concept's first number is 8, and it is the logit of this class


def test_examples_are_listed_by_their_place_along_the_concept(planted, found) -> None:
    examples = {group: [each for each in found.values["examples"] if each["group"] == group]
                for group in ("concept", "most along", "least along")}  # fmt: skip
    assert [each["row"] for each in examples["concept"]] == list(range(8))
    own = np.array([row for row in range(40, 220) if row % 3 == 1])
    x = planted.batches.inputs.double()
    normal = cav(x[:40], x[40:])
    far = (x[own] @ normal - (x[40:] @ normal).mean()) / (x[40:] @ normal).std()
    order = far.argsort(descending=True).numpy()
    assert [each["row"] for each in examples["most along"]] == own[order[:8]].tolist()
    assert [each["row"] for each in examples["least along"]] == own[order[::-1][:8]].tolist()
    shown = [each["along"] for each in examples["most along"]]
    assert shown == pytest.approx(far[order[:8].copy()].tolist(), rel=1e-4)
    assert shown[0] > examples["least along"][0]["along"]


def test_examples_without_a_direction_lie_nowhere(planted) -> None:
    same = Objective.of(Two(), batches(torch.ones(30, 6), torch.arange(30) % 3), "cross_entropy")
    assert not along(same, "first", range(10), range(10, 20), range(20, 30)).any()


def test_a_killed_run_goes_on_and_gives_the_same(planted, found) -> None:
    class Stopped(Notes):
        def __call__(self, share, doing, seconds_left=None):
            super().__call__(share, doing, seconds_left)
            if doing == "activations, layer 2 of 2":
                raise KeyboardInterrupt

    stopped, again = Stopped(), Notes()
    with pytest.raises(KeyboardInterrupt):
        FEW.run(planted, (), stopped)
    again.kept = stopped.kept
    assert len(again.kept) == 1
    assert FEW.run(planted, (), again).to_json() == found.to_json()
    assert again.shares == sorted(again.shares)
    assert len(again.shares) < len(stopped.shares)


@pytest.mark.parametrize(
    ("text", "rows"),
    [("3, 5, 8-10", [3, 5, 8, 9, 10]), ("10-8,9", [8, 9, 10]), ("7", [7]), ("label 1", [1, 4, 7, 10]),
     ("Label $x$", [2, 5, 8, 11]), (" label  0 ", [0, 3, 6, 9])],
)  # fmt: skip
def test_the_concept_is_given_in_words(text, rows) -> None:
    assert rows_of(text, [0.0, 1.0, 2.0] * 4, ("<b>", "yes", "$x$")) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "row numbers, as 3, 5, 8-20"), ("a", "given as 'a'"), ("3-", "given as '3-'"), ("12", "no example 12"),
     ("2-99", "no example 99; the data has 12, from 0 to 11"), ("label 3", "no class '3'"), ("label x", "name: '<b>'"),
     ("-1", "given as"), ("\u0663", "given as"), ("9" * 50, "given as '9999")],
)  # fmt: skip
def test_what_is_no_concept_is_said_in_words(text, words) -> None:
    with pytest.raises(DataError, match=words):
        rows_of(text, [0.0, 1.0, 2.0] * 4, ("<b>", "yes", "$x$"))


def test_what_cannot_be_asked_is_refused_in_words(planted) -> None:
    with pytest.raises(DataError, match="no class '3'; give a number from 0 to 2 or a name: '<b>no</b>', 'yes'"):
        replace(FEW, target="3").run(planted, (), Quiet())
    with pytest.raises(DataError, match="2 examples of the concept and 218 random"):
        replace(FEW, concept="0-1").run(planted, (), Quiet())
    with pytest.raises(DataError, match="take 99 or more"):
        replace(FEW, alpha=0.01).run(planted, (), Quiet())
    with pytest.raises(ModelError, match="no layer 'third'"):
        replace(FEW, layers="third").run(planted, (), Quiet())
    with pytest.raises(DataError, match="loss causal_lm has none"):
        FEW.run(objective_of("gpt2"), (), Quiet())
    with pytest.raises(ModelError, match="No inner layer"):
        some_layers(objective_of("linear"), 0)


def test_layers_are_chosen_by_depth_in_models_of_all_kinds() -> None:
    assert some_layers(objective_of("cnn"), 0) == ("0", "3", "7")
    assert some_layers(objective_of("cnn"), 0, most=2) == ("0", "7")
    assert some_layers(objective_of("vit"), 0) == ("vit.layers.0", "vit.layers.1")
    assert some_layers(objective_of("tabular"), 0) == ("0", "2")
    for name in ("resnet20", "hub resnet", "convnext", "bert"):
        objective = objective_of(name)
        found = some_layers(objective, 0)
        assert 1 < len(found) <= 4
        assert not any(one != other and other.startswith(f"{one}.") for one in found for other in found)
        assert all(len(activations(objective, each, [0, 1], False)) == 2 for each in found)
        assert not any(each._forward_hooks for each in objective.module.modules())


def test_doubts_are_told(planted) -> None:
    said = " ".join(replace(FEW, concept="label 1", most=10, layers="second").run(planted, (), Quiet()).caveats)
    assert "10 of the concept's examples are of class yes themselves" in said
    assert "The concept has 10 examples" in said
    assert "Of the 73 examples of the class 10 were drawn at random" in said
    assert "not corrected" not in said


def test_a_layer_that_does_not_know_the_concept_is_named(planted, found) -> None:
    every = ", ".join(map(str, range(0, 220, 3)))
    none = replace(FEW, concept=every, layers="second").run(planted, (), Quiet())
    for result, is_known in ((none, False), (found, True)):
        null = np.quantile(result.arrays["all_random_accuracies"], 0.975, axis=1)
        assert (np.array(result.values["accuracies"]) > null).all() == is_known
        assert any("At second the concept vectors tell" in each for each in result.caveats) != is_known


def test_results_are_saved_and_read_again(found, tmp_path) -> None:
    found.save(tmp_path)
    again = ConceptsResult.read(tmp_path)
    assert again.to_json() == json.loads(json.dumps(found.to_json()))
    assert {name: each.to_json() for name, each in again.figures().items()} == {
        name: each.to_json() for name, each in found.figures().items()
    }


def test_figures_show_the_scores_and_nothing_from_files_is_markup(planted, found) -> None:
    drawn = found.figures()
    assert set(drawn) <= set(found.tables())
    null, points, concept, words = drawn["concept_scores"].data
    assert list(concept.y) == [1.0, 1.0] and list(words.text) == ["100%", "100%"]
    assert [low + height for low, height in zip(null.base, null.y, strict=True)] == pytest.approx(
        found.values["null_high"]
    )
    assert sorted(points.y) == sorted(found.arrays["all_control_scores"].reshape(-1))
    other = replace(FEW, target="$x$", layers="second").run(planted, (), Quiet())
    assert list(other.figures()["concept_scores"].data[-1].text) == ["insignificant"]
    for result in (found, other):
        for each in result.figures().values():
            text = each.to_json().replace("\\u003c", "<")
            assert "<b>" not in text and "<i>" not in text and "$x$" not in text


def test_tables_hold_every_vector_and_control(found) -> None:
    tables = found.tables()
    assert len(tables["concept_scores"]) == 2
    slopes = tables["concept_derivatives"]
    assert (slopes["of"] == "concept").sum() == 20 and (slopes["of"] == "random concept").sum() == 38
    assert len(tables["concept_accuracy"]) == 40


def test_the_model_is_left_as_it_was(planted) -> None:
    before = {name: each.clone() for name, each in planted.module.state_dict().items()}
    replace(FEW, layers="first").run(planted, (), Quiet())
    assert all(torch.equal(before[name], each) for name, each in planted.module.state_dict().items())
    assert not any(each._forward_hooks for each in planted.module.modules())
    assert not planted.module.training
