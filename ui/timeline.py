"""The checkpoints on the bench as a training run: their order in time, and where each time is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probes.errors import DataError
from probes.series import Series, Unit, series
from ui.bench import Bench
from ui.questions import inspection
from ui.state import answer

Found = Mapping[str, Any]
SOURCES = {"typed": "typed", "file": "from the files", "name": "from the names", "order": "no epochs known"}


@dataclass(frozen=True)
class Named:
    """A checkpoint as far as its time goes."""

    name: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Timeline:
    """Checkpoints, by their references, in the order of time.

    times: in that order, in `unit`. typed: what the option `times` of an analyzer has to be for this order; "" where
    files or names say it themselves. problem: why there is no order in time, as raw text; else "".
    """

    checkpoints: tuple[str, ...]
    times: tuple[float, ...]
    unit: Unit
    source: str
    typed: str = ""
    doubts: tuple[str, ...] = ()
    problem: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return each time in words."""
        words = "checkpoint" if self.unit == "position" else self.unit
        return tuple(f"{words} {written(each)}" for each in self.times)

    @property
    def sentence(self) -> str:
        """Say how long the run is and where its times are from, as raw text."""
        count = f"{len(self.checkpoints)} checkpoints"
        if self.unit == "position":
            return f"{count}, in the order given ({SOURCES['order']})"
        return f"{count}, {self.unit} {written(self.times[0])} to {written(self.times[-1])} ({SOURCES[self.source]})"


def of(bench: Bench, checkpoints: Sequence[str]) -> Timeline:
    """Order checkpoints of a bench that have been read; those that have not are left out."""
    answers = ((text, answer(inspection(text))) for text in checkpoints)
    return timeline({text: found for text, found in answers if found}, bench.times, bench.unit)


def timeline(found: Mapping[str, Found], typed: Mapping[str, float], unit: str) -> Timeline:
    """Order what was found of checkpoints in time; typed: the times that the user gave, in `unit`."""
    named = {text: Named(str(each["name"]), each["facts"]) for text, each in found.items()}
    texts = tuple(named)
    given = {text: typed.get(text, _own(each, unit)) for text, each in named.items()}
    doubts: tuple[str, ...] = ()
    said = ""
    if missing := [named[text].name for text in texts if given[text] is None]:
        if any(text in typed for text in texts):
            doubts = (f"No {unit} is known of {', '.join(missing)}: what was typed for the others waits for it.",)
    elif any(text in typed for text in texts):
        said = as_option([float(each) for each in given.values() if each is not None], unit)
    try:
        ordered = series(named.values(), said)
    except DataError as error:
        return Timeline(texts, tuple(map(float, range(len(texts)))), "position", "order", "", doubts, str(error))
    if not said and not doubts and ordered.unit == "position":
        doubts = _same(named.values())
    return _timeline(texts, ordered, bool(said), doubts)


def typed_times(text: str, names: Mapping[str, str]) -> tuple[dict[str, float], Unit]:
    """Read what was typed, one time for each checkpoint in this order, as (times, unit); raise DataError in words.

    names: checkpoint -> the name of its file.
    """
    ordered = series([Named(name, {}) for name in names.values()], text)
    texts = tuple(names)
    return {texts[place]: time for place, time in zip(ordered.order, ordered.times, strict=True)}, ordered.unit


def as_option(times: Sequence[float], unit: str) -> str:
    """Write times as analyzers take them."""
    text = ", ".join(map(written, times))
    return f"step {text}" if unit == "step" else text


def written(time: float) -> str:
    """Write an epoch or step in full: 1234567, 0.5."""
    return str(int(time)) if time == int(time) else repr(float(time))


def _timeline(texts: tuple[str, ...], ordered: Series, is_typed: bool, doubts: tuple[str, ...]) -> Timeline:
    return Timeline(
        tuple(texts[place] for place in ordered.order),
        ordered.times,
        ordered.unit,
        ordered.source,
        as_option(ordered.times, ordered.unit) if is_typed else "",
        (*doubts, *ordered.doubts),
    )


def _same(named: Iterable[Named]) -> tuple[str, ...]:
    """Say which files tell the same time: then none of these times orders the run."""
    for unit in ("epoch", "step"):
        by_time: dict[float, list[str]] = {}
        for each in named:
            if (time := _own(each, unit)) is not None:
                by_time.setdefault(time, []).append(each.name)
        for time, names in sorted(by_time.items()):
            if len(names) > 1:
                return (
                    f"{' and '.join(names)} are {'both' if len(names) == 2 else 'all'} of {unit} {written(time)}: type "
                    "the time of each checkpoint, or take one of them away.",
                )
    return ()


def _own(named: Named, unit: str) -> float | None:
    """Return the time that file or name say, if it is in this unit."""
    alone = series([named])
    return alone.times[0] if alone.unit == unit and alone.source in ("file", "name") else None
