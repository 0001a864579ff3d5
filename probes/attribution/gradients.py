"""Gradients of the score by the features, and their integrals along straight paths from a baseline.

Integrated gradients: Sundararajan, Taly and Yan (2017); the rule is Gauss-Legendre's, whose weights add up to one.
GradientShap (expected gradients): Erion et al. (2021), Lundberg and Lee (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from scipy.special import roots_legendre
from torch import Tensor

from probes.attribution.baselines import baselines, default_baseline, fitting_baselines
from probes.attribution.errors import AttributionError
from probes.attribution.maps import Map, Reduce, completeness_error, make_map
from probes.attribution.methods import Method, Settings, Tick

if TYPE_CHECKING:
    from probes.attribution.case import Case

MOST_STEPS = 1024
REPEATS = 5  # references drawn where "random" or "data" is asked for
Raw = Callable[["Case", Tensor, Settings], Tensor]  # features (B, ...) -> attributions (B, ...), not yet reduced


@dataclass(frozen=True)
class Path:
    """What an integral along straight paths came to, averaged over the references.

    steps: for each reference. evaluations: gradients in all. error: of completeness. variation: how far the score goes
    up and down on its way from a reference to the example.
    """

    values: Tensor
    baseline_score: float
    steps: int
    evaluations: int
    error: float
    variation: float


def gradient(case: Case, features: Tensor, settings: Settings | None = None) -> Tensor:  # noqa: ARG001
    """Return the gradients of the score at features (B, ...); at the example itself computed once."""
    return case.plain()[1] if features is case.features else case.gradients(features)[1]


def saliency(case: Case, features: Tensor, settings: Settings | None = None) -> Tensor:  # noqa: ARG001
    """Return the absolute gradients at features (B, ...) (Simonyan, Vedaldi and Zisserman 2014)."""
    return gradient(case, features).abs()


def input_x_gradient(case: Case, features: Tensor, settings: Settings | None = None) -> Tensor:  # noqa: ARG001
    """Return features times gradients at features (B, ...)."""
    return features * gradient(case, features)


def integrated_raw(case: Case, features: Tensor, settings: Settings) -> Tensor:
    """Return integrated gradients at features (B, ...) with the steps as set, never doubled; for smoothing."""
    references = references_of(case, settings.baseline, settings.seed)
    found = [integrals(case, each[None], references, settings.steps)[0].mean(0, keepdim=True) for each in features]
    return torch.cat(found)


def integrated_gradients(case: Case, references: Tensor, steps: int, tolerance: float, tick: Tick) -> Path:
    """Average the integrals from several references (R, ...), doubling the steps until they add up.

    tolerance: of |sum - difference| / |difference|; the last rule has 1024 steps at most. Raises AttributionError for
    fewer steps than 1.
    """
    if steps < 1:
        raise AttributionError(f"Integrated gradients were asked for with {steps} steps; give 1 or more.")
    baseline_score = float(case.in_chunks(references).double().mean())
    spent = 0
    while True:
        found, variation = integrals(case, case.features, references, steps)
        values = found.mean(0, keepdim=True)
        spent += steps * len(references)
        error = completeness_error(float(values.sum()), case.score, baseline_score)
        if error <= tolerance or steps >= MOST_STEPS:
            return Path(values, baseline_score, steps, spent, error, variation)
        tick(min(0.9, math.log2(steps) / 10), f"integrated gradients: error {error:.2g} with {steps} steps")
        steps = min(2 * steps, MOST_STEPS)


@lru_cache(maxsize=64)
def nodes_of(steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of Gauss and Legendre's rule on [0, 1]."""
    nodes, weights = roots_legendre(steps)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def references_of(case: Case, names: str, seed: int) -> Tensor:
    """Return the references (R, ...) of one baseline, or of several joined by "+", random ones 5 times."""
    return torch.cat([baselines(case, each.strip(), count=REPEATS, seed=seed) for each in names.split("+")])


def integrals(case: Case, features: Tensor, references: Tensor, steps: int) -> tuple[Tensor, float]:
    """Integrate gradients from each reference (R, ...) to features (1, ...): (R, ...) in float64, and the variation."""
    alphas, weights = nodes_of(steps)
    total, variation = torch.zeros(references.shape, dtype=torch.float64, device=references.device), 0.0
    jobs = torch.cartesian_prod(torch.arange(len(references)), torch.arange(steps))
    for rows, places in (part.unbind(1) for part in jobs.split(case.chunk())):
        away = features - references[rows]
        points = references[rows] + _along(alphas[places], features) * away
        shares = case.gradients(points)[1].double() * away * _along(weights[places], total)
        variation += float(shares.flatten(1).sum(1).abs().sum())
        total.index_add_(0, rows.to(total.device), shares)
    return total, variation / len(references)


