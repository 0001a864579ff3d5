"""TCAV: concepts that were planted are found, others are said to be not significant, and a CAV is what others fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn, gpt
from scipy.stats import ttest_ind
from sklearn.linear_model import LogisticRegression
from torch import nn

from probes.attribution.concept_layers import activations, slopes_of
from probes.attribution.concept_vectors import Gram, cav
from probes.attribution.concepts import t_test, tcav
from probes.errors import DataError, ModelError, ObjectiveError
from probes.objective import Objective

CONCEPT, RANDOM, CLASS = range(40), range(40, 160), range(160, 220)


class Planted(nn.Module):
    """Logits of h = the input: of class 0 h0 h2, of class 1 h0, of class 2 h3."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Linear(6, 6)
        self.same.weight.data, self.same.bias.data = torch.eye(6), torch.zeros(6)

    def forward(self, x):
        h = self.same(x)
        return torch.stack([h[:, 0] * h[:, 2], h[:, 0], h[:, 3]], 1)


def planted(along: int):
    """220 examples of six numbers, the first 40 of them far out along one of these."""
    torch.manual_seed(3)
    x = torch.randn(220, 6)
    x[:40, along] += 8
    return Objective.of(Planted(), batches(x, torch.arange(220) % 3), "cross_entropy", dtype="float64", micro_batch=50)


def test_a_planted_concept_has_the_share_of_positive_derivatives() -> None:
    objective = planted(0)
    found = tcav(objective, "same", CONCEPT, RANDOM, 1, class_rows=CLASS)
    assert found.significant
    assert found.score == 1.0  # the derivative of h0 along e0 is 1 for all
    assert found.p < 0.01
    assert found.p_controls == 1 / 40
    assert found.accuracy > 0.95
    assert abs(found.random_accuracy - 0.5) < 0.15
    assert "rises along the concept for 100% of 60 examples" in found.sentence
    product = tcav(objective, "same", CONCEPT, RANDOM, 0, class_rows=CLASS)
    share = float((objective.inputs[160:, 2] > 0).double().mean())  # the derivative of h0 h2 along e0 is h2
    assert abs(product.scores.mean() - share) < 0.05


def test_a_class_that_falls_along_a_concept_has_a_score_of_zero() -> None:
    objective = planted(0)
    objective.inputs[:40, 0] *= -1
    found = tcav(objective, "same", CONCEPT, RANDOM, 1, class_rows=CLASS)
    assert found.score == 0.0
    assert "falls along the concept for 100% of 60" in found.sentence


def test_a_concept_that_the_class_does_not_use_is_not_significant() -> None:
    found = tcav(planted(4), "same", CONCEPT, RANDOM, 1, class_rows=CLASS)
    assert not found.significant
    assert found.score is None
    assert found.p_controls > 0.05
    assert found.sentence.startswith("Not significant: the concept does no more than random examples do")
    assert found.accuracy > 0.95  # the concept is there, and not used


def test_the_t_test_alone_would_take_for_a_concept_what_is_none() -> None:
    """All slopes of class 2 are e3, and the concept lies along e0."""
    found = tcav(planted(0), "same", CONCEPT, RANDOM, 2, class_rows=CLASS)
    assert found.p < 0.01
    assert found.p_controls > 0.5
    assert found.score is None


def test_random_examples_are_rarely_a_concept() -> None:
    """Of ten sets that show nothing one half is significant by chance; three or more once in a hundred times."""
    found = []
    for seed in range(10):
        torch.manual_seed(1000 + seed)
        data = batches(torch.randn(280, 6), torch.arange(280) % 3)
        objective = Objective.of(Planted(), data, "cross_entropy", dtype="float64")
        rows = {"class_rows": range(260, 280), "controls": 19, "runs": 10}
        found.append(tcav(objective, "same", range(40), range(40, 260), 1, **rows).significant)
    assert sum(found) <= 2


@pytest.mark.parametrize(("n", "width"), [(40, 5), (12, 60)])
def test_the_normal_is_that_of_scikit_learn(n, width) -> None:
    one, other = torch.randn(n, width, dtype=torch.float64) + 0.5, torch.randn(n, width, dtype=torch.float64)
    x = torch.cat([one, other]).numpy()
    x = x - x.mean(0)
    x = x / np.linalg.norm(x, axis=1).mean()
    theirs = LogisticRegression(C=1 / (0.01 * 2 * n), tol=1e-10, max_iter=10_000)
    normal = theirs.fit(x, [1] * n + [0] * n).coef_[0]
    np.testing.assert_allclose(cav(one, other), normal / np.linalg.norm(normal), atol=1e-5)


def test_scores_and_accuracies_of_many_sets_are_those_of_each() -> None:
    torch.manual_seed(2)
    x, slopes = torch.randn(50, 7, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)
    x[:20, 3] += 1.5
    gram, rng = Gram.of(x, slopes, 0.01), np.random.default_rng(0)
    shown = np.stack([rng.permutation(20)[:9] for _ in range(4)])
    against = np.stack([20 + rng.permutation(30)[:9] for _ in range(4)])
    (scores, means), accuracies = gram.along(shown, against), gram.accuracy(shown, against)
    for run in range(4):
        one, other = x[shown[run]], x[against[run]]
        assert scores[run] == float((slopes @ cav(one, other) > 0).double().mean())
        assert means[run] == pytest.approx(float((slopes @ cav(one, other)).mean()))
        normal = cav(one[:6], other[:6])
        middle = (one[:6].mean(0) + other[:6].mean(0)) / 2 @ normal
        right = [*(one[6:] @ normal > middle), *(other[6:] @ normal < middle)]
        assert accuracies[run] == pytest.approx(np.mean(right))


