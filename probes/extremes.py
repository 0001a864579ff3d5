"""The largest and smallest eigenvalues: Lanczos until every one that is asked for has converged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probes.lanczos import ROUNDING, Basis, Lanczos, Ritz, Symmetric, random_vector

SPARE = 0.1  # the value after the last one asked for must hold to this share of that one: else one may be missed
CLOSE = 0.1  # residuals must fall to this times the root of the tolerance: a gap may hide a value not seen yet
DENSE_TESTS = 100  # up to so many products convergence is tested after each, then after every tenth
SAVE_EVERY, SAVE_SECONDS = 8, 15.0


class Store(Protocol):
    """Where a killed run finds what it had: the part of a Tick that keeps arrays."""

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays."""

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return what was kept."""


@dataclass(frozen=True)
class Wanted:
    """How many eigenvalues at each end, how exactly (relative to each), and at what cost at most."""

    top: int
    bottom: int
    tolerance: float
    max_products: int


@dataclass(frozen=True)
class Pair:
    """One eigenvalue with the bound of its error and the norm of its residual."""

    value: float
    bound: float
    residual: float


def converged(ritz: Ritz, tolerance: float, rounding: float) -> NDArray[np.bool_]:
    """Tell which values hold to the relative tolerance and stand above rounding."""
    size = np.abs(ritz.values)
    near = ritz.residuals <= CLOSE * np.sqrt(tolerance) * size
    good: NDArray[np.bool_] = (ritz.bounds <= tolerance * size) & near & (size > rounding * ritz.scale)
    return good


def zero(ritz: Ritz, rounding: float) -> NDArray[np.bool_]:
    """Tell which values are zero within rounding."""
    return np.abs(ritz.values) + ritz.bounds <= rounding * ritz.scale


def settled(ritz: Ritz, wanted: Wanted, rounding: float) -> bool:
    """Have all the wanted ones converged (or are zero), and the next ones roughly?"""
    count = len(ritz.values)
    if count < wanted.top + wanted.bottom:
        return False
    good = converged(ritz, wanted.tolerance, rounding) | zero(ritz, rounding)
    ends = ((np.arange(count)[::-1], wanted.top), (np.arange(count), wanted.bottom))
    return all(_settled(ritz, good, order, asked) for order, asked in ends if asked)


def _settled(ritz: Ritz, good: NDArray[np.bool_], order: NDArray[np.intp], asked: int) -> bool:
    if not good[order[:asked]].all():
        return False
    last, spare = order[asked - 1], order[min(asked, len(order) - 1)]
    sizes = np.abs(ritz.values[[last, spare]])
    return bool(ritz.bounds[spare] <= SPARE * sizes.max())


def extremes(
    operator: Symmetric,
    wanted: Wanted,
    seed: int,
    *,
    store: Store | None = None,
    deflated: Basis | None = None,
) -> Lanczos:
    """Run Lanczos until the wanted eigenvalues have converged, the products are spent, or nothing is left.

    With a store the run goes on from what an earlier attempt kept there. Random vectors are drawn from (seed, index).
    """
    fresh = lambda index: random_vector(operator.size, seed, index)
    lanczos = Lanczos(operator, operator.basis(), fresh, deflated)
    keeper = Keeper(store) if store is not None else None
    if keeper is not None:
        keeper.restore(lanczos)
    rounding = ROUNDING[operator.dtype]
    while not lanczos.exhausted and lanczos.count < wanted.max_products:
        due = 0 < lanczos.count <= DENSE_TESTS or lanczos.count % 10 == 0
        if due and lanczos.count and settled(lanczos.ritz(), wanted, rounding):
            break
        lanczos.step()
        if keeper is not None:
            keeper.keep(lanczos)
    if keeper is not None:
        keeper.keep(lanczos, now=True)
    return lanczos


class Keeper:
    """Keep a Lanczos run in a store, each basis vector once."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._starts: list[int] = []
        self._vectors, self._products, self._when = 0, 0, clock()

    def restore(self, lanczos: Lanczos) -> None:
        """Bring a fresh run to where it was kept, if it was."""
        head = self._store.load("lanczos")
        if head is None:
            return
        blocks = [self._store.load(f"lanczos_{start}") for start in head["starts"].tolist()]
        rows = [block["rows"] for block in blocks if block is not None]
        if len(rows) < len(blocks) or sum(map(len, rows)) < int(head["vectors"]):
            return
        vectors = np.concatenate(rows)[: int(head["vectors"])]
        lanczos.restore(vectors, head["alpha"], head["beta"], int(head["drawn"]))
        self._starts, self._vectors, self._products = head["starts"].tolist(), len(vectors), lanczos.count

    def keep(self, lanczos: Lanczos, *, now: bool = False) -> None:
        """Keep what is new, from time to time or now."""
        new = lanczos.count - self._products
        if not new or not (now or new >= SAVE_EVERY or self._clock() - self._when > SAVE_SECONDS):
            return
        basis = lanczos.basis
        if basis.count > self._vectors:
            rows = np.stack([basis[i].cpu().numpy() for i in range(self._vectors, basis.count)])
            self._store.save(f"lanczos_{self._vectors}", {"rows": rows})
            self._starts.append(self._vectors)
        self._vectors, self._products, self._when = basis.count, lanczos.count, self._clock()
        numbers = {"alpha": lanczos.alpha, "beta": lanczos.beta, "starts": self._starts}
        numbers |= {"vectors": basis.count, "drawn": lanczos.drawn}
        self._store.save("lanczos", {name: np.asarray(value) for name, value in numbers.items()})


def pairs(ritz: Ritz, which: NDArray[np.intp], rounding: float) -> list[Pair]:
    """Return the chosen eigenvalues; the bounds include what rounding may do."""
    floor = 0.1 * rounding * ritz.scale
    return [Pair(float(ritz.values[i]), float(ritz.bounds[i] + floor), float(ritz.residuals[i] + floor)) for i in which]
