"""Occlusion and feature ablation against Captum, closed forms and loops; segments; nothing leaks."""

from __future__ import annotations

from itertools import product

import attribution_cases
import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, Occlusion
from perturbation_cases import Counting, game, interacting, run

from probes.attribution import AttributionError, Settings, baselines, lime, perturbation, rise, shapley
from probes.attribution.coalitions import Game
from probes.attribution.perturbation import ablated, occluded, windows
from probes.attribution.players import players_of, regions_or_single
from probes.attribution.segments import Segments, cells, column_groups, regions, spans

IMAGES = ["cnn", "resnet20", "hub resnet", "vit", "convnext"]
TEXTS = ["bert", "gpt2", "llama"]
EVERY = [(module, method) for module in (perturbation, shapley, lime, rise) for method in module.METHODS]


def _occluded(scores, x, baseline, window, stride, block=5):
    blocks = ((each, each[:, None]) for each in windows(x.shape[2:], window, stride, block))
    return occluded(scores, x, baseline, float(scores(x)), blocks, 1)[0]


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [((1, 1, 12, 12), 3, 3), ((1, 3, 9, 14), 4, 2), ((1, 2, 7, 7), 3, 2), ((1, 5, 8, 11), 4, 3), ((1, 1, 5, 6), 1, 1)],
)
def test_occlusion_equals_captum_up_to_the_size_of_the_window(shape, window, stride):
    x, baseline = torch.randn(shape, dtype=torch.float64), torch.randn(1, shape[1], 1, 1, dtype=torch.float64)
    baseline = baseline.expand(shape).clone()
    scores = interacting(x.numel())
    asked = {"sliding_window_shapes": (shape[1], window, window), "strides": (shape[1], stride, stride)}
    captum = Occlusion(scores).attribute(x, baselines=baseline, **asked)
    sizes = Occlusion(lambda z: -z.flatten(1).sum(1)).attribute(torch.zeros_like(x), baselines=1.0, **asked)
    if (np.array(shape[2:]) - window).max() % stride == 0 and shape[2] == shape[3]:  # no window is cut off
        np.testing.assert_allclose(_occluded(scores, x, baseline, window, stride), captum[0, 0] / window**2, rtol=1e-6)
        assert torch.all(sizes == shape[1] * window**2)
    np.testing.assert_allclose(
        _occluded(scores, x, baseline, window, stride), _loop(scores, x, baseline, window, stride)
    )


def _loop(scores, x, baseline, window, stride):
    """Share each window's loss among its pixels, and average over the windows of a pixel."""
    height, width = x.shape[2:]
    total, covered = np.zeros((height, width)), np.zeros((height, width))
    i = 0
    while True:
        j = 0
        while True:
            other = x.clone()
            other[..., i : i + window, j : j + window] = baseline[..., i : i + window, j : j + window]
            size = min(window, height - i) * min(window, width - j)
            total[i : i + window, j : j + window] += float(scores(x) - scores(other)) / size
            covered[i : i + window, j : j + window] += 1
            if j + window >= width:
                break
            j += stride
        if i + window >= height:
            break
        i += stride
    return total / covered


def test_windows_side_by_side_give_back_their_losses_as_sums_of_pixels():
    x, baseline = torch.randn(1, 2, 6, 9, dtype=torch.float64), torch.zeros(1, 2, 6, 9, dtype=torch.float64)
    scores = interacting(x.numel())
    found = _occluded(scores, x, baseline, 3, 3)
    for i, j in product(range(0, 6, 3), range(0, 9, 3)):
        other = x.clone()
        other[..., i : i + 3, j : j + 3] = 0
        assert found[i : i + 3, j : j + 3].sum() == pytest.approx(float(scores(x) - scores(other)))


@pytest.mark.parametrize("name", IMAGES)
def test_occlusion_of_a_model_equals_captum_called_directly(name):
    case = attribution_cases.case(name)
    channels, size = case.shape[0], case.shape[1]
    found = run(perturbation, case, "occlusion", Settings(window=4))
    with torch.no_grad():
        captum = Occlusion(case.scores).attribute(
            case.features, sliding_window_shapes=(channels, 4, 4), strides=(channels, 2, 2), baselines=0
        )
    assert found.values.shape == case.shape and size % 4 == 0
    np.testing.assert_allclose(
        found.values * 16 * channels, captum[0], rtol=1e-4, atol=1e-6 * float(captum.abs().max())
    )


