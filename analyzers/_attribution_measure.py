"""The maps of a run, one after another, each kept by its content so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analyzers._attribution_answers import answer_record
from analyzers._attribution_asked import MOST_EXAMPLES, MOST_METHODS, Edit, edit_asked, methods_asked, settings_of
from analyzers._attribution_cases import aim_of, case_at, described, identity_of, layers_told, pictures
from analyzers._attribution_choice import rows_asked
from analyzers._attribution_judged import checked, is_answer, joined, judged, nulls
from analyzers._attribution_names import METHODS
from analyzers._attribution_records import Record, from_arrays, head_of, made, refused, with_arrays
from analyzers._base import Result, Tick
from analyzers._parts import Part
from probes.errors import DataError

if TYPE_CHECKING:
    from analyzers.attribution import Attribution
    from probes.attribution import Case, Settings, Target
    from probes.checkpoint import Checkpoint
    from probes.objective import Objective

Array = np.ndarray[Any, Any]
SECONDS_BETWEEN_SHOWS, SHARE_OF_SHOWS = 2.0, 20  # what is known so far is written in a twentieth of the time at most
OF_A_LAYER = {name for name, each in METHODS.items() if each.family in ("cam", "layer")} | {"extremal_channels"}
MOST_MAPS = MOST_EXAMPLES * MOST_METHODS


@dataclass
class Found:
    """What is known so far. cases, maps: JSON, as the result has them; arrays by their names there."""

    options: Attribution
    card: dict[str, Any]
    kind: str
    methods: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    doubts: list[str]
    cases: list[dict[str, Any]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    sanity_layers: list[str] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def take(self, record: Record, case: int) -> None:
        """Put a map in its place."""
        number = len(self.maps)
        names = {name: f"{name}_{number}" for name in record.arrays}
        more = {"array": names.get("map"), "stderr": names.get("stderr")}
        about = dict(record.about)
        self.sanity_layers = about.pop("sanity_layers", None) or self.sanity_layers
        self.maps.append({"case": case, **about, **more})
        self.arrays |= {names[name]: each for name, each in record.arrays.items()}

    def take_nulls(self, record: Record, case: int) -> None:
        """Put the curves that the maps of a case have to beat in their place."""
        self.cases[case]["curves"] = {name: each for name, each in record.about.items() if name != "areas"}
        self.arrays |= {f"{name}_{case}": each for name, each in record.arrays.items()}


@dataclass(frozen=True)
class _Asked:
    methods: tuple[str, ...]
    settings: Settings
    edit: Edit
    rows: tuple[int, ...]
    aims: tuple[Target | Literal["answer"], ...]


def measure(
    options: Attribution,
    objective: Objective,
    checkpoints: tuple[Checkpoint, ...],
    tick: Tick,
    shown: Callable[[Found], Result],
) -> Found:
    """Choose examples and targets at the last checkpoint, then make all maps; shown: makes a result of them so far."""
    asked = _asked(options, objective, checkpoints, tick)
    card = _card(options, objective, checkpoints, asked)
    found = Found(options, card, "", asked.methods, checkpoints, list(objective.caveats))
    kept: dict[str, Record] = {}
    due = time.monotonic() + SECONDS_BETWEEN_SHOWS
    for place, checkpoint in enumerate(checkpoints):
        at = objective if place == 0 else objective.at(checkpoint)
        theta = _hash(*at.theta, *at.constants.values())
        shots = _pictures(options, at, asked)
        for number in range(len(asked.rows)):
            case = _case(options, at, asked, number)
            found.kind = case.kind
            own = len(found.cases)
            found.cases.append(described(case, checkpoint.name, place))
            if not found.layers and any(name in OF_A_LAYER for name in asked.methods):
                found.layers = layers_told(case)
            if len(shots):
                found.arrays[f"picture_{own}"] = shots[number]
            _methods(options, found, case, asked, theta, kept, tick)
            began = time.monotonic()
            if began > due:
                tick.show(shown(found))
                ended = time.monotonic()
                due = ended + max(SECONDS_BETWEEN_SHOWS, SHARE_OF_SHOWS * (ended - began))
    return found


def _asked(options: Attribution, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> _Asked:
    names, settings, edit = methods_asked(options.methods), settings_of(options), edit_asked(options.edit)
    tick(0.0, "choosing the examples")
    last = objective if len(checkpoints) < 2 else objective.at(checkpoints[-1])
    rows = rows_asked(last, options.examples, options.seed, lambda share, doing: tick(0.02 * share, doing))
    count = len(rows) * len(names) * len(checkpoints)
    if count > MOST_MAPS:
        raise DataError(
            f"{len(checkpoints)} checkpoints, {len(rows)} examples and {len(names)} methods are {count:,} maps; one "
            f"run makes {MOST_MAPS:,} at most. Choose fewer."
        )
    aims: list[Target | Literal["answer"]] = []
    for row in rows:
        aim = aim_of(last, row, options.target, options.position)
        case = case_at(last, row, aim, options.position, edit, settings.baseline)
        aims.append("answer" if aim == "answer" else case.target)
    return _Asked(names, settings, edit, rows, tuple(aims))


def _pictures(options: Attribution, at: Objective, asked: _Asked) -> Sequence[Array]:
    if at.inputs.ndim != 4:
        return ()
    rows = range(len(asked.rows))
    return pictures(at.batches, [_case(options, at, asked, each).raw for each in rows])


def _case(options: Attribution, at: Objective, asked: _Asked, number: int) -> Case:
    row, aim = asked.rows[number], asked.aims[number]
    return case_at(at, row, aim, options.position, asked.edit, asked.settings.baseline)


def _methods(
    options: Attribution,
    found: Found,
    case: Case,
    asked: _Asked,
    theta: str,
    kept: dict[str, Record],
    tick: Tick,
) -> None:
    """Make the maps of one case, or take those that were kept."""
    total, own = len(asked.rows) * len(found.checkpoints) * len(asked.methods), len(found.cases) - 1
    of_what = identity_of(case.objective)
    shares = of_what is not None
    content = f"{theta} {_hash(case.raw)} {found.cases[own]['target']} {case.target} {case.kind} {case.features.dtype}"
    about = json.dumps(
        [asdict(asked.settings), options.judge, options.sanity, options.version, of_what], sort_keys=True
    )
    null = Record({}, {})
    if options.judge:
        key = f"null-{_key(content, about)}"
        null = _kept(key, kept, tick, shares, lambda: nulls(case, asked.settings.seed))
        found.take_nulls(null, own)
    for name in asked.methods:
        key = f"map-{_key(content, name, about)}"
        words = f"{name}, example {case.row}"
        start, stop = (0.02 + 0.98 * (len(found.maps) + each) / total for each in (0, 1))
        part = Part(tick, start, stop, words, key)
        part(0.0, "begins")
        record = _kept(key, kept, tick, shares, partial(_record, options, case, name, asked.settings, part))
        areas = null.about.get("areas", {}) if "map" in record.arrays else {}
        found.take(Record({**record.about, **areas}, record.arrays), own)


def _kept(key: str, kept: dict[str, Record], tick: Tick, shares: bool, work: Callable[[], Record]) -> Record:
    """Return what this or any run has kept under a key, or make and keep it; refusals are for this run alone."""
    if key not in kept:
        saved = tick.load(key) or (tick.shared(key) if shares else None)
        kept[key] = work() if saved is None else from_arrays(saved)
        if saved is None:
            tick.save(key, with_arrays(kept[key]))
            if shares and kept[key].arrays:
                tick.share(key, with_arrays(kept[key]))
    return kept[key]


def _key(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _record(options: Attribution, case: Case, name: str, settings: Settings, part: Part) -> Record:
    """Make a map and judge it; where the method refuses, keep the reason."""
    from probes.attribution import AttributionError, attribute, methods

    method = methods()[name]
    shares = (0.4 if options.judge or options.sanity else 1.0, 0.5 if options.sanity else 1.0)
    try:
        doing = part.within(0.0, shares[0])
        if is_answer(case):
            found = answer_record(case, method, settings, doing, head_of(method, method.signed))
        else:
            found = made(method, attribute(case, name, settings, doing))
    except AttributionError as error:
        return refused(method, case, str(error))
    values, more = found.arrays["map"], []
    if not np.isfinite(values).all():
        return found
    if options.judge:
        more.append(judged(case, name, settings, values, part.within(shares[0], shares[1])))
    if options.sanity:
        more.append(checked(case, name, settings, values, part.within(shares[1] if options.judge else shares[0], 1.0)))
    return joined(found, *more)


def _card(
    options: Attribution, objective: Objective, checkpoints: tuple[Checkpoint, ...], asked: _Asked
) -> dict[str, Any]:
    card = objective.card() | {"seed": options.seed, "rows": list(asked.rows)}
    if len(checkpoints) > 1:
        card["checkpoint"] = {"name": f"{len(checkpoints)} checkpoints: {', '.join(each.name for each in checkpoints)}"}
    return card


def _hash(*tensors: Any) -> str:
    digest = hashlib.sha256()
    for each in tensors:
        digest.update(f"{each.dtype} {tuple(each.shape)} ".encode())
        digest.update(each.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
