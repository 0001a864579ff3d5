"""What a run of attribution was asked: methods, settings and changes of the examples, read from its options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probes.errors import DataError

if TYPE_CHECKING:
    from analyzers.attribution import Attribution
    from probes.attribution.methods import Settings

MOST_EXAMPLES, MOST_METHODS = 64, 40
EDITS = ("mask", "tokens", "words", "values")
SAME = ("steps", "tolerance", "samples", "noise", "window", "seed", "smoothness", "iterations")  # of Settings too
AS_IN = 'as in {"mask": [[0, 0, 8, 8]]}, {"tokens": {"3": 17}}, {"words": {"3": "good"}} or {"values": {"2": 0.5}}'


@dataclass(frozen=True)
class Edit:
    """Changes of the examples before they are looked at.

    mask: half-open pixels (y0, x0, y1, x1). tokens: place -> id. words: place of a word -> text. values: number or name
    of a column -> number. Empty where nothing is changed; one of them otherwise.
    """

    mask: tuple[tuple[int, int, int, int], ...] = ()
    tokens: Mapping[int, int] = field(default_factory=dict)
    words: Mapping[int, str] = field(default_factory=dict)
    values: Mapping[int | str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Tell whether anything is changed."""
        return bool(self.mask or self.tokens or self.words or self.values)


def methods_asked(text: str) -> tuple[str, ...]:
    """Return the names of the methods, in the order asked, each once; raise AttributionError naming all there are."""
    from probes.attribution import AttributionError, methods

    known = methods()
    if text.strip() == "all":
        return tuple(known)
    names = tuple(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))
    wrong = [each for each in names if each not in known]
    if wrong or not names:
        found = f"There is no method {wrong[0][:80]!r}" if wrong else "No method was named"
        raise AttributionError(f"{found}; choose among {', '.join(known)}, or all.")
    return names


def settings_of(options: Attribution) -> Settings:
    """Return the settings of the methods; raise AttributionError where the areas are no shares."""
    from probes.attribution import AttributionError, Settings

    try:
        areas = tuple(float(each) for each in options.areas.split(",") if each.strip())
    except ValueError:
        areas = ()
    if not areas or not all(0 < each < 1 for each in areas):
        raise AttributionError(f"The areas are {options.areas[:80]!r}; give shares between 0 and 1, as in 0.05, 0.1.")
    return Settings(
        baseline=options.baseline.strip() or "auto",
        layer=options.layer.strip(),
        over=options.over.strip(),
        areas=areas,
        **{name: getattr(options, name) for name in SAME},
    )


def edit_asked(text: str) -> Edit:
    """Read the option `edit`; raise DataError, with the value found, where it is not what it should be."""
    if not text.strip():
        return Edit()
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"The edit is no JSON ({error.msg} at character {error.pos}); write it {AS_IN}.") from error
    if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in EDITS:
        raise DataError(f"The edit is {text[:80]!r}; name one of {', '.join(EDITS)}, {AS_IN}.")
    what, value = next(iter(given.items()))
    try:
        return Edit(**{what: READERS[what](value)})
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"The edit's {what} are {json.dumps(value)[:80]}; write them {AS_IN}.") from error


def _boxes(value: Any) -> tuple[tuple[int, int, int, int], ...]:
    boxes = []
    for y0, x0, y1, x1 in value:
        box = (_whole(y0), _whole(x0), _whole(y1), _whole(x1))
        if not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise ValueError("an empty box")
        boxes.append(box)
    return tuple(boxes)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError("not a whole number")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or number != number or abs(number) == float("inf"):
        raise ValueError("not a number")
    return number


READERS: Mapping[str, Any] = {
    "mask": _boxes,
    "tokens": lambda value: {int(place): _whole(each) for place, each in value.items()},
    "words": lambda value: {int(place): _text(each) for place, each in value.items()},
    "values": lambda value: {
        int(place) if place.isdecimal() else place: _number(each) for place, each in value.items()
    },
}
