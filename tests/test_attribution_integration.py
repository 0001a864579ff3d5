"""Integrals along paths: the rule, completeness on every model, refining where one rule misses, several baselines."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from attribution_cases import NETS, case, objective_of, of_module
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from probes.attribution import Settings, attribute, baselines, case_of, gradients
from probes.attribution.gradients import references_of
from probes.attribution.integration import nodes_of, refined, whole
from probes.strict import strict

ONE_RULE = Settings(steps=16, tolerance=float("inf"))


def test_integrated_gradients_of_a_cubic_are_exact_with_two_nodes() -> None:
    class Cubic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * (x[:, :1] ** 3 + x[:, :1] * x[:, 1:2]).repeat(1, 2)

    found = of_module(Cubic(), torch.tensor([2.0, 3.0]))
    path = whole(found, found.features, torch.zeros(1, 2, dtype=torch.float64), 2)
    assert path.values[0].tolist() == pytest.approx([8 + 3, 3])
    assert path.variation == pytest.approx(14)
    pieces = refined(found, torch.zeros(1, 2, dtype=torch.float64), 8, 1e-9)
    assert (pieces.steps, pieces.evaluations) == (8, 8)
    assert pieces.values[0].tolist() == pytest.approx([8 + 3, 3])
    assert pieces.variation == pytest.approx(14)
    assert pieces.local_error == pytest.approx(0, abs=1e-12)


def test_the_rule_is_gauss_and_legendres_and_its_weights_add_up_to_one() -> None:
    for steps in (1, 5, 32, 500):
        nodes, weights = nodes_of(steps)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-13)  # a trapezoid of captum's kind gives 1 - 1 / steps
        degree = min(2 * steps - 1, 63)
        assert float((weights * nodes**degree).sum()) == pytest.approx(1 / (degree + 1), rel=1e-11)
    nodes, weights = np.polynomial.legendre.leggauss(32)
    assert nodes_of(32)[0].numpy() == pytest.approx((nodes + 1) / 2, abs=1e-14)
    assert nodes_of(32)[1].numpy() == pytest.approx(weights / 2, abs=1e-14)


def test_the_trapezoid_of_captum_is_biased_and_ours_is_not() -> None:
    found = case("linear", 1)
    with strict(found.module):
        biased = IntegratedGradients(found.as_module()).attribute(found.features, baselines(found, "zero"), n_steps=10,
                                                                  method="riemann_trapezoid")  # fmt: skip
    difference = found.score - found.score_at(baselines(found, "zero"))
    assert float(biased.sum()) / difference == pytest.approx(0.9)
    ours = attribute(found, "integrated_gradients", Settings(baseline="zero", steps=10))
    assert ours.values.sum() / difference == pytest.approx(1)
    assert ours.about["rule"] == "Gauss-Legendre"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NETS)
def test_complete_to_a_thousandth_or_the_reason_is_said(name: str, dtype: str) -> None:
    found = case(name, 1, dtype=dtype)
    made = attribute(found, "integrated_gradients")
    difference = made.score - made.baseline_score
    residual = abs(made.values.sum() - difference) / abs(difference)
    assert residual == pytest.approx(made.completeness_error, rel=1e-3, abs=1e-5)
    assert made.score == pytest.approx(float(found.in_chunks(found.features)[0]))
    assert made.baseline_score == pytest.approx(float(found.in_chunks(baselines(found, "auto"))[0]))
    assert made.about["variation"] >= abs(difference) * 0.99
    assert made.completeness_error < 1e-3
    assert made.badge.verdict == "ok"
    assert not made.notes


@pytest.mark.parametrize("name", NETS)
def test_complete_on_every_row_whose_score_does_not_wander(name: str) -> None:
    objective, wandering = objective_of(name), 0
    for row in range(len(objective.inputs)):
        made = attribute(case_of(objective, row), "integrated_gradients")
        if abs(made.score - made.baseline_score) < 0.05 * made.about["variation"]:  # a small difference of large sums
            wandering += 1
        else:
            assert made.completeness_error <= 1e-3
    assert wandering <= 1


@pytest.mark.parametrize("name", ["cnn", "tabular"])
def test_refining_comes_ever_closer_to_a_very_fine_integral(name: str) -> None:
    found = case(name, 2)
    start = baselines(found, "zero")
    fine = sum(whole(found, found.features * (i + 1) / 64, found.features * i / 64, 8).values for i in range(64))
    difference = abs(found.score - found.score_at(start))
    errors = []
    for allowed in (1e-1, 1e-3, 1e-5):
        made = refined(found, start, 16, allowed * difference, 8192)
        errors.append(float((made.values - fine).norm() / fine.norm()))
        assert abs(float(made.values.sum()) - found.score + found.score_at(start)) <= allowed * difference * (1 + 1e-9)
        assert made.evaluations >= made.steps
    assert errors[-1] < 4e-3
    assert errors[-1] <= errors[0]


def test_one_rule_is_kept_where_it_is_good_enough_and_refined_where_not() -> None:
    smooth = attribute(case("vit"), "integrated_gradients")
    assert (smooth.about["steps"], smooth.about["evaluations"]) == (32, 32)
    found, spent = case("hub resnet"), []
    for tolerance in (0.5, 1e-2, 1e-3):
        made = attribute(found, "integrated_gradients", Settings(steps=4, tolerance=tolerance))
        assert made.completeness_error <= tolerance
        assert 4 <= made.about["steps"] <= made.about["evaluations"] <= 4 + 1024
        spent.append(made.about["evaluations"])
    assert spent == sorted(spent)
    assert spent[0] == 4


def test_what_does_not_converge_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "refined", partial(refined, most=24))
    made = attribute(case("tabular", 2), "integrated_gradients", Settings(baseline="mean", steps=16))
    assert made.about["evaluations"] == 16 + 24
    assert made.completeness_error > 1e-3
    assert "40 gradients the sum still misses" in made.notes[0]
    assert made.badge.verdict != "ok"


def test_errors_of_pieces_add_up_to_the_sums_and_are_told_where_they_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("cnn", 1)
    start = baselines(found, "zero")
    difference = found.score - found.score_at(start)
    made = refined(found, start, 16, 1e-3 * abs(difference))
    assert made.local_error >= abs(float(made.values.sum()) - difference)
    assert not attribute(found, "integrated_gradients").notes
    worse = replace(made, local_error=0.05 * abs(difference))
    monkeypatch.setattr(gradients, "refined", lambda *_: worse)
    told = attribute(found, "integrated_gradients", Settings(steps=4))
    assert told.about["local_error"] == pytest.approx(0.05)
    assert "their sizes add up to 0.05 of the difference" in told.notes[0]


def test_several_baselines_are_averaged() -> None:
    found = case("resnet20", 2)
    settings = Settings(baseline="zero + blur+mean+random+data", steps=16, tolerance=float("inf"), seed=5)
    made = attribute(found, "integrated_gradients", settings)
    references = references_of(found, settings.baseline, 5)
    assert len(references) == 3 + 5 + 3
    loops = [attribute(found, "integrated_gradients", replace(ONE_RULE, baseline=each)).values
             for each in ("zero", "blur", "mean")]  # fmt: skip
    loops += [whole(found, found.features, each[None], 16).values[0].numpy() for each in references[3:]]
    np.testing.assert_allclose(made.values, np.mean(loops, 0), atol=1e-12)
    assert made.baseline_score == pytest.approx(float(found.in_chunks(references).mean()))
    assert made.about["references"] == 11


def test_scores_and_gradients_at_the_ends_are_found_on_the_way():
    objective = objective_of("cnn")
    found = case_of(objective, 1)
    score, slope = found.gradients(found.features)
    fresh = case_of(objective, 1)
    made = attribute(fresh, "integrated_gradients", Settings(baseline="zero", steps=8, tolerance=1.0))
    forbidden = lambda *_: pytest.fail("it is known")
    for name in ("gradients", "in_chunks"):
        object.__setattr__(fresh, name, forbidden)
    assert fresh.score == pytest.approx(float(score), rel=1e-12)
    torch.testing.assert_close(fresh.plain()[1], slope, rtol=1e-10, atol=1e-12)
    assert made.baseline_score == pytest.approx(float(found.scores(torch.zeros_like(found.features))[0]), rel=1e-12)
