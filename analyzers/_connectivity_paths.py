"""How curves and dropout stability of a pair are drawn."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from analyzers._base import Arrays
from analyzers._connectivity_style import GREY, Values, about, add_band, add_line, titled
from analyzers._figures import COLOURS
from analyzers._series_figures import as_labels


def draw(card: Values, values: Values, arrays: Arrays) -> dict[str, go.Figure]:
    """Draw the curve and its place, dropout stability by share and by layer, and its path, as the values hold them."""
    drawn = {}
    if values.get("curve"):
        drawn["curve"] = _curve(card, values)
        drawn["curve_place"] = _place(card, values)
        if "curve_plane" in arrays:
            drawn["curve_plane"] = _plane(card, values, arrays)
    if values.get("soups"):
        drawn["soups"] = _soups(card, values)
    if values.get("dropout"):
        drawn["dropout"] = _dropout(card, values)
        drawn["dropout_layers"] = _dropout_layers(card, values)
    if values.get("dropout_path"):
        drawn["dropout_path"] = _half_networks(card, values)
    return drawn


def _curve(card: Values, values: Values) -> go.Figure:
    found = values["curve"]
    bends = f"{found['bends']} bend{'s' if found['bends'] > 1 else ''}"
    highest, integral = found["summary"]["highest"], found["summary"]["integral"]
    told = f"{found['kind']}, {bends}; highest {_of(highest)}, mean over its length {_of(integral)}"
    title = "Loss along the curve between the two"
    result = titled(title, f"{told}<br>{about(card, values)}", "t: from the first (0) to the second (1)", "Loss")
    add_line(result, values["lambda"], values["loss"]["naive"], "straight line", GREY)
    add_band(result, found["t"], found["loss_low"], found["loss_high"], COLOURS[1])
    add_line(result, found["t"], found["loss"], "curve", COLOURS[1])
    if found.get("test_loss"):
        add_line(result, found["t"], found["test_loss"], "curve, test data", COLOURS[1], "dash")
    return result


def _place(card: Values, values: Values) -> go.Figure:
    """Draw where the curve runs in its plane, in true distance, coloured by the loss."""
    found = values["curve"]
    x, y = zip(*found["places"], strict=True)
    words = f"length {found['length']:.4g}, straight {found['straight_length']:.4g}"
    title = "Where the curve runs"
    along, across = "Distance along the straight line", "Distance from it, in the plane of the widest bend"
    result = titled(title, f"{words}<br>{about(card, values)}", along, across)
    result.add_scatter(
        x=[x[0], x[-1]], y=[y[0], y[-1]], mode="lines", name="straight line",
        line={"color": GREY, "dash": "dot", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    result.add_scatter(
        x=list(x),
        y=list(y),
        mode="lines+markers",
        name="curve",
        line={"color": GREY, "width": 1},
        marker={
            "size": 7,
            "color": found["loss"],
            "colorscale": "Viridis",
            "showscale": True,
            "colorbar": {"title": {"text": "loss"}, "thickness": 14},
        },
        customdata=[[t, loss] for t, loss in zip(found["t"], found["loss"], strict=True)],
        hovertemplate="t = %{customdata[0]:.3f}: loss %{customdata[1]:.5g}<extra></extra>",
    )
    result.update_yaxes(scaleanchor="x")
    result.update_xaxes(constrain="domain")
    return result


def _plane(card: Values, values: Values, arrays: Arrays) -> go.Figure:
    """Draw the loss in the plane of the curve up to half again what the two ways between the ends reach."""
    found = values["curve"]
    plane, (x, y) = found["plane"], zip(*found["places"], strict=True)
    error = "not known" if plane["error"] is None else f"{100 * plane['error']:.2g} % of its range"
    words = f"{plane['points']} points evaluated, marked; interpolation error {error}"
    title = "Loss in the plane of the curve"
    along, across = "Distance along the straight line", "Distance from it, towards the widest bend"
    result = titled(title, f"{words}<br>{about(card, values)}", along, across)
    known = [each for each in (*found["loss"], *values["loss"]["naive"]) if each is not None]
    cells = np.asarray(arrays["curve_plane"], dtype=np.float64)
    top = 1.5 * max(known, default=1.0)
    result.add_contour(
        x=plane["x"],
        y=plane["y"],
        z=[[None if np.isnan(each) else float(min(each, top)) for each in row] for row in cells],
        colorscale="Viridis",
        ncontours=20,
        line={"width": 0.5},
        colorbar={"title": {"text": f"loss<br>(to {top:.2g})"}, "thickness": 14},
        hovertemplate="(%{x:.3g}, %{y:.3g}): loss %{z:.4g}<extra></extra>",
    )
    at = np.asarray(arrays["curve_plane_points"])
    dot = {"size": 3, "color": "white", "opacity": 0.7}
    result.add_scatter(
        x=at[:, 0], y=at[:, 1], mode="markers", marker=dot, name="evaluated points", hoverinfo="skip", showlegend=False
    )
    result.add_scatter(
        x=list(x), y=list(y), mode="lines", line={"color": COLOURS[1], "width": 3}, name="curve", hoverinfo="skip"
    )
    result.add_scatter(
        x=[x[0], x[-1]], y=[y[0], y[-1]], mode="markers+lines", name="the two, straight line", hoverinfo="skip",
        line={"color": "white", "dash": "dot", "width": 2},
        marker={"size": 11, "color": COLOURS[1], "line": {"color": "white", "width": 2}},
    )  # fmt: skip
    result.update_yaxes(scaleanchor="x")
    result.update_xaxes(constrain="domain")
    return result


def _of(found: Values) -> str:
    if found["value"] is None:
        return "not finite"
    return f"{found['value']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def _soups(card: Values, values: Values) -> go.Figure:
    """Draw the loss of each checkpoint alone and of the averages, with intervals."""
    found = values["soups"]
    rows = [*found["alone"], *found["rows"]]
    names = as_labels(each.get("checkpoint") or f"{each['what']} ({len(each['chosen'])})" for each in rows)
    words = f"in brackets: how many checkpoints are in it<br>{about(card, values)}"
    result = titled("Averages of the checkpoints", words, "Loss", "")
    for of, name, colour in (("", "data", COLOURS[0]), ("test_", "test data", COLOURS[1])):
        known = [(label, each) for label, each in zip(names, rows, strict=True) if each.get(f"{of}loss") is not None]
        if not known:
            continue
        loss = [each[f"{of}loss"] for _, each in known]
        low, high = ([each[f"{of}loss_{end}"] for _, each in known] for end in ("low", "high"))
        result.add_scatter(
            x=loss,
            y=[label for label, _ in known],
            error_x={
                "type": "data",
                "array": [up - each for up, each in zip(high, loss, strict=True)],
                "arrayminus": [each - down for down, each in zip(low, loss, strict=True)],
                "thickness": 1.5,
            },
            mode="markers",
            marker={"size": 10, "color": colour, "symbol": "circle" if not of else "diamond"},
            name=name,
            hovertemplate=f"%{{y}}<br>{name}: loss %{{x:.5g}}<extra></extra>",
        )
    result.update_yaxes(autorange="reversed", type="category")
    result.update_xaxes(rangemode="tozero")
    result.update_layout(height=max(420, 260 + 28 * len(rows)))
    return result


def _dropout(card: Values, values: Values) -> go.Figure:
    found = values["dropout"]
    draws = next(iter(found.values()))["draws"]
    words = f"mean over {draws} random draws, error bars: its standard error; all hidden layers at once"
    axes = "Share of the hidden units kept", "Change of the loss, |L(θ) − L(θ kept)|"
    result = titled("Dropout stability", f"{words}<br>{about(card, values)}", *axes)
    for colour, (name, each) in zip((COLOURS[0], COLOURS[1]), found.items(), strict=False):
        result.add_scatter(
            x=each["kept"],
            y=each["epsilon"],
            error_y={"type": "data", "array": each["epsilon_stderr"], "thickness": 1.2},
            mode="lines+markers",
            line={"color": colour, "width": 2},
            name=f"the {name}, loss {each['loss']:.3g}" if each["loss"] is not None else f"the {name}",
            customdata=each["mean_accuracy"],
            hovertemplate="%{x:.0%} kept: ε = %{y:.4g}<extra></extra>",
        )
    result.update_xaxes(tickformat=".2~%", autorange="reversed")
    result.update_yaxes(rangemode="tozero")
    return result


def _dropout_layers(card: Values, values: Values) -> go.Figure:
    found = values["dropout"]["first"]
    labels = as_labels(f"{name} ({units})" for name, units in zip(found["layers"], found["units"], strict=True))
    title = "Dropout stability of each layer alone"
    words = f"the first checkpoint; change of the loss<br>{about(card, values)}"
    result = titled(title, words, "Share of its units kept", "")
    result.add_heatmap(
        z=found["layer_epsilon"],
        x=[f"{each:.0%}" for each in found["kept"]],
        y=labels,
        colorscale="Blues",
        zmin=0,
        texttemplate="%{z:.2g}" if len(labels) <= 24 else None,
        hovertemplate="%{y}, %{x} kept: ε = %{z:.4g}<extra></extra>",
        colorbar={"title": {"text": "ε"}, "thickness": 14},
        xgap=1,
        ygap=1,
    )
    result.update_yaxes(autorange="reversed", showgrid=False)
    result.update_xaxes(showgrid=False, type="category")
    result.update_layout(height=max(420, 240 + 24 * len(labels)))
    return result


def _half_networks(card: Values, values: Values) -> go.Figure:
    found = values["dropout_path"]
    highest = "not finite" if found["highest"] is None else f"{found['highest']:.3g}"
    words = f"built without training; highest loss {highest}<br>{about(card, values)}"
    result = titled("Loss on the path through half-networks", words, "Segment of the path", "Loss")
    add_band(result, found["segment"], found["loss_low"], found["loss_high"], COLOURS[3])
    add_line(result, found["segment"], found["loss"], "path", COLOURS[3])
    if found.get("test_loss"):
        add_line(result, found["segment"], found["test_loss"], "path, test data", COLOURS[3], "dash")
    labels = as_labels(found["labels"])
    steps = (len(found["segment"]) - 1) // (len(labels) - 1)
    result.add_scatter(
        x=list(range(len(labels))),
        y=found["loss"][::steps],
        mode="markers",
        marker={"size": 8, "color": "white", "line": {"color": COLOURS[3], "width": 2}},
        name="corners",
        customdata=labels,
        hovertemplate="%{customdata}<br>loss %{y:.5g}<extra></extra>",
    )
    result.update_xaxes(dtick=1 if len(labels) <= 30 else None)
    return result