@pytest.mark.parametrize("name", TEXTS)
def test_occlusion_of_tokens_equals_captum_called_directly(name):
    case = attribution_cases.case(name)
    found = run(perturbation, case, "occlusion", Settings(window=3))
    width = case.features.shape[2]
    with torch.no_grad():
        captum = Occlusion(case.scores).attribute(
            case.features, sliding_window_shapes=(3, width), strides=(1, width), baselines=baselines(case, "auto")
        )
    np.testing.assert_allclose(found.values * 3, captum[0, :, 0], rtol=1e-4, atol=1e-6 * float(captum.abs().max()))


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS, "tabular"])
def test_ablation_equals_captum_divided_by_the_size_of_the_segment(name):
    case = attribution_cases.case(name)
    found = run(perturbation, case, "feature_ablation")
    players = players_of(case, Settings(), regions_or_single)
    mask = torch.from_numpy(players.segments.labels)
    mask = mask[None, None].expand_as(case.features) if case.kind == "image" else mask[None]
    mask = mask[..., None].expand_as(case.features) if case.embedding else mask
    with torch.no_grad():
        captum = FeatureAblation(case.scores).attribute(
            case.features, baselines=baselines(case, "auto"), feature_mask=mask.contiguous()
        )[0]
    captum = (captum[:, 0] if case.embedding else captum).numpy()
    sizes = np.bincount(players.segments.labels.reshape(-1))[players.segments.labels]
    sizes = sizes * case.shape[0] if case.kind == "image" else sizes
    np.testing.assert_allclose(found.values, captum / sizes, rtol=1e-4, atol=1e-6 * np.abs(captum).max())


def test_ablation_of_a_linear_model_is_weight_times_difference_and_sums_by_segment():
    case = attribution_cases.case("linear")
    weight = case.objective.theta[0][case.target.index].detach()
    expected = (weight * (case.features - baselines(case, "mean")))[0]
    np.testing.assert_allclose(run(perturbation, case, "feature_ablation").values, expected, rtol=1e-9)
    labels = np.array([0, 1, 1, 2, 2, 2])
    found = ablated(Game(case.in_chunks, case.features, baselines(case, "mean"), labels, 3))
    by_segment = [float(expected[labels == i].sum()) for i in range(3)]
    np.testing.assert_allclose(found.values, by_segment, rtol=1e-9)
    np.testing.assert_allclose(Segments(labels, 3, "").spread(found.values)[labels == 2].sum(), by_segment[2])


def test_values_of_a_segment_are_shared_by_its_pixels_and_channels():
    segments = cells(5, 7, 3)
    values = np.arange(1.0, segments.count + 1)
    spread = segments.spread(values, 4)
    assert spread.shape == (4, 5, 7) and segments.count == 6
    for i in range(segments.count):
        assert spread[:, segments.labels == i].sum() == pytest.approx(values[i])
        assert len(np.unique(spread[:, segments.labels == i])) == 1


def test_the_example_and_known_coalitions_are_run_once():
    counting = Counting(interacting(6))
    played = game(6, counting)
    for _ in range(3):
        assert played.full == pytest.approx(float(interacting(6)(played.x)))
        assert played.empty == pytest.approx(float(interacting(6)(played.baseline)))
        ablated(played)
    assert counting.count == played.evaluations == 8
    given = game(6, counting)
    given.know(1.5, 0.5)
    assert (given.full, given.empty, counting.count) == (1.5, 0.5, 8)


def test_segments_that_equal_the_baseline_are_not_run_and_have_no_share():
    case = attribution_cases.case("cnn")
    case.features[..., :, 6:] = 0
    chosen = lambda *_: cells(12, 12, 3)
    players = players_of(case, Settings(), chosen)
    assert players.game.count == 8 and players.segments.count == 16
    found = run(perturbation, case, "feature_ablation", Settings(window=3))
    assert found.about["players"] == 8 and found.about["evaluations"] == 10
    assert np.all(found.values[..., 6:] == 0) and np.any(found.values[..., :6] != 0)
    slid = run(perturbation, case, "occlusion", Settings(window=2))
    assert slid.about["windows"] == 121 and slid.about["evaluations"] == 11 * 6 + 2
    assert np.all(slid.values[..., 7:] == 0) and np.any(slid.values[..., 6] != 0)
    case.features[:] = 0
    with pytest.raises(AttributionError, match="equals the baseline"):
        players_of(case, Settings(), chosen)


