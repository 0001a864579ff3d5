"""The parts of extremal perturbations: smooth maximum, sizes, the area's term, lattices, slopes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from attribution_cases import case

from probes.attribution import extremal_search as searching
from probes.attribution.extremal import _seen
from probes.attribution.extremal_masks import Channels, Smooth, blended, pyramid, with_areas
from probes.attribution.extremal_search import Search, _misfit, _reward, _slope

AREAS = (0.05, 0.1, 0.2)


def test_the_smooth_maximum_is_that_of_a_loop():
    canvas = Smooth(4, 5, 0.75)
    lattice = torch.rand(2, *canvas.shape, dtype=torch.float64)
    masks = canvas.shown(lattice)
    assert canvas.step == 1 and canvas.margin == 1 and masks.shape == (2, 4, 5)
    for mask, points in zip(masks, lattice, strict=True):
        for i in range(4):
            for j in range(5):
                terms = []
                for p in range(-3, canvas.shape[0] + 3):  # beyond the lattice there are zeros
                    for q in range(-3, canvas.shape[1] + 3):
                        z = np.hypot(p - i - 1, q - j - 1) / 0.75
                        if z <= 2:
                            inside = 0 <= p < canvas.shape[0] and 0 <= q < canvas.shape[1]
                            k = np.exp(-2 * max(z - 0.5, 0) ** 2)
                            terms.append(k * float(points[p, q]) if inside else 0.0)
                weights = np.exp(20 * np.array(terms))
                assert float(mask[i, j]) == pytest.approx(float(weights @ terms / weights.sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("size", "step"), [((28, 28), 1), ((32, 48), 1), ((224, 224), 7), ((300, 224), 7), ((5, 5), 1)]
)
def test_masks_have_the_image_s_size_and_steps_scale_with_it(size, step):
    canvas = Smooth(*size)
    masks = canvas.shown(torch.rand(2, *canvas.shape))
    assert masks.shape == (2, *size) and canvas.step == step
    assert float(masks.min()) >= 0 and float(masks.max()) <= 1


def test_masks_of_28_and_of_224_pixels_have_spots_of_one_size():
    spots = [Smooth(size, size).spot * cells**2 for size, cells in ((28, 28), (32, 32), (224, 32))]
    assert spots == pytest.approx([spots[0]] * 3, rel=0.02)


def test_the_area_s_term_in_closed_form():
    masks = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    use = torch.zeros_like(masks)
    assert float(_misfit(masks, (0.25,), use)) == pytest.approx((0 + 0.25**2 + 0.5**2 + 0) / 4)
    assert float(_misfit(masks, (0.5,), use)) == pytest.approx((0 + 0.25**2 + 0.5**2 + 0) / 4)
    assert float(_misfit(masks, (0.75,), use)) == pytest.approx((0 + 0.75**2 + 0.5**2 + 0) / 4)


def test_equal_values_are_put_in_the_order_of_their_use():
    masks = torch.full((1, 2, 2), 0.5, requires_grad=True)
    use = torch.tensor([[[3.0, -1.0], [2.0, 1.0]]])
    (pull,) = torch.autograd.grad(_misfit(masks, (0.5,), use), masks)
    assert torch.equal(pull.sign(), torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]]))


def test_lattices_are_moved_to_the_asked_areas():
    torch.manual_seed(0)
    for canvas in (Smooth(28, 28), Smooth(40, 224), Channels(12)):
        lattice = torch.rand(3, *canvas.shape)
        moved = with_areas(canvas, lattice, AREAS)
        assert canvas.shown(moved).flatten(1).mean(1).tolist() == pytest.approx(list(AREAS), rel=1e-3)
        order = lattice.flatten(1).argsort(1)
        assert bool((moved.flatten(1).gather(1, order).diff(dim=1) >= 0).all())  # the order of the points stays


def test_a_full_mask_leaves_the_image_and_an_empty_one_its_blur():
    levels = pyramid(torch.rand(1, 3, 9, 12), 2.0)
    ends = torch.stack([torch.ones(9, 12), torch.zeros(9, 12), torch.full((9, 12), 6.25 / 7)])
    whole, blank, between = blended(levels, ends)
    assert torch.equal(whole, levels[-1]) and torch.equal(blank, levels[0])
    torch.testing.assert_close(between, 0.75 * levels[6] + 0.25 * levels[7])
    spread = levels.std((1, 2, 3))
    assert bool((spread.diff() > 0).all())


@pytest.mark.parametrize("game", ["preserve", "delete", "dual"])
def test_the_slope_is_the_difference_quotient_of_reward_less_area_term(game):
    one = case("convnext")
    canvas, levels, scale = Smooth(16, 16), pyramid(one.features, 2.0), 0.7
    play = partial(_seen, one, levels)
    torch.manual_seed(0)
    lattice, away = (
        torch.rand(2, *canvas.shape, dtype=torch.float64),
        torch.randn(2, *canvas.shape, dtype=torch.float64),
    )
    search = Search((0.1, 0.3), game, scale, iterations=2)
    use = _reward(play, canvas.shown(lattice), game) / scale

    def value(points):
        masks = canvas.shown(points)
        kept, rest = one.scores(blended(levels, masks)), one.scores(blended(levels, 1 - masks))
        reward = {"preserve": kept, "delete": -rest, "dual": (kept - rest) / 2}[game]
        return float((reward / scale - searching.PULL[0] * _misfit(masks, search.areas, use)).detach().sum())

    quotient = (value(lattice + 1e-6 * away) - value(lattice - 1e-6 * away)) / 2e-6
    slope = float((_slope(canvas, play, search, lattice, 0) * away).sum()) / 256
    assert slope == pytest.approx(quotient, rel=1e-4)
