"""Does a map foretell what the score loses when parts are replaced or shaken? Yeh et al. (2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.errors import AttributionError
from probes.attribution.judging.orders import Floats, Numbers, default_baselines, free, plane, reference
from probes.attribution.methods import Settings
from probes.attribution.players import laid_out
from probes.attribution.smoothing import sigma_of

if TYPE_CHECKING:
    from probes.attribution.case import Case

Kind = Literal["replace", "noise"]
SAMPLES = 64
SMALLEST, LARGEST = 1 / 8, 1 / 2  # of the shorter side: the squares that are replaced


@dataclass(frozen=True)
class Estimate:
    """A number that judges a map. stderr: None where the number is a maximum. about: how it was found."""

    value: float
    stderr: float | None
    about: Mapping[str, Any] = field(default_factory=dict)


def infidelity(
    case: Case,
    values: Numbers,
    *,
    kind: Kind = "replace",
    baseline: str = "",
    noise: float = 0.15,
    samples: int = SAMPLES,
    normalize: bool = True,
    seed: int = 0,
) -> Estimate:
    """Return the mean of (attribution . perturbation - what the score loses)^2 over perturbations, as Captum does.

    kind: "replace" puts a square of an image, or some columns or tokens, to a baseline ("" chooses), and the map should
    add up to the loss; "noise" takes Gaussian noise of this share of the range away, for maps that are gradients.
    normalize: the map is first scaled as fits best, since many maps have units of their own; about has the `scale`
    (a negative one turns the map round) and the `unexplained` share of the squared losses, 0 to 1. The standard error
    takes the scale as given. The model is run once for all maps of a case. Raises AttributionError.
    """
    if samples < 2:
        raise AttributionError(f"samples is {samples}; the standard error of the infidelity needs at least 2.")
    if kind == "replace":
        name = baseline or default_baselines(case)[0]
        masks, lost = replacements(case, name, samples, seed)
        foretold = masks @ plane(case, values)
        about: dict[str, Any] = {"perturbation": f"{_words(case)} replaced by {name}", "baseline": name}
    else:
        drawn, lost = shaken(case, noise, samples, seed)
        foretold = drawn.reshape(samples, -1) @ _whole(case, values)
        about = {"perturbation": f"Gaussian noise, {noise:g} of the range", "noise": noise}
    return _judged(foretold, lost, normalize, {**about, "samples": samples, "seed": seed, "normalize": normalize})


def replacements(case: Case, name: str, samples: int, seed: int) -> tuple[NDArray[np.bool_], Floats]:
    """Return which features are replaced, (samples, N), and what the score loses by it, (samples,); once for a case.

    Squares of 1/8 to 1/2 of an image's shorter side, anywhere in it; of columns or tokens a random number of them.
    """

    def run() -> tuple[NDArray[np.bool_], Floats]:
        random = np.random.default_rng(seed)
        masks = np.stack([_square(case, random) if case.kind == "image" else _some(case, random)
                          for _ in range(samples)])  # fmt: skip
        return masks, _lost(case, masks, reference(case, name, seed))

    return case.once(("replacements", name, samples, seed), run)


def shaken(case: Case, noise: float, samples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the noise that is taken away, (samples, ...), and what the score loses by it, (samples,); once a case."""

    def run() -> tuple[Floats, Floats]:
        drawn = np.random.default_rng(seed).standard_normal((samples, *case.features.shape[1:]))
        size = sigma_of(case, Settings(noise=noise)).cpu()
        scaled = (torch.from_numpy(drawn) * size).to(case.features)
        scores = case.in_chunks(case.features - scaled).double().cpu().numpy()
        return scaled.double().cpu().numpy(), case.score - scores

    return case.once(("noise", noise, samples, seed), run)


def _lost(case: Case, masks: NDArray[np.bool_], blank: Tensor) -> Floats:
    shape = case.shape[-2:] if case.kind == "image" else case.shape
    scores = []
    for start in range(0, len(masks), case.chunk()):
        rows = [laid_out(case, each.reshape(shape)) for each in masks[start : start + case.chunk()]]
        gone = torch.from_numpy(np.stack(rows)).to(blank.device)
        scores.append(case.in_chunks(torch.where(gone, blank, case.features)).double().cpu().numpy())
    return case.score - np.concatenate(scores)  # type: ignore[no-any-return]


def _square(case: Case, random: np.random.Generator) -> NDArray[np.bool_]:
    height, width = case.shape[-2:]
    shorter = min(height, width)
    side = int(random.integers(max(1, round(shorter * SMALLEST)), max(1, round(shorter * LARGEST)) + 1))
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask.reshape(-1)


def _some(case: Case, random: np.random.Generator) -> NDArray[np.bool_]:
    features = free(case)
    mask = np.zeros(int(np.prod(case.shape)), dtype=bool)
    mask[random.permutation(features)[: random.integers(1, len(features) + 1)]] = True
    return mask


def _words(case: Case) -> str:
    if case.kind == "image":
        return f"squares of {SMALLEST:g} to {LARGEST:g} of the shorter side"
    return f"random {'tokens' if case.embedding else 'columns'}"


def _whole(case: Case, values: Numbers) -> Floats:
    """Return a map with one value for each number of the features, flat."""
    if case.embedding or values.shape != case.shape:
        raise AttributionError(
            f"The map has shape {values.shape}, one value for several numbers of the example, so it cannot foretell "
            'the effect of noise; choose the perturbation "replace".'
        )
    plane(case, values)  # refuses values that are not finite
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _judged(foretold: Floats, lost: Floats, normalize: bool, about: dict[str, Any]) -> Estimate:
    squares = float(foretold @ foretold)
    scale = 1.0 if not normalize else float(foretold @ lost) / squares if squares else 1.0
    errors = (scale * foretold - lost) ** 2
    size = float((lost**2).mean())
    unexplained = float(errors.mean()) / size if size else None
    stderr = float(errors.std(ddof=1) / np.sqrt(len(errors)))
    return Estimate(float(errors.mean()), stderr, {**about, "scale": scale, "unexplained": unexplained})