def test_settings_choose_what_is_replaced_together():
    text, table, image = (attribution_cases.case(name) for name in ("bert", "tabular", "resnet20"))
    said = lambda case, **asked: run(perturbation, case, "feature_ablation", Settings(**asked)).about["segments"]
    assert (
        said(text) == "tokens" and said(text, window=3) == "spans of 3 tokens" and said(text, over="words") == "words"
    )
    assert said(table) == "columns" and said(table, over="groups") == "groups of columns"
    assert said(image, window=4) == said(image, window=4, over="cells") == "cells of 4 x 4 pixels"
    assert said(image).endswith("regions of like colour") and said(image, over="saliency") == said(image)


def test_cells_and_spans_cover_everything_once():
    for found, shape in (
        (cells(28, 28), (28, 28)),
        (cells(5, 9, 4), (5, 9)),
        (spans(7, 3), (7,)),
        (cells(2, 3), (2, 3)),
    ):
        assert found.labels.shape == shape
        assert sorted(set(found.labels.reshape(-1).tolist())) == list(range(found.count))
    assert cells(28, 28).count == 49 and spans(7, 3).labels.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_regions_follow_colour_and_are_the_same_every_time():
    image = np.zeros((3, 20, 20))
    image[0, :, 7:] = 1.0
    found = regions(image, 4)
    for i in range(found.count):
        assert len(np.unique(image[0][found.labels == i])) == 1, "a region has pixels of both colours"
    np.testing.assert_array_equal(found.labels, regions(image, 4).labels)
    flat = regions(np.ones((1, 12, 12)), 9)
    assert flat.count == 9 and flat.sizes().min() >= 9 and flat.sizes().max() <= 25


def test_columns_of_one_category_are_grouped():
    assert column_groups(["age", "colour=red", "size", "colour=blue", "age"]).labels.tolist() == [0, 1, 2, 1, 3]


def test_what_cannot_be_done_is_refused_in_words():
    occlusion, ablation = perturbation.METHODS
    table = attribution_cases.case("tabular")
    assert "choose feature ablation" in occlusion.refuse(table)
    with pytest.raises(AttributionError, match="window is 99"):
        run(perturbation, attribution_cases.case("cnn"), "occlusion", Settings(window=99))
    with pytest.raises(AttributionError, match="samples is 1"):
        run(rise, table, "rise", Settings(samples=1))
    objective = attribution_cases.objective_of("gpt2")
    single = attribution_cases.case_of(objective, 0, attribution_cases.Target(1, 0))
    assert single.shape == (1,) and "single feature" in ablation.refuse(single)


@pytest.mark.parametrize("name", ["cnn", "resnet20", "vit", "bert", "gpt2", "tabular"])
def test_every_method_leaves_the_model_as_it_was(name):
    case = attribution_cases.case(name, dtype="float32")
    module = case.module.train()
    before = {key: each.clone() for key, each in module.state_dict().items()}
    flags = [each.requires_grad for each in module.parameters()]
    module.eval()
    score, features = float(case.scores(case.features).detach()), case.features.clone()
    for owner, method in EVERY:
        if method.refuse(case) is None:
            found = run(owner, case, method.name, Settings(samples=2))
            assert found.about["evaluations"] > 0 and np.isfinite(found.values).all() and np.any(found.values != 0)
            assert found.values.shape in (case.shape, (1, *case.shape[1:])) and found.values.ndim == len(case.shape)
    assert not any(each._forward_hooks or each._forward_pre_hooks or each.training for each in module.modules())
    assert [each.requires_grad for each in module.parameters()] == flags
    assert all(torch.equal(each, before[key]) for key, each in module.state_dict().items())
    assert float(case.scores(case.features).detach()) == score and torch.equal(case.features, features)


@pytest.mark.parametrize(("owner", "method"), EVERY, ids=[method.name for _, method in EVERY])
def test_the_map_of_an_example_does_not_depend_on_how_many_are_run_at_once(owner, method):
    maps = []
    for chunk in (1, 7, 256):
        case = attribution_cases.case("bert")
        case._kept["chunk"] = chunk
        maps.append(run(owner, case, method.name, Settings(samples=3)).values)
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(maps[2], maps[0], rtol=1e-9, atol=1e-12)
