"""What figures of a training run share: the axis of time, colours by depth, names of files as labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analyzers._figures import as_plotly

_VIRIDIS = ("#440154", "#482878", "#3E4A89", "#31688E", "#26828E", "#1F9E89", "#35B779", "#6DCD59", "#A3D12B")
# The last anchors of viridis (#B4DE2C, #FDE725) cannot be read on white.
_TITLES = {"epoch": "Epoch", "step": "Step"}


def time_axis(unit: str) -> str:
    """Return the title of a time axis; unit: "epoch", "step" or "position" (`probes.series.Series.unit`)."""
    return _TITLES.get(unit, "Checkpoint")


def depth_colours(count: int) -> list[str]:
    """Return a "#RRGGBB" for each of so many layers, first to last: viridis, dark to light, as far as white allows."""
    last = len(_VIRIDIS) - 1
    return [_between(last * index / max(count - 1, 1)) for index in range(count)]


def as_labels(names: Iterable[object]) -> list[str]:
    """Make names from files harmless for figures and keep them apart: the same label never stands for two names."""
    labels: list[str] = []
    taken: set[str] = set()
    for name in names:
        label = plain = as_plotly(name)
        number = 1
        while label in taken:
            number += 1
            label = f"{plain} ({number})"
        taken.add(label)
        labels.append(label)
    return labels


def of_what(card: Mapping[str, Any]) -> str:
    """Say in a line of what the figures are: loss, examples, mode, dtype, kind of model; fit for plotly."""
    mode = str(card["mode"]).split(":", maxsplit=1)[0]
    loss = str(card["loss"]).replace("_", "-")
    words = [loss, f"n = {card['examples']} examples", f"{mode} mode", str(card["dtype"])]
    return as_plotly(", ".join([*words, str(card["model"]).split(":", maxsplit=1)[0]]))


def _between(place: float) -> str:
    left = min(int(place), len(_VIRIDIS) - 2)
    share = place - left
    one, two = (_parts(_VIRIDIS[index]) for index in (left, left + 1))
    return "#" + "".join(f"{round(a + share * (b - a)):02X}" for a, b in zip(one, two, strict=True))


def _parts(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[index : index + 2], 16) for index in (1, 3, 5))