def test_activations_are_those_of_the_layer() -> None:
    module, data = cnn()
    objective = Objective.of(module, data, "cross_entropy", dtype="float64", micro_batch=2)
    net = module.double().eval()
    with torch.no_grad():
        out = net[1](net[0](data.inputs[[1, 5, 8]].double()))
    torch.testing.assert_close(activations(objective, "1", [1, 5, 8], False), out.flatten(1))
    torch.testing.assert_close(activations(objective, "1", [1, 5, 8], True), out.mean((2, 3)))


def test_sets_that_do_not_differ_have_no_normal() -> None:
    assert not cav(torch.ones(4, 3), torch.ones(4, 3)).any()


def test_the_test_is_welchs() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 15))
    assert t_test(one, other) == pytest.approx(ttest_ind(one, other, equal_var=False).pvalue)
    assert t_test(np.ones(4), np.ones(4)) == 1.0
    assert t_test(np.ones(4), np.zeros(4)) == 0.0


def test_slopes_at_a_layer_of_a_cnn_are_finite_differences() -> None:
    module, data = cnn()
    objective = Objective.of(module, data, "cross_entropy", dtype="float64", micro_batch=3)
    for pooled in (False, True):
        found = slopes_of(objective, "1", [0, 4, 7, 9], 2, pooled)
        v = torch.randn(found.shape[1], dtype=torch.float64)
        step = v.view(1, 4, 6, 6) if not pooled else v.view(1, 4, 1, 1)

        def at(size, step=step):
            hook = objective.module[1].register_forward_hook(lambda _m, _a, out: out + size * step)
            with torch.no_grad():
                out = objective.module.double()(data.inputs[[0, 4, 7, 9]].double())[:, 2]
            hook.remove()
            return out

        np.testing.assert_allclose(found @ v, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-8)


def test_a_layer_whose_output_is_overwritten_gives_the_same() -> None:
    x, answers = torch.randn(60, 6), []
    for inplace in (False, True):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace), nn.Linear(8, 2))
        objective = Objective.of(net, batches(x, torch.arange(60) % 2), "cross_entropy")
        answers.append(tcav(objective, "0", range(15), range(15, 60), 1))
    assert np.array_equal(answers[0].scores, answers[1].scores)
    assert answers[0].p == answers[1].p


def test_the_model_is_left_as_it_was_and_the_answer_repeats() -> None:
    objective = planted(0)
    before = {name: each.clone() for name, each in objective.module.state_dict().items()}
    needs = [each.requires_grad for each in objective.module.parameters()]
    one, other = (tcav(objective, "same", CONCEPT, RANDOM, 0, seed=3) for _ in range(2))
    assert one.p == other.p
    assert np.array_equal(one.scores, other.scores)
    assert one.examples == 74  # all that have the label 0
    assert all(torch.equal(before[name], each) for name, each in objective.module.state_dict().items())
    assert [each.requires_grad for each in objective.module.parameters()] == needs
    assert not any(each._forward_hooks for each in objective.module.modules())
    with pytest.raises(ModelError):
        tcav(objective, "nothing", CONCEPT, RANDOM, 0)
    assert not any(each._forward_hooks for each in objective.module.modules())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.pair, self.unused = nn.Linear(6, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        self.unused(x)
        return self.linear(self.linear(x)) + self.pair(x[:, None])[0][:, 0]


def test_what_cannot_be_asked_is_refused_in_words() -> None:
    objective = planted(0)
    with pytest.raises(DataError, match="2 examples of the concept and 120 random ones"):
        tcav(objective, "same", range(2), RANDOM, 0)
    with pytest.raises(DataError, match="20 examples are among both"):
        tcav(objective, "same", range(60), RANDOM, 0)
    with pytest.raises(ValueError, match="at least 10"):
        tcav(objective, "same", CONCEPT, RANDOM, 0, runs=5)
    with pytest.raises(DataError, match="no example of the class"):
        tcav(objective, "same", CONCEPT, RANDOM, 7)
    with pytest.raises(ObjectiveError, match="class is 7"):
        tcav(objective, "same", CONCEPT, RANDOM, 7, class_rows=CLASS)
    with pytest.raises(ModelError, match=r"no layer 'x'; it has same"):
        tcav(objective, "x", CONCEPT, RANDOM, 0)
    other = Objective.of(Twice(), objective.batches, "cross_entropy")
    with pytest.raises(ModelError, match="runs 2 times"):
        tcav(other, "linear", CONCEPT, RANDOM, 0)
    with pytest.raises(ModelError, match="is a tuple"):
        tcav(other, "pair", CONCEPT, RANDOM, 0)
    with pytest.raises(ModelError, match="does not depend on the output of `unused`"):
        tcav(other, "unused", CONCEPT, RANDOM, 0)
    module, data = gpt()
    with pytest.raises(DataError, match="have no class"):
        tcav(Objective.of(module, data, "causal_lm"), "norm1", range(3), range(3, 5), 0)
