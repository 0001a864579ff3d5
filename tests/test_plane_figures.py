"""Figures and tables of slices of the loss: what is marked, in which units, and that names from files do no harm."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from curvature_oracles import Notes
from series_runs import a_run
from test_plane_runs import a_net, digits, trained

from analyzers._plane_figures import draw, tables
from analyzers._plane_words import step, ticks
from analyzers._planes import PlaneOptions, measure_planes, plane_values

KINDS = ("random", "hessian", "checkpoints", "trajectory")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    torch.manual_seed(0)
    data, net = digits(), a_net()
    folder = tmp_path_factory.mktemp("run")
    objective, checkpoints = a_run(folder, net, trained(net, data, 120, 30), data, every=30)
    options = PlaneOptions(resolution=21, error=0.05)
    order = [checkpoints[place] for place in (0, 4, 1, 2, 3)]
    return {kind: plane_values(measure_planes(kind, objective, order, options, Notes()))[:2] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_plane_has_its_figures_with_units_and_what_it_rests_on(kind: str, found) -> None:
    values, arrays = found[kind]
    json.dumps(values, allow_nan=False)
    figures = draw(values, arrays)
    assert list(figures) == ["plane_0_contour", "plane_0_surface", "plane_0_accuracy"]
    plane = values["planes"][0]
    for name, each in figures.items():
        assert each.layout.template.layout.colorway
        subtitle = each.layout.title.subtitle.text
        assert "n = 300 examples" in subtitle and "eval mode" in subtitle and "no BatchNorm" in subtitle
        assert f"{plane['evaluations']} points evaluated" in subtitle and "stated interpolation error" in subtitle
        assert "of the curvature" in subtitle
        if name != "plane_0_surface":
            assert each.layout.xaxis.title.text.startswith("Distance ")
            assert each.layout.yaxis.title.text.endswith("(‖Δθ‖)")
            assert each.layout.yaxis.scaleanchor == "x" and each.layout.yaxis.scaleratio == 1
    contour = figures["plane_0_contour"].data
    assert contour[0].colorbar.title.text == "Loss"
    assert np.array_equal(contour[0].customdata, arrays["plane_0_loss"])
    assert (np.array(contour[0].text) == "evaluated").sum() == arrays["plane_0_evaluated"].sum()
    dots = next(each for each in contour[1:] if each.name.startswith("evaluated points"))
    assert len(dots.x) == plane["evaluations"] and list(dots.x) == arrays["plane_0_at"][:, 0].tolist()
    centre = contour[-1]
    assert (centre.x, centre.y) == ((0.0,), (0.0,)) and centre.name.startswith("centre: ")


def test_checkpoints_stand_where_they_are_and_the_path_follows_time(found) -> None:
    values, arrays = found["trajectory"]
    by_name = {each.name: each for each in draw(values, arrays)["plane_0_contour"].data}
    path = by_name["path in the order of time"]
    marks = values["planes"][0]["points"]
    assert [each["label"] for each in marks] == [f"step {30 * place}" for place in range(5)]
    assert list(path.x) == [each["x"] for each in marks] and list(path.y) == [each["y"] for each in marks]
    assert list(by_name["checkpoints, projected onto the plane"].text) == [f"step {30 * place}" for place in range(4)]
    values, arrays = found["checkpoints"]
    drawn = {each.name: each for each in draw(values, arrays)["plane_0_contour"].data}
    shown = drawn["checkpoints, projected onto the plane"]
    symbols = dict(zip(shown.text, shown.marker.symbol, strict=True))
    assert symbols["B: step-120.pt"] == symbols["C: step-30.pt"] == "diamond"
    assert symbols["step-60.pt"] == "circle"


def test_checkpoints_that_lie_off_the_plane_are_not_drawn_into_it(found) -> None:
    for kind in ("random", "hessian"):
        values, arrays = found[kind]
        plane = values["planes"][0]
        near = [each for each in plane["points"] if each["role"] != "centre"]
        held = [
            (each["x"] ** 2 + each["y"] ** 2) / (each["x"] ** 2 + each["y"] ** 2 + each["off_plane"] ** 2)
            for each in near
        ]
        names = [each.name for each in draw(values, arrays)["plane_0_contour"].data[1:]]
        assert any("checkpoints" in each for each in names) == any(share >= 0.01 for share in held)
        assert plane["trajectory_share"] < 0.5


def test_levels_are_logarithmic_over_decades_and_none_is_finer_than_the_error(found) -> None:
    values, arrays = copy.deepcopy(found["random"])
    plane = values["planes"][0]
    plane |= {"range": [0.001, 10.0], "stated_error": 0.002}
    contour = draw(values, arrays)["plane_0_contour"].data[0]
    assert contour.zmin == pytest.approx(np.log10(0.002 * 9.999)) and contour.zmax == pytest.approx(1)
    assert contour.contours.start >= contour.zmin
    assert list(contour.colorbar.ticktext) == ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]
    surface = draw(values, arrays)["plane_0_surface"]
    assert surface.layout.scene.zaxis.type == "log"
    plane |= {"range": [1.0, 10.0], "stated_error": None}
    contour = draw(values, arrays)["plane_0_contour"]
    assert (contour.data[0].zmin, contour.data[0].zmax) == (1.0, 10.0)
    assert "not known yet" in contour.layout.title.subtitle.text


def test_tables_hold_what_is_drawn(found) -> None:
    values, arrays = found["checkpoints"]
    rows = tables(values, arrays)
    assert set(draw(values, arrays)) <= set(rows)
    cells = rows["plane_0_contour"]
    assert len(cells) == 21 * 21 and cells.evaluated.sum() == arrays["plane_0_evaluated"].sum()
    plane = values["planes"][0]
    one = cells[(cells.x == plane["x"][3]) & (cells.y == plane["y"][7])]
    assert one.loss.item() == arrays["plane_0_loss"][7, 3]
    assert len(rows["plane_0_points"]) == plane["evaluations"]
    assert {"x", "y", "loss", "accuracy"} == set(rows["plane_0_points"])
    assert list(rows["plane_0_marks"].label) == [each["label"] for each in plane["points"]]


def test_names_from_files_cannot_write_markup(found) -> None:
    values, arrays = copy.deepcopy(found["checkpoints"])
    bad = "<b onclick=x>$a$</b>%{x}"
    plane = values["planes"][0]
    plane |= {"model": bad, "centre": bad}
    for each in plane["points"]:
        each["label"] = bad
    for figure in draw(values, arrays).values():
        text = figure.to_json().replace("\\u003c", "<")
        assert "<b onclick" not in text and "$a$" not in text
        assert "%{x}" not in text.replace("x %{x:", "")


def test_what_is_not_finite_is_left_empty(found) -> None:
    values, arrays = copy.deepcopy(found["random"])
    arrays["plane_0_loss"][:3] = np.nan
    values["planes"][0] |= {"loss_at_centre": None, "curvature_share": None, "trajectory_share": None}
    figures = draw(values, arrays)
    assert np.isnan(figures["plane_0_contour"].data[0].z[0][0])
    assert "Held by" not in figures["plane_0_contour"].layout.title.subtitle.text


def test_ticks_and_steps() -> None:
    assert ticks(0.01, 0.5) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
    assert ticks(1e-4, 1e4) == pytest.approx([10.0**power for power in range(-4, 5)])
    assert step(0, 1, 18) == pytest.approx(0.1) and step(0, 3.1, 18) == pytest.approx(0.2)
    assert step(2, 2, 18) == 1.0
