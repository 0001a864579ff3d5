"""How far does a map move when the example moves a little? Max-sensitivity: Yeh et al. (2019)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probes.attribution.errors import AttributionError
from probes.attribution.judging.infidelity import Estimate
from probes.attribution.judging.orders import Numbers
from probes.attribution.methods import Settings, methods
from probes.attribution.smoothing import sigma_of
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.methods import Tick

RADIUS = 0.02
SAMPLES = 10


def sensitivity_max(
    case: Case,
    method: str,
    settings: Settings | None = None,
    *,
    values: Numbers | None = None,
    radius: float = RADIUS,
    absolute: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    tick: Tick = lambda *_: None,
) -> Estimate:
    """Return the largest change of a map, relative to its norm, over examples nearby; at least the true maximum's part.

    Each example nearby has uniform noise of `radius` added: a share of the example's range (of tables, of each
    column's), or `absolute` as Captum has it. The method runs once for each, always with its own seed and at the same
    target. values: the map at the example itself where it is known. about: also the mean over the examples nearby.
    Raises AttributionError where the method cannot run.
    """
    if samples < 1 or radius <= 0:
        raise AttributionError(f"samples is {samples} and radius {radius:g}; give 1 or more, and a positive radius.")
    start = explained(case, method, settings) if values is None else np.asarray(values)
    length = float(np.linalg.norm(start.astype(np.float64))) or 1.0
    changes = []
    for number in range(samples):
        near = moved(case, case.features + nearby(case, radius, number, absolute=absolute, seed=seed))
        said = f"sensitivity of {method}: {number + 1} of {samples}"
        found = explained(near, method, settings, within(tick, number, samples, said))
        changes.append(float(np.linalg.norm(found.astype(np.float64) - start)) / length)
        tick((number + 1) / samples, said)
    about = {"perturbation": f"uniform noise, {radius:g}{'' if absolute else ' of the range'}", "radius": radius,
             "absolute": absolute, "samples": samples, "seed": seed, "mean": float(np.mean(changes))}  # fmt: skip
    return Estimate(max(changes), None, about)


def moved(case: Case, features: Tensor) -> Case:
    """Return the case of other features (1, ...) with the same target; of text only the token vectors change."""
    raw = case.raw if case.embedding else features
    return replace(case, features=features, raw=raw, _kept={"chunk": case.chunk()})


def explained(case: Case, method: str, settings: Settings | None, tick: Tick = lambda *_: None) -> Numbers:
    """Return the values of a method's map, without a badge; raise AttributionError where it cannot run."""
    known = methods()
    if method not in known:
        raise AttributionError(f"There is no method {method!r}; choose one of {', '.join(known)}.")
    reason = known[method].refuse(case)
    if reason:
        raise AttributionError(reason)
    with strict(case.module, order=1):
        return known[method].run(case, settings or Settings(), tick).values


def within(tick: Tick, number: int, count: int, said: str) -> Tick:
    """Return what reports the progress of one run among several, so that each can be cancelled."""
    return lambda share, doing: tick((number + min(share, 1.0)) / count, f"{said} ({doing})")


def nearby(case: Case, radius: float, number: int, *, absolute: bool = False, seed: int = 0) -> Tensor:
    """Return the noise of one example nearby, (1, ...): uniform in plus or minus the radius."""
    drawn = np.random.default_rng([seed, number]).uniform(-1, 1, tuple(case.features.shape))
    reach = radius if absolute else sigma_of(case, Settings(noise=radius)).cpu()
    return (torch.from_numpy(drawn) * reach).to(case.features)
