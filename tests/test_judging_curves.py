"""Insertion and deletion: brute force, closed form on a linear model, points alone, what stays, what is shared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_cases import case, objective_of, tabular
from curvature_oracles import batches

from probes.attribution import AttributionError, Case, Target, attribute, baselines, case_of
from probes.attribution.judging import curves, default_baselines
from probes.attribution.judging.orders import inserted, order_of
from probes.attribution.language_cases import sequence_of
from probes.objective import Objective

KINDS = ["cnn", "resnet20", "vit", "tabular", "bert", "gpt2"]


def noise_map(found: Case, seed: int = 0) -> np.ndarray:
    """A map without ties."""
    return np.random.default_rng(seed).standard_normal(found.shape)


def probability(found: Case, features: torch.Tensor) -> float:
    """The target's probability at one set of features, by the model's own outputs."""
    with torch.no_grad():
        return float(torch.softmax(found.logits(features)[0], -1)[found.target.index])


def loop(found: Case, values: np.ndarray, name: str, count: int, *, delete: bool) -> float:
    """Replace or put in the first `count` features one by one."""
    blank = baselines(found, name)[:1]
    start, other = (found.features, blank) if delete else (blank, found.features)
    features = start.clone()
    plane = values.sum(0) if found.kind == "image" else values
    kept = [] if not found.embedding else [i for i, special in enumerate(found.special) if special]
    for i in kept:
        features[:, i] = found.features[:, i]
    places = [i for i in np.argsort(-plane.reshape(-1)) if i not in kept][:count]
    for place in places:
        if found.kind == "image":
            row, column = divmod(int(place), plane.shape[1])
            features[:, :, row, column] = other[:, :, row, column]
        else:
            features[:, place] = other[:, place]
    return probability(found, features)


@pytest.mark.parametrize("name", KINDS)
def test_every_point_is_what_a_loop_over_features_gives(name: str) -> None:
    found = case(name, 1)
    values = noise_map(found)
    drawn = curves(found, values, points=5)
    size = int(np.prod(found.shape[-2:])) if found.kind == "image" else found.shape[0]
    assert drawn.baselines == default_baselines(found) and len(drawn.baselines) == 2
    for number, baseline in enumerate(drawn.baselines):
        for point, share in enumerate(drawn.shares):
            count = round(share * size)
            for delete, curve in ((False, drawn.insertion), (True, drawn.deletion)):
                expected = loop(found, values, baseline, count, delete=delete)
                assert curve[number, point] == pytest.approx(expected, abs=1e-9)


def test_of_a_linear_model_the_scores_add_up_in_the_order_of_the_map() -> None:
    found = case("linear")
    reference = baselines(found, "mean")[0]
    weight, bias = (each.detach()[found.target.index] for each in found.objective.theta)
    parts = (weight * (found.features[0] - reference)).numpy()
    drawn = curves(found, attribute(found, "integrated_gradients").values)
    gains = np.cumsum(np.sort(parts)[::-1])
    blank = float(weight @ reference + bias)
    np.testing.assert_allclose(drawn.insertion_scores[0], blank + np.concatenate([[0], gains]), atol=1e-12)
    np.testing.assert_allclose(drawn.deletion_scores[0], found.score - np.concatenate([[0], gains]), atol=1e-12)
    steps = np.diff(drawn.shares)
    curve = drawn.insertion[0]
    assert drawn.insertion_auc[0] == pytest.approx(float((steps * (curve[1:] + curve[:-1]) / 2).sum()), abs=1e-12)
    worst = curves(found, -attribute(found, "integrated_gradients").values)
    assert drawn.insertion_auc[0] > worst.insertion_auc[0] and drawn.deletion_auc[0] < worst.deletion_auc[0]


@pytest.mark.parametrize("name", ["cnn", "bert"])
def test_the_chunk_does_not_matter(name: str) -> None:
    found, alone = case(name), case(name)
    values = noise_map(found)
    alone._kept["chunk"] = 1
    one, many = curves(alone, values, points=7), curves(found, values, points=7)
    np.testing.assert_allclose(one.insertion, many.insertion, atol=1e-12)
    np.testing.assert_allclose(one.deletion, many.deletion, atol=1e-12)


def test_channels_are_added_and_signs_count() -> None:
    found = case("resnet20")
    values = noise_map(found)
    apart, joined = curves(found, values, points=6), curves(found, values.sum(0, keepdims=True), points=6)
    np.testing.assert_array_equal(apart.insertion, joined.insertion)
    plane = values.sum(0).reshape(-1)
    np.testing.assert_array_equal(order_of(found, values), np.argsort(-plane))


def test_equal_values_go_in_a_seeded_random_order() -> None:
    found = case("cnn")
    flat = np.zeros(found.shape)
    one, again, other = order_of(found, flat, 1), order_of(found, flat, 1), order_of(found, flat, 2)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and sorted(one) == sorted(other) == list(range(144))
    assert "random order" in curves(found, flat, points=3).notes[0]


def test_special_tokens_stay_and_do_not_count() -> None:
    found = replace(case("bert"), special=(True, False, False, False, False, True, True))
    drawn = curves(found, noise_map(found))
    np.testing.assert_allclose(drawn.shares, np.arange(5) / 4)
    made = inserted(found, order_of(found, noise_map(found)), "mean embedding", np.array([0, 4]))
    kept = torch.tensor(found.special)
    torch.testing.assert_close(made[0, kept], found.features[0, kept])
    assert not torch.isclose(made[0, ~kept], found.features[0, ~kept]).all(-1).any()
    torch.testing.assert_close(made[1:], found.features)
    with pytest.raises(AttributionError, match="All tokens of this example are special"):
        curves(replace(found, special=(True,) * 7), noise_map(found))


def test_what_maps_share_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, rows = case("cnn"), []
    original = Case.logits

    def counting(self: Case, features: torch.Tensor) -> torch.Tensor:
        rows.append(len(features))
        return original(self, features)

    found.chunk()
    monkeypatch.setattr(Case, "logits", counting)
    first = curves(found, noise_map(found), points=8)
    assert sum(rows) == first.evaluations == 2 * (2 * 7 + 2)
    rows.clear()
    curves(found, noise_map(found, 1), points=8)
    assert sum(rows) == 2 * 2 * 7


@pytest.mark.parametrize(("loss", "measure"), [("mse", "score"), ("bce_with_logits", "probability")])
def test_the_measure_follows_the_loss(loss, measure) -> None:
    torch.manual_seed(0)
    data = batches(torch.randn(6, 6), torch.zeros(6, 3))
    found = case_of(Objective.of(tabular(), data, loss, dtype="float64", device="cpu"), 0, Target(1))
    drawn = curves(found, noise_map(found))
    assert drawn.measure == measure
    with torch.no_grad():
        whole = float(found.module.double()(found.features)[0, 1])
    assert drawn.insertion_scores[0, -1] == pytest.approx(whole, abs=1e-9)
    shown = whole if measure == "score" else 1 / (1 + np.exp(-whole))
    assert drawn.insertion[0, -1] == drawn.deletion[0, 0] == pytest.approx(shown, abs=1e-9)


def test_language_models_are_read_at_the_target() -> None:
    found = case("gpt2", 0, Target(5, 4))
    drawn = curves(found, noise_map(found))
    assert drawn.insertion[0, -1] == pytest.approx(np.exp(found.score), abs=1e-9)
    np.testing.assert_allclose(drawn.insertion_scores, np.log(drawn.insertion), atol=1e-9)


def test_of_an_answer_the_log_probability_of_all_of_it_is_drawn() -> None:
    whole = sequence_of(objective_of("gpt2"), 0)
    found = whole.case(3, 3, len(whole.ids))
    drawn = curves(found, noise_map(found))
    assert drawn.measure == "score" and drawn.insertion[0, -1] == pytest.approx(found.score, abs=1e-9)
    last = whole.case(3, 4, 5)
    assert curves(last, noise_map(last)).insertion[0, -1] == pytest.approx(np.exp(last.score), abs=1e-9)


def test_maps_that_do_not_fit_are_refused() -> None:
    found = case("cnn")
    with pytest.raises(AttributionError, match=r"shape \(5, 5\)"):
        curves(found, np.zeros((5, 5)))
    with pytest.raises(AttributionError, match="not finite"):
        curves(found, np.full(found.shape, np.nan))
    with pytest.raises(AttributionError, match="points is 1"):
        curves(found, noise_map(found), points=1)
    with pytest.raises(AttributionError, match="no baseline 'gray'"):
        curves(found, noise_map(found), baselines=("gray",))
