"""Gradients of the score by the features, and their integrals along straight paths from a baseline.

Integrated gradients: Sundararajan, Taly and Yan (2017); the rule is Gauss-Legendre's, whose weights add up to one.
GradientShap (expected gradients): Erion et al. (2021), Lundberg and Lee (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.attribution.baselines import baselines, default_baseline, fitting_baselines
from probes.attribution.errors import AttributionError
from probes.attribution.integration import LOOSE, MOST_STEPS, Integral, along, refined, whole
from probes.attribution.maps import Map, Reduce, completeness_error, make_map
from probes.attribution.methods import Method, Settings, Tick

if TYPE_CHECKING:
    from probes.attribution.case import Case

REPEATS = 5  # references drawn where "random" or "data" is asked for
Raw = Callable[["Case", Tensor, Settings], Tensor]  # features (B, ...) -> attributions (B, ...), not yet reduced


@dataclass(frozen=True)
class Path:
    """What an integral along straight paths came to, averaged over the references.

    steps: nodes on a path, the most of any. evaluations: gradients in all. error: of completeness. variation: how far
    the score goes up and down on its way from a reference to the example. local_error: the sizes of the errors of all
    pieces of a path as a share of the difference, where paths were cut.
    """

    values: Tensor
    baseline_score: float
    steps: int
    evaluations: int
    error: float
    variation: float
    local_error: float | None


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
    """Return integrated gradients at features (B, ...) by one rule with the steps as set; for smoothing."""
    references = references_of(case, settings.baseline, settings.seed)
    found = [[whole(case, each, start, settings.steps).values for start in references.split(1)]
             for each in features.split(1)]  # fmt: skip
    return torch.cat([torch.cat(each).mean(0, keepdim=True) for each in found])


def integrated_gradients(case: Case, references: Tensor, steps: int, tolerance: float, tick: Tick) -> Path:
    """Average the integrals from several references (R, ...), refining them until they add up.

    First one rule of so many steps; where the sum misses the difference of the scores by more than the tolerance (a
    share of it), pieces of each path are halved, with 1024 gradients a reference at most. Raises AttributionError for
    fewer steps than 1.
    """
    if steps < 1:
        raise AttributionError(f"Integrated gradients were asked for with {steps} steps; give 1 or more.")
    first = [whole(case, case.features, each, steps) for each in references.split(1)]
    baseline_score = sum(case.score_at(each) for each in references.split(1)) / len(references)
    path = _joined(case, first, baseline_score, 0)
    if path.error <= tolerance or steps >= MOST_STEPS:
        return path
    allowed = tolerance * abs(case.score - baseline_score)
    better: list[Integral] = []
    for each in references.split(1):
        tick(len(better) / len(references), f"integrated gradients: error {path.error:.2g} with {steps} steps")
        better.append(refined(case, each, steps, allowed))
    return _joined(case, better, baseline_score, path.evaluations)


def _joined(case: Case, found: list[Integral], baseline_score: float, spent: int) -> Path:
    values = torch.cat([each.values for each in found]).mean(0, keepdim=True)
    error = completeness_error(float(values.sum()), case.score, baseline_score)
    variation = sum(each.variation for each in found) / len(found)
    spent += sum(each.evaluations for each in found)
    local = sum(each.local_error for each in found) / len(found)
    share = None if math.isnan(local) else local / max(abs(case.score - baseline_score), 1e-300)
    return Path(values, baseline_score, max(each.steps for each in found), spent, error, variation, share)


def references_of(case: Case, names: str, seed: int) -> Tensor:
    """Return the references (R, ...) of one baseline, or of several joined by "+", random ones 5 times."""
    return torch.cat([baselines(case, each.strip(), count=REPEATS, seed=seed) for each in names.split("+")])


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
        yield case.gradients(some + along(here, features) * away)[1] * away


def _plain(name: str, case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  neither is needed
    raw, reduce, signed = PLAIN[name]
    values = raw(case, case.features, Settings())
    about = {"evaluations": 1}
    return make_map(case, name, values, signed=signed and (reduce == "sum" or not case.embedding), reduce=reduce,
                    about=about)  # fmt: skip


def _run_integrated(case: Case, settings: Settings, tick: Tick) -> Map:
    references = references_of(case, settings.baseline, settings.seed)
    path = integrated_gradients(case, references, settings.steps, settings.tolerance, tick)
    about = {
        **_told(case, settings),
        **{name: getattr(path, name) for name in ("steps", "evaluations", "variation", "local_error")},
        "rule": "Gauss-Legendre",
        "tolerance": settings.tolerance,
        "references": len(references),
    }
    return make_map(case, "integrated_gradients", path.values, complete=True, baseline_score=path.baseline_score,
                    about=about, notes=_notes(case, path, settings.tolerance))  # fmt: skip


def _notes(case: Case, path: Path, tolerance: float) -> tuple[str, ...]:
    said = []
    if path.error > tolerance:
        said.append(
            f"With {path.evaluations} gradients the sum still misses the difference of the scores, "
            f"{case.score - path.baseline_score:.4g}, by {path.error:.2g} of it (asked: {tolerance:.2g}); on its way "
            f"the score goes up and down by {path.variation:.4g}."
        )
    if path.local_error is not None and path.local_error > max(3 * LOOSE * tolerance, path.error):
        said.append(
            f"The errors along the path cancel in the sum: their sizes add up to {path.local_error:.2g} of the "
            "difference, so single values are less sure than the completeness error says."
        )
    return tuple(said)


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
