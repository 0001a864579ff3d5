"""Extremal perturbations: the masks of a given area that keep the score highest, or take it lowest.

Fong, Patrick and Vedaldi, ICCV 2019, from the paper's formulas. Of an image the mask blends it with its own blur; of a
layer inside it keeps some channels and puts zero in the place of the others. Nothing in it is random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.baselines import baselines, blur
from probes.attribution.errors import AttributionError
from probes.attribution.extremal_channels import Layer, layer_of, refuse_channels
from probes.attribution.extremal_masks import BLUR, Canvas, Channels, Smooth, areas_of, blended, pyramid
from probes.attribution.extremal_search import Game, Play, Search, extremal
from probes.attribution.fullgrad_places import psi
from probes.attribution.maps import Map
from probes.attribution.methods import Method

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.methods import Settings, Tick

WIDEST = 8.0  # smoothness: a spot of a quarter of the shorter side
SUFFICIENT = 0.9  # share of what blotting out takes away: an area that keeps so much is enough
Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Masks:
    """Masks by area, and what they do.

    areas: asked; achieved: mean of each mask. masks: (A, H, W) or (A, K). kept, without: scores where only the masks
    show, and where only the rest does. score, blank: of the whole example and of nothing of it. sufficient: the least
    area that keeps 90 % of their difference, or None.
    """

    areas: tuple[float, ...]
    achieved: Array
    masks: Array
    kept: Array
    without: Array
    score: float
    blank: float

    @property
    def sufficient(self) -> float | None:
        """Return the least of the areas that is enough."""
        enough = self.blank + SUFFICIENT * (self.score - self.blank)
        reached = [area for area, kept in zip(self.areas, self.kept, strict=True) if kept >= enough]
        return min(reached) if self.score > self.blank and reached else None


def levels_of(case: Case, baseline: str = "auto", seed: int = 0) -> tuple[Tensor, str]:
    """Return from what an image is blended, (L, C, H, W) from nothing of it to all, and in words how.

    "auto" and "blur" blur by 20/224 of the shorter side, doubled while that leaves more than half of the score, up to
    half the side; another baseline is faded to.
    """
    if baseline not in ("auto", "blur"):
        return torch.cat([baselines(case, baseline, seed=seed)[:1], case.features]), f"fade to {baseline}"
    side = min(case.shape[1:])
    sigma = BLUR * side
    while sigma * 2 <= side / 2 and case.score_at(blur(case.features, sigma)) > 0.5 * abs(case.score):
        sigma *= 2
    return pyramid(case.features, sigma), f"blur of up to {sigma:.3g} pixels"


def image_masks(
    case: Case,
    areas: tuple[float, ...],
    *,
    game: Game = "preserve",
    levels: Tensor | None = None,
    smoothness: float = 3.0,
    tick: Any = lambda *_: None,
    **more: Any,
) -> Masks:
    """Find the extremal masks of an image for each area; more: iterations and flips of `Search`."""
    levels = levels_of(case)[0] if levels is None else levels
    canvas = Smooth(case.shape[1], case.shape[2], smoothness)
    about = (game, areas, smoothness, sorted(more.items()), _content(levels))
    return _found(canvas, partial(_seen, case, levels), areas, game, case, tick, ("image", about), more)


def channel_masks(
    case: Case, layer: Layer, areas: tuple[float, ...], *, tick: Any = lambda *_: None, **more: Any
) -> Masks:
    """Find the extremal masks over the channels of a layer; an area is at least one channel."""
    areas = tuple(max(each, 1 / layer.channels) for each in areas)
    about = (layer.name, areas, sorted(more.items()))
    return _found(
        Channels(layer.channels), partial(layer.play, case), areas, "preserve", case, tick, ("channels", about), more
    )


def _found(
    canvas: Canvas,
    play: Play,
    areas: tuple[float, ...],
    game: Game,
    case: Case,
    tick: Any,
    about: Any,
    more: Mapping[str, Any],
) -> Masks:
    _check(areas, getattr(canvas, "smoothness", 1.0), int(more.get("iterations", 0)))
    all_of_it = torch.ones_like(canvas.shown(torch.ones(1, *canvas.shape).to(case.features)))
    (first, slope), last = play(all_of_it), play(torch.zeros_like(all_of_it))[0]
    score, blank = float(first), float(last)
    gross = float(slope.abs().sum()) if isinstance(canvas, Channels) else 0.0  # channels for and against may cancel
    scale = max(abs(score - blank), gross, 1e-3 * abs(score), 1e-12)
    said = (about, case.target, _content(case.features), _content(*case.objective.theta))
    key = "extremal-" + hashlib.sha256(repr(said).encode()).hexdigest()[:16]
    lattice = extremal(canvas, play, Search(areas, game, scale, key=key, **more), case.features, tick)
    with torch.no_grad():
        masks = canvas.shown(lattice)
    kept, without = (play(each)[0].cpu().numpy().astype(np.float64) for each in (masks, 1 - masks))
    achieved, shown = areas_of(masks).cpu().numpy(), masks.cpu().numpy()
    return Masks(areas, achieved, shown, kept, without, score, blank)


def _seen(case: Case, levels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of what masks (A, H, W) leave, and their gradients by the masks."""
    with torch.enable_grad():
        masks = masks.detach().requires_grad_()
        images = blended(levels, masks)
        scores, slopes = case.gradients(images)
        (found,) = torch.autograd.grad(images, masks, slopes)
    return scores, found


