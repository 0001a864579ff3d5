"""How a loss path is drawn: curves with bands over alpha, places, checkpoints on the way, controls, several paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analyzers._base import Result, differences
from analyzers._figures import COLOURS, INK, as_plotly, faded, figure
from analyzers._series_figures import as_labels
from probes.errors import ProbeError

Values = Mapping[str, Any]
SHORT = 22  # letters of a name on an axis
TOWERS = 8  # times the greatest value between the checkpoints: what lies higher, beyond them, leaves the axis
FAINT = "#8A94A0"
LINES = {"": (COLOURS[0], "solid", "data"), "test_": (COLOURS[1], "dash", "test data")}
CONTROLS = {"noise": (COLOURS[4], "dot", "from noise"), "zeros": (COLOURS[3], "dashdot", "from zeros")}


def draw(card: Mapping[str, Any], values: Values, *, log: bool = False) -> dict[str, go.Figure]:
    """Draw "loss", "accuracy" where there is one, and "controls" where they were walked; log: losses on a log axis."""
    drawn = {"loss": _curves(card, values, "loss", log=log)}
    if values["accuracy"] is not None:
        drawn["accuracy"] = _curves(card, values, "accuracy")
    if values["controls"]:
        drawn["controls"] = _controls(card, values, log=log)
    return drawn


def overlay(results: Sequence[Result], names: Sequence[str] = (), *, log: bool = False) -> dict[str, go.Figure]:
    """Draw the losses of several paths over one another.

    names: of the paths, else those of their checkpoints. Raises ProbeError, naming what differs, when the results are
    not of the same model, data and way of measuring.
    """
    for other in results[1:]:
        odd = differences(results[0].card, other.card)
        if odd:
            raise ProbeError(f"These paths cannot be compared, they are not of the same thing: {'; '.join(odd)}.")
    if names and len(names) != len(results):
        raise ProbeError(f"There are {len(names)} names for {len(results)} paths; give one for each.")
    labels = as_labels(names or [each.card["checkpoint"]["name"] for each in results])
    title = f"Loss on {len(results)} straight paths"
    drawn = figure(title, _about(results[0].card), "α: 0 = first checkpoint, 1 = second", "Loss")
    for index, (label, each) in enumerate(zip(labels, results, strict=True)):
        for prefix, (_, dash, words) in LINES.items():
            if f"{prefix}loss" in each.values:
                name = f"{label}, {words}" if prefix else label
                _add_line(drawn, each.values, f"{prefix}loss", name, COLOURS[index % len(COLOURS)], dash)
    _add_ends(drawn)
    _set_losses(drawn, [each.values for each in results], log=log)
    return {"loss_overlay": drawn}


def _curves(card: Mapping[str, Any], values: Values, what: str, *, log: bool = False) -> go.Figure:
    scale = 100 if what == "accuracy" else 1
    title, axis, end = ("Loss", "Loss", f"; Δ = {_delta(values)}")
    if what == "accuracy":
        title, axis, end = "Accuracy", "Accuracy (%)", ""
    words = f"{_about(card)}<br>bands: 95 %, bootstrap over examples{end}"
    drawn = figure(f"{title} on the straight path", words, _axis(values), axis)
    _add_uncorrected(drawn, values, what, scale)
    for prefix, (colour, dash, name) in LINES.items():
        if values.get(f"{prefix}{what}") is not None:
            _add_band(drawn, values, f"{prefix}{what}", colour, scale)
            _add_line(drawn, values, f"{prefix}{what}", name, colour, dash, scale)
    _add_places(drawn, values, what, scale)
    _add_on_the_way(drawn, values, what, scale)
    _add_ends(drawn)
    if what == "loss":
        _set_losses(drawn, [values, values["uncorrected"] or {"alpha": []}], log=log)
    drawn.update_layout(margin={"t": 110})
    return drawn


def _controls(card: Mapping[str, Any], values: Values, *, log: bool) -> go.Figure:
    deltas = [f"path {_number(values['delta'])}"]
    deltas += [f"{CONTROLS[name][2]} {_number(each['delta'])}" for name, each in values["controls"].items()]
    words = f"{_about({**card, 'test_examples': None})}<br>Δ: {', '.join(deltas)}"
    drawn = figure("Loss on the path and on its controls", words, _axis(values, start="start"), "Loss")
    path = _between(values)
    _add_line(drawn, path, "loss", f"from {_short(values['checkpoints'][0])}", COLOURS[0], "solid")
    for name, each in values["controls"].items():
        colour, dash, label = CONTROLS[name]
        _add_line(drawn, each, "loss", label, colour, dash)
    _set_losses(drawn, [path, *values["controls"].values()], log=log)
    drawn.update_layout(margin={"t": 110})
    return drawn


def _add_line(
    drawn: go.Figure, values: Values, key: str, name: str, colour: str, dash: str, scale: float = 1, width: float = 2
) -> None:
    unit = " %" if scale == 100 else ""
    drawn.add_scatter(
        x=list(values["alpha"]),
        y=_scaled(values[key], scale),
        mode="lines",
        line={"color": colour, "width": width, "dash": dash},
        name=name,
        hovertemplate=f"{name}<br>α = %{{x:.4g}}: %{{y:.4g}}{unit}<extra></extra>",
    )


def _add_band(drawn: go.Figure, values: Values, key: str, colour: str, scale: float) -> None:
    """Add a band in pieces: where the curve is not finite there is none."""
    low, high = values[f"{key}_low"], values[f"{key}_high"]
    piece: list[int] = []
    for place in range(len(values["alpha"]) + 1):
        if place < len(values["alpha"]) and low is not None and low[place] is not None:
            piece.append(place)
            continue
        if piece:
            there = [values["alpha"][each] for each in piece]
            ends = [high[each] for each in piece] + [low[each] for each in reversed(piece)]
            drawn.add_scatter(
                x=there + there[::-1],
                y=_scaled(ends, scale),
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=faded(colour, 0.2),
                showlegend=False,
                hoverinfo="skip",
            )
        piece = []


def _add_uncorrected(drawn: go.Figure, values: Values, what: str, scale: float) -> None:
    beside = values["uncorrected"]
    for prefix, (_, dash, name) in LINES.items():
        if beside and beside.get(f"{prefix}{what}") is not None:
            label = f"{name}, BatchNorm interpolated"
            _add_line(drawn, beside, f"{prefix}{what}", label, FAINT, dash, scale, width=1.2)
            drawn.data[-1].legendrank = 1001  # behind the rest


def _add_places(drawn: go.Figure, values: Values, what: str, scale: float) -> None:
    """Mark where the losses were read: on the even grid, and where more was looked at."""
    added = set(values["added"])
    for is_added, symbol, name in ((False, "circle", "evaluated"), (True, "circle-open", "added where it bends")):
        chosen = [place for place, alpha in enumerate(values["alpha"]) if (alpha in added) == is_added]
        if not chosen:
            continue
        drawn.add_scatter(
            x=[values["alpha"][place] for place in chosen],
            y=_scaled([values[what][place] for place in chosen], scale),
            mode="markers",
            marker={"color": COLOURS[0], "size": 5, "symbol": symbol, "line": {"width": 1}},
            name=name,
            hoverinfo="skip",
        )


def _add_on_the_way(drawn: go.Figure, values: Values, what: str, scale: float) -> None:
    rows = values["on_the_way"]
    if not rows:
        return
    labels = as_labels([row["checkpoint"] for row in rows])
    drawn.add_scatter(
        x=[row["alpha"] for row in rows],
        y=_scaled([row[what] for row in rows], scale),
        mode="markers",
        marker={"color": COLOURS[2], "size": 10, "symbol": "diamond", "line": {"color": "white", "width": 1}},
        name="checkpoints on the way, where they project",
        customdata=[[label, row["distance"], row["relative"]] for label, row in zip(labels, rows, strict=True)],
        hovertemplate=(
            f"%{{customdata[0]}}<br>α = %{{x:.4g}}, its own {what} %{{y:.4g}}<br>"
            "off the line by %{customdata[1]:.4g} (%{customdata[2]:.3g} of its length)<extra></extra>"
        ),
    )


def _add_ends(drawn: go.Figure) -> None:
    for alpha in (0, 1):
        drawn.add_vline(x=alpha, line={"color": INK, "width": 1, "dash": "dot"})


def _set_losses(drawn: go.Figure, curves: Sequence[Values], *, log: bool) -> None:
    """Set the axis of losses; where those beyond the checkpoints tower over the rest, they leave it."""
    if log:
        drawn.update_yaxes(type="log", minorloglabels="complete", dtick="D2", tickformat="~g")
        return
    inside: list[float] = []
    everything: list[float] = []
    for values in curves:
        for key in ("loss", "test_loss", "loss_high", "test_loss_high"):
            for alpha, each in zip(values["alpha"], values.get(key) or (), strict=False):
                if each is not None:
                    everything.append(each)
                    inside += [each] if 0 <= alpha <= 1 else []
    if inside and max(everything) > TOWERS * max(inside):
        drawn.update_yaxes(range=[min(0.0, min(inside)), 1.5 * max(inside)])
        drawn.layout.yaxis.title.text += " (higher ones are cut off)"


def _about(card: Mapping[str, Any]) -> str:
    """Say of what a figure is in a line: loss, examples, mode, dtype."""
    mode, _, more = str(card["mode"]).partition(": ")
    told = more.split(",", maxsplit=1)[0] if "BatchNorm statistics" in more else ""
    count = f"n = {card['examples']} examples"
    count += f", {card['test_examples']} of test data" if card.get("test_examples") else ""
    words = [str(card["loss"]).replace("_", "-"), count, f"{mode} mode", told, str(card["dtype"])]
    return as_plotly(", ".join(each for each in words if each))


def _axis(values: Values, start: str = "") -> str:
    one, other = (_short(each) for each in values["checkpoints"])
    return f"α: 0 = {start or one}, 1 = {other}"


def _short(name: object) -> str:
    text = str(name)
    return as_plotly(text if len(text) <= SHORT else f"…{text[1 - SHORT :]}")


def _delta(values: Values) -> str:
    known = [f"{_number(values['delta'])} (data)"]
    if "test_delta" in values:
        known.append(f"{_number(values['test_delta'])} (test data)")
    return ", ".join(known)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def _scaled(row: Sequence[float | None], scale: float) -> list[float | None]:
    return [None if each is None else scale * each for each in row]


def _between(values: Values) -> dict[str, Any]:
    """Return the path from 0 to 1 alone."""
    places = [place for place, alpha in enumerate(values["alpha"]) if 0 <= alpha <= 1]
    return {key: [values[key][place] for place in places] for key in ("alpha", "loss")}
