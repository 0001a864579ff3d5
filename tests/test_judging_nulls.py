"""Null curves: the mean of random orders by a loop, their errors, and edges as SciPy finds them."""

from __future__ import annotations

import numpy as np
import pytest
from attribution_cases import case
from scipy import ndimage, stats

from probes.attribution import AttributionError
from probes.attribution.judging import curves, edge_map, null_curves


def as_map(found, order):
    """A map that puts the features in this order."""
    values = np.empty(len(order))
    values[order] = -np.arange(len(order))
    return values.reshape(found.shape[-2:] if found.kind == "image" else found.shape)


@pytest.mark.parametrize("name", ["cnn", "tabular", "bert"])
def test_random_curves_are_means_over_orders(name: str) -> None:
    found, draws = case(name, 1), 4
    null = null_curves(found, "random", draws, points=6, seed=3)
    size = int(np.prod(found.shape))
    orders = [np.random.default_rng([3, each]).permutation(np.arange(size)) for each in range(draws)]
    put_in = [curves(found, as_map(found, order), points=6, seed=3) for order in orders]
    taken = [curves(found, as_map(found, order[::-1]), points=6, seed=3) for order in orders]
    insertion, deletion = (np.stack([each.insertion for each in put_in]), np.stack([each.deletion for each in taken]))
    np.testing.assert_allclose(null.insertion, insertion.mean(0), atol=1e-9)
    np.testing.assert_allclose(null.deletion, deletion.mean(0), atol=1e-9)
    np.testing.assert_allclose(null.insertion_stderr, insertion.std(0, ddof=1) / 2, atol=1e-9)
    np.testing.assert_allclose(null.deletion_stderr, deletion.std(0, ddof=1) / 2, atol=1e-9)
    areas = np.stack([each.insertion_auc for each in put_in])
    np.testing.assert_allclose(null.insertion_auc, areas.mean(0), atol=1e-9)
    expected = stats.t.interval(0.95, draws - 1, areas.mean(0), areas.std(0, ddof=1) / 2)
    np.testing.assert_allclose(null.interval("insertion"), expected, atol=1e-9)


def test_it_is_drawn_once_for_a_case_and_by_the_seed() -> None:
    found = case("cnn")
    one = null_curves(found, draws=3, points=4)
    assert null_curves(found, draws=3, points=4) is one
    np.testing.assert_array_equal(null_curves(case("cnn"), draws=3, points=4).insertion, one.insertion)
    assert (null_curves(found, draws=3, points=4, seed=1).insertion != one.insertion).any()
    with pytest.raises(AttributionError, match="draws is 1"):
        null_curves(found, draws=1)


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_edges_are_those_of_scipy(name: str) -> None:
    found = case(name)
    image = found.features[0].numpy()
    expected = sum(np.abs(ndimage.laplace(channel, mode="nearest")) for channel in image)
    np.testing.assert_allclose(edge_map(found)[0], expected, atol=1e-12)
    slopes = [[ndimage.correlate1d(channel, [-0.5, 0, 0.5], axis, mode="nearest") for axis in (0, 1)]
              for channel in image]  # fmt: skip
    expected = sum(np.hypot(*each) for each in slopes)
    np.testing.assert_allclose(edge_map(found, "gradient")[0], expected, atol=1e-12)


def test_the_edge_null_is_the_curve_of_the_edge_map() -> None:
    found = case("cnn")
    null, drawn = null_curves(found, "edge", points=6), curves(found, edge_map(found), points=6)
    np.testing.assert_array_equal(null.insertion, drawn.insertion)
    np.testing.assert_array_equal(null.deletion, drawn.deletion)
    assert null.kind == "edge" and null.insertion_auc_stderr == 0.0
    with pytest.raises(AttributionError, match="Only images have edges"):
        null_curves(case("tabular"), "edge")
