"""Max-sensitivity: Captum at the same examples nearby, a loop for token vectors, and zero where maps cannot move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_cases import case, objective_of
from captum.attr import InputXGradient, Saliency
from captum.metrics import sensitivity_max as of_captum

from probes.attribution import AttributionError, Settings, Target, attribute, case_of
from probes.attribution.judging import moved, sensitivity_max
from probes.attribution.judging.sensitivity import nearby
from probes.attribution.language_cases import sequence_of
from probes.strict import strict


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
@pytest.mark.parametrize("name", ["cnn", "resnet20", "tabular"])
def test_it_equals_captum(name: str, method: str, absolute: bool) -> None:
    found = case(name, 1)
    made = sensitivity_max(found, method, radius=0.5, absolute=absolute, samples=5, seed=2)
    noise = torch.cat([nearby(found, 0.5, number, absolute=absolute, seed=2) for number in range(5)])
    explain = (Saliency if method == "saliency" else InputXGradient)(found.as_module())

    def explained(inputs):
        with torch.enable_grad():
            given = inputs[0] if isinstance(inputs, tuple) else inputs
            return (explain.attribute(given.clone().requires_grad_()),)

    with strict(found.module):
        expected = of_captum(explained, found.features, lambda inputs: inputs + noise, n_perturb_samples=5)
    assert made.value == pytest.approx(float(expected), rel=1e-9) and made.value > 0
    assert made.stderr is None and made.about["mean"] <= made.value


def test_the_radius_is_a_share_of_the_range() -> None:
    found = case("cnn")
    size = float(found.features.max() - found.features.min())
    noise = torch.cat([nearby(found, 0.1, number) for number in range(200)])
    assert 0.0999 * size < float(noise.abs().max()) <= 0.1 * size
    assert float(torch.cat([nearby(found, 0.1, each, absolute=True) for each in range(200)]).abs().max()) <= 0.1
    rows = case("tabular")
    reach = torch.cat([nearby(rows, 0.1, number) for number in range(300)]).abs().amax(0)
    inputs = rows.objective.inputs
    np.testing.assert_allclose(reach, 0.1 * (inputs.amax(0) - inputs.amin(0)), rtol=0.05)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_token_vectors_move_and_ids_stay(name: str) -> None:
    found = case(name)
    made = sensitivity_max(found, "gradient", samples=3)
    slopes = found.gradients(torch.cat([found.features, *(found.features + nearby(found, 0.02, i) for i in range(3))]))
    norms = slopes[1].norm(dim=-1).numpy()
    changes = np.linalg.norm(norms[1:] - norms[0], axis=1) / np.linalg.norm(norms[0])
    assert made.value == pytest.approx(changes.max(), rel=1e-9) and made.about["mean"] == pytest.approx(changes.mean())


def test_maps_of_a_linear_model_do_not_move() -> None:
    found = case("linear")
    assert sensitivity_max(found, "gradient").value < 1e-12
    assert sensitivity_max(found, "input_x_gradient").value > 1e-3


def test_the_target_stays_where_the_prediction_changes() -> None:
    found = case_of(objective_of("cnn"), 0, Target(2))
    there = moved(found, -5 * found.features)
    assert there.target == found.target and there.raw is there.features
    assert float(there.score) == pytest.approx(float(found.scores(-5 * found.features)[0].detach()))
    assert found.score != there.score


def test_an_answer_moves_with_its_prompt() -> None:
    found = sequence_of(objective_of("gpt2"), 0).rows(4)[1]
    made = sensitivity_max(found, "input_x_gradient", samples=2)
    explicit = [attribute(moved(found, found.features + nearby(found, 0.02, i)), "input_x_gradient") for i in range(2)]
    start = attribute(found, "input_x_gradient").values
    changes = [np.linalg.norm(each.values - start) / np.linalg.norm(start) for each in explicit]
    assert made.value == pytest.approx(max(changes))


def test_the_map_that_is_known_is_not_made_again_and_progress_is_told() -> None:
    found, told = case("cnn"), []
    settings = Settings(samples=12, seed=3)
    known = attribute(found, "smoothgrad", settings).values
    once = sensitivity_max(found, "smoothgrad", settings, values=known, samples=2,
                           tick=lambda share, doing: told.append(share))  # fmt: skip
    assert once.value == sensitivity_max(found, "smoothgrad", settings, samples=2).value
    assert told == sorted(told) and told[-1] == 1.0 and 0.5 in told and len(told) > 2  # also within each run


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(AttributionError, match="no method 'nothing'"):
        sensitivity_max(case("cnn"), "nothing")
    with pytest.raises(AttributionError, match="blur"):
        sensitivity_max(case("tabular"), "extremal")
    with pytest.raises(AttributionError, match="radius -1"):
        sensitivity_max(case("cnn"), "gradient", radius=-1)
