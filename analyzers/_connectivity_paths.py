"""How curves and dropout stability of a pair are drawn."""

from __future__ import annotations

import plotly.graph_objects as go

from analyzers._connectivity_style import GREY, Values, about, add_band, add_line, titled
from analyzers._figures import COLOURS
from analyzers._series_figures import as_labels


def draw(card: Values, values: Values) -> dict[str, go.Figure]:
    """Draw the curve and its place, dropout stability by share and by layer, and its path, as the values hold them."""
    drawn = {}
    if values.get("curve"):
        drawn["curve"] = _curve(card, values)
        drawn["curve_place"] = _place(card, values)
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


def _of(found: Values) -> str:
    if found["value"] is None:
        return "not finite"
    return f"{found['value']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


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
    result.update_xaxes(tickformat=".0%", autorange="reversed")
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