def _along(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.to(like).view(-1, *[1] * (like.ndim - 1))


def shap_draws(case: Case, settings: Settings, count: int) -> tuple[Tensor, Tensor]:
    """Return the references (n, ...) and the places on the path (n,) of GradientShap; one place in each n-th part."""
    asked = settings.baseline
    if asked == "auto":
        asked = "data" if "data" in fitting_baselines(case) and len(case.objective.inputs) > 1 else "auto"
    found = baselines(case, asked, count=count, seed=settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    part = torch.randperm(count, generator=generator)
    places = (part + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    return found[torch.arange(count) % len(found)], places


def shap_samples(case: Case, features: Tensor, references: Tensor, places: Tensor) -> Iterator[Tensor]:
    """Yield the terms whose mean is GradientShap, chunk by chunk."""
    for some, here in zip(references.split(case.chunk()), places.split(case.chunk()), strict=True):
        away = features - some
        yield case.gradients(some + _along(here, features) * away)[1] * away


def _plain(name: str, case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  neither is needed
    raw, reduce, signed = PLAIN[name]
    values = raw(case, case.features, Settings())
    about = {"evaluations": 1}
    return make_map(case, name, values, signed=signed and (reduce == "sum" or not case.embedding), reduce=reduce,
                    about=about)  # fmt: skip


def _run_integrated(case: Case, settings: Settings, tick: Tick) -> Map:
    references = references_of(case, settings.baseline, settings.seed)
    path = integrated_gradients(case, references, settings.steps, settings.tolerance, tick)
    about = {**_told(case, settings), "steps": path.steps, "evaluations": path.evaluations, "rule": "Gauss-Legendre",
             "tolerance": settings.tolerance, "references": len(references), "variation": path.variation}  # fmt: skip
    return make_map(case, "integrated_gradients", path.values, complete=True, baseline_score=path.baseline_score,
                    about=about, notes=_notes(case, path, settings.tolerance))  # fmt: skip


def _notes(case: Case, path: Path, tolerance: float) -> tuple[str, ...]:
    if path.error <= tolerance:
        return ()
    return (
        f"With {path.steps} steps the sum still misses the difference of the scores, "
        f"{case.score - path.baseline_score:.4g}, by {path.error:.2g} of it (asked: {tolerance:.2g}); on its way the "
        f"score goes up and down by {path.variation:.4g}.",
    )


def _run_shap(case: Case, settings: Settings, tick: Tick) -> Map:
    if settings.samples < 2:
        raise AttributionError(f"GradientShap was asked for with {settings.samples} samples; give 2 or more.")
    references, places = shap_draws(case, settings, settings.samples)
    terms = []
    for each in shap_samples(case, case.features, references, places):
        terms.append(each.double())
        tick(sum(map(len, terms)) / settings.samples, "GradientShap")
    drawn = torch.cat(terms)
    shown = drawn.sum(-1) if case.embedding else drawn
    about = {**_told(case, settings), "samples": settings.samples, "evaluations": settings.samples}
    if settings.baseline == "auto" and len(case.objective.inputs) > 1:
        about["baseline"] = "data"
    return make_map(
        case, "gradient_shap", drawn.mean(0, keepdim=True), complete=True, about=about,
        baseline_score=float(case.in_chunks(references).double().mean()),
        stderr=shown.std(0) / math.sqrt(len(drawn)),
    )  # fmt: skip


def _told(case: Case, settings: Settings) -> dict[str, Any]:
    name = default_baseline(case) if settings.baseline == "auto" else settings.baseline
    return {"baseline": name, "seed": settings.seed}


PLAIN: Mapping[str, tuple[Raw, Reduce, bool]] = {
    "gradient": (gradient, "l2", True),
    "saliency": (saliency, "l2", False),
    "input_x_gradient": (input_x_gradient, "sum", True),
}
RAW: Mapping[str, tuple[Raw, Reduce, bool]] = {**PLAIN, "integrated_gradients": (integrated_raw, "sum", True)}

METHODS = (
    Method("gradient", "Gradient", "gradient", partial(_plain, "gradient")),
    Method("saliency", "Saliency (absolute gradient)", "gradient", partial(_plain, "saliency"), signed=False),
    Method("input_x_gradient", "Input × gradient", "gradient", partial(_plain, "input_x_gradient")),
    Method("integrated_gradients", "Integrated gradients", "gradient", _run_integrated, complete=True),
    Method("gradient_shap", "GradientShap (expected gradients)", "gradient", _run_shap, complete=True, sampled=True),
)
