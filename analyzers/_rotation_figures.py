"""How layer rotation is drawn: lines by layer over time, final bars, norms, steps; several runs over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analyzers._base import Result, differences
from analyzers._figures import COLOURS, INK, as_plotly, figure
from analyzers._series_figures import as_labels, depth_colours, time_axis
from probes.errors import ProbeError

NAMED = 12  # lines that a legend can name; more are told apart by a colour bar and by what the pointer shows
TICKED = 24  # bars whose names fit below them
ROTATION = "Rotation 1 − cos(w, w₀)"
ANGLE = "Angle to the checkpoint before (radians)"
WALK = "random walk of the same steps"

Values = Mapping[str, Any]


def draw(values: Values, *, null: bool = False) -> dict[str, go.Figure]:
    """Draw the four figures of one run; null: also the random walk of each layer, dotted."""
    return {
        "rotation": _rotation(values, null=null),
        "final_rotation": _final(values),
        "norms": _norms(values),
        "angular_steps": _steps(values),
    }


def overlay(
    results: Sequence[Result], accuracies: Sequence[float | None] = (), names: Sequence[str] = ()
) -> dict[str, go.Figure]:
    """Draw the mean rotation of several runs and, where three accuracies are known, how it goes with them.

    accuracies: fractions or None, one for each result; names: of the runs, else those of their last checkpoints. Raises
    ProbeError, naming what differs, when the results are not of the same layers.
    """
    for other in results[1:]:
        odd = differences(results[0].card, other.card)
        if odd:
            raise ProbeError(f"These runs cannot be compared, they are not of the same thing: {'; '.join(odd)}.")
    for given, what in ((accuracies, "accuracies"), (names, "names")):
        if given and len(given) != len(results):
            raise ProbeError(f"There are {len(given)} {what} for {len(results)} runs; give one for each.")
    labels = as_labels(names or [(each.card.get("checkpoint") or {}).get("name", "run") for each in results])
    known = list(accuracies) if accuracies else [each.values["accuracy"] for each in results]
    drawn = {"mean_rotation": _means(results, labels)}
    ends = [each.values["mean_rotation"][-1] for each in results]
    pairs = [
        (label, end, accuracy)
        for label, end, accuracy in zip(labels, ends, known, strict=True)
        if end is not None and accuracy is not None
    ]
    if len(pairs) >= 3:
        drawn["rotation_against_accuracy"] = _against(pairs, results[0].values, "given" if accuracies else "stored")
    return drawn


def _rotation(values: Values, *, null: bool) -> go.Figure:
    words = f"{_about(values)}; {WALK} dotted" if null else _about(values)
    result = figure(f"Layer rotation since {_since(values)}", words, time_axis(values["unit"]), ROTATION)
    if null:
        _add_lines(result, values, values["null"], dash="dot", words=WALK)
    _add_lines(result, values, values["rotation"])
    name = f"mean over {_counted(values)}"
    _add_line(result, values["times"], values["mean_rotation"], INK, name, _hover(name, values, "%{y:.3f}"), width=3)
    result.update_yaxes(range=[0, _top(values["rotation"], values["null"] if null else {})])
    return result


def _final(values: Values) -> go.Figure:
    layers = list(values["rotation"])
    marked = "; hatched: embeddings" if "embedding" in values["kinds"].values() else ""
    title = f"Rotation since {_since(values)} at {_time(values, -1)}"
    result = figure(title, f"{_about(values)}; ◇ {WALK}{marked}", "Layer, first to last", ROTATION)
    labels, places = as_labels(layers), list(range(1, len(layers) + 1))
    size = 10 if len(layers) <= TICKED else 4
    hatch = ["/" if values["kinds"][layer] == "embedding" else "" for layer in layers]
    ends, walks = ([values[key][layer][-1] for layer in layers] for key in ("rotation", "null"))
    result.add_bar(
        x=places,
        y=ends,
        marker={"color": depth_colours(len(layers)), "pattern": {"shape": hatch}},
        customdata=labels,
        hovertemplate="%{customdata}<br>rotation %{y:.4f}<extra></extra>",
        showlegend=False,
    )
    result.add_scatter(
        x=places,
        y=walks,
        mode="markers",
        marker={"color": "white", "size": size, "symbol": "diamond", "line": {"color": INK, "width": 1.5}},
        customdata=labels,
        hovertemplate=f"%{{customdata}}<br>{WALK} %{{y:.4f}}<extra></extra>",
        showlegend=False,
    )
    if len(layers) <= TICKED:
        ticks = [_short(each) for each in layers]
        result.update_xaxes(tickvals=places, ticktext=ticks, tickangle=-35 if max(map(len, ticks)) > 6 else 0)
    result.update_yaxes(range=[0, _top(values["rotation"], values["null"])])
    return result


def _norms(values: Values) -> go.Figure:
    title = f"Norms of the layers relative to {_since(values, article=True)}"
    result = figure(title, _about(values), time_axis(values["unit"]), "Norm ‖w‖ / ‖w₀‖")
    _add_lines(result, values, values["norm_ratio"])
    result.update_yaxes(rangemode="tozero")
    return result


def _steps(values: Values) -> go.Figure:
    words = f"{_about(values)}; under a norm layer this is the effective step"
    result = figure("Angular steps between checkpoints", words, time_axis(values["unit"]), ANGLE)
    moved = {layer: [each or None for each in row] for layer, row in values["angular_step"].items()}
    _add_lines(result, values, moved)
    result.update_yaxes(type="log", minorloglabels="complete", dtick="D2", tickformat="~g")
    return result


def _add_lines(result: go.Figure, values: Values, rows: Mapping[str, Any], dash: str = "", words: str = "") -> None:
    colours = depth_colours(len(rows))
    for label, colour, (layer, row) in zip(as_labels(rows), colours, rows.items(), strict=True):
        is_table = values["kinds"][layer] == "embedding"
        name = f"{label} (embedding)" if is_table else label
        shown = len(rows) <= NAMED and not words
        hover = _hover(f"{name}, {words}" if words else name, values, "%{y:.4g}")
        line = dash or ("dash" if is_table else "solid")
        _add_line(result, values["times"], row, colour, name, hover, dash=line, shown=shown)
    if len(rows) > NAMED and not words:
        _add_bar(result, colours)


def _add_line(
    result: go.Figure,
    times: Sequence[float],
    row: Sequence[float | None],
    colour: str,
    name: str,
    hover: str,
    *,
    dash: str = "solid",
    width: float = 2,
    shown: bool = True,
) -> None:
    result.add_scatter(
        x=list(times),
        y=list(row),
        mode="lines" if dash == "dot" or len(times) > 60 else "lines+markers",
        line={"color": colour, "width": width, "dash": dash},
        marker={"size": 6},
        name=name,
        showlegend=shown,
        hovertemplate=hover,
    )


def _add_bar(result: go.Figure, colours: Sequence[str]) -> None:
    """Add a colour bar from the first to the last layer, in the place of a legend that nobody could read."""
    count = len(colours)
    scale = [[index / (count - 1), colour] for index, colour in enumerate(colours)]
    bar = {"title": "Layer", "tickvals": [1, count], "ticktext": ["first", f"last ({count})"], "thickness": 14}
    result.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"color": [1], "cmin": 1, "cmax": count, "colorscale": scale, "showscale": True, "colorbar": bar},
        showlegend=False,
        hoverinfo="skip",
    )


def _means(results: Sequence[Result], labels: Sequence[str]) -> go.Figure:
    values = results[0].values
    words = f"{len(results)} runs, mean over {_counted(values)}"
    result = figure(f"Mean layer rotation since {_since(values)}", words, time_axis(values["unit"]), ROTATION)
    for index, (label, each) in enumerate(zip(labels, results, strict=True)):
        hover, colour = _hover(label, each.values, "%{y:.4g}"), COLOURS[index % len(COLOURS)]
        _add_line(result, each.values["times"], each.values["mean_rotation"], colour, label, hover)
    result.update_yaxes(range=[0, _top(*({"mean": each.values["mean_rotation"]} for each in results))])
    return result


def _against(pairs: Sequence[tuple[str, float, float]], values: Values, source: str) -> go.Figure:
    from probes.ranks import rank_correlation

    labels, ends, known = zip(*pairs, strict=True)
    found = rank_correlation(ends, known)
    words = f"{len(pairs)} runs; {found.words if found else 'no rank correlation: all are the same'}"
    title = "Final mean rotation against accuracy"
    result = figure(title, words, f"Mean rotation since {_since(values)}", f"Accuracy ({source}, %)")
    result.add_scatter(
        x=list(ends),
        y=[100 * each for each in known],
        mode="markers",
        marker={"size": 11, "color": [COLOURS[index % len(COLOURS)] for index in range(len(pairs))]},
        customdata=list(labels),
        hovertemplate="%{customdata}<br>rotation %{x:.4f}<br>accuracy %{y:.2f} %<extra></extra>",
        showlegend=False,
    )
    return result


def _about(values: Values) -> str:
    layers, weights = len(values["rotation"]), sum(values["weights"].values())
    words = f"{layers} layers, {weights:,} weights" if layers > 1 else f"1 layer, {weights:,} weights"
    unlikely = values["seed_match"]["verdict"] == "unlikely"
    return f"{words}; probably NOT this run's initialisation" if unlikely else words


def _since(values: Values, *, article: bool = False) -> str:
    since = as_plotly(values["since"])
    return f"the {since}" if article and since == "initialisation" else since


def _time(values: Values, place: int) -> str:
    unit = "checkpoint" if values["unit"] == "position" else values["unit"]
    return f"{as_plotly(unit)} {values['times'][place]:g}"


def _counted(values: Values) -> str:
    count = sum(kind == "kernel" for kind in values["kinds"].values()) or len(values["kinds"])
    return f"{count} layers" if count > 1 else "1 layer"


def _hover(name: str, values: Values, number: str) -> str:
    return f"{name}<br>{time_axis(values['unit']).lower()} %{{x:g}}: {number}<extra></extra>"


def _top(*groups: Mapping[str, Sequence[float | None]]) -> float:
    """Return the upper end of an axis from 0: a right angle, more where there is more, less where all is near 0."""
    most = max((each for rows in groups for row in rows.values() for each in row if each is not None), default=1.0)
    return 1.05 * max(most, 1.0 if most > 0.3 else 1e-12)


def _short(name: str) -> str:
    """Shorten the name of a layer for a tick: its end tells most."""
    plain = name.removesuffix(".weight") or name
    return as_plotly(plain if len(plain) <= 28 else f"…{plain[-27:]}")