def _run(game: Game, case: Case, settings: Settings, tick: Tick) -> Map:
    levels, words = levels_of(case, settings.baseline, settings.seed)
    asked = {"smoothness": settings.smoothness, "iterations": settings.iterations}
    found = image_masks(case, settings.areas, game=game, levels=levels, tick=tick, **asked)
    about = {**_about(found), **asked, "game": game, "perturbation": words}
    values = found.masks.mean(0)[None]
    name = "extremal" if game == "preserve" else f"extremal_{game}"
    return Map(name, values, False, found.score, found.blank, None, None, about, _notes(found, case, settings))


def _run_channels(case: Case, settings: Settings, tick: Tick) -> Map:
    layer = layer_of(case, settings.layer)
    found = channel_masks(case, layer, settings.areas, tick=tick, iterations=settings.iterations)
    weights = torch.from_numpy(found.masks.mean(0)).to(layer.output)
    height, width = case.shape[1:]
    values = psi(layer.output[0] * weights[:, None, None], (height, width))[None].cpu().numpy()
    about = {**_about(found), "game": "preserve", "layer": layer.name, "channels": found.masks.mean(0),
             "iterations": settings.iterations}  # fmt: skip
    note = f"The map shows where the channels that the masks keep in {layer.name} are active."
    return Map("extremal_channels", values, False, found.score, found.blank, None, None, about, (note,))


def _about(found: Masks) -> dict[str, Any]:
    return {
        "areas": list(found.areas),
        "achieved_areas": found.achieved.tolist(),
        "scores": found.kept.tolist(),
        "scores_without": found.without.tolist(),
        "sufficient_area": found.sufficient,
        "masks": found.masks,
    }


def _notes(found: Masks, case: Case, settings: Settings) -> tuple[str, ...]:
    spot, notes = Smooth(case.shape[1], case.shape[2], settings.smoothness).spot, []
    small = [area for area in found.areas if area < spot]
    if small:
        notes.append(f"The area {min(small):.3g} is smaller than one spot of the smooth mask ({spot:.3g}): it is pale.")
    if found.score - found.blank < 0.1 * abs(found.score):
        notes.append("The score falls by less than a tenth when the whole image is blotted out; choose another one.")
    return tuple(notes)


def _check(areas: tuple[float, ...], smoothness: float, iterations: int) -> None:
    wrong = [each for each in areas if not 0 < each < 1]
    if wrong or not areas:
        raise AttributionError(f"An area is a share between 0 and 1; {wrong[0] if wrong else 'none'} was given.")
    if not 0 < smoothness <= WIDEST:
        raise AttributionError(
            f"The smoothness is {smoothness:g}; give more than 0 and at most {WIDEST:g} (in 32nds of the shorter side)."
        )
    if iterations < 0:
        raise AttributionError(f"The search was asked for {iterations} iterations; give 1 or more (0 chooses).")


def _content(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for each in tensors:
        digest.update(each.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _refuse(case: Case) -> str | None:
    if case.kind == "image":
        return None
    what = "a table has none" if case.kind == "table" else "text has none"
    return f"Extremal perturbations blur regions of an image, and {what}; choose Shapley sampling or feature ablation."


METHODS = (
    Method("extremal", "Extremal perturbation (preserve)", "mask", partial(_run, "preserve"), False, refuse=_refuse),
    Method("extremal_delete", "Extremal perturbation (delete)", "mask", partial(_run, "delete"), False, refuse=_refuse),
    Method("extremal_dual", "Extremal perturbation (both)", "mask", partial(_run, "dual"), False, refuse=_refuse),
    Method("extremal_channels", "Extremal channels of a layer", "mask", _run_channels, False, refuse=refuse_channels),
)
