"""A classifier that was replaced by layers of one's own, as fine-tuning tutorials do: `model.fc = Sequential(...)`."""

from __future__ import annotations

from collections.abc import Sequence

from probes.architecture.layers import Shapes, groups
from probes.architecture.proposals import propose

WORDS = (
    "Its classifier was replaced by layers of its own. ReLU is assumed between them, for layers without tensors cannot "
    "be seen in the file: let the gate confirm it."
)


def replaced(own: Shapes, heads: Sequence[str], shapes: Shapes) -> tuple[str, str] | None:
    """Return where the classifier was replaced, and the text of what stands there now; None when it was not.

    own: the library's model; heads: its tensors that follow the number of classes; shapes: of the file. All tensors
    before the classifier must have the names of the library's.
    """
    place = heads[0].rpartition(".")[0] if heads else ""
    for path in dict.fromkeys((place, place.partition(".")[0])):
        inner, before = _below(path, shapes), _below(path, own)
        same = _rest(path, own) == _rest(path, shapes) and _linear(before)
        if path and same and inner and set(inner) != set(before):
            text = _text(inner) if _inputs(inner) == _inputs(before) else ""
            return (path, text) if text else None
    return None


def _inputs(shapes: Shapes) -> int:
    """Return how many numbers the first layer takes."""
    return next((shape[1] for shape in shapes.values() if len(shape) == 2), 0)


def _text(inner: Shapes) -> str:
    """Write the layers as a Sequential; "" when they are no chain."""
    found = propose(inner)
    if found is not None:
        return found.spec.text
    layers = groups(inner)
    name, parts = next(iter(layers.items()))
    if len(layers) != 1 or not _linear(inner) or not (name.isdigit() or not name):
        return ""
    bias = "" if "bias" in parts else ", bias=False"
    layer = f"Linear({parts['weight'][1]}, {parts['weight'][0]}{bias})"
    return f"Sequential(OrderedDict([({name!r}, {layer})]))" if name else layer


def _below(path: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(f"{path}."): shape for name, shape in shapes.items() if name.startswith(f"{path}.")}


def _rest(path: str, shapes: Shapes) -> set[str]:
    return {name for name in shapes if not name.startswith(f"{path}.")}


def _linear(shapes: Shapes) -> bool:
    layers = groups(shapes).values()
    return all(set(parts) <= {"weight", "bias"} and len(parts.get("weight", ())) == 2 for parts in layers)
