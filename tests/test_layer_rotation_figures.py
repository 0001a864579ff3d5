"""Figures and tables of layer rotation, of one run and of several."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rotation_runs import files, made, run

from analyzers._base import Result
from analyzers._series_figures import as_labels, depth_colours, time_axis
from probes.errors import ProbeError


@pytest.mark.parametrize("layers", [1, 5, 12, 13, 150])
def test_figures_are_readable_with_few_and_many_layers(tmp_path: Path, layers: int) -> None:
    found = run(made(tmp_path, layers))
    figures = found.figures()
    for figure in figures.values():
        assert figure.layout.template.layout.colorway
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
    lines = [each for each in figures["rotation"].data if each.x[0] is not None]
    assert len(lines) == layers + 1  # the mean
    assert len({each.line.color for each in lines}) == layers + 1
    assert sum(bool(each.showlegend) for each in lines) == (layers + 1 if layers <= 12 else 1)
    bars = [each for each in figures["rotation"].data if each.x[0] is None]
    assert len(bars) == (0 if layers <= 12 else 1)
    ticks = figures["final_rotation"].layout.xaxis.ticktext
    assert (ticks is None) if layers > 24 else len(ticks) == layers
    assert list(figures["final_rotation"].data[0].y) == [row[-1] for row in found.values["rotation"].values()]
    assert figures["rotation"].layout.yaxis.range[0] == 0
    with_walk = found.figures(null=True)["rotation"]
    assert sum(each.line.dash == "dot" for each in with_walk.data) == layers


def test_no_line_is_drawn_at_one(real: Path) -> None:
    for figure in run(files(real, "run1")).figures(null=True).values():
        assert not figure.layout.shapes
        assert all(set(each.y) != {1.0} for each in figure.data)


def test_tables_hold_what_is_drawn(real: Path) -> None:
    found = run(files(real, "run1"))
    tables = found.tables()
    assert set(tables) == {*found.figures(), "layers"}
    rotation = tables["rotation"]
    assert list(rotation[rotation.layer == "3.weight"].rotation) == found.values["rotation"]["3.weight"]
    assert list(rotation[rotation.layer == "3.weight"].epoch) == [0, 50, 100, 150, 200]
    layers = tables["layers"].set_index("layer")
    row = found.values["rotation"]["0.weight"][1:]
    expected = [min(row), np.mean(row), max(row), row[-1]]
    assert list(layers.loc["0.weight", ["min", "mean", "max", "final"]]) == pytest.approx(expected)
    assert list(layers.weights) == [288, 18432, 16000]
    assert len(tables["angular_steps"]) == 3 * 4


def test_names_from_files_cannot_write_markup(tmp_path: Path) -> None:
    found = run(made(tmp_path, 3, prefix="<img src=x>$y$%{z}"))
    for figure in {**found.figures(null=True), **found.overlay([found, found], accuracies=[0.1, 0.2, 0.3])}.values():
        text = figure.to_json()
        assert "<img" not in text and "\\u003cimg" not in text and "%{z" not in text and "$y" not in text


def several(folder: Path, count: int) -> list[Result]:
    """Make runs that turn further and further."""
    results = []
    for index in range(count):
        home = folder / str(index)
        home.mkdir()
        results.append(run(made(home, 2, size=0.1 * (index + 1))))
        shutil.rmtree(home)
    return results


def test_runs_are_drawn_over_one_another_and_against_their_accuracy(tmp_path: Path) -> None:
    one, *others = several(tmp_path, 6)
    assert set(one.overlay(others)) == {"mean_rotation"}
    accuracies = [0.5, 0.6, 0.55, 0.7, 0.8, 0.9]
    drawn = one.overlay(others, accuracies=accuracies)
    means = drawn["mean_rotation"].data
    assert [list(each.y) for each in means] == [each.values["mean_rotation"] for each in (one, *others)]
    assert len({each.name for each in means}) == 6
    against = drawn["rotation_against_accuracy"]
    assert list(against.data[0].y) == pytest.approx([100 * each for each in accuracies])
    words = against.layout.title.subtitle.text
    assert "Spearman's rank correlation 0.94" in words and "bootstrap over 6 runs" in words and "6! orders" in words
    assert set(one.overlay(others, accuracies=[0.1, 0.2, None, None, None, None])) == {"mean_rotation"}
    with pytest.raises(ProbeError, match="There are 2 accuracies for 6 runs"):
        one.overlay(others, accuracies=[0.1, 0.2])


def test_stored_accuracies_are_drawn_where_none_are_given(tmp_path: Path) -> None:
    results = several(tmp_path, 3)
    known = [replace(each, values={**each.values, "accuracy": 0.1 * index}) for index, each in enumerate(results)]
    drawn = known[0].overlay(known[1:])["rotation_against_accuracy"]
    assert "stored" in drawn.layout.yaxis.title.text
    assert "no interval from 3 runs, p = 0.33 (all 3! orders)" in drawn.layout.title.subtitle.text


def test_runs_of_other_layers_are_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = run(made(tmp_path / "a", 2)), run(made(tmp_path / "b", 3))
    with pytest.raises(ProbeError, match="layers: 2 against 3"):
        one.overlay([two])


def test_what_series_share() -> None:
    assert [time_axis(each) for each in ("epoch", "step", "position")] == ["Epoch", "Step", "Checkpoint"]
    assert depth_colours(0) == []
    assert depth_colours(1) == [depth_colours(9)[0]]
    light = lambda colour: sum(
        int(colour[place : place + 2], 16) * part for place, part in ((1, 0.2), (3, 0.7), (5, 0.1))
    )
    shades = [light(each) for each in depth_colours(150)]
    assert shades == sorted(shades) and len(set(depth_colours(150))) == 150 and shades[-1] < 200
    assert as_labels(["a", "<b>", "a", "a (2)"]) == ["a", "&lt;b&gt;", "a (2)", "a (2) (2)"]
