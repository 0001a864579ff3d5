"""Extremal perturbations: masks of the asked area, near the best there is, better than random and gradient masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_cases import case, settled, traces
from curvature_oracles import batches
from real_nets import mnist
from torch import nn

from probes.attribution import AttributionError, Settings, attribute, case_of
from probes.attribution import extremal_search as searching
from probes.attribution.extremal import SUFFICIENT, Masks, channel_masks, image_masks, levels_of
from probes.attribution.extremal_channels import layer_of
from probes.attribution.extremal_masks import Smooth, blended, with_areas
from probes.objective import Objective

AREAS = (0.05, 0.1, 0.2)
NAMES = ("extremal", "extremal_delete", "extremal_dual", "extremal_channels")


def made(module, inputs, dtype="float32"):
    data = batches(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return case_of(Objective.of(module, data, "cross_entropy", dtype=dtype, device="cpu"), 0)


def tiny(size):
    """A case of a very small convolutional network on images of this size."""
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    return made(settled(nn.Sequential(*layers), 1), torch.rand(1, 2, *size))


@pytest.fixture(scope="module")
def digits(real):
    objective = mnist(real)
    return [case_of(objective, row) for row in (0, 4)]


@pytest.fixture(scope="module")
def found(digits):
    return [image_masks(one, AREAS, levels=levels_of(one)[0]) for one in digits]


def test_achieved_areas_at_28_pixels_are_those_asked(found):
    for each in found:
        np.testing.assert_allclose(each.masks.mean((1, 2)), AREAS, rtol=0.1)
        np.testing.assert_allclose(each.achieved, AREAS, rtol=0.1)
        np.testing.assert_allclose((each.masks > 0.5).mean((1, 2)), AREAS, rtol=0.25)  # and they are not grey


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (224, 160)])
def test_achieved_areas_at_other_sizes_are_those_asked(size):
    each = image_masks(tiny(size), (0.05, 0.1, 0.2, 0.5), iterations=12)
    assert each.masks.shape == (4, *size)
    np.testing.assert_allclose(each.masks.mean((1, 2)), (0.05, 0.1, 0.2, 0.5), rtol=0.1)


def test_a_mask_of_one_spot_is_nearly_the_best_of_all_spots(digits, found):
    for one, masks in zip(digits, found, strict=True):
        canvas, levels = Smooth(28, 28), levels_of(one)[0]
        lattice = torch.zeros(28 * 28, *canvas.shape)
        for at in range(28 * 28):
            lattice[at, 3 + at // 28, 3 + at % 28] = 1
        spots = torch.cat([canvas.shown(part) for part in lattice.split(28)])
        best = float(one.in_chunks(blended(levels, spots)).max())
        assert masks.kept[0] - masks.blank >= 0.9 * (best - masks.blank)


def test_masks_beat_twenty_random_smooth_masks_of_equal_area(digits, found):
    generator = torch.Generator().manual_seed(0)
    for one, masks in zip(digits, found, strict=True):
        canvas, levels = Smooth(28, 28), levels_of(one)[0]
        for at, area in enumerate(AREAS):
            points = (6 * torch.rand(20, *canvas.shape, generator=generator) - 5).clamp(0, 1)  # some spots, many zeros
            others = canvas.shown(with_areas(canvas, points, [area] * 20))
            assert others.mean((1, 2)).tolist() == pytest.approx([area] * 20, rel=1e-3)
            assert masks.kept[at] >= float(one.in_chunks(blended(levels, others)).max())
            assert masks.without[at] <= float(one.in_chunks(blended(levels, 1 - others)).min())


def integrated(one, levels):
    """Integrated gradients from the blurred image, by a loop."""
    x, blank = one.features, levels[:1]
    at = ((torch.arange(64) + 0.5) / 64).view(-1, 1, 1, 1)
    return ((x - blank) * one.gradients(blank + (x - blank) * at)[1].mean(0)).sum(1)[0]


def test_masks_come_near_the_best_of_six_smooth_masks_of_integrated_gradients_and_beat_most(digits, found):
    for one, masks in zip(digits, found, strict=True):
        canvas, levels = Smooth(28, 28), levels_of(one)[0]
        values = nn.functional.pad(integrated(one, levels), (3,) * 4)
        for at, area in enumerate(AREAS):
            kept = []
            for share in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1):  # how many points to begin with: the best is taken
                points = (values >= values.flatten().quantile(1 - share)).float()[None]
                kept.append(float(one.in_chunks(blended(levels, canvas.shown(with_areas(canvas, points, [area]))))))
            assert masks.kept[at] - masks.blank >= 0.9 * (max(kept) - masks.blank)
            assert masks.kept[at] > np.median(kept)


def test_masks_free_to_be_rough_beat_the_top_pixels_of_integrated_gradients(digits):
    gained = []
    for one in digits:
        levels = levels_of(one)[0]
        masks = image_masks(one, (0.05, 0.1), levels=levels, smoothness=0.5)
        ranks = integrated(one, levels).flatten().argsort(descending=True).argsort().view(28, 28)
        tops = torch.stack([(ranks < round(area * 784)).float() for area in (0.05, 0.1)])
        rival = one.in_chunks(blended(levels, tops)).numpy()
        gained.append((masks.kept - rival) / (masks.score - masks.blank))
    assert (np.mean(gained, 0) > 0).all()


def test_each_game_is_best_at_what_it_plays(digits):
    one = digits[0]
    preserve, delete, dual = (image_masks(one, (0.1,), game=game, iterations=60) for game in searching.GAMES)
    assert delete.without[0] < preserve.without[0] and preserve.kept[0] > delete.kept[0]
    both = [each.kept[0] - each.without[0] for each in (preserve, delete, dual)]
    assert both[2] >= max(both[:2]) - 0.05 * abs(both[2])


class Sum(nn.Module):
    """A fixed bank of channels, each averaged and weighted: the score is linear in the channels."""

    def __init__(self):
        super().__init__()
        self.bank, self.head = nn.Conv2d(1, 20, 3), nn.Linear(20, 2)

    def forward(self, x):
        return self.head(self.bank(x).mean((2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_channels_of_a_linear_head_are_those_that_give_most(seed):
    torch.manual_seed(seed)
    one = made(Sum(), torch.rand(1, 1, 12, 12))
    layer = layer_of(one)
    weight = dict(zip(one.objective.names, one.objective.theta, strict=True))["head.weight"][one.target.index]
    gives = weight.detach() * layer.output.mean((2, 3))[0]
    masks = channel_masks(one, layer, (0.1, 0.25))
    assert layer.name == "bank" and layer.channels == 20
    for mask, count, kept in zip(masks.masks, (2, 5), masks.kept, strict=True):
        best = set(gives.argsort(descending=True)[:count].tolist())
        assert set(np.argsort(-mask)[:count].tolist()) == best and mask.sum() == pytest.approx(count, rel=1e-3)
        wanted = masks.blank + float(gives.sort(descending=True).values[:count].sum())
        assert kept - masks.blank == pytest.approx(wanted - masks.blank, rel=0.03)


def test_the_least_area_that_is_enough():
    def of(kept, score=10.0):
        return Masks((0.2, 0.1), np.zeros(2), np.zeros(2), np.array(kept), np.zeros(2), score, 0.0).sufficient

    assert SUFFICIENT == 0.9
    assert of([9.5, 9.1]) == 0.1 and of([9.5, 8.9]) == 0.2 and of([8.0, 8.9]) is None and of([0.0, 0.0], -1.0) is None


@pytest.mark.parametrize("name", NAMES)
def test_maps_say_what_they_are(name, digits):
    shares, settings = [], Settings(areas=(0.1, 0.3), iterations=5)
    map = attribute(digits[0], name, settings, lambda share, doing: shares.append(share))
    assert map.values.shape == (1, 28, 28) and not map.signed and map.method == name
    assert map.about["achieved_areas"] == pytest.approx([0.1, 0.3], rel=0.1)
    assert len(map.about["scores"]) == len(map.about["scores_without"]) == len(map.about["masks"]) == 2
    assert map.score == pytest.approx(digits[0].score, rel=1e-6) and map.baseline_score < map.score
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == map.about["iterations"] == 5
    assert map.badge.verdict == "ok", map.badge.reasons


def test_settings_reach_the_masks(digits):
    settings = Settings(areas=(0.2,), smoothness=1.0, iterations=7)
    map, levels = attribute(digits[0], "extremal", settings), levels_of(digits[0])[0]
    direct = image_masks(digits[0], (0.2,), levels=levels, smoothness=1.0, iterations=7)
    np.testing.assert_array_equal(map.about["masks"], direct.masks)
    assert map.about["smoothness"] == 1.0
    assert not np.array_equal(direct.masks, image_masks(digits[0], (0.2,), levels=levels, iterations=7).masks)


class Ticking:
    """A tick that keeps what is saved, and stops the search after some calls."""

    def __init__(self, most=10**9):
        self.calls, self.most, self.kept, self.loaded = 0, most, {}, 0

    def __call__(self, share, doing):
        self.calls += 1
        if self.calls > self.most:
            raise KeyboardInterrupt

    def save(self, key, arrays):
        self.kept[key] = {name: each.copy() for name, each in arrays.items()}

    def load(self, key):
        return self.kept.get(key)


def test_an_interrupted_search_goes_on_and_finds_the_same(monkeypatch):
    monkeypatch.setattr(searching, "SECONDS_BETWEEN_SAVES", -1.0)
    one = tiny((20, 20))
    whole = Ticking()
    wanted = image_masks(one, (0.1, 0.2), iterations=12, tick=whole)
    tick = Ticking(5)
    with pytest.raises(KeyboardInterrupt):
        image_masks(one, (0.1, 0.2), iterations=12, tick=tick)
    tick.most = 10**9
    found = image_masks(one, (0.1, 0.2), iterations=12, tick=tick)
    assert whole.calls == 12 and tick.calls == 6 + 6
    np.testing.assert_array_equal(found.masks, wanted.masks)
    other = Ticking()
    other.kept = tick.kept
    image_masks(one, (0.1, 0.3), iterations=12, tick=other)
    assert other.calls == 12  # other areas begin anew


def test_the_same_masks_every_time_and_flips_only_when_asked():
    one = tiny((20, 20))
    first, second = (image_masks(one, (0.1,), iterations=8) for _ in range(2))
    np.testing.assert_array_equal(first.masks, second.masks)
    assert np.abs(image_masks(one, (0.1,), iterations=8, flips=True).masks - first.masks).max() > 1e-3


def test_other_perturbations_fade_to_a_baseline():
    one = tiny((20, 20))
    levels, words = levels_of(one, "zero")
    assert words == "fade to zero" and torch.equal(levels[0], torch.zeros_like(levels[0])) and len(levels) == 2
    assert torch.equal(levels[1], one.features[0])


def test_the_blur_is_doubled_until_it_takes_half_of_the_score():
    class Mean(nn.Module):  # a blur never changes it
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.0, 0.0]))

        def forward(self, x):
            return x.mean((1, 2, 3))[:, None] * self.scale

    one = made(Mean(), torch.rand(1, 1, 28, 28))
    assert levels_of(one)[1] == "blur of up to 10 pixels"
    assert any("less than a tenth" in note for note in attribute(one, "extremal", Settings(areas=(0.5,))).notes)


def test_refusals_are_in_words():
    for name in ("bert", "gpt2", "tabular"):
        for method in NAMES:
            with pytest.raises(AttributionError, match="choose"):
                attribute(case(name), method)
    one = tiny((20, 20))
    for areas in ((), (0.0,), (1.5,)):
        with pytest.raises(AttributionError, match="share between 0 and 1"):
            attribute(one, "extremal", Settings(areas=areas))
    for smoothness in (0.0, 9.0, float("nan")):
        with pytest.raises(AttributionError, match="more than 0 and at most 8"):
            attribute(one, "extremal", Settings(smoothness=smoothness))
    with pytest.raises(AttributionError, match="asked for -1 iterations"):
        attribute(one, "extremal", Settings(iterations=-1))
    with pytest.raises(AttributionError, match=r"'4' gives no picture .* Choose one of 0, 1, 2"):
        attribute(one, "extremal_channels", Settings(layer="4"))


def test_layers_are_found_in_models_of_all_kinds():
    for name in ("cnn", "resnet20", "hub resnet", "vit", "convnext"):
        one = case(name)
        map = attribute(one, "extremal_channels", Settings(areas=(0.3,), iterations=3))
        assert map.about["achieved_areas"] == pytest.approx([max(0.3, 1 / len(map.about["channels"]))], rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind_even_when_cancelled(name):
    one, settings = case("resnet20"), Settings(iterations=4)
    before = traces(one)
    attribute(one, name, settings)
    with pytest.raises(KeyboardInterrupt):
        attribute(one, name, settings, Ticking(2))
    after = traces(one)
    assert before[:-1] == after[:-1] and torch.equal(before[-1], after[-1])
