"""How a skill localisation is drawn, and the tables behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyzers._figures import COLOURS, GRID, INK, faded, figure
from analyzers._series_figures import as_labels, of_what

Values = Mapping[str, Any]
WAYS = {
    "top": ("moved most", COLOURS[0], "solid"),
    "random": ("random", COLOURS[8], "dot"),
    "bottom": ("moved least", COLOURS[1], "dash"),
}
MODELS = {"base": ("base", COLOURS[8]), "grafted": ("graft", COLOURS[0]), "fine_tuned": ("fine-tuned", COLOURS[2])}
ROW, CELL = 26, 54  # pixels
EMPTY = "#E4E7EB"
NOTHING = -10.0  # the logarithm of no density at all
# From few to many: blue, white where it is as by chance, orange.
_CHANCE = ((0.0, "#0B6FA4"), (0.5, "#FFFFFF"), (1.0, "#C8501E"))


def draw(card: Mapping[str, Any], values: Values) -> dict[str, go.Figure]:
    """Draw all that the values hold."""
    found = {"recovery": _recovery(card, values), "density": _density(values)}
    if values["overlap"] is not None:
        found["overlap"] = _overlap(values)
    if values["calibration"] is not None:
        found["reliability"] = _reliability(values)
    return found


def tables(values: Values) -> dict[str, pd.DataFrame]:
    """Return the data behind the figures, under their names."""
    found = {"recovery": _recovery_table(values), "density": pd.DataFrame(values["density"])}
    if values["overlap"] is not None:
        found["overlap"] = _overlap_table(values["overlap"])
    if values["calibration"] is not None:
        found["reliability"] = _reliability_table(values["calibration"])
    return found


def _recovery(card: Mapping[str, Any], values: Values) -> go.Figure:
    """Draw accuracy, where there is one, and loss against the share of the weights, on a log axis."""
    prefix = "test_" if "test_loss" in values else ""
    on = "test data" if prefix else "data"
    n = values["examples"][-1]
    words = f"{of_what({**card, 'examples': n})}; {on}; bands: 95 % over examples<br>{_reached_words(values, prefix)}"
    result = figure("What comes back with how many weights", words, "Share of the weights grafted (%)", "")
    panels = [name for name in ("accuracy", "loss") if values[f"{prefix}{name}"] is not None]
    domains = [(0.0, 1.0)] if len(panels) == 1 else [(0.54, 1.0), (0.0, 0.44)]
    titles = {"accuracy": "Accuracy (%)", "loss": "Loss"}
    for name, axis, domain in zip(panels, ("y", "y2"), domains, strict=False):
        for way in WAYS:
            _add_way(result, values, f"{prefix}{name}", way, axis, is_first=axis == "y")
        _add_ends(result, values, f"{prefix}{name}", axis)
        place = {"domain": list(domain), "title": {"text": titles[name]}, "anchor": "x"}
        result.update_layout({axis.replace("y", "yaxis"): place})
    ticks = [10.0**power for power in range(-6, 3)]
    result.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{each:g}" for each in ticks])
    result.update_xaxes(anchor="y" if len(panels) == 1 else "y2", range=_span(values["share"]))
    chosen = 100 * values["chosen"]["share"]
    line = {"color": INK, "width": 1, "dash": "dashdot"}
    for yref in ("y domain", "y2 domain")[: len(panels)]:
        result.add_shape(type="line", x0=chosen, x1=chosen, y0=0, y1=1, yref=yref, line=line)
    result.add_scatter(x=[None], y=[None], mode="lines", line=line, name="share of the other figures")
    result.update_layout(
        height=300 * len(panels) + 170, legend={"y": -0.13 if len(panels) > 1 else -0.2}, margin={"r": 120}
    )
    return result


def _add_way(result: go.Figure, values: Values, key: str, way: str, axis: str, *, is_first: bool) -> None:
    """Draw one way to choose weights with its band; the hover says how much of the gain that is."""
    label, colour, dash = WAYS[way]
    factor = 100 if key.endswith("accuracy") else 1
    x = [100 * each for each in values["share"]]
    low, high, middle = (_times(values[f"{key}{end}"][way], factor) for end in ("_low", "_high", ""))
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "yaxis": axis}
    result.add_scatter(x=x, y=low, **band)
    result.add_scatter(x=x, y=high, fill="tonexty", fillcolor=faded(colour, 0.15), **band)
    recovered = values[key.replace("accuracy", "recovery").replace("loss", "loss_recovery")]
    told = [_percent(each) for each in recovered[way]] if recovered else ["unknown"] * len(x)
    result.add_scatter(
        x=x,
        y=middle,
        yaxis=axis,
        mode="lines+markers" if way == "top" else "lines",
        line={"color": colour, "width": 2.5 if way == "top" else 1.8, "dash": dash},
        marker={"size": 6},
        name=label,
        legendgroup=way,
        showlegend=is_first,
        customdata=[[f"{count:,}", each] for count, each in zip(values["count"], told, strict=True)],
        hovertemplate="%{customdata[0]} weights (%{x:.3g} %), " + label
        + "<br>%{y:.5g}, recovered %{customdata[1]}<extra></extra>",
    )  # fmt: skip


def _add_ends(result: go.Figure, values: Values, key: str, axis: str) -> None:
    """Draw the base and the fine-tuned model as level lines, named at the right."""
    prefix, name = ("test_", key.removeprefix("test_")) if key.startswith("test_") else ("", key)
    factor = 100 if name == "accuracy" else 1
    levels = {end: values[f"{prefix}{end}_{name}"] for end in ("base", "fine_tuned")}
    known = {end: value for end, value in levels.items() if value is not None}
    for (end, value), label in zip(levels.items(), ("base<br>(0 % recovered)", "fine-tuned<br>(100 %)"), strict=True):
        if value is None:
            continue
        above = end == max(known, key=lambda each: known[each])  # so that names of like levels do not overlap
        where = {"xref": "x domain", "yref": axis, "y": factor * value}
        result.add_shape(type="line", x0=0, x1=1, y0=factor * value, y1=factor * value, xref="x domain", yref=axis,
                         line={"color": MODELS[end][1], "width": 1.2}, layer="below")  # fmt: skip
        result.add_annotation(x=1.005, **where, text=label, showarrow=False, xanchor="left", align="left",
                              yanchor="bottom" if above else "top",
                              font={"size": 11, "color": MODELS[end][1]})  # fmt: skip


def _density(values: Values) -> go.Figure:
    """Draw how dense the graft is in each layer and kind, relative to a random one of its size, as a heat-map."""
    rows = values["density"]
    layers, kinds = list(dict.fromkeys(each["layer"] for each in rows)), list(values["density_by_kind"])
    sums = {(layer, kind): [0, 0] for layer in layers for kind in kinds}
    for each in rows:
        cell = sums[each["layer"], each["kind"]]
        cell[0], cell[1] = cell[0] + each["grafted"], cell[1] + each["weights"]
    share = values["chosen"]["share"]
    grid = [[_log_times(sums[layer, kind], share) for kind in kinds] for layer in layers]
    texts = [[_cell(sums[layer, kind]) for kind in kinds] for layer in layers]
    told = [[_density_words(sums[layer, kind], share) for kind in kinds] for layer in layers]
    reach = max((abs(each) for row in grid for each in row if each not in (None, NOTHING)), default=1.0) or 1.0
    words = f"{_chosen_words(values)}; white: as dense as a random graft; grey: no such weights"
    result = figure("Where the grafted weights are", words, "", "Layer")
    ticks = _chance_ticks(reach)
    result.add_heatmap(
        x=kinds, y=as_labels(layers), z=[[None if each is None else max(each, -reach) for each in row] for row in grid],
        zmin=-reach, zmax=reach, colorscale=list(_CHANCE), text=texts if len(layers) <= 60 else None,
        texttemplate="%{text}" if len(layers) <= 60 else None, customdata=told, xgap=2, ygap=2, hoverongaps=False,
        hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
        colorbar={"title": {"text": "times<br>random"}, "tickvals": [math.log10(each) for each in ticks],
                  "ticktext": [f"{each:g}" for each in ticks]},
    )  # fmt: skip
    result.update_yaxes(autorange="reversed", type="category", showgrid=False, dtick=1 if len(layers) <= 60 else None)
    result.update_xaxes(side="bottom", type="category", showgrid=False)
    result.update_layout(height=210 + ROW * max(len(layers), 5), plot_bgcolor=EMPTY)
    return result


def _overlap(values: Values) -> go.Figure:
    """Draw the Jaccard index of the masks of all tasks, with what chance would give."""
    found = values["overlap"]
    names = as_labels(found["names"])
    off = [[None if i == j else each for j, each in enumerate(row)] for i, row in enumerate(found["jaccard"])]
    told = [
        [
            f"{found['shared'][i][j]:,} weights in common, Jaccard {found['jaccard'][i][j]:.3g}<br>by chance "
            f"{found['by_chance'][i][j]:.2g}, by chance within each parameter {found['by_tensor'][i][j]:.2g}"
            for j in range(len(names))
        ]
        for i in range(len(names))
    ]
    texts = [
        ["" if i == j else f"{found['jaccard'][i][j]:.3f}<br>chance {found['by_tensor'][i][j]:.3f}"
         for j in range(len(names))]
        for i in range(len(names))
    ]  # fmt: skip
    most = max((each for row in off for each in row if each is not None), default=0.0)
    words = f"{_chosen_words(values)} in each task; chance: random within each parameter"
    result = figure("Weights that tasks have in common", words, "", "")
    result.add_heatmap(
        x=names, y=names, z=off, zmin=0, zmax=max(most, 0.01), colorscale=[[0, "#FFFFFF"], [1, COLOURS[0]]],
        text=texts, texttemplate="%{text}", customdata=told, xgap=2, ygap=2, hoverongaps=False,
        hovertemplate="%{y} and %{x}<br>%{customdata}<extra></extra>", colorbar={"title": {"text": "Jaccard<br>index"}},
    )  # fmt: skip
    result.update_yaxes(autorange="reversed", type="category", showgrid=False)
    result.update_xaxes(type="category", showgrid=False)
    result.update_layout(height=260 + CELL * len(names), plot_bgcolor=EMPTY)
    return result


def _reliability(values: Values) -> go.Figure:
    """Draw accuracy against confidence in bins for base, graft and fine-tuned model; areas of dots: predictions."""
    found = values["calibration"]
    words = "; ".join(
        f"{label} {100 * found[key]['error']:.2f} % ({100 * found[key]['interval'][0]:.2f} to "
        f"{100 * found[key]['interval'][1]:.2f})" for key, (label, _) in MODELS.items()
    )  # fmt: skip
    title = f"Expected calibration error on the {found['on']}, 95 % interval:"
    result = figure("Reliability", f"{title}<br>{words}", "Mean confidence in a bin (%)", "Accuracy in it (%)")
    result.add_scatter(x=[0, 100], y=[0, 100], mode="lines", line={"color": GRID, "width": 2}, name="calibrated",
                       hoverinfo="skip")  # fmt: skip
    for key, (label, colour) in MODELS.items():
        each = found[key]
        total = sum(each["counts"])
        result.add_scatter(
            x=_times(each["confidence"], 100), y=_times(each["accuracy"], 100), name=label, mode="lines+markers",
            line={"color": faded(colour, 0.5), "width": 1.5},
            marker={"color": faded(colour, 0.75), "size": [6 + 22 * math.sqrt(n / total) for n in each["counts"]],
                    "line": {"width": 0}},
            customdata=[f"{n:,.0f}" for n in each["counts"]],
            hovertemplate="%{customdata} predictions<br>%{x:.1f} % sure, %{y:.1f} % right<extra>" + label + "</extra>",
        )  # fmt: skip
    result.update_xaxes(range=[0, 106])
    result.update_yaxes(range=[-4, 106])
    result.update_layout(height=560)
    return result


def _recovery_table(values: Values) -> pd.DataFrame:
    head = {"share": values["share"], "weights": values["count"]}
    frames = []
    for way in WAYS:
        columns: dict[str, Any] = {"chosen": way, **head}
        for key, each in values.items():
            if isinstance(each, Mapping) and way in each and isinstance(each[way], list):
                columns[key] = each[way]
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _overlap_table(found: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for i, one in enumerate(found["names"]):
        for j in range(i + 1, len(found["names"])):
            numbers = {key: found[key][i][j] for key in ("shared", "jaccard", "by_chance", "by_tensor")}
            rows.append({"one": one, "other": found["names"][j], **numbers})
    return pd.DataFrame(rows)


def _reliability_table(found: Mapping[str, Any]) -> pd.DataFrame:
    keys = ("counts", "confidence", "accuracy")
    frames = []
    for name in MODELS:
        bins = len(found[name]["counts"])
        edges = {
            "above": [place / bins for place in range(bins)],
            "up_to": [(place + 1) / bins for place in range(bins)],
        }
        frames.append(pd.DataFrame({"model": name, **edges, **{key: found[name][key] for key in keys}}))
    return pd.concat(frames, ignore_index=True)


def _reached_words(values: Values, prefix: str) -> str:
    """Say with which share enough is recovered."""
    found = values[f"{prefix}reached"]
    key = "recovery" if found["recovery"] is not None else "loss_recovery"
    name = "gain in accuracy" if key == "recovery" else "gain in loss"
    if found[key] is None:
        return "how much is recovered cannot be told: the fine-tuned model is not clearly better"
    return f"{100 * values['target']:g} % of the {name} comes back with {_percent(found[key])} of the weights"


def _chosen_words(values: Values) -> str:
    chosen = values["chosen"]
    return f"the {chosen['count']:,} weights ({_percent(chosen['share'])}) that moved most"


def _log_times(cell: Sequence[int], share: float) -> float | None:
    """Return the logarithm of how many times denser than at random; cell: weights grafted and all. None of none."""
    grafted, weights = cell
    if not weights:
        return None
    return math.log10(grafted / weights / share) if grafted else NOTHING


def _cell(cell: Sequence[int]) -> str:
    return _percent(cell[0] / cell[1]) if cell[1] else ""


def _density_words(cell: Sequence[int], share: float) -> str:
    grafted, weights = cell
    if not weights:
        return ""
    density = grafted / weights
    return f"{grafted:,} of {weights:,} weights ({_percent(density)}), {density / share:.3g} times random"


def _chance_ticks(reach: float) -> list[float]:
    if reach < 0.4:
        steps = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5]
    else:
        steps = [step * 10.0**power for power in range(-6, 7) for step in ((1, 2, 5) if reach < 1.3 else (1,))]
    return [each for each in steps if abs(math.log10(each)) <= reach + 1e-9]


def _span(shares: Sequence[float]) -> list[float]:
    return [math.log10(100 * shares[0]) - 0.1, 2.1]


def _times(values: Sequence[float | None], factor: float) -> list[float | None]:
    return [None if each is None else factor * each for each in values]


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"
