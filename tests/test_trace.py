"""Trace and Frobenius norm: unbiased, and their standard errors mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import Notes
from test_lanczos import bulk, operator

from probes.extremes import Wanted, extremes
from probes.lanczos import random_vector
from probes.spectrum import Ask, spectrum
from probes.trace import Remainder, frobenius_of, trace_of

TRUTH = bulk(200, [9.0, 5.0, 4.9, 3.0, -1.0])


def ask(seed: int, *, samples: int = 20) -> Ask:
    return Ask(Wanted(3, 1, 1e-6, 100), 2, 10, samples, False, seed)


def test_estimates_lie_within_their_standard_errors_and_not_always_far_within() -> None:
    H = operator(TRUTH)
    runs = [spectrum(H, ask(seed), Notes()) for seed in range(60)]
    z = np.array([(each.trace.value - TRUTH.sum()) / each.trace.stderr for each in runs])
    f = np.array([(each.frobenius.value - np.linalg.norm(TRUTH)) / each.frobenius.stderr for each in runs])
    for scores in (z, f):
        assert np.abs(scores).max() < 4.5
        assert 0.8 < (np.abs(scores) < 2).mean() <= 1
        assert 0.6 < scores.std() < 1.5
        assert abs(scores.mean()) < 4 / np.sqrt(60)


def test_a_sample_costs_no_product_beyond_the_first_and_is_what_it_says() -> None:
    H = operator(TRUTH)
    lanczos = extremes(H, Wanted(3, 0, 1e-4, 100), 0)
    Q = torch.stack([lanczos.basis[i] for i in range(lanczos.count)])
    z = random_vector(200, 9, 0)
    y = z - Q.T @ (Q @ z)
    quadratic, squared = Remainder(lanczos, np.zeros(0)).sample(z, H(z))
    assert quadratic == pytest.approx(float(y @ H(y)), rel=1e-9)
    assert squared == pytest.approx(float(H(y) @ H(y)), rel=1e-9)


def test_a_whole_space_is_exact() -> None:
    truth = np.array([3.0, 2.0, -1.0, 0.5])
    lanczos = extremes(operator(truth), Wanted(4, 4, 1e-6, 100), 0)
    remainder = Remainder(lanczos, np.zeros(0))
    nothing = np.zeros((0, 2))
    assert trace_of(remainder, nothing, torch.float64).value == pytest.approx(4.5, abs=1e-12)
    assert frobenius_of(remainder, nothing, torch.float64).value == pytest.approx(np.linalg.norm(truth), abs=1e-12)


def test_one_sample_gives_no_standard_error() -> None:
    found = spectrum(operator(TRUTH), Ask(Wanted(3, 1, 1e-6, 100), 1, 10, 1, False, 0), Notes())
    assert found.trace.stderr is None


def test_copies_of_a_multiple_eigenvalue_are_in_the_trace_once_each() -> None:
    truth = bulk(200, [9.0] * 4 + [5.0, -1.0])
    found = spectrum(operator(truth), ask(1, samples=30), Notes())
    assert abs(found.trace.value - truth.sum()) < 4 * found.trace.stderr
