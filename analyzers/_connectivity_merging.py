"""Checkpoints made of a result of mode connectivity: permuted, averaged, repaired, from the curve, soups."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from probes.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analyzers._base import Result, Tick
    from analyzers._connectivity_run import Run
    from analyzers.mode_connectivity import ModeConnectivity
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective
    from probes.points import Point


def merges(result: Result) -> Mapping[str, str]:
    """Name what can be made of a result."""
    values = result.values
    if "verdict" not in values:
        return {}
    offered = {
        "matched": "The average of the two after matching",
        "permuted": "The second with its units in the order of the first",
        "naive": "The average of the two as they are",
    }
    if "repaired" in values["loss"]:
        offered["repaired"] = "The average of the two after matching and REPAIR"
    if values.get("curve"):
        offered["curve"] = "The middle of the curve"
    for row in values.get("soups", {}).get("rows", ()):
        count = len(row["chosen"])
        offered[row["soup"]] = f"Soup: {row['what']} ({count} checkpoint{'s' if count != 1 else ''})"
    return offered


def merged(
    options: ModeConnectivity,
    objective: Objective,
    checkpoints: tuple[Checkpoint, ...],
    result: Result,
    which: str,
    tick: Tick,
) -> Point:
    """Make one of `merges`; BatchNorm's statistics are measured anew where the options say so."""
    from analyzers._connectivity_steps import begun

    if which not in merges(result):
        raise ProbeError(f"This result holds no {which!r}; it has {', '.join(merges(result)) or 'nothing to merge'}.")
    tick(0.0, "putting it together")
    run = begun(replace(options, specification=result.values["specification"]), objective, checkpoints, tick)
    run.found = {each.name: np.asarray(result.arrays[f"permutation_{each.name}"]) for each in run.spec}
    point = _made(run, result, which)
    tick(1.0, "put together")
    return point


def _made(run: Run, result: Result, which: str) -> Point:
    from analyzers._connectivity_ways import curve_of
    from probes.points import between
    from probes.repair import repaired

    if which == "permuted":
        return run.matched
    if which == "repaired":
        return repaired(run.objective, run.a, run.matched, 0.5).point
    if which == "curve":
        return run.renewed(curve_of(run.objective, run.a, run.b, result.values["curve"], result.arrays).at(0.5))
    if which in ("matched", "naive"):
        return run.renewed(between(run.a, run.matched if which == "matched" else run.b, 0.5))
    return _soup(run, result, which)


def _soup(run: Run, result: Result, which: str) -> Point:
    from analyzers._connectivity_soups import SOUPS, permutations_of
    from probes.soups import uniform

    row = next(each for each in result.values["soups"]["rows"] if each["soup"] == which)
    points = [run.at(place) for place in range(len(run.checkpoints))]
    if SOUPS[which][0] == "matched":
        found = permutations_of(run.spec, result.arrays, len(points))
        points = [points[0], *(run.permuted(point, each) for point, each in zip(points[1:], found, strict=True))]
    return uniform([points[place] for place in row["chosen"]], run.objective if run.anew else None)
