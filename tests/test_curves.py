"""Curves between two points: formulas, ends, lengths and planes against closed forms and points made in full."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binom

from probes.curves import (
    Curve,
    arclength,
    coefficients,
    plane_coordinates,
    plane_points,
    straight,
    straight_length,
)
from probes.planes import projected, through
from probes.points import Point, distance

T = np.linspace(0, 1, 61)


def point(seed: int) -> Point:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return Point((draw(4, 3), draw(5)), {"norm.running_mean": draw(3)})


def flat(point: Point) -> np.ndarray:
    return torch.cat([each.reshape(-1) for each in point.theta]).numpy()


def curve(kind, bends: int) -> Curve:
    return Curve(kind, (point(0), point(1)), tuple(point(2 + place) for place in range(bends)))


def test_one_bend_is_the_quadratic_formula() -> None:
    bent = curve("bezier", 1)
    a, m, b = map(flat, bent.nodes)
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        np.testing.assert_allclose(flat(bent.at(t)), (1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b, atol=1e-14)
        buffers = [each.buffers["norm.running_mean"] for each in bent.nodes]
        truth = (1 - t) ** 2 * buffers[0] + 2 * t * (1 - t) * buffers[1] + t**2 * buffers[2]
        torch.testing.assert_close(bent.at(t).buffers["norm.running_mean"], truth)


@pytest.mark.parametrize("nodes", [2, 3, 5, 9])
def test_bezier_weights_are_binomial_probabilities(nodes: int) -> None:
    for t in (0.0, 0.1, 0.73, 1.0):
        np.testing.assert_allclose(coefficients("bezier", nodes, t), binom.pmf(range(nodes), nodes - 1, t), atol=1e-14)


def test_a_chain_goes_straight_from_node_to_node() -> None:
    chain = curve("polygonal", 3)
    nodes = [flat(each) for each in chain.nodes]
    for place, t in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        np.testing.assert_allclose(flat(chain.at(t)), nodes[place], atol=1e-14)
    np.testing.assert_allclose(flat(chain.at(0.35)), 0.6 * nodes[1] + 0.4 * nodes[2], atol=1e-14)


@pytest.mark.parametrize("kind", ["bezier", "polygonal"])
def test_the_ends_are_the_points_themselves_whatever_else_is_not_finite(kind) -> None:
    bent = curve(kind, 2)
    bent.bends[0].theta[0].fill_(math.inf)
    assert bent.at(0.0) is bent.ends[0] and bent.at(1.0) is bent.ends[1]


def test_at_first_a_curve_is_the_straight_line() -> None:
    for kind in ("bezier", "polygonal"):
        line = straight(kind, point(0), point(1), 4)
        for t in (0.1, 0.5, 0.8):
            np.testing.assert_allclose(flat(line.at(t)), (1 - t) * flat(point(0)) + t * flat(point(1)), atol=1e-14)
        assert arclength(line, T)[-1] == pytest.approx(straight_length(line), rel=1e-12)
        assert straight_length(line) == pytest.approx(distance(point(0), point(1)), rel=1e-14)


def test_the_length_of_a_chain_is_that_of_its_pieces() -> None:
    chain = curve("polygonal", 3)
    pieces = [distance(a, b) for a, b in zip(chain.nodes, chain.nodes[1:], strict=False)]
    found = arclength(chain, T)
    assert found[0] == 0 and found[-1] == pytest.approx(sum(pieces), rel=1e-12)
    assert found[15] == pytest.approx(pieces[0], rel=1e-12)
    assert np.all(np.diff(found) > 0)


def test_the_length_of_a_bezier_is_that_of_its_points_and_near_the_integral() -> None:
    bent = curve("bezier", 2)
    made = np.stack([flat(bent.at(float(t))) for t in T])
    chords = np.linalg.norm(np.diff(made, axis=0), axis=1)
    np.testing.assert_allclose(arclength(bent, T)[1:], np.cumsum(chords), rtol=1e-10)
    step = np.diff(np.stack([flat(each) for each in bent.nodes]), axis=0)
    speed = lambda t: np.linalg.norm(3 * ((1 - t) ** 2 * step[0] + 2 * t * (1 - t) * step[1] + t**2 * step[2]))
    assert arclength(bent, T)[-1] == pytest.approx(quad(speed, 0, 1)[0], rel=1e-3)


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("polygonal", 1), ("bezier", 3)])
def test_places_in_the_plane_are_those_of_the_points(kind, bends: int) -> None:
    bent = curve(kind, bends)
    origin, end, bend = map(flat, plane_points(bent))
    u = (end - origin) / np.linalg.norm(end - origin)
    v = bend - origin - (bend - origin) @ u * u
    v /= np.linalg.norm(v)
    places, aside = plane_coordinates(bent, T)
    plane = through(*plane_points(bent))
    seen = [projected(plane, bent.at(float(t))) for t in T]
    np.testing.assert_allclose(places, [(each.x, each.y) for each in seen], atol=1e-12)
    made = np.stack([flat(bent.at(float(t))) for t in T]) - origin
    np.testing.assert_allclose(places, made @ np.stack([u, v], axis=1), atol=1e-12)
    rest = made - np.outer(made @ u, u) - np.outer(made @ v, v)
    np.testing.assert_allclose(aside, np.linalg.norm(rest, axis=1), atol=1e-6)
    assert (aside.max() == 0) == (bends == 1)


def test_of_several_bends_the_one_furthest_from_the_line_spans_the_plane() -> None:
    line = straight("bezier", point(0), point(1), 3)
    far = Point(tuple(each + 1 for each in line.bends[1].theta), line.bends[1].buffers)
    bent = Curve("bezier", line.ends, (line.bends[0], far, line.bends[2]))
    assert plane_points(bent)[2] is far


def test_a_straight_line_has_no_second_axis() -> None:
    line = straight("bezier", point(0), point(1), 1)
    places, aside = plane_coordinates(line, T)
    np.testing.assert_allclose(places[:, 0], T * straight_length(line))
    assert not places[:, 1].any() and not aside.any()
    same = straight("bezier", point(0), point(0), 1)
    assert not plane_coordinates(same, T)[0].any() and arclength(same, T)[-1] == 0


def test_what_is_no_curve_is_our_own_mistake() -> None:
    for wrong in (("bezier", 3, -0.1), ("bezier", 3, 1.1), ("spline", 3, 0.5), ("bezier", 1, 0.5)):
        with pytest.raises(ValueError, match="curve"):
            coefficients(*wrong)
    with pytest.raises(ValueError, match="one or more"):
        straight("bezier", point(0), point(1), 0)
