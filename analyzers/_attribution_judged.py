"""What speaks for and against a map: curves beside their nulls, infidelity, sensitivity, the sanity check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from analyzers._attribution_records import Record, number, plain

if TYPE_CHECKING:
    from probes.attribution import Case, Settings
    from probes.attribution.judging import Curves, NullCurves

Array = np.ndarray[Any, Any]
Said = Callable[[float, str], None]
T = TypeVar("T")
SAMPLES = 10  # examples nearby that the sensitivity is the maximum over


@dataclass
class Judged:
    """What was found of one map: JSON, arrays, and what could not be said."""

    about: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def tried(self, what: str, work: Callable[[], T]) -> T | None:
        """Do some work; where it refuses, keep the reason."""
        from probes.attribution import AttributionError

        try:
            return work()
        except AttributionError as error:
            self.notes.append(f"{what}: {error}")
            return None


def judged(case: Case, method: str, settings: Settings, values: Array, tick: Said) -> Judged:
    """Draw the curves of a map, and take its infidelity and sensitivity."""
    from probes.attribution.judging import curves, infidelity, sensitivity_max

    found = Judged()
    seed = settings.seed
    drawn = found.tried("Curves", lambda: curves(case, values, seed=seed))
    if drawn is not None:
        found.about |= _areas(drawn)
        found.arrays |= {"insertion": drawn.insertion, "deletion": drawn.deletion}
        found.notes += drawn.notes
    tick(0.1, "infidelity")
    told = found.tried("Infidelity", lambda: infidelity(case, values, seed=seed))
    if told is not None:
        about = {"infidelity_stderr": told.stderr, "infidelity_unexplained": told.about.get("unexplained")}
        found.about |= {"infidelity": number(told.value), **{name: number(each) for name, each in about.items()}}
    rest: Said = lambda share, doing: tick(0.1 + 0.9 * share, doing)
    moves = found.tried(
        "Sensitivity",
        lambda: sensitivity_max(case, method, settings, values=values, samples=SAMPLES, seed=seed, tick=rest),
    )
    found.about["sensitivity_max"] = None if moves is None else number(moves.value)
    return found


def checked(case: Case, method: str, settings: Settings, values: Array, tick: Said) -> Judged:
    """Take the sanity check of a map."""
    from probes.attribution.judging import sanity

    found = Judged()
    told = found.tried("Sanity check", lambda: sanity(case, method, settings, tick, values=values, seed=settings.seed))
    if told is not None:
        found.about = {"sanity": told.verdict, "sanity_layers": list(told.layers), "sanity_rule": told.rule}
        found.arrays = {"sanity": told.spearman, "sanity_stderr": told.stderr}
        found.arrays |= {} if told.edge is None else {"sanity_edge": told.edge}
        found.notes += told.notes
    return found


def nulls(case: Case, seed: int) -> Record:
    """Draw the curves of random orders and, of images, of the edges, for the maps of this case to beat."""
    from probes.attribution.judging import null_curves

    found = Judged()
    random = found.tried("Random orders", lambda: null_curves(case, "random", seed=seed))
    if random is None:
        return Record({"notes": found.notes}, {})
    about = {"measure": random.measure, "baselines": list(random.baselines), "unit": random.unit}
    arrays = {"curve_shares": random.shares} | _both("random", random)
    found.about = _null("random", random, with_errors=True)
    if case.kind == "image":
        edge = null_curves(case, "edge", seed=seed)
        found.about |= _null("edge", edge, with_errors=False)
        arrays |= _both("edge", edge)
    return Record({"areas": found.about, "notes": [], **about}, arrays)


def is_answer(case: Case) -> bool:
    """Tell whether the score is that of a whole answer, of which no single probability can be read."""
    from probes.attribution.language_cases import AnswerCase

    return isinstance(case, AnswerCase)


def joined(record: Record, *more: Judged) -> Record:
    """Add what was found to a record."""
    about: dict[str, Any] = dict(record.about)
    arrays: dict[str, Array] = dict(record.arrays)
    for each in more:
        about |= plain(each.about)
        about["notes"] = list(dict.fromkeys((*about["notes"], *each.notes)))
        arrays |= each.arrays
    return Record(about, arrays)


def _areas(drawn: Curves) -> Mapping[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("insertion", "deletion"):
        areas = getattr(drawn, f"{name}_auc")
        found |= {f"{name}_auc": number(areas[0]), f"{name}_auc_second": number(areas[1])}
    return found


def _null(kind: str, drawn: NullCurves, *, with_errors: bool) -> dict[str, float | None]:
    found = {f"{kind}_{name}_auc": number(getattr(drawn, f"{name}_auc")[0]) for name in ("insertion", "deletion")}
    if with_errors:
        errors = {name: np.asarray(getattr(drawn, f"{name}_auc_stderr")) for name in ("insertion", "deletion")}
        found |= {f"{kind}_{name}_auc_stderr": number(each.flat[0]) for name, each in errors.items()}
    return found


def _both(kind: str, drawn: Curves) -> dict[str, Array]:
    return {f"{kind}_insertion": drawn.insertion, f"{kind}_deletion": drawn.deletion}
