"""Numbers, intervals and doubts of a skill localisation, made of what the examples say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probes.paths import Readings, interval, resampled, resamples

if TYPE_CHECKING:
    from analyzers._grafting_measure import Grafts, Seen
    from probes.calibration import Confidences
    from probes.grafting import Overlap

Floats = NDArray[np.float64]
WAYS = ("top", "bottom", "random")
FEW = 100  # examples below which intervals are rough


@dataclass(frozen=True, eq=False)
class Rows:
    """Means of each graft and of the two ends: of all examples in the first row, then of each resample."""

    ways: dict[str, Floats]
    ends: dict[str, Floats]

    @property
    def gain(self) -> Floats:
        """Return what fine-tuning added, (1 + draws, 1)."""
        return self.ends["fine_tuned"] - self.ends["base"]

    @property
    def is_clear(self) -> bool:
        """Tell whether fine-tuning changed the number beyond what resampling the examples does."""
        low, high = interval(self.gain[1:, 0])
        return bool(low > 0 or high < 0)

    def recovery(self) -> dict[str, Floats]:
        """Return (graft - base) / (fine-tuned - base) of each way."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {way: (each - self.ends["base"]) / self.gain for way, each in self.ways.items()}

    def of_fine_tuned(self) -> dict[str, Floats]:
        """Return graft / fine-tuned of each way."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {way: each / self.ends["fine_tuned"] for way, each in self.ways.items()}


@dataclass(frozen=True, eq=False)
class Judged:
    """Loss and accuracy of a set of examples, as rows; accuracy is None for regression and the operator's own loss."""

    loss: Rows
    accuracy: Rows | None

    @property
    def measure(self) -> str | None:
        """Name what recovery is best read from: accuracy, else the loss, else nothing."""
        if self.accuracy is not None and self.accuracy.is_clear and self.accuracy.gain[0, 0] > 0:
            return "accuracy"
        return "loss" if self.loss.is_clear and self.loss.gain[0, 0] < 0 else None


def judged_of(seen: Seen, seed: int) -> Judged:
    """Resample the examples; every graft sees the same resamples."""
    count = len(seen.ends["base"].counts)
    weights = resamples(count, seed)
    loss = Rows(*({key: _rows(each, each.losses, weights) for key, each in group.items()} for group in _groups(seen)))
    if seen.ends["base"].right is None:
        return Judged(loss, None)
    right = ({key: _rows(each, _right(each), weights) for key, each in group.items()} for group in _groups(seen))
    return Judged(loss, Rows(*right))


def of_set(found: Judged, prefix: str = "") -> dict[str, Any]:
    """Return loss, accuracy and recovery of a set of examples, each with its 95 % interval."""
    values: dict[str, Any] = {}
    for name, rows in (("loss", found.loss), ("accuracy", found.accuracy)):
        recovery = "recovery" if name == "accuracy" else "loss_recovery"
        if rows is None:
            values |= dict.fromkeys((name, recovery, "of_fine_tuned", f"base_{name}", f"fine_tuned_{name}"))
            continue
        values |= _with_interval(name, rows.ways)
        values |= _with_interval(recovery, rows.recovery() if rows.is_clear else None)
        if name == "accuracy":
            values |= _with_interval("of_fine_tuned", rows.of_fine_tuned())
        for end, each in rows.ends.items():
            low, high = interval(each[1:, 0])
            values |= {f"{end}_{name}": number(each[0, 0]), f"{end}_{name}_interval": [number(low), number(high)]}
    return {f"{prefix}{key}": each for key, each in values.items()}


def reached(rows: Mapping[str, Floats] | None, shares: Sequence[float], target: float) -> float | None:
    """Return the smallest share of the weights that moved most with which the target is reached."""
    if rows is None:
        return None
    return next((share for share, each in zip(shares, rows["top"][0], strict=True) if each >= target), None)


def chosen(found: Judged, counts: Sequence[int], weights: int, share: float, target: float) -> tuple[int, str]:
    """Return how many weights to look at closely, and why.

    share: as asked for; 0 for the smallest measured that recovers enough, or, where only all together do, for the one
    that recovers most beyond random masks.
    """
    if share:
        return min(weights, max(1, round(share * weights))), "as asked for"
    shares = [count / weights for count in counts]
    rows = {"accuracy": found.accuracy, "loss": found.loss}.get(found.measure or "")
    if rows is None:
        near = min(range(len(counts)), key=lambda place: abs(math.log(shares[place] / 0.01)))
        return counts[near], "near 1 %, as recovery cannot be told"
    recovery = rows.recovery()
    enough, percent = reached(recovery, shares, target), f"{100 * target:g} %"
    if enough is not None and enough < 1:
        return counts[
            shares.index(enough)
        ], f"the smallest measured that recovers {percent} of the gain in {found.measure}"
    gain = np.nan_to_num(recovery["top"][0] - recovery["random"][0], nan=-math.inf)
    return counts[int(gain.argmax())], f"it recovers most beyond random masks; only all weights recover {percent}"


