"""The panels of a training run: what is drawn is what was measured, on one axis of time."""

from __future__ import annotations

import pytest

from analyzers._run_figures import Curve, Panel, height_of, run_figure, run_table

TIMES = (0.0, 50.0, 100.0)
LOSS = Panel("Loss", (Curve("loss", (2.3, 0.04, None), (0.01, 0.002, None)),))
TOP = Panel(
    "λ", (Curve("largest eigenvalue", (4.0, 90.0, 500.0)), Curve("2 / learning rate", (200.0,) * 3, (), "mark"))
)
NONE = Panel("Noise scale", (Curve("noise scale", (None, None, None)),))


def test_panels_stand_below_one_another_on_one_axis_of_time() -> None:
    drawn = run_figure([LOSS, NONE, TOP], TIMES, "epoch", "a.pt … c.pt")
    assert [trace.xaxis for trace in drawn.data] == ["x", "x", "x"]
    assert [trace.yaxis for trace in drawn.data] == ["y", "y2", "y2"]
    assert drawn.layout.yaxis.domain[0] > drawn.layout.yaxis2.domain[1]
    assert drawn.layout.yaxis.domain[1] == 1 and drawn.layout.yaxis2.domain[0] == pytest.approx(0, abs=1e-12)
    assert (drawn.layout.hovermode, drawn.layout.hoversubplots) == ("x unified", "axis")
    assert drawn.layout.xaxis.title.text == "Epoch" and drawn.layout.xaxis.anchor == "y2"
    assert [drawn.layout.yaxis.title.text, drawn.layout.yaxis2.title.text] == ["Loss", "λ"]
    assert drawn.layout.template.layout.paper_bgcolor == "white"
    assert drawn.layout.height == height_of([LOSS, NONE, TOP]) > height_of([LOSS])


def test_values_errors_and_holes_are_those_that_were_given() -> None:
    (trace,) = run_figure([LOSS], TIMES, "step", "run").data
    assert list(trace.x) == list(TIMES)
    assert list(trace.y) == [2.3, 0.04, None]
    assert list(trace.error_y.array) == [0.01, 0.002, 0.0]
    assert list(trace.customdata) == [" ± 0.01", " ± 0.002", ""]
    assert not trace.connectgaps


def test_what_differs_by_orders_of_magnitude_stands_on_a_log_axis() -> None:
    share = Panel("Accuracy (%)", (Curve("accuracy", (1.0, 90.0, 99.0)),), is_linear=True)
    drawn = run_figure([share, TOP], TIMES, "epoch", "run")
    assert drawn.layout.yaxis.type is None and drawn.layout.yaxis2.type == "log"
    below = Panel("λ", (Curve("eigenvalue", (-1.0, 2.0, 5000.0)),))
    assert run_figure([below], TIMES, "epoch", "run").layout.yaxis.type is None


def test_a_line_to_compare_with_is_no_measurement() -> None:
    alone = Panel("λ", (Curve("largest eigenvalue", (None,) * 3), Curve("2 / learning rate", (20.0,) * 3, (), "mark")))
    assert alone.measured == ()
    with pytest.raises(ValueError, match="nothing"):
        run_figure([alone], TIMES, "epoch", "run")
    drawn = run_figure([TOP], TIMES, "epoch", "run")
    assert [trace.line.dash for trace in drawn.data] == ["solid", "dash"]
    assert [trace.showlegend for trace in drawn.data] == [True, True]


def test_lower_bounds_are_arrows_without_a_line() -> None:
    noise = Panel("Noise", (Curve("scale", (1.0, None, 2.0)), Curve("at least", (None, 5.0, None), (), "bound")))
    scale, bound = run_figure([noise], TIMES, "epoch", "run").data
    assert (scale.mode, bound.mode, bound.marker.symbol) == ("lines+markers", "markers", "triangle-up-open")
    assert scale.marker.symbol is None


def test_names_of_files_are_only_text() -> None:
    drawn = run_figure([LOSS], TIMES, "epoch", "<b>x</b>$y$ … z.pt")
    assert drawn.layout.title.subtitle.text == "&lt;b&gt;x&lt;/b&gt;&#36;y&#36; … z.pt"


def test_the_table_has_what_was_measured_and_nothing_else() -> None:
    table = run_table([LOSS, NONE, TOP], TIMES, "epoch")
    assert list(table.columns) == ["epoch", "quantity", "value", "error"]
    first = table[table["quantity"] == "loss"]
    assert first[["epoch", "value", "error"]].values.tolist() == [[0, 2.3, 0.01], [50, 0.04, 0.002]]
    assert set(table["quantity"]) == {"loss", "largest eigenvalue", "2 / learning rate"}
    assert "checkpoint" in run_table([NONE], TIMES, "position").columns


def test_a_curve_has_a_value_for_each_time() -> None:
    with pytest.raises(ValueError, match="3 values for 2 times"):
        run_figure([TOP], TIMES[:2], "epoch", "run")
