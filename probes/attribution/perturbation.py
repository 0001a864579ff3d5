"""What the score loses when a part is left out: windows that slide (occlusion), segments one by one (ablation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from probes.attribution.coalitions import Bools, Estimate, Floats, Game, Progress, Scores, quiet, watched
from probes.attribution.errors import AttributionError
from probes.attribution.maps import make_map
from probes.attribution.methods import Method
from probes.attribution.players import baseline_of, laid_out, players_of, refuse_single, regions_or_single

if TYPE_CHECKING:
    from torch import Tensor

    from probes.attribution.case import Case
    from probes.attribution.maps import Map
    from probes.attribution.methods import Settings, Tick

WINDOWS = 7  # an image's side is this many windows, unless a window is asked for


def ablated(game: Game, tick: Progress = quiet) -> Estimate:
    """Return what the score loses when each segment alone is replaced, (P,): v(all) - v(all but i)."""
    lost = game.full - watched(game, ~np.eye(game.count, dtype=bool), tick, "feature_ablation")
    return Estimate(lost, None, {})


def starts(size: int, window: int, stride: int) -> range:
    """Return where windows begin along an axis: every `stride` until one reaches the end; the last may be cut off."""
    count = -(-max(0, size - window) // stride) + 1
    return range(0, count * stride, stride)


def windows(shape: Sequence[int], window: int, stride: int, block: int) -> Iterator[Bools]:
    """Yield the windows over (H, W) or (T,) in blocks: (B, ...) true where a window lies."""
    places = [starts(size, min(window, size), stride) for size in shape]
    found: list[Bools] = []
    for corner in product(*places):
        mask = np.zeros(tuple(shape), bool)
        mask[tuple(slice(at, at + window) for at in corner)] = True
        found.append(mask)
        if len(found) == block:
            yield np.stack(found)
            found = []
    if found:
        yield np.stack(found)


def occluded(
    scores: Scores, x: Tensor, baseline: Tensor, full: float, masks: Iterator[tuple[Bools, Bools]], total: int,
    tick: Progress = quiet,
) -> tuple[Floats, int]:  # fmt: skip
    """Slide windows over an example: what the score loses, shared by the elements of the window.

    masks: blocks of windows as they lie on the map and as they broadcast over x[0]. Returns for each place of the map
    the mean over the windows that cover it, and the number of evaluations: none of windows in which the example equals
    the baseline. Zeiler and Fergus 2014.
    """
    lost, covered, done, run = np.zeros(()), np.zeros(()), 0, 0
    for shown, left_out in masks:
        mask = torch.from_numpy(left_out).to(x.device)
        live = (mask & (x != baseline)).flatten(1).any(1)
        each = np.zeros(len(shown))
        if bool(live.any()):
            each[live.cpu().numpy()] = full - scores(torch.where(mask[live], baseline, x)).double().cpu().numpy()
        lost = lost + np.tensordot(each / shown.reshape(len(shown), -1).sum(1), shown.astype(float), 1)
        covered, done, run = covered + shown.sum(0), done + len(shown), run + int(live.sum())
        tick(done / total, f"occlusion: {done} of {total} windows")
    return lost / np.maximum(covered, 1), run


def _run_occlusion(case: Case, settings: Settings, tick: Tick) -> Map:
    name, baseline = baseline_of(case, settings)
    shape = case.shape[-2:] if case.kind == "image" else case.shape
    window = settings.window or _window(case)
    if window > max(shape):
        raise AttributionError(f"window is {window}; the example measures {' x '.join(map(str, shape))}. Choose less.")
    stride = max(1, window // 2)
    total = int(np.prod([len(starts(size, min(window, size), stride)) for size in shape]))
    blocks = (
        (each, np.stack([laid_out(case, one) for one in each])) for each in windows(shape, window, stride, case.chunk())
    )
    values, run = occluded(case.in_chunks, case.features, baseline, case.score, blocks, total, tick)
    channels = case.shape[0] if case.kind == "image" else 0
    shown = np.broadcast_to(values / channels, case.shape) if channels else values
    about = {"baseline": name, "window": window, "stride": stride, "windows": total, "evaluations": run + 2}
    scored = case.score_at(baseline)
    return make_map(case, "occlusion", torch.from_numpy(shown.copy()), baseline_score=scored, about=about)


def _run_ablation(case: Case, settings: Settings, tick: Tick) -> Map:
    players = players_of(case, settings, regions_or_single)
    return players.map("feature_ablation", ablated(players.game, tick))


def _window(case: Case) -> int:
    return max(2, round(max(case.shape[-2:]) / WINDOWS)) if case.kind == "image" else 1


def _refuse_occlusion(case: Case) -> str | None:
    if case.kind == "table":
        return "Columns of a table have no neighbours for a window to cover; choose feature ablation."
    return refuse_single(case)


METHODS = (
    Method("occlusion", "Occlusion", "perturbation", _run_occlusion, refuse=_refuse_occlusion),
    Method("feature_ablation", "Feature ablation", "perturbation", _run_ablation, refuse=refuse_single),
)
