"""Lanczos on explicit matrices: both ends, bounds, multiple eigenvalues, small and singular matrices, resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import Notes

from probes.extremes import Wanted, converged, extremes
from probes.lanczos import Lanczos, Symmetric, random_vector


def operator(eigenvalues: np.ndarray, seed: int = 0, dtype: torch.dtype = torch.float64) -> Symmetric:
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))
    H = torch.from_numpy((Q * eigenvalues) @ Q.T).to(dtype)
    return Symmetric(lambda v: H @ v, len(eigenvalues), torch.device("cpu"), dtype)


def bulk(size: int, outliers: list[float], spread: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.sort(np.concatenate([spread * rng.standard_normal(size - len(outliers)), outliers]))[::-1]


def test_basis_stays_orthonormal_and_reproduces_the_matrix() -> None:
    H = operator(bulk(80, [9.0, 5.0, 4.9]))
    run = Lanczos(H, H.basis(), lambda i: random_vector(80, 0, i))
    while not run.exhausted:
        run.step()
    Q = torch.cat(list(run.basis.filled()))
    assert run.count == 80
    torch.testing.assert_close(Q @ Q.T, torch.eye(80, dtype=torch.float64), atol=1e-12, rtol=0)
    np.testing.assert_allclose(run.ritz().values[::-1], bulk(80, [9.0, 5.0, 4.9]), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_both_ends_hold_to_the_tolerance_and_within_their_bounds(seed) -> None:
    truth = bulk(400, [9.0, 5.0, 4.9, 3.0, 2.0, -1.0, -0.7, -0.65])
    run = extremes(operator(truth), Wanted(5, 3, 1e-6, 300), seed)
    ritz = run.ritz()
    assert run.count < 45
    for found, expected, bounds in (
        (ritz.values[::-1][:5], truth[:5], ritz.bounds[::-1][:5]),
        (ritz.values[:3], truth[::-1][:3], ritz.bounds[:3]),
    ):
        assert (np.abs(found - expected) <= 1e-6 * np.abs(expected)).all()
        assert (np.abs(found - expected) <= bounds + 1e-13).all()


def test_bounds_cover_the_error_on_the_way() -> None:
    truth = bulk(300, [9.0, 5.0, 4.0, 3.0])
    H = operator(truth)
    run = Lanczos(H, H.basis(), lambda i: random_vector(300, 3, i))
    for _ in range(40):
        run.step()
        ritz = run.ritz()
        nearest = np.abs(ritz.values[:, None] - truth[None]).min(1)
        assert (nearest <= ritz.residuals + 1e-12).all()


def test_what_does_not_converge_within_the_products_is_not_called_converged() -> None:
    truth = np.linspace(0, 1, 500)
    run = extremes(operator(truth), Wanted(5, 5, 1e-8, 20), 0)
    assert run.count == 20
    assert not converged(run.ritz(), 1e-8, 1e-13)[[0, -1]].any()


@pytest.mark.parametrize("truth", [np.ones(6), np.array([4.0, 4.0, 1.0]), np.array([2.0]), np.zeros(4)])
def test_breakdown_goes_on_until_nothing_is_left(truth) -> None:
    run = extremes(operator(truth), Wanted(10, 3, 1e-6, 100), 0)
    assert run.exhausted
    np.testing.assert_allclose(np.sort(run.ritz().values), np.sort(truth), atol=1e-12)


def test_float32_calls_nothing_below_its_noise_converged() -> None:
    truth = np.array([1.0, 0.5] + [1e-9] * 50)
    run = extremes(operator(truth, dtype=torch.float32), Wanted(4, 0, 1e-3, 60), 0)
    good = converged(run.ritz(), 1e-3, 1e-6)
    assert good.sum() == 2


def test_a_killed_run_goes_on_where_it_was() -> None:
    truth = bulk(300, [9.0, 5.0, 4.9, 3.0, 2.0, -1.0])
    products = []

    def counting(limit: int | None) -> Symmetric:
        H, calls = operator(truth), [0]

        def apply(v):
            calls[0] += 1
            if limit is not None and calls[0] > limit:
                raise KeyboardInterrupt
            products.append(calls[0])
            return H(v)

        return Symmetric(apply, 300, H.device, H.dtype)

    wanted = Wanted(5, 1, 1e-8, 200)
    whole = extremes(counting(None), wanted, 0)
    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        extremes(counting(10), wanted, 0, store=notes)
    products.clear()
    resumed = extremes(counting(None), wanted, 0, store=notes)
    assert len(products) == whole.count - 8
    np.testing.assert_array_equal(resumed.ritz().values, whole.ritz().values)
    products.clear()
    extremes(counting(None), wanted, 0, store=notes)
    assert products == []


def test_random_vectors_depend_on_seed_and_index_only() -> None:
    assert torch.equal(random_vector(5, 1, 2), random_vector(5, 1, 2))
    assert not torch.equal(random_vector(5, 1, 2), random_vector(5, 2, 2))
    assert not torch.equal(random_vector(5, 1, 2), random_vector(5, 1, 3))
