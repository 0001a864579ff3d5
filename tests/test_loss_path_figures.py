"""Figures and tables of a loss path, of one and of several over one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from curvature_oracles import batches, cnn
from series_runs import a_run, moved

from analyzers._base import Quiet
from analyzers.loss_path import LossPath, LossPathResult
from probes.errors import ProbeError


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> LossPathResult:
    """Return a path of a network with BatchNorm, with test data and a checkpoint on the way."""
    module, data = cnn()
    objective, checkpoints = a_run(tmp_path_factory.mktemp("run"), module, moved(module, 3, 0.3), data)
    objective = objective.with_test(batches(data.inputs[:5], data.targets[:5]))
    return LossPath(points=7, refine=3).run(objective, checkpoints, Quiet())


def named(figure) -> dict:
    return {each.name: each for each in figure.data if each.name}


def test_curves_bands_places_and_checkpoints_are_drawn(found: LossPathResult) -> None:
    figures, values = found.figures(), found.values
    assert set(figures) == {"loss", "accuracy", "controls"}
    for figure in figures.values():
        assert figure.layout.template.layout.colorway
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
    lines = named(figures["loss"])
    assert list(lines["data"].y) == values["loss"] and lines["data"].line.dash == "solid"
    assert list(lines["test data"].y) == values["test_loss"] and lines["test data"].line.dash == "dash"
    assert list(lines["data, BatchNorm interpolated"].y) == values["uncorrected"]["loss"]
    assert sorted([*lines["evaluated"].x, *lines["added where it bends"].x]) == values["alpha"]
    assert list(lines["added where it bends"].x) == sorted(values["added"])
    way = lines["checkpoints on the way, where they project"]
    assert list(way.x) == [values["on_the_way"][0]["alpha"]] and list(way.y) == [values["on_the_way"][0]["loss"]]
    assert sum(each.fill == "toself" for each in figures["loss"].data) == 2
    assert [each.x0 for each in figures["loss"].layout.shapes] == [0, 1]
    assert list(named(figures["accuracy"])["data"].y) == [100 * each for each in values["accuracy"]]
    controls = named(figures["controls"])
    assert list(controls["from zeros"].y) == values["controls"]["zeros"]["loss"]
    assert set(controls) == {"from step-0.pt", "from noise", "from zeros"}


def test_titles_say_of_what_they_are(found: LossPathResult) -> None:
    figures = found.figures()
    words = figures["loss"].layout.title.subtitle.text
    for each in ("n = 11 examples", "5 of test data", "eval mode", "measured anew at each place", "float32", "Δ = "):
        assert each in words
    assert figures["loss"].layout.xaxis.title.text == "α: 0 = step-0.pt, 1 = step-1.pt"
    assert found.figures(log=True)["loss"].layout.yaxis.type == "log"


def test_tables_hold_what_is_drawn(found: LossPathResult) -> None:
    tables, values = found.tables(), found.values
    assert set(tables) == {"loss", "accuracy", "controls", "on_the_way"}
    assert list(tables["loss"].loss) == values["loss"] and list(tables["loss"].test_loss_low) == values["test_loss_low"]
    assert list(tables["loss"].loss_uncorrected) == values["uncorrected"]["loss"]
    assert list(tables["loss"].alpha[tables["loss"].added]) == sorted(values["added"])
    assert list(tables["accuracy"].accuracy) == values["accuracy"]
    assert len(tables["controls"]) == 2 * len(values["controls"]["noise"]["alpha"])
    assert list(tables["on_the_way"].checkpoint) == ["step-2.pt"]


def test_a_gap_in_the_curve_is_a_gap_in_the_band(found: LossPathResult) -> None:
    gap = {}
    for key in ("loss", "loss_low", "loss_high"):
        gap[key] = [None if place == 4 else each for place, each in enumerate(found.values[key])]
    figure = replace(found, values={**found.values, **gap}).figures()["loss"]
    assert sum(each.fill == "toself" for each in figure.data) == 3
    assert named(figure)["data"].y[4] is None


def test_what_towers_beyond_the_checkpoints_is_cut_off_and_said(found: LossPathResult) -> None:
    values = dict(found.values)
    inside = max(each for a, each in zip(values["alpha"], values["loss"], strict=True) if 0 <= a <= 1)
    assert found.figures()["loss"].layout.yaxis.range is None
    tall = replace(found, values={**values, "loss": [*values["loss"][:-1], 1e6]}).figures()["loss"]
    assert inside < tall.layout.yaxis.range[1] < 1e3
    assert "cut off" in tall.layout.yaxis.title.text


def test_names_from_files_cannot_write_markup(found: LossPathResult) -> None:
    evil = "<img src=x>$y$%{z}"
    values = {**found.values, "checkpoints": [evil, evil], "on_the_way": [
        {**each, "checkpoint": evil} for each in found.values["on_the_way"]
    ]}  # fmt: skip
    card = {**found.card, "checkpoint": {"name": evil}, "loss": evil}
    result = replace(found, values=values, card=card)
    for figure in {**result.figures(), **result.overlay([result])}.values():
        text = figure.to_json()
        assert "<img" not in text and "\\u003cimg" not in text and "%{z" not in text and "$y" not in text


def test_paths_are_drawn_over_one_another_when_they_are_of_the_same_thing(found: LossPathResult) -> None:
    other = replace(found, card={**found.card, "checkpoint": {"name": "another"}})
    figure = found.overlay([other])["loss_overlay"]
    assert list(named(figure)) == [
        "step-0.pt to step-1.pt", "step-0.pt to step-1.pt, test data", "another", "another, test data",
    ]  # fmt: skip
    assert list(named(figure)["another"].y) == found.values["loss"]
    assert set(named(found.overlay([other], names=["a", "b"])["loss_overlay"])) >= {"a", "b"}
    with pytest.raises(ProbeError, match="dtype: float32 against float64"):
        found.overlay([replace(other, card={**other.card, "dtype": "float64"})])
    with pytest.raises(ProbeError, match="1 names for 2 paths"):
        found.overlay([other], names=["a"])


def test_without_accuracy_test_data_and_controls_there_is_the_loss(tmp_path: Path) -> None:
    module, data = cnn()
    objective, checkpoints = a_run(tmp_path, module, moved(module, 2, 0.3), data)
    result = LossPath(points=5, refine=0, controls=False, batch_norm=False).run(objective, checkpoints, Quiet())
    bare = replace(result, values={**result.values, "accuracy": None})
    assert set(bare.figures()) == {"loss"} == set(bare.tables())
    assert set(named(bare.figures()["loss"])) == {"data", "evaluated"}
