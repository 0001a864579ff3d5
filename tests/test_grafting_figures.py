"""Figures of a skill localisation: they show what the result holds, with many layers, few values and hostile names."""

from __future__ import annotations

import math
from typing import Any

import pytest
from test_grafting import planted

from analyzers._base import Quiet
from analyzers._grafting_figures import draw, tables
from analyzers.grafting import Grafting, GraftingResult


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> GraftingResult:
    return Grafting(smallest=4.0, points=6).run(*planted(tmp_path_factory.mktemp("run"), others=1), Quiet())


def test_the_recovery_is_that_of_the_test_data(found) -> None:
    figure = found.figures()["recovery"]
    lines = {(each.name, each.yaxis): each for each in figure.data if each.name and each.x[0] is not None}
    for way, name in (("top", "moved most"), ("bottom", "moved least"), ("random", "random")):
        assert list(lines[name, "y"].x) == [100 * each for each in found.values["share"]]
        assert list(lines[name, "y"].y) == [100 * each for each in found.values["test_accuracy"][way]]
        assert list(lines[name, "y2"].y) == found.values["test_loss"][way]
    levels = sorted({each.y0 for each in figure.layout.shapes if each.yref == "y"})
    ends = [100 * found.values[f"test_{end}_accuracy"] for end in ("base", "fine_tuned")]
    assert levels == pytest.approx(sorted(ends))
    assert "n = 100 examples" in figure.layout.title.subtitle.text and "test data" in figure.layout.title.subtitle.text
    assert figure.layout.xaxis.type == "log" and figure.layout.yaxis2.title.text == "Loss"


@pytest.mark.parametrize(("base", "fine_tuned"), [(0.9, 0.9), (0.5, 0.9), (0.9, 0.5)])
def test_the_names_of_the_ends_stand_apart_even_where_their_levels_are_one(
    found, base: float, fine_tuned: float
) -> None:
    values = {**found.values, "test_base_accuracy": base, "test_fine_tuned_accuracy": fine_tuned}
    names = [each for each in draw(found.card, values)["recovery"].layout.annotations if each.yref == "y"]
    assert sorted(each.yanchor for each in names) == ["bottom", "top"]
    upper, lower = sorted(names, key=lambda each: each.yanchor)
    assert upper.y >= lower.y


def test_the_density_is_relative_to_a_random_graft(found) -> None:
    grid = found.figures()["density"].data[0]
    row, column = list(grid.y).index("head"), list(grid.x).index("head")
    share = found.values["chosen"]["share"]
    assert grid.z[row][column] == pytest.approx(math.log10(1 / 14 / share))
    assert grid.text[row][column] == "7.14 %" and grid.z[row][1 - column] is None


def rows(layers: int, name: str) -> list[dict[str, Any]]:
    kinds = ("attention", "MLP", "norm")
    return [
        {"parameter": f"{name}{i}.{kind}", "layer": f"{name}{i}", "kind": kind, "weights": 100, "grafted": i % 3}
        for i in range(layers)
        for kind in kinds
    ]


def hostile(found, layers: int) -> dict[str, Any]:
    name = "<img src=x>$y$%{z}"
    sums = {kind: {} for kind in ("attention", "MLP", "norm")}
    overlap = {**found.values["overlap"], "names": [name, name]}
    changes = {"density": rows(layers, name), "density_by_kind": sums, "overlap": overlap}
    return {**found.values, **changes, "checkpoints": [name] * 3}


@pytest.mark.parametrize("layers", [1, 12, 100])
def test_names_from_files_are_harmless_and_many_layers_are_readable(found, layers: int) -> None:
    values = hostile(found, layers)
    for figure in draw({**found.card, "model": "<b>"}, values).values():
        text = figure.to_json()
        assert "<img" not in text and "\\u003cimg" not in text and "%{z" not in text and "$y" not in text
        assert figure.layout.template.layout.colorway and figure.layout.title.text
    density = draw(found.card, values)["density"]
    assert density.layout.height >= 26 * layers and len(density.data[0].z) == layers
    assert (density.data[0].text is None) == (layers > 60)
    assert len(tables(values)["density"]) == 3 * layers


def test_the_reliability_has_a_dot_for_each_bin(found) -> None:
    figure = found.figures()["reliability"]
    known = found.values["calibration"]["fine_tuned"]
    (line,) = (each for each in figure.data if each.name == "fine-tuned")
    expected = [None if each is None else 100 * each for each in known["accuracy"]]
    assert list(line.y) == expected and len(expected) == 15
    assert f"{100 * known['error']:.2f} %" in figure.layout.title.subtitle.text
    table = found.tables()["reliability"]
    assert len(table) == 45 and table.counts.sum() == 3 * 100


def test_where_nothing_can_be_recovered_that_is_said(found) -> None:
    lost = dict.fromkeys(("recovery", "of_fine_tuned", "loss_recovery"))
    values = {**found.values, "test_reached": lost, "test_recovery": None, "test_loss_recovery": None}
    figure = draw(found.card, values)["recovery"]
    assert "cannot be told" in figure.layout.title.subtitle.text
    assert any("unknown" in str(each.customdata) for each in figure.data)


def test_without_tasks_or_probabilities_there_are_no_such_figures(found) -> None:
    values = {**found.values, "overlap": None, "calibration": None}
    assert set(draw(found.card, values)) == set(tables(values)) == {"recovery", "density"}
