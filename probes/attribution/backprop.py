"""Backward passes with rules of their own at non-linearities: DeepLIFT, guided backpropagation, deconvolution.

DeepLIFT: Shrikumar, Greenside and Kundaje (2017), the rescale rule. DeepLiftShap: Lundberg and Lee (2017), its mean
over references. Guided backpropagation: Springenberg et al. (2015). Deconvolution: Zeiler and Fergus (2014). The rules
are set on the graph of the backward pass, so they hold for functional, in-place and reused activations alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.attribution.backprop_graph import differentiated, labels, operations, operations_of, spoken
from probes.attribution.backprop_rescale import INSTEAD, multipliers
from probes.attribution.baselines import baselines, default_baseline, fitting_baselines
from probes.attribution.errors import AttributionError
from probes.attribution.gradients import references_of
from probes.attribution.maps import Map, make_map
from probes.attribution.methods import Method, Settings, Tick

if TYPE_CHECKING:
    from probes.attribution.case import Case

Rule = Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]
HOLDS = 1e-3  # of the sizes of all attributions: a larger miss means that a rule does not hold
LIKE_THE_IMAGE = (
    "Guided backpropagation and deconvolution can redraw the input's edges whatever the weights are (Nie et al. 2018; "
    "Adebayo et al. 2018): look at the sanity check before reading anything into this map."
)
_GRADIENT_IS_RIGHT = {"Max", "Amax", "LogSoftmax"}  # maxima, and what only shifts the scores


def deep_lift(case: Case, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return DeepLIFT attributions of the case's features against each reference (R, ...), and the scores there (R,).

    Each adds up to the score less the reference's. Raises AttributionError where the rule is not defined, or where the
    sum shows that it did not hold.
    """
    parts = references.split(max(case.chunk() // 4, 1))  # inputs and outputs of every function are kept, twice
    pairs = [multipliers(case.scores, case.features, each) for each in parts]
    found, both = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs], 1)
    scores = both[0]
    case.know(case.features, both[1, 0])
    values = found * (case.features - references)
    missed = values.flatten(1).double().sum(1) - (case.score - scores.double())
    sizes = values.flatten(1).double().abs().sum(1)
    if bool((missed.abs() > HOLDS * sizes.clamp(min=1e-6 * abs(case.score))).any()):
        raise AttributionError(
            f"DeepLIFT's attributions miss the difference of the scores by {float(missed.abs().max()):.2g}: the model "
            f"computes a non-linearity in a way that looks linear to autograd (as x * (x > 0)). {INSTEAD}"
        )
    return values, scores


def guided(case: Case, rule: Rule) -> Tensor:
    """Return the gradient (1, ...) with a rule (gradients below, gradients above) -> below at every rectifier."""
    features, score = differentiated(case)
    for each in operations(score):
        if each.rectifies:
            each.node.register_hook(rule)
    (found,) = torch.autograd.grad(score.sum(), features)
    return found


def keep_positive(below: tuple[Any, ...], above: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001  a rule's form
    """Pass what is positive of the gradient that a rectifier passes: guided backpropagation."""
    return tuple(None if each is None else each.clamp(min=0) for each in below)


def rectify(below: tuple[Any, ...], above: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pass what is positive of the gradient that arrives, wherever the rectifier was at zero: deconvolution."""
    return (above[0].clamp(min=0), *below[1:])


def _run_deep_lift(case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  one pass
    references = references_of(case, settings.baseline, settings.seed)
    name = default_baseline(case) if settings.baseline == "auto" else settings.baseline
    return _averaged(case, "deep_lift", references, {"baseline": name, "seed": settings.seed})


def _run_shap(case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001  one pass
    if settings.samples < 1:
        raise AttributionError(f"DeepLiftShap was asked for with {settings.samples} references; give 1 or more.")
    name = settings.baseline
    if name == "auto":
        known = "data" in fitting_baselines(case) and len(case.objective.inputs) > 1
        name = "data" if known else default_baseline(case)
    references = torch.cat([baselines(case, each.strip(), count=settings.samples, seed=settings.seed)
                            for each in name.split("+")])  # fmt: skip
    return _averaged(case, "deep_lift_shap", references, {"baseline": name, "seed": settings.seed}, sampled=True)


def _averaged(case: Case, method: str, references: Tensor, about: dict[str, Any], *, sampled: bool = False) -> Map:
    found, scores = deep_lift(case, references)
    values = found.double()
    shown = values.sum(-1) if case.embedding else values
    many = sampled and len(references) > 1
    return make_map(
        case, method, values.mean(0, keepdim=True), complete=True,
        baseline_score=float(scores.double().mean()),
        stderr=shown.std(0) / math.sqrt(len(shown)) if many else None,
        about={**about, "rule": "rescale", "references": len(references), "evaluations": 2 * len(references)},
    )  # fmt: skip


def _run_guided(name: str, rule: Rule, case: Case, settings: Settings, tick: Tick) -> Map:  # noqa: ARG001
    signed = not case.embedding
    about = {"evaluations": 1, "rectifiers": sum(each.rectifies for each in operations_of(case))}
    return make_map(case, name, guided(case, rule), signed=signed, reduce="l2", about=about, notes=(LIKE_THE_IMAGE,))


def _no_rescale(case: Case) -> str | None:
    """Refuse where activations meet activations: the rescale rule is for functions of one number."""
    try:
        found = labels(operations_of(case), "other")
    except AttributionError as error:
        return str(error)
    if not found:
        return None
    return (
        "DeepLIFT's rescale rule is for functions of one number, max pools and linear layers, but this model has "
        f"{spoken(found)}; there its attributions would not add up. {INSTEAD}"
    )


def _no_rectifiers(title: str, case: Case) -> str | None:
    """Refuse where nothing is rectified (the map would be the gradient) and where something else bends the score."""
    try:
        found = operations_of(case)
    except AttributionError as error:
        return str(error)
    others = tuple(each for each in found if not each.rectifies and each.kind not in _GRADIENT_IS_RIGHT)
    bends = labels(others, "pointwise", "other")
    if bends:
        return (
            f"{title} has a rule for rectifiers (ReLU) between linear layers and max pools only, but this model has "
            f"{spoken(bends)}, where it would be the plain gradient. Choose integrated gradients or SmoothGrad instead."
        )
    if not any(each.rectifies for each in found):
        return f"This model has no ReLU, so {title} would be the plain gradient: choose gradient instead."
    return None


_GUIDED, _DECONVOLUTION = "Guided backpropagation", "Deconvolution"
METHODS = (
    Method("deep_lift", "DeepLIFT", "backprop", _run_deep_lift, complete=True, refuse=_no_rescale),
    Method("deep_lift_shap", "DeepLiftShap", "backprop", _run_shap, complete=True, sampled=True, refuse=_no_rescale),
    Method("guided_backprop", _GUIDED, "backprop", partial(_run_guided, "guided_backprop", keep_positive),
           refuse=partial(_no_rectifiers, _GUIDED)),
    Method("deconvolution", _DECONVOLUTION, "backprop", partial(_run_guided, "deconvolution", rectify),
           refuse=partial(_no_rectifiers, _DECONVOLUTION)),
)  # fmt: skip
