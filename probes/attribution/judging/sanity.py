"""The sanity check: does a map change when the model's weights are drawn anew? Adebayo et al. (2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from probes.attribution.errors import AttributionError
from probes.attribution.judging.cascade import Stage, cascade, stages_of
from probes.attribution.judging.nulls import edge_map
from probes.attribution.judging.orders import Floats, Numbers, free, plane
from probes.attribution.judging.ranks import spearman
from probes.attribution.judging.sensitivity import explained, within
from probes.attribution.methods import Settings, methods

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.methods import Tick

SURVIVES = 0.5
FEW = 10  # features whose ranks agree by chance
DRAWS = 3
RULE = (
    f"flagged when the mean rank correlation with the original stays above {SURVIVES:g} after all layers are random "
    "(signed values of signed methods, sizes of others)"
)


@dataclass(frozen=True, eq=False)
class Sanity:
    """How a map follows the weights, from the head downwards, S stages.

    layers: what each stage randomises in addition. spearman, stderr: (S,) mean rank correlation with the original map
    over the draws, and its standard error, of what the verdict looks at: signed values of signed methods, else sizes.
    sizes, sizes_stderr: the same of the absolute values. edge: (S,) of the edge map of the image, which sees no weights
    (1.00), or None. likeness: (S + 1,) rank correlation of the map's sizes with the edge map, the original first, or
    None. verdict: by `rule`; None where no map could be made at the last stage. notes: doubts, in words.
    """

    layers: tuple[str, ...]
    spearman: Floats
    stderr: Floats
    sizes: Floats
    sizes_stderr: Floats
    edge: Floats | None
    likeness: Floats | None
    verdict: Literal["pass", "flagged"] | None
    draws: int
    notes: tuple[str, ...] = ()
    rule: str = RULE


def sanity(
    case: Case,
    method: str,
    settings: Settings | None = None,
    tick: Tick = lambda *_: None,
    *,
    values: Numbers | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Sanity:
    """Randomise the layers from the head downwards, cumulatively, and correlate the maps with the original.

    values: the map at the real weights where it is known. draws: of random weights, each a whole cascade. Runs the
    method once for each stage and draw, at other parameters, never writing to the module. Raises AttributionError.
    """
    if draws < 2:
        raise AttributionError(f"draws is {draws}; a standard error over random weights needs at least 2.")
    stages = stages_of(case)
    original = _flat(case, explained(case, method, settings) if values is None else values)
    found = np.full((draws, len(stages), 2, len(original[0])), np.nan)
    edges, reasons = np.full((draws, len(stages)), np.nan), list[str]()
    for draw in range(draws):
        for place, there in enumerate(cascade(case, stages, seed + draw)):
            done, count = draw * len(stages) + place, draws * len(stages)
            said = f"sanity check of {method}: {stages[place].name}"
            try:
                made = explained(there, method, settings, within(tick, done, count, said))
                found[draw, place] = _flat(there, made)
            except AttributionError as error:
                reasons.append(f"With random {stages[place].name} there is no map: {error}")
            edges[draw, place] = _edges_kept(case, there)
            tick((done + 1) / count, said)
    return _judged(case, method, stages, original, found, edges.mean(0), tuple(dict.fromkeys(reasons)))


def _flat(case: Case, values: Numbers) -> Floats:
    """Return signed values and sizes of the free features, (2, N); of images channels are added first."""
    found = plane(case, values)[free(case)]
    return np.stack([found, np.abs(found)])


def _judged(
    case: Case,
    method: str,
    stages: tuple[Stage, ...],
    original: Floats,
    found: Floats,
    edges: Floats,
    reasons: tuple[str, ...],
) -> Sanity:
    each = [[[spearman(original[which], now[which]) for now in stage] for stage in found] for which in (0, 1)]
    means, errors = _moments(np.array(each))
    signed = methods()[method].signed and bool((original[0] < 0).any())
    which = 0 if signed else 1
    last = means[which, -1]
    verdict: Literal["pass", "flagged"] | None = None if np.isnan(last) else "flagged" if last > SURVIVES else "pass"
    image = case.kind == "image"
    return Sanity(
        layers=tuple(stage.name for stage in stages),
        spearman=means[which],
        stderr=errors[which],
        sizes=means[1],
        sizes_stderr=errors[1],
        edge=edges if image else None,
        likeness=_likeness(case, original, found) if image else None,
        verdict=verdict,
        draws=len(found),
        notes=(*reasons, *_notes(signed, means, found)),
    )


def _moments(each: Floats) -> tuple[Floats, Floats]:
    """Return means and standard errors over draws of (2, D, S), leaving out where there was no map; (2, S) each."""
    known = np.isfinite(each)
    count = known.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, each, 0).sum(1) / count
        spread = np.where(known, (each - mean[:, None]) ** 2, 0).sum(1) / (count - 1)
        return mean, np.where(count > 1, np.sqrt(spread / count), np.nan)


def _edges_kept(case: Case, there: Case) -> float:
    """Return the rank correlation of the edge maps of two cases: the control, which no weights can move."""
    if case.kind != "image":
        return np.nan
    return spearman(plane(case, edge_map(case)), plane(there, edge_map(there)))


def _likeness(case: Case, original: Floats, found: Floats) -> Floats:
    edges = plane(case, edge_map(case))
    now = np.array([[[spearman(edges, each[1]) for each in stage] for stage in found]])
    return np.concatenate([[spearman(edges, original[1])], _moments(now)[0][0]])


def _notes(signed: bool, means: Floats, found: Floats) -> tuple[str, ...]:
    notes = []
    if found.shape[-1] < FEW:
        notes.append(f"The map has {found.shape[-1]} features; ranks of so few often agree or differ by chance.")
    if signed and means[1, -1] > SURVIVES:
        notes.append(
            f"The signs follow the weights, but the sizes of the values do not ({means[1, -1]:.2f} at random weights): "
            "where the map is strong is a matter of the example more than of the model."
        )
    if bool((np.ptp(found[:, -1, 1], axis=-1) == 0).any()):
        notes.append("With all layers random some maps are the same everywhere; their correlation counts as 0.")
    return tuple(notes)
