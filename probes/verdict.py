"""How are two solutions connected? A verdict from barriers with their intervals, never without them.

The ladder: one basin as they are, after a permutation of units, after that and REPAIR, by a curve only, not connected.
A step holds when the whole interval of its barrier lies at or below the threshold; where an interval reaches across it,
the verdict says between what it cannot decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Name = Literal["same_basin", "same_after_permutation", "same_after_repair", "connected_by_curve", "not_connected"]

REACHES: Mapping[str, Name] = {
    "naive": "same_basin",
    "matched": "same_after_permutation",
    "repaired": "same_after_repair",
    "curve": "connected_by_curve",
}  # the stages in the order of the ladder -> the verdict that each one gives
TITLES: Mapping[str, str] = {
    "same_basin": "one basin as they are",
    "same_after_permutation": "one basin after a permutation of units",
    "same_after_repair": "one basin after a permutation of units and REPAIR",
    "connected_by_curve": "connected by a curve only",
    "not_connected": "not connected by anything that was tried",
}
WAYS: Mapping[str, str] = {
    "naive": "on the straight line between them",
    "matched": "on the straight line after matching",
    "repaired": "on that line after REPAIR",
    "curve": "along the curve",
}
DEFINITIONS: Mapping[str, str] = {
    "git_rebasin": "highest loss on the path less the mean of the two ends (Git Re-Basin)",
    "entezari": "highest rise above the straight line between the losses of the ends (Entezari et al.)",
    "midpoint": "loss half-way less the mean of the two ends",
}


@dataclass(frozen=True)
class Stage:
    """The barrier of one way of joining the two, in units of the loss, with its interval.

    name: "naive", "matched", "repaired" or "curve". A barrier that is not finite counts as infinite.
    """

    name: str
    barrier: float
    low: float
    high: float


@dataclass(frozen=True)
class Threshold:
    """The barrier that counts as none, and where it comes from; doubt: what speaks against it, or ""."""

    value: float
    words: str
    doubt: str = ""


@dataclass(frozen=True)
class Grounds:
    """What a verdict rests on besides the barriers, for its evidence; the texts are shown as they are.

    restarts: ||A - PB|| of each. agreement: the least share of units that a restart placed as the best one did.
    """

    threshold: Threshold
    definition: str
    matcher: str
    restarts: tuple[float, ...]
    agreement: float
    equivalence_error: float
    examples: int
    resamples: int
    treatment: str
    level: float = 0.95


@dataclass(frozen=True)
class Verdict:
    """The verdict, whether the intervals leave no other, a sentence for the reader, and the evidence line by line."""

    name: Name
    firm: bool
    sentence: str
    evidence: tuple[str, ...]


def threshold_of(ends: Sequence[float], chance: float, share: float) -> Threshold:
    """Return `share` of the way from the mean loss of the ends to that of chance.

    chance: the loss of the best constant answer, NaN where it is not known; there, and where the ends are no better,
    the mean loss of the ends is what the share is taken of, and a doubt says so.
    """
    mean = sum(ends) / len(ends)
    percent = f"{100 * share:g} %"
    if chance > mean:
        words = f"{percent} of the way from the mean loss of the ends ({mean:.4g}) to that of chance ({chance:.4g})"
        return Threshold(share * (chance - mean), words)
    doubt = (
        "The loss of chance is not known for this loss"
        if math.isnan(chance)
        else f"The two are no better than a constant answer (loss {mean:.4g}, chance {chance:.4g})"
    )
    words = f"{percent} of the mean loss of the ends ({mean:.4g})"
    return Threshold(share * abs(mean), words, f"{doubt}: the threshold is {words}, and the verdict means little.")


def verdict(stages: Sequence[Stage], grounds: Grounds) -> Verdict:
    """Judge by the barriers of the stages that were tried (the first two at least), in the order of the ladder."""
    known = [each for name in REACHES for each in stages if each.name == name]
    if [each.name for each in known[:2]] != ["naive", "matched"]:
        raise ValueError("give the barriers of the straight line before and after matching")
    limit = grounds.threshold.value
    open_ = [each for each in known if _holds(each, limit) is None]
    reached = next((each for each in known if _holds(each, limit)), None)
    name: Name = REACHES[reached.name] if reached else "not_connected"
    before = [each for each in open_ if reached is None or known.index(each) < known.index(reached)]
    sentence = _sentence(name, reached, before, known, grounds)
    return Verdict(name, not before, sentence, _evidence(known, grounds))


def _holds(stage: Stage, limit: float) -> bool | None:
    """Tell whether the barrier is none: True, False, or None where the interval reaches across the threshold."""
    if not math.isfinite(stage.barrier) or not math.isfinite(stage.high):
        return False
    if stage.high <= limit:
        return True
    return False if stage.low > limit else None


def _sentence(name: Name, reached: Stage | None, before: Sequence[Stage], known: Sequence[Stage], on: Grounds) -> str:
    if before:
        either = [TITLES[REACHES[each.name]] for each in before]
        opening = f"Undecided between {', '.join(either)} and {TITLES[name]}"
    else:
        opening = {
            "same_basin": "The two lie in one basin as they are",
            "same_after_permutation": "The two lie in one basin after a permutation of units",
            "same_after_repair": "The two lie in one basin after a permutation of units and REPAIR",
            "connected_by_curve": "The two are connected by a curve, and by no straight line that was tried",
            "not_connected": "The two were not found to be connected",
        }[name]
    last = known.index(reached) + 1 if reached else len(known)
    told = "; ".join(_words(each) for each in known[:last][::-1])
    limit = f"at most {on.threshold.value:.3g} counts as none"
    sentence = f"{opening}: the barrier is {told}; {limit}. {_matching(on)}"
    if reached is None and known[-1].name != "curve":
        sentence += " No curve has been tried."
    return sentence


def _words(stage: Stage) -> str:
    if not math.isfinite(stage.barrier):
        return f"not finite {WAYS[stage.name]}"
    return f"{stage.barrier:.3g} {WAYS[stage.name]} ({stage.low:.3g} to {stage.high:.3g})"


def _matching(on: Grounds) -> str:
    if not on.restarts:
        return f"Permutation by {on.matcher}."
    if len(on.restarts) == 1:
        return f"Permutation by {on.matcher}, tried once."
    agreed = f"each places at least {100 * on.agreement:.3g} % of the units as the best does"
    agreed = agreed if on.agreement < 1 else "all place every unit alike"
    return f"Permutation by {on.matcher}, the best of {len(on.restarts)} restarts: {agreed}."


def _evidence(known: Sequence[Stage], on: Grounds) -> tuple[str, ...]:
    level = f"{100 * on.level:g} %"
    among = f"between {min(on.restarts):.6g} and {max(on.restarts):.6g}" if on.restarts else "not known"
    lines = [
        *(f"Barrier {_words(each)}." for each in known),
        f"Threshold {on.threshold.value:.4g}: {on.threshold.words}.",
        f"Barrier: {DEFINITIONS[on.definition]}.",
        f"Intervals: {level}, {on.resamples:,} resamples of {on.examples:,} examples, the same ones for every point.",
        f"{_matching(on)} Distance of the restarts {among}.",
        f"The permutation changes the outputs by at most {on.equivalence_error:.2g} of their scale.",
        f"{on.treatment}.",
    ]
    if known[-1].name != "curve":
        lines.append("No curve has been tried.")
    return tuple(lines)
