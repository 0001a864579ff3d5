"""The names of the classes of data and model: the data's targets are put into the model's order by name.

Capital letters, underscores, hyphens and spaces make no difference; every other character does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probes.dataset.files import Array, shown
from probes.errors import DataError

LISTED = 12


def map_classes(
    targets: Array, classes: Sequence[str], wanted: Sequence[str], name: str
) -> tuple[Array, tuple[str, ...]]:
    """Return the targets in the order of `wanted`, and a doubt where any class changed its place.

    Raises DataError with both lists where a class of the data is not in `wanted`, or two names are alike.
    """
    if not classes:
        raise DataError(f"{name} has no classes, so the model's ({_list(wanted)}) cannot be told apart by name.")
    places, known = _places(wanted, "the model's classes"), _places(classes, f"the classes of {name}")
    unknown = [each for each in classes if _plain(each) not in places]
    if unknown:
        raise DataError(
            f"{name}: the class {shown(unknown[0])!r} is none of the model's. The data has {_list(classes)}; the model "
            f"has {_list(wanted)}. Rename the data's, or leave the model's names out if the order is the same."
        )
    order = np.array([places[each] for each in known], np.int64)
    moved = [(each, old, int(new)) for old, (each, new) in enumerate(zip(classes, order, strict=True)) if old != new]
    if not moved:
        return targets, ()
    some = ", ".join(f"{shown(each)!r} {old} -> {new}" for each, old, new in moved[:4])
    more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
    return order[targets], (f"the classes were put into the model's order by name: {some}{more}.",)


def differs_in_order(classes: Sequence[str], own: Sequence[str]) -> bool:
    """Tell whether the data's classes are the model's, by name, but in another order."""
    one, other = [_plain(each) for each in classes], [_plain(each) for each in own]
    return one != other and len(set(one)) == len(one) and sorted(one) == sorted(other)


def order_doubts(classes: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """Warn where the data's classes are the model's in another order, so that its labels mean other classes."""
    if not differs_in_order(classes, own):
        return ()
    return (
        f"the data numbers its classes {_list(classes)}, the model {_list(own)}: the same names in another order. "
        "Choose the model's order of classes, or labels mean other classes.",
    )


def _places(names: Sequence[str], whose: str) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for place, each in enumerate(names):
        plain = _plain(each)
        if plain in found:
            twin = shown(names[found[plain]])
            raise DataError(
                f"{whose} hold {twin!r} and {shown(each)!r}, which cannot be told apart by name ({_list(names)})."
            )
        found[plain] = place
    return found


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _list(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(repr(shown(each)[:60]) for each in names[:LISTED]) + more
