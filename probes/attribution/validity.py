"""Is this map what it says it is? Tests that catch the silent failures of attribution methods on real models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from probes.attribution.errors import AttributionError

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.maps import Map

Verdict = Literal["ok", "doubtful", "invalid"]
Reason = tuple[Verdict, str]
Numbers = NDArray[np.floating[Any]]
SAME = 1e-5  # maps closer than this, relative to the largest value, are one map
DOUBTFUL, INVALID = 1e-2, 0.1  # completeness errors, where no tolerance was asked for
JUMP = 0.1  # share of the score's range that it may change by at the first thousandth of the path
ITSELF = {"gradient", "saliency", "input_x_gradient"}
_NEAR = (1e-6, 1e-4, 1e-3)


@dataclass(frozen=True)
class Badge:
    """A verdict on a map, and why, in words; "ok" has no reasons."""

    verdict: Verdict
    reasons: tuple[str, ...]


def badge_of(case: Case, map: Map, gradient_map: Map | None = None) -> Badge:
    """Judge a map by its numbers, its shape, its completeness, by what it equals and by its reference.

    gradient_map: the plain gradient, where the caller has it; else it is computed, once for each case.
    """
    reasons = [*_numbers(map), *_layout(case, map), *_completeness(map)]
    reasons += [*_no_op(case, map, gradient_map), *_singular(case, map)]
    found = {verdict for verdict, _ in reasons}
    worst: Verdict = "invalid" if "invalid" in found else "doubtful" if "doubtful" in found else "ok"
    return Badge(worst, tuple(words for _, words in reasons))


def is_singular(case: Case, reference: torch.Tensor) -> bool:
    """Tell whether the score jumps right beside a reference (1, ...): F(x0 + eps (x - x0)) against F(x0)."""
    steps = torch.tensor([0.0, *_NEAR, *(at / 16 for at in range(1, 17))]).to(case.features)
    shape = (-1, *[1] * (case.features.ndim - 1))
    scores = case.in_chunks(reference + steps.view(shape) * (case.features - reference)).double()
    away = (scores - scores[0]).abs()
    jump = float(away[1 : 1 + len(_NEAR)].max())
    return jump > JUMP * float(away.max()) and jump > 1e-5 * float(scores.abs().max())


def _numbers(map: Map) -> Iterator[Reason]:
    if not np.isfinite(map.values).all():
        yield "invalid", "The map has values that are not finite."
    elif np.abs(map.values).max(initial=0.0) <= 1e-12 * max(abs(map.score), 1e-12):
        yield "invalid", "The map is zero everywhere: the method sees no path from these features to the score."


def _layout(case: Case, map: Map) -> Iterator[Reason]:
    shape = map.values.shape
    if case.kind == "image":
        fits = shape[-2:] == case.shape[-2:] and shape[:-2] in ((), (1,), case.shape[:1])
    else:
        fits = shape == case.shape
    if not fits:
        yield "invalid", f"The map has shape {shape}, but the features that it should show have shape {case.shape}."


def _completeness(map: Map) -> Iterator[Reason]:
    error = map.completeness_error
    asked = float(map.about.get("tolerance", DOUBTFUL)) if map.stderr is None else DOUBTFUL
    if error is None or error <= asked:
        return
    words = f"The attributions should add up to the difference of the scores, but miss it by {error:.2g} of it"
    if map.stderr is not None:
        yield "doubtful", f"{words}; more samples bring it down."
    else:
        yield "invalid" if error > max(INVALID, asked) else "doubtful", f"{words}."


def _no_op(case: Case, map: Map, gradient_map: Map | None) -> Iterator[Reason]:
    """Find maps that equal the gradient, or input times gradient, though the method says that it is something else."""
    complete = map.completeness_error is not None and map.completeness_error <= DOUBTFUL
    if map.method in ITSELF or complete:
        return
    try:
        known = _plain_maps(case)
        known |= {} if gradient_map is None else {"the plain gradient": gradient_map.values}
        twin = next((name for name, values in known.items() if _same(map.values, values)), None)
        if twin is None or _is_linear(case):
            return
    except AttributionError:  # nothing to differentiate, so nothing to compare with
        return
    verdict: Verdict = "invalid" if map.stderr is None else "doubtful"
    yield (
        verdict,
        f"The map equals {twin} to {SAME:g}: the method changed nothing, as where activations are no modules that it "
        "knows.",
    )


def _plain_maps(case: Case) -> dict[str, Numbers]:
    gradient, x = case.plain()[1][0], case.features[0]
    slopes: dict[str, torch.Tensor] = {"the plain gradient": gradient, "input × gradient": gradient * x}
    if not case.embedding:
        return {name: each.cpu().numpy() for name, each in slopes.items()}
    found = {f"{name} (summed)": each.sum(-1).cpu().numpy() for name, each in slopes.items()}
    return {**found, "the plain gradient (L2)": gradient.norm(dim=-1).cpu().numpy()}


def _same(values: Numbers, other: Numbers) -> bool:
    if values.shape != other.shape:
        return False
    size = np.abs(other).max(initial=0.0)
    return bool(
        size > 0 and min(np.abs(values - other).max(), np.abs(np.abs(values) - np.abs(other)).max()) <= SAME * size
    )


def _is_linear(case: Case) -> bool:
    """Tell whether the gradient is the same all over: then many methods must equal it."""
    here = case.plain()[1]
    others = case.at(torch.cat([torch.zeros_like(case.features), -case.features, 3 * case.features]))[1]
    return bool(((others - here).abs().amax() <= SAME * here.abs().amax()).item())


def _singular(case: Case, map: Map) -> Iterator[Reason]:
    names = str(map.about.get("baseline", ""))
    if not names or map.baseline_score is None:
        return
    from probes.attribution.baselines import NAMES, baselines

    for name in (each.strip() for each in names.split("+")):
        if name not in NAMES:
            continue
        seed = int(map.about.get("seed", 0))
        reference = baselines(case, name, seed=seed)[:1]
        if case.once(("singular", name, seed), lambda reference=reference: is_singular(case, reference)):  # type: ignore[misc]
            yield (
                "doubtful",
                f"The score jumps right beside the baseline {name} (as RMS norms do at zero), so differences from it "
                "depend on the last step; choose the baseline mean embedding.",
            )
