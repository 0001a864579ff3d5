"""Lines through weight space: places, projections, measures of a curve, refinement."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from probes.errors import DataError
from probes.lines import (
    Line,
    area,
    bends,
    gauss_lengths,
    greatest_rise,
    grid,
    monotonicity,
    noise,
    norm,
    plateau,
    refined,
    zeros,
)
from probes.points import Point, between, distance


def point(*tensors: torch.Tensor, **buffers: torch.Tensor) -> Point:
    return Point(tuple(each.double() for each in tensors), buffers)


def pair(seed: int = 0) -> tuple[Point, Point]:
    generator = torch.Generator().manual_seed(seed)
    made = lambda: point(torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator))
    return made(), made()


@pytest.mark.parametrize(
    ("start", "stop", "points"), [(-0.25, 1.25, 25), (0, 1, 25), (0, 1, 2), (-0.01, 1, 5), (-3, 1.1, 7), (-1, 4, 101)]
)
def test_the_grid_has_zero_and_one_and_as_many_places_as_asked_for(start: float, stop: float, points: int) -> None:
    found = grid(start, stop, points)
    assert len(found) == points and found[0] == start and found[-1] == stop
    assert 0.0 in found and 1.0 in found
    assert all(a < b for a, b in pairwise(found))


def test_the_usual_grid_is_even() -> None:
    np.testing.assert_allclose(np.diff(grid(-0.25, 1.25, 25)), 0.0625, rtol=1e-12)
    assert grid(0, 1, 25)[12] == 0.5
    for wrong in ((0.1, 1, 9), (0, 0.9, 9), (-1, 2, 3)):
        with pytest.raises(ValueError, match="0 and 1"):
            grid(*wrong)


def test_places_on_the_line_are_exact_at_the_ends_and_mixed_between() -> None:
    one, other = pair()
    one.buffers["m"], other.buffers["m"] = torch.tensor([1.0]), torch.tensor([3.0])  # type: ignore[index]
    line = Line(one, other)
    for alpha, end in ((0.0, one), (1.0, other)):
        assert all(torch.equal(a, b) for a, b in zip(line.at(alpha).theta, end.theta, strict=True))
    for alpha in (-0.25, 0.3, 1.25):
        expected = between(one, other, alpha)
        for a, b in zip(line.at(alpha).theta, expected.theta, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(line.at(alpha).buffers["m"], expected.buffers["m"])
    assert line.length == pytest.approx(distance(one, other))
    with pytest.raises(DataError, match="same weights"):
        Line(one, one)


def test_a_projection_is_where_least_squares_puts_it() -> None:
    (one, other), (there, _) = pair(), pair(1)
    flat = lambda each: torch.cat([part.flatten() for part in each.theta]).numpy()
    u, v = flat(other) - flat(one), flat(there) - flat(one)
    (alpha,), (left,), _, _ = np.linalg.lstsq(u[:, None], v, rcond=None)
    found = Line(one, other).projected(there)
    assert found.alpha == pytest.approx(alpha, rel=1e-12)
    assert found.distance == pytest.approx(math.sqrt(left), rel=1e-12)
    assert found.relative == pytest.approx(math.sqrt(left) / np.linalg.norm(u), rel=1e-12)
    on_it = Line(one, other).projected(between(one, other, 0.3))
    assert on_it.alpha == pytest.approx(0.3) and on_it.distance < 1e-12


def brute(losses: list[float]) -> float:
    return max([0.0] + [later - early for i, early in enumerate(losses) for later in losses[i:]])


@pytest.mark.parametrize(
    ("losses", "rise"),
    [
        ([3, 2, 1, 1.5], 0.5),  # a rise in the last step only, which looking for closed bumps misses
        ([3, 2, 1], 0.0),
        ([1, 1, 1], 0.0),
        ([1, 2, 0, 0.5, 0.2, 1.4], 1.4),
        ([2, 1, 3, 0.5, 2.2], 2.0),
        ([0, 1], 1.0),
        ([5.0], 0.0),
    ],
)
def test_delta_is_the_greatest_rise(losses: list[float], rise: float) -> None:
    found = monotonicity(np.array(losses, float))
    assert found == pytest.approx(rise) == pytest.approx(brute(losses))
    low, high = greatest_rise(np.array(losses, float))
    assert low <= high and losses[high] - losses[low] == pytest.approx(rise)


def test_delta_of_many_curves_is_that_of_each() -> None:
    curves = np.random.default_rng(0).normal(size=(50, 9))
    np.testing.assert_allclose(monotonicity(curves), [brute(list(each)) for each in curves], rtol=1e-12)


def test_plateau_and_area_of_curves_with_a_closed_form() -> None:
    alpha = np.array([0, 0.1, 0.5, 0.7, 1.0])
    assert plateau(alpha, 1 - alpha) == pytest.approx(0.1)
    assert area(alpha, 3 - 2 * alpha) == pytest.approx(0.5)
    knee = np.array([1, 1, 1, 0, 0.0])  # falls from 1 to 0 between .5 and .7: through .9 at .52
    assert plateau(alpha, knee) == pytest.approx(0.52)
    assert area(alpha, knee) == pytest.approx(0.6)
    assert plateau(alpha, np.array([1, 2, 0.5, 0.95, 0.95])) == pytest.approx(
        0.1 + 0.4 * (2 - 0.9) / 1.5 + 0.2 * (0.95 - 0.9) / 0.45 + 0.3
    )
    assert area(alpha, np.array([1, 2, 3, 2, 1.0])) is None


def test_gauss_length_of_a_circle_a_line_and_a_parabola() -> None:
    alpha = np.linspace(0, 1, 401)
    circle = np.stack([np.cos(np.pi * alpha), np.sin(np.pi * alpha)], 1)
    straight = np.stack([alpha**3, 2 * alpha**3], 1)
    parabola = np.stack([alpha, alpha**2], 1)  # turns from the direction (1, 0) to (1, 2)
    still = np.stack([np.minimum(alpha, 0.5), np.maximum(alpha, 0.5)], 1)  # east, then north: a right angle
    found = gauss_lengths(np.stack([circle, straight, parabola, still], 1))
    np.testing.assert_allclose(found, [np.pi, 0, np.arctan(2), np.pi / 2], atol=0.012)
    coarse = gauss_lengths(np.stack([circle, straight, parabola, still], 1)[::50])
    assert (coarse <= found + 1e-7).all()
    waiting = np.repeat(still[[0, 200, 400]], 3, axis=0)[:, None]  # no step: no direction, no angle
    np.testing.assert_allclose(gauss_lengths(waiting), [np.pi / 2])


def sigmoid(alpha: float) -> float:
    return 1 / (1 + math.exp(60 * (alpha - 0.42)))


def truth(curve, found) -> float:
    """The greatest distance of straight lines between the places from the curve, by its range on [0, 1]."""
    fine = np.linspace(found[0], found[-1], 20001)
    exact = np.array([curve(each) for each in fine])
    return float(np.abs(np.interp(fine, found, [curve(each) for each in found]) - exact).max() / np.ptp(exact))


def test_refinement_puts_places_where_the_curve_bends_and_states_its_error() -> None:
    asked = []
    curve = lambda alpha: asked.append(alpha) or (sigmoid(alpha),)  # type: ignore[func-returns-value]
    found = refined(curve, grid(0, 1, 17), 100, 0.0025)
    assert len(asked) == len(set(asked)) == len(found.alpha) < 60
    assert found.error <= 0.0025
    assert truth(sigmoid, found.alpha) < 0.0035
    steps = np.diff(found.alpha)
    middle = (np.array(found.alpha)[:-1] + np.array(found.alpha)[1:]) / 2
    assert steps[np.abs(middle - 0.42) < 0.05].max() < 0.02 < steps[middle > 0.7].min()
    uniform = truth(sigmoid, np.linspace(0, 1, len(found.alpha)))
    assert uniform > 2 * truth(sigmoid, found.alpha)
    assert refined(curve, grid(0, 1, 17), 100, 0.0025) == found


def test_refinement_keeps_within_its_budget_and_leaves_straight_curves_alone() -> None:
    few = refined(lambda alpha: (sigmoid(alpha),), grid(0, 1, 17), 3, 0.0)
    assert len(few.alpha) == 20 and few.error > 0.01
    straight = refined(lambda alpha: (2 - alpha,), grid(-0.25, 1.25, 9), 30, 0.001)
    assert len(straight.alpha) == 9 and straight.error < 1e-12
    flat = refined(lambda alpha: (2.0 + 1e-13 * math.sin(99 * alpha),), grid(0, 1, 9), 30, 0.001)
    assert len(flat.alpha) == 9 and flat.error == 0
    kink = refined(lambda alpha: (abs(alpha - 0.3),), grid(0, 1, 5), 200, 1e-9)
    assert min(np.diff(kink.alpha)) >= 2.0**-12


def test_what_is_not_finite_is_no_bend() -> None:
    wall = lambda alpha: (math.inf if alpha > 1.05 else math.nan if alpha < -0.1 else alpha**2,)
    found = refined(wall, grid(-0.25, 1.25, 13), 20, 0.0025)
    assert math.isfinite(found.error) and len(found.alpha) <= 33
    assert not bends(np.array([0, 0.5, 1.0]), np.full(3, math.nan)).any()


def test_a_far_end_that_explodes_does_not_take_the_budget_of_the_inside() -> None:
    curve = lambda alpha: (sigmoid(alpha) + 1e4 * max(0.0, alpha - 1) ** 4,)
    found = np.array(refined(curve, grid(0, 2, 17), 20, 0.0).alpha)
    assert ((found > 0) & (found < 1)).sum() > 20


def test_controls_have_the_moments_of_each_tensor() -> None:
    torch.manual_seed(0)
    start = point(3 + 2 * torch.randn(200, 300), torch.full((5,), 7.0), torch.tensor([4.0]), running=torch.ones(2))
    drawn = noise(start, 1)
    assert drawn.theta[0].mean() == pytest.approx(float(start.theta[0].mean()), abs=0.04)
    assert drawn.theta[0].std() == pytest.approx(float(start.theta[0].std()), rel=0.01)
    assert abs(float(torch.corrcoef(torch.stack([start.theta[0].flatten(), drawn.theta[0].flatten()]))[0, 1])) < 0.02
    assert torch.equal(drawn.theta[1], start.theta[1]) and torch.equal(drawn.theta[2], start.theta[2])
    assert drawn.buffers is start.buffers
    assert all(torch.equal(a, b) for a, b in zip(drawn.theta, noise(start, 1).theta, strict=True))
    assert not torch.equal(drawn.theta[0], noise(start, 2).theta[0])
    assert norm(zeros(start)) == 0 and norm(start) == pytest.approx(
        math.sqrt(sum(float((each**2).sum()) for each in start.theta))
    )
