"""Density: multiple eigenvalues, no ghost copies, nearer to the truth than plain quadrature at equal products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import Notes
from scipy.stats import wasserstein_distance
from test_lanczos import bulk, operator

from probes.errors import CurvatureError
from probes.extremes import Wanted
from probes.lanczos import Lanczos, Symmetric, random_vector
from probes.spectrum import Ask, Spectrum, spectrum


def distance(found: Spectrum, truth: np.ndarray) -> float:
    """Wasserstein-1 distance of stems and quadrature to the spectrum, over mean |lambda|."""
    size, known = len(truth), [each.value for each in found.outliers]
    share = (size - len(known)) / size / len(found.runs)
    nodes = np.concatenate([known, *(run.nodes for run in found.runs)])
    weights = np.concatenate([np.full(len(known), 1 / size), *(share * run.weights for run in found.runs)])
    return wasserstein_distance(nodes, truth, weights) / np.abs(truth).mean()


def plain_distance(H: Symmetric, truth: np.ndarray, probes: int, steps: int) -> float:
    """The same for stochastic Lanczos quadrature without deflation."""
    nodes, weights = [], []
    for index in range(probes):
        run = Lanczos(H, H.basis(), lambda i, index=index: random_vector(H.size, 5, 100 * index + i).sign())
        for _ in range(steps):
            run.step()
        nodes.append(run.ritz().values)
        weights.append(run.ritz().vectors[0] ** 2)
    found, mass = np.concatenate(nodes), np.concatenate(weights)
    return wasserstein_distance(found, truth, mass) / np.abs(truth).mean()


def test_nearer_to_the_spectrum_than_plain_quadrature_at_equal_products() -> None:
    truth = bulk(600, [30.0, 12, 9, 7, 5, 4, 3, 2, 1.5, -1, -0.5], spread=0.01)
    H = operator(truth)
    for seed in range(3):
        found = spectrum(H, Ask(Wanted(8, 2, 1e-4, 100), 2, 25, 2, False, seed), Notes())
        products = sum(found.products.values())
        ours = distance(found, truth)
        assert ours < 0.5 * plain_distance(H, truth, 2, products // 2)
        assert ours < 0.15


def test_weights_add_up_to_one_and_no_outlier_comes_twice() -> None:
    truth = bulk(400, [9.0, 7.0, 5.0, -1.0])
    found = spectrum(operator(truth), Ask(Wanted(3, 1, 1e-6, 100), 3, 20, 3, False, 0), Notes())
    known = [each.value for each in found.outliers]
    for run in found.runs:
        assert run.weights.sum() == pytest.approx(1)
        assert run.nodes.max() < 1
        assert run.nodes.min() > -0.5
    assert sum(value > 4 for value in known) == 3


@pytest.mark.parametrize("seed", range(3))
def test_multiple_eigenvalues_are_reported_with_all_their_copies(seed) -> None:
    truth = np.sort(np.concatenate([bulk(300, []), [8.0, 8.0, 8.0, 6.0, 6.0, 3.0, -2.0, -2.0]]))[::-1]
    H = torch.diag(torch.from_numpy(truth.copy()))
    operation = Symmetric(lambda v: H @ v, len(truth), H.device, H.dtype)
    found = spectrum(operation, Ask(Wanted(6, 2, 1e-6, 200), 2, 20, 4, False, seed), Notes())
    np.testing.assert_allclose([each.value for each in found.top], truth[:6], rtol=1e-6)
    np.testing.assert_allclose([each.value for each in found.bottom], truth[::-1][:2], rtol=1e-6)


def test_a_duplicated_block_is_found_twice() -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((60, 60))
    A = A + A.T
    H = torch.from_numpy(np.kron(np.eye(2), A))
    truth = np.repeat(np.linalg.eigvalsh(A)[::-1], 2)
    operation = Symmetric(lambda v: H @ v, 120, H.device, H.dtype)
    found = spectrum(operation, Ask(Wanted(4, 4, 1e-6, 200), 2, 20, 4, False, 0), Notes())
    np.testing.assert_allclose([each.value for each in found.top], truth[:4], rtol=1e-6)
    np.testing.assert_allclose([each.value for each in found.bottom], truth[::-1][:4], rtol=1e-6)


def test_negative_mass_within_four_standard_errors() -> None:
    truth = bulk(500, [9.0, 5.0, -3.0], spread=0.2)
    found = spectrum(operator(truth), Ask(Wanted(3, 1, 1e-6, 100), 8, 30, 8, False, 0), Notes())
    exact = -truth[truth < 0].sum() / np.abs(truth).sum()
    assert abs(found.mass.share - exact) < 4 * found.mass.share_stderr + 0.01
    assert found.mass.count_share == pytest.approx((truth < -0.009).mean(), abs=0.1)


def test_an_unresolved_bulk_at_zero_is_not_called_negative() -> None:
    truth = np.concatenate([[9.0, 5.0, -1.0], np.zeros(300) - 1e-5])
    found = spectrum(operator(truth), Ask(Wanted(2, 1, 1e-6, 100), 3, 10, 4, False, 0), Notes())
    assert found.mass.count_share == pytest.approx(1 / 303)
    assert found.mass.share == pytest.approx(1.003 / 15.003, rel=1e-3)


def test_exact_oracle_and_its_limit() -> None:
    truth = bulk(120, [9.0, 5.0])
    found = spectrum(operator(truth), Ask(Wanted(2, 0, 1e-4, 100), 1, 10, 2, True, 0), Notes())
    np.testing.assert_allclose(found.exact, truth, atol=1e-12)
    large = Symmetric(lambda v: v, 8001, torch.device("cpu"), torch.float64)
    with pytest.raises(CurvatureError, match="8001 parameters"):
        spectrum(large, Ask(Wanted(2, 0, 1e-4, 100), 1, 10, 2, True, 0), Notes())


def test_a_killed_run_goes_on_with_the_same_answer_and_fewer_products() -> None:
    truth = bulk(300, [9.0, 5.0, 5.0, 3.0, -1.0])
    calls = [0]
    H = operator(truth)

    def counted(v):
        calls[0] += 1
        return H(v)

    operation = Symmetric(counted, 300, H.device, H.dtype)
    question = Ask(Wanted(4, 1, 1e-6, 200), 3, 15, 8, False, 0)
    whole = spectrum(operation, question, Notes())
    total, calls[0] = calls[0], 0
    for stop in (12, 30, 45):
        notes = Notes(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            spectrum(operation, question, notes)
        notes.stop_after, calls[0] = None, 0
        again = spectrum(operation, question, notes)
        assert calls[0] <= total - stop + 17
        assert again.trace == whole.trace
        assert again.top == whole.top
        np.testing.assert_array_equal(again.runs[2].nodes, whole.runs[2].nodes)
        assert again.products == whole.products


def test_progress_rises_to_the_end() -> None:
    notes = Notes()
    spectrum(operator(bulk(300, [9.0, 5.0])), Ask(Wanted(2, 1, 1e-4, 100), 2, 10, 4, False, 0), notes)
    assert notes.shares[-1] > 0.85
    assert min(np.diff(notes.shares)) > -0.3
    assert all(each is not None and each >= 0 for each in notes.seconds)