def density_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add density and how many times that of a random mask it is, by parameter and by kind."""
    share = sum(each["grafted"] for each in rows) / sum(each["weights"] for each in rows)
    full = lambda each: {**each, "density": each["grafted"] / each["weights"] if each["weights"] else 0.0}
    times = lambda each: {**each, "times_chance": each["density"] / share}
    kinds = dict.fromkeys(each["kind"] for each in rows)
    sums = {
        kind: {key: sum(each[key] for each in rows if each["kind"] == kind) for key in ("weights", "grafted")}
        for kind in kinds
    }
    by_kind = {kind: times(full(each)) for kind, each in sums.items()}
    return {"density": [times(full(each)) for each in rows], "density_by_kind": by_kind}


def overlap_values(square: Sequence[Sequence[Overlap]], names: Sequence[str]) -> dict[str, Any]:
    """Return the overlaps as square lists of lists under their names."""
    fields = ("shared", "jaccard", "by_chance", "by_tensor")
    lists = {name: [[getattr(each, name) for each in row] for row in square] for name in fields}
    return {"names": list(names), **lists}


def calibration_values(found: Mapping[str, Confidences], on: str, seed: int) -> dict[str, Any]:
    """Return the calibration error of each model with its interval, and what its reliability diagram needs."""
    from probes.calibration import calibration

    values: dict[str, Any] = {"on": on}
    weights = resamples(len(next(iter(found.values())).counts), seed)
    for name, each in found.items():
        known = calibration(each, weights, seed)
        lists = {key: [number(one) for one in getattr(known, key)] for key in ("counts", "confidence", "accuracy")}
        values[name] = {
            "error": known.error,
            "interval": [known.low, known.high],
            "if_calibrated": known.if_calibrated,
            "overconfidence": known.overconfidence,
            **lists,
        }
    return values


def doubts(made: Grafts, found: Judged, tested: Judged | None, values: Mapping[str, Any]) -> list[str]:
    """Say what these numbers cannot tell."""
    from probes.batch_statistics import has_batch_norm

    words = []
    main, set_name = (found, "data") if tested is None else (tested, "test data")
    if main.measure is None:
        words.append(
            f"On the {set_name} the fine-tuned model is not clearly better than the base, neither in accuracy nor in "
            "loss: there is no gain to recover. Is this the data of its task?"
        )
    elif main.measure == "loss" and main.accuracy is not None:
        words.append(
            f"On the {set_name} fine-tuning gains loss, but not clearly accuracy; recovery is told by the loss."
        )
    if tested is None:
        words.append("There are no test data: what was learnt by heart counts as a skill here.")
    if has_batch_norm(made.objective):
        words.append(
            "The running statistics of BatchNorm were measured anew on the data for every model, the base too."
            if made.ask.statistics == "fresh"
            else "The running statistics of BatchNorm are those of the fine-tuned model in every graft: a part of what "
            "it learnt is in them, and is not counted as weights."
        )
    if values["moved"] < 1:
        words.append(f"Only {_percent(values['moved'])} of the weights differ; grafting more of them changes nothing.")
    if made.ask.whole and len(made.places) < len(made.objective.names):
        count = len(made.objective.names) - len(made.places)
        words.append(f"{count} parameters are the fine-tuned model's in every graft, as asked for, and do not count.")
    if len(found.loss.ways["top"]) and min(values["examples"]) < FEW:
        words.append(f"There are only {min(values['examples'])} examples; the intervals are rough.")
    return words


def number(value: Any) -> float | None:
    """Return a float, or None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def _groups(seen: Seen) -> tuple[dict[str, Readings], dict[str, Readings]]:
    return seen.ways, seen.ends


def _right(found: Readings) -> Floats:
    if found.right is None:
        raise ValueError("there is no accuracy")
    return found.right


def _rows(found: Readings, sums: Floats, weights: Floats) -> Floats:
    """Return the means of all examples and of each resample, (1 + draws, K)."""
    with np.errstate(invalid="ignore", over="ignore"):
        whole = sums.sum(1) / found.counts.sum()
        return np.concatenate([whole[None], resampled(sums, found.counts, weights)])


def _with_interval(name: str, rows: Mapping[str, Floats] | None) -> dict[str, Any]:
    if rows is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    bounds = {way: interval(each[1:]) for way, each in rows.items()}
    lists = lambda pick: {way: [number(one) for one in pick(way)] for way in rows}
    return {
        name: lists(lambda way: rows[way][0]),
        f"{name}_low": lists(lambda way: bounds[way][0]),
        f"{name}_high": lists(lambda way: bounds[way][1]),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
