"""The whole spectrum analysis of a symmetric operator: ends, multiple eigenvalues, density, trace, exact oracle."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.density import (
    Mass,
    Outliers,
    Quadrature,
    find_copies,
    from_arrays,
    negative_mass,
    outliers_of,
    quadrature,
    to_arrays,
)
from probes.errors import CurvatureError
from probes.extremes import Pair, Wanted, converged, extremes, pairs, zero
from probes.lanczos import ROUNDING, Floats, Lanczos, Symmetric, random_vector
from probes.memory import spare_bytes
from probes.trace import Estimate, Remainder, frobenius_of, trace_of

UNSEARCHED = (
    "Without random vectors the complement was not searched for multiple or missed eigenvalues; "
    "set `probes` to 1 or more."
)
DENSE_LIMIT = 8000  # parameters: above, the dense matrix takes too long


class Tick(Protocol):
    """What reports progress and keeps intermediate arrays (see analyzers._base)."""

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        """Report."""

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays."""

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return what was kept."""


@dataclass(frozen=True)
class Ask:
    """What is wanted of the spectrum.

    wanted: the eigenvalues at the ends. probes x steps: random vectors of the quadrature and Lanczos steps of each.
    trace_probes: samples of the trace, those of the quadrature counted in. exact: also the dense matrix.
    """

    wanted: Wanted
    probes: int
    steps: int
    trace_probes: int
    exact: bool
    seed: int


@dataclass(frozen=True)
class Spectrum:
    """What was found; `products` by phase, in calls of the operator that the answer rests on."""

    top: tuple[Pair, ...]
    bottom: tuple[Pair, ...]
    outliers: tuple[Pair, ...]
    runs: tuple[Quadrature, ...]
    trace: Estimate
    frobenius: Estimate
    mass: Mass
    exact: Floats
    products: Mapping[str, int]
    not_converged: tuple[str, ...]
    caveats: tuple[str, ...]


def spectrum(operator: Symmetric, ask: Ask, tick: Tick) -> Spectrum:
    """Find the ends of the spectrum, then its density, trace and Frobenius norm; go on where a killed run stopped.

    Raises CurvatureError when the dense matrix is asked for of too many parameters or the memory is too small.
    """
    _check(operator, ask)
    meter = _Meter(operator, ask, tick)
    metered = Symmetric(meter, operator.size, operator.device, operator.dtype)
    meter.doing = "largest and smallest eigenvalues (Lanczos)"
    lanczos = extremes(metered, ask.wanted, ask.seed, store=tick)
    meter.settle(lanczos.count)
    outliers = outliers_of(lanczos, metered, ask.wanted.tolerance)
    simple = len(outliers.found)
    top, bottom, missing = _ends(lanczos, ask.wanted, operator.dtype)
    products = {"lanczos": lanczos.count}
    caveats: list[str] = []
    if ask.probes and not lanczos.exhausted and (top or bottom):
        meter.doing = "looking for multiple eigenvalues"
        top, bottom, spent = _with_copies(metered, outliers, ask, top, bottom, caveats, tick)
        products["multiplicity"] = spent
    elif not ask.probes and not lanczos.exhausted:
        caveats.append(UNSEARCHED)
    copies = np.array([each.value for each in outliers.found[simple:]])
    remainder = Remainder(lanczos, copies)
    meter.doing = "spectral density and trace (random vectors)"
    runs = _runs(metered, outliers, remainder, ask, tick)
    products["density and trace"] = sum(max(len(run.nodes), 1) for run in runs)
    meter.doing = "the whole Hessian (exact)"
    exact = _exact(metered, tick) if ask.exact else np.zeros(0)
    products |= {"exact": operator.size} if ask.exact else {}
    return Spectrum(
        top=tuple(top),
        bottom=tuple(bottom),
        outliers=tuple(sorted(outliers.found, key=lambda each: -each.value)),
        runs=tuple(run for run in runs if len(run.nodes)),
        trace=trace_of(remainder, _samples(runs), operator.dtype),
        frobenius=frobenius_of(remainder, _samples(runs), operator.dtype),
        mass=negative_mass(outliers.values, runs, operator.size),
        exact=exact,
        products=products,
        not_converged=tuple(missing),
        caveats=tuple(caveats),
    )


class _Meter:
    """Count the products, and report the share done and the time left from their pace."""

    def __init__(self, operator: Symmetric, ask: Ask, tick: Tick) -> None:
        wanted = ask.wanted
        self._operator, self._tick = operator, tick
        guess = min(wanted.max_products, 12 + 2 * wanted.top + 14 * wanted.bottom, operator.size)
        rest = ask.probes * (ask.steps + ask.steps // 4) + max(ask.trace_probes - ask.probes, 0)
        self._ends, self._rest = guess, rest + (operator.size if ask.exact else 0)
        self._done, self._settled, self._started = 0, False, time.monotonic()
        self.doing = ""

    def __call__(self, v: Tensor) -> Tensor:
        """Take one product."""
        result = self._operator(v)
        self._done += 1
        if not self._settled:
            self._ends = max(self._ends, self._done + 5)
        left = max(self._ends + self._rest - self._done, 0)
        pace = (time.monotonic() - self._started) / self._done
        self._tick(self._done / (self._done + left), self.doing, left * pace)
        return result

    def settle(self, products: int) -> None:
        """Note that the first phase is over."""
        self._ends, self._settled = min(products, self._done), True


def _check(operator: Symmetric, ask: Ask) -> None:
    if ask.exact and operator.size > DENSE_LIMIT:
        raise CurvatureError(
            f"The model has {operator.size} parameters; the exact dense Hessian is computed up to {DENSE_LIMIT}. "
            "Switch `exact` off."
        )
    vectors = min(2 * ask.wanted.max_products + ask.steps, 3 * operator.size)
    bytes_each = operator.size * torch.finfo(operator.dtype).bits // 8
    spare = spare_bytes(operator.device)
    if vectors * bytes_each > 0.9 * spare:
        fitting = max(int(0.45 * spare / bytes_each - ask.steps / 2), 0)
        raise CurvatureError(
            f"Up to {vectors} vectors of {bytes_each / 1e9:.2g} GB each are kept, but {spare / 1e9:.2g} GB are free; "
            f"set `max_products` to {fitting} or less."
        )


def _ends(lanczos: Lanczos, wanted: Wanted, dtype: torch.dtype) -> tuple[list[Pair], list[Pair], list[str]]:
    """Take the wanted eigenvalues from both ends up to the first that has not converged; name the missing ones."""
    ritz, rounding = lanczos.ritz(), ROUNDING[dtype]
    good, nothing = converged(ritz, wanted.tolerance, rounding), zero(ritz, rounding)
    count = lanczos.count
    ends: list[list[Pair]] = []
    words: list[str] = []
    orders = (("largest", np.arange(count)[::-1], wanted.top), ("smallest", np.arange(count), wanted.bottom))
    for side, order, asked in orders:
        chosen = order[:asked]
        first_bad = next((i for i, index in enumerate(chosen) if not good[index]), len(chosen))
        ends.append(pairs(ritz, chosen[:first_bad], rounding))
        if first_bad < asked:
            rest = nothing[chosen[first_bad:]]
            words.append(_missing(side, first_bad, asked, bool(len(rest) and rest[0]), count, lanczos.exhausted))
    return ends[0], ends[1], words


def _missing(side: str, first: int, asked: int, is_zero: bool, products: int, exhausted: bool) -> str:
    which = f"number {first + 1}" if first + 1 == asked else f"numbers {first + 1} to {asked}"
    if is_zero:
        return f"Of the {asked} {side} eigenvalues {which} are zero within rounding, and not shown."
    if exhausted:
        return f"Of the {asked} {side} eigenvalues {which} do not exist or are zero within rounding."
    return f"Of the {asked} {side} eigenvalues {which} did not converge within {products} products, and are not shown."


def _with_copies(
    operator: Symmetric,
    outliers: Outliers,
    ask: Ask,
    top: list[Pair],
    bottom: list[Pair],
    caveats: list[str],
    tick: Tick,
) -> tuple[list[Pair], list[Pair], int]:
    limit = (bottom[-1].value if bottom else -np.inf, top[-1].value if top else np.inf)
    before = len(outliers.found)
    kept = tick.load("copies")
    if kept is None:
        spent, complete = find_copies(operator, outliers, ask.wanted, ask.seed, ask.steps // 2 + 4, limit)
        tick.save("copies", to_arrays(outliers, before) | {"spent": np.array([spent, complete])})
    else:
        from_arrays(outliers, kept)
        spent, complete = int(kept["spent"][0]), bool(kept["spent"][1])
    added = outliers.found[before:]
    if added:
        numbers = ", ".join(f"{each.value:.6g}" for each in added[:5])
        caveats.append(f"Found again in the complement (multiple eigenvalues): {numbers}.")
    if not complete:
        caveats.append("Eigenvalues of high multiplicity: there may be more copies than are shown.")
    more_top = [*top, *(each for each in added if each.value > limit[1])]
    more_bottom = [*bottom, *(each for each in added if each.value < limit[0])]
    return (
        sorted(more_top, key=lambda each: -each.value)[: max(len(top), 0)],
        sorted(more_bottom, key=lambda each: each.value)[: max(len(bottom), 0)],
        spent,
    )


def _runs(operator: Symmetric, outliers: Outliers, remainder: Remainder, ask: Ask, tick: Tick) -> list[Quadrature]:
    """Draw the random vectors one by one, each kept when it is done."""
    if not remainder.left or operator.size <= outliers.basis.count:
        return []
    runs = []
    for index in range(max(ask.probes, ask.trace_probes)):
        kept = tick.load(f"probe_{index}")
        if kept is None:
            z = random_vector(operator.size, ask.seed, 1_000 + index).sign()
            steps = ask.steps if index < ask.probes else 1
            run = quadrature(operator, outliers, z, steps, remainder.sample)
            kept = {"nodes": run.nodes, "weights": run.weights, "sample": np.array(run.sample)}
            tick.save(f"probe_{index}", kept)
        sample = kept["sample"].tolist()
        runs.append(Quadrature(kept["nodes"], kept["weights"], (sample[0], sample[1])))
    return runs


def _samples(runs: list[Quadrature]) -> Floats:
    """Return the samples (n, 2) of y'Hy and |Hy|^2 that the runs gave."""
    return np.array([run.sample for run in runs], dtype=np.float64).reshape(-1, 2)


def _exact(operator: Symmetric, tick: Tick) -> Floats:
    """Return all eigenvalues, descending, of the dense matrix, row by row from products."""
    size = operator.size
    kept = tick.load("exact")
    if kept is not None:
        return np.asarray(kept["values"], dtype=np.float64)
    H = np.empty((size, size))
    unit = torch.zeros(size, device=operator.device, dtype=operator.dtype)
    for i in range(size):
        unit[i] = 1
        H[i] = operator(unit).double().cpu().numpy()
        unit[i] = 0
    values: Floats = np.linalg.eigvalsh((H + H.T) / 2)[::-1].astype(np.float64)
    tick.save("exact", {"values": values})
    return values
