"""Averages, squares and variances of another method's attributions over noisy copies of the example.

SmoothGrad: Smilkov et al. (2017); its squares: Hooker et al. (2019); VarGrad: Adebayo et al. (2018). The noise is
Gaussian with a standard deviation of `noise` times the range of the example (of each column of a table's data).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probes.attribution.errors import AttributionError
from probes.attribution.gradients import RAW
from probes.attribution.maps import Map, make_map
from probes.attribution.methods import Method, Settings, Tick, methods

if TYPE_CHECKING:
    from probes.attribution.case import Case

INNER = "gradient"
FEWEST = 10  # samples before a standard error is believed
TOGETHER = 32  # samples between two looks at the standard error
_SEEN = 512

Moments = tuple[Tensor, Tensor]  # a statistic and its standard error


@dataclass(frozen=True)
class Inner:
    """The method that is smoothed. run: features (B, ...) -> one attribution a row; reduce: how tokens are shown."""

    name: str
    run: Callable[[Tensor], Tensor]
    l2: bool
    signed: bool


def noise_of(case: Case, settings: Settings, number: int) -> Tensor:
    """Return the noise of one sample, (1, ...): the same whatever is drawn beside it."""
    return _scaled(_drawn(case, settings.seed, number), sigma_of(case, settings), case)


def _scaled(drawn: Tensor, sigma: Tensor, case: Case) -> Tensor:
    return (drawn.to(sigma) * sigma).to(case.features)


def _drawn(case: Case, seed: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed << 20) + number)
    return torch.randn(case.features.shape, generator=generator)


def sigma_of(case: Case, settings: Settings) -> Tensor:
    """Return the standard deviation of the noise: of images and token vectors one number, of tables one a column."""
    if case.kind == "table":
        seen = case.objective.inputs[:_SEEN].to(case.features)
        return settings.noise * (seen.amax(0, keepdim=True) - seen.amin(0, keepdim=True)).double()
    return settings.noise * (case.features.max() - case.features.min()).double()


def inner_of(case: Case, settings: Settings) -> Inner:
    """Return the method that is smoothed; raise AttributionError where it is unknown or cannot run here."""
    name = settings.over or INNER
    if name in RAW:
        _, reduce, signed = RAW[name]
        return Inner(name, partial(_raw, case, settings, name), case.embedding != "" and reduce == "l2", signed)
    known = methods()
    if name not in known or name in STATISTICS:
        fitting = ", ".join(each for each in known if each not in STATISTICS)
        raise AttributionError(f"There is no method {name!r} to smooth; choose one of {fitting}.")
    reason = known[name].refuse(case)
    if reason:
        raise AttributionError(reason)
    return Inner(name, partial(_one_by_one, case, settings, known[name]), False, known[name].signed)


def _raw(case: Case, settings: Settings, name: str, features: Tensor) -> Tensor:
    raw, reduce, _ = RAW[name]
    found = raw(case, features, settings)
    return found.sum(-1) if case.embedding and reduce == "sum" else found


def _one_by_one(case: Case, settings: Settings, method: Method, features: Tensor) -> Tensor:
    """Run a method on each noisy copy as on an example of its own."""
    found = []
    for each in features.split(1):
        copy = replace(case, features=each, raw=case.raw if case.embedding else each, _kept={})
        found.append(torch.from_numpy(method.run(copy, replace(settings, over=""), lambda *_: None).values)[None])
    return torch.cat(found)


def mean(sums: Tensor, count: int) -> Moments:
    """Return the mean; sums: of the powers 1 to 4."""
    first = sums[0] / count
    return first, (_variance(sums, count) / max(count - 1, 1)).sqrt()


def mean_square(sums: Tensor, count: int) -> Moments:
    """Return the mean of the squares."""
    second = sums[1] / count
    return second, ((sums[3] / count - second**2).clamp(min=0) / max(count - 1, 1)).sqrt()


def variance(sums: Tensor, count: int) -> Moments:
    """Return the variance, divided by the count."""
    first, second, third, fourth = (each / count for each in sums)
    found = _variance(sums, count)
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return found, ((central - found**2).clamp(min=0) / max(count - 1, 1)).sqrt()


def _variance(sums: Tensor, count: int) -> Tensor:
    return (sums[1] / count - (sums[0] / count) ** 2).clamp(min=0)


def _shown(statistic: str, inner: Inner, moments: Moments) -> Moments:
    """Reduce token vectors: a mean to its length, squares to their sum; errors by the triangle inequality."""
    values, errors = moments
    if not inner.l2:
        return values, errors
    if statistic == "smoothgrad":
        return values.norm(dim=-1), errors.norm(dim=-1)
    return values.sum(-1), errors.sum(-1)


def _run(statistic: str, case: Case, settings: Settings, tick: Tick) -> Map:
    if settings.samples < 2:
        raise AttributionError(f"{TITLES[statistic]} was asked for with {settings.samples} samples; give 2 or more.")
    inner = inner_of(case, settings)
    sums, count, key = _resumed(statistic, case, settings, inner, tick)
    values = errors = torch.zeros(())
    sigma = sigma_of(case, settings)
    while True:
        if count:
            values, errors = _shown(statistic, inner, STATISTICS[statistic](sums, count))
            relative = float(errors.norm() / values.norm()) if bool(values.any()) else math.inf
            tick(count / settings.samples, f"{TITLES[statistic]}: {count} of {settings.samples} samples, "
                                           f"relative standard error {relative:.2g}")  # fmt: skip
            if count >= settings.samples or (count >= FEWEST and relative <= settings.tolerance):
                break
        step = min(case.chunk(), settings.samples - count, TOGETHER)
        drawn = torch.cat([_drawn(case, settings.seed, count + each) for each in range(step)])
        found = inner.run(case.features + _scaled(drawn, sigma, case)).double()
        square = found.square()
        powers = (found, square, found * square, square.square())
        sums, count = sums + torch.stack([each.sum(0) for each in powers]), count + step
        _keep(tick, key, sums, count)
    about = {
        "over": inner.name,
        "samples": count,
        "noise": settings.noise,
        "seed": settings.seed,
        "sigma": float(sigma.mean()),
        "relative_stderr": relative if math.isfinite(relative) else None,
    }
    signed = inner.signed and statistic == "smoothgrad" and not inner.l2
    return make_map(case, statistic, values, signed=signed, stderr=errors, reduce="none", about=about)


def _resumed(statistic: str, case: Case, settings: Settings, inner: Inner, tick: Tick) -> tuple[Tensor, int, str]:
    """Return sums, count and key; the powers' sums serve all three statistics, but tolerances may end them apart."""
    said = (inner.name, case.row, case.target, settings, case.score)
    key = f"smoothing-{statistic}-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}"
    kept: Mapping[str, Any] | None = tick.load(key) if hasattr(tick, "load") else None
    if kept is None:
        return torch.zeros((), dtype=torch.float64, device=case.features.device), 0, key
    return torch.from_numpy(np.asarray(kept["sums"])).to(case.features.device), int(kept["count"][0]), key


def _keep(tick: Tick, key: str, sums: Tensor, count: int) -> None:
    if hasattr(tick, "save"):
        tick.save(key, {"sums": sums.cpu().numpy(), "count": np.array([count])})


STATISTICS: Mapping[str, Callable[[Tensor, int], Moments]] = {
    "smoothgrad": mean,
    "smoothgrad_squared": mean_square,
    "vargrad": variance,
}
TITLES = {"smoothgrad": "SmoothGrad", "smoothgrad_squared": "SmoothGrad squared", "vargrad": "VarGrad"}
METHODS = tuple(
    Method(name, title, "gradient", partial(_run, name), signed=name == "smoothgrad", sampled=True)
    for name, title in TITLES.items()
)
