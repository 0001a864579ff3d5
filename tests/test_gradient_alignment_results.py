"""What is told of gradient-weight alignment: examples to check, caveats, figures, tables and what is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_oracles import EXACTLY, a_run, run
from curvature_oracles import cnn, mlp

from analyzers._base import Quiet
from analyzers.gradient_alignment import GradientAlignmentResult
from probes.checkpoint import read_checkpoint
from probes.errors import ObjectiveError, ProbeError


def test_examples_to_check_are_the_most_negative(tmp_path: Path) -> None:
    net, data = cnn()
    data = replace(data, classes=("cat", "dog", "cow", "hen"))
    objective, checkpoints, _ = a_run(tmp_path, net, data, "cross_entropy")
    found = EXACTLY.run(objective, checkpoints, Quiet())
    last, told = found.arrays["alignment"][-1], found.values["examples"]
    rows = np.argsort(last)[:4]
    assert [each["id"] for each in told] == [data.ids[row] for row in rows]
    assert [each["alignment"] for each in told] == pytest.approx(last[rows])
    assert [each["label"] for each in told] == [data.classes[data.targets[row]] for row in rows]
    assert {each["checkpoint"] for each in told} == {"step-20.pt"}
    assert {each["prediction"] for each in told} <= set(data.classes)
    assert found.arrays["pictures"].shape == (4, 8, 8, 3)
    table = found.tables()["examples"]
    assert list(table.columns[:4]) == ["id", "checkpoint", "label", "prediction"]
    assert len(replace(EXACTLY, listed=0).run(objective, checkpoints, Quiet()).tables()["examples"]) == 0
    assert found.values["examples_title"] == "Examples to check: those of the most negative alignment at step 20"


def test_weights_of_zero_have_no_gwa_and_that_is_said(tmp_path: Path) -> None:
    net, data = mlp()
    with torch.no_grad():
        net[4].weight.zero_()
    objective, checkpoints, _ = a_run(tmp_path, net, data, "cross_entropy")
    found = EXACTLY.run(objective, checkpoints, Quiet())
    assert (found.values["mean"][0], found.values["gwa"][0], found.values["gwa_undefined"][0]) == (0, None, True)
    assert any("the same alignment at step 0, as with weights of zero" in each for each in found.caveats)
    assert found.figures()["alignment"]


def test_a_loss_that_is_not_finite_names_the_checkpoint(tmp_path: Path) -> None:
    net, data = mlp()
    objective, checkpoints, states = a_run(tmp_path, net, data, "cross_entropy")
    states[1]["0.weight"][0, 0] = float("nan")
    torch.save({"model": states[1], "step": 10}, tmp_path / "step-10.pt")
    broken = (checkpoints[0], read_checkpoint(tmp_path / "step-10.pt"))
    with pytest.raises(ObjectiveError, match=r"step-10.pt: The loss of examples .* the first layer .* is `0`"):
        EXACTLY.run(objective, broken, Quiet())


def test_figures_and_tables_hold_what_was_found(tmp_path: Path) -> None:
    found = run(tmp_path, "cnn", replace(EXACTLY, scope="layers", flip=0.3))[0]
    figures, tables = found.figures(), found.tables()
    assert set(figures) == {"alignment", "alignment_distribution", "layers", "flip_test"}
    assert set(tables) == {*figures, "examples"}
    for name, figure in figures.items():
        assert figure.layout.template.layout.colorway
        assert figure.layout.xaxis.title.text
        assert "eval mode" in figure.layout.title.text
        assert len(figure.to_json()) < 200_000, name
    assert [figures["alignment"].layout[f"yaxis{each}"].title.text for each in ("", 2, 3, 4)] == [
        "Mean alignment",
        "Excess kurtosis",
        "GWA",
        "Accuracy (%)",
    ]
    assert list(figures["alignment"].data[0].y) == found.values["mean"]
    assert list(tables["alignment"]["gwa"]) == found.values["gwa"]
    assert list(tables["layers"][tables["layers"].layer == "6.weight"]["mean"]) == found.values["layers"]["6.weight"]
    assert list(tables["flip_test"]["auroc_flipped"]) == found.values["auroc_flipped"]
    row = tables["alignment_distribution"].iloc[0]
    assert row["50 %"] == pytest.approx(np.median(found.arrays["exact"][0]))


def test_gwa_is_grey_where_it_is_undefined_and_the_best_is_marked(tmp_path: Path) -> None:
    found = run(tmp_path, "cnn")[0]
    values = dict(found.values) | {"gwa_undefined": [True, False, False], "gwa": [1.0, 0.2, 0.1]}
    values |= {"best": {"index": 1, "time": 10.0, "gwa": 0.2, "share": 1.0}}
    figure = replace(found, values=values).figures()["alignment"]
    on_gwa = [each for each in figure.data if each.yaxis == "y3"]
    line, grey, star = on_gwa
    assert list(line.y) == [None, 0.2, 0.1]
    assert list(grey.y) == [1.0, None, None]
    assert (grey.marker.color, grey.mode) == ("#9AA5B1", "markers")
    assert (list(star.x), list(star.y), star.marker.symbol) == ([10.0], [0.2], "star")


def test_right_and_wrong_examples_are_told_apart_in_the_last_ridge(tmp_path: Path) -> None:
    found = run(tmp_path, "mlp")[0]
    right = found.arrays["right"][-1].sum()
    assert 0 < right < 13
    named = {each.name for each in found.figures()["alignment_distribution"].data if each.showlegend}
    assert named == {f"step 20, right ({right:.0f})", f"step 20, wrong ({13 - right:.0f})"}


def test_two_runs_are_drawn_on_one_time_axis_if_they_are_of_the_same_thing(tmp_path: Path) -> None:
    one = run(tmp_path, "cnn")[0]
    two = replace(one, card={**one.card, "checkpoint": {"name": "<b>other"}})
    figure = one.overlay([two])["alignment_overlay"]
    assert [each.name for each in figure.data if each.showlegend] == [
        "3 checkpoints, step-0.pt to step-20.pt",
        "&lt;b&gt;other",
    ]
    assert one.overlay([two], names=["x", "y"])["alignment_overlay"].data[0].name == "x"
    with pytest.raises(ProbeError, match=r"loss: cross_entropy against mse; unit: step against epoch"):
        one.overlay([replace(one, card={**one.card, "loss": "mse"}, values={**one.values, "unit": "epoch"})])


def test_saved_and_read_again_it_draws_the_same(tmp_path: Path) -> None:
    found = run(tmp_path, "gpt", replace(EXACTLY, scope="layers"))[0]
    found.save(tmp_path / "result")
    again = GradientAlignmentResult.read(tmp_path / "result")
    assert json.loads((tmp_path / "result" / "result.json").read_text())["values"] == found.values
    for name, figure in found.figures().items():
        assert again.figures()[name].to_json() == figure.to_json()


def test_names_from_files_cannot_write_markup(tmp_path: Path) -> None:
    found = run(tmp_path, "cnn", replace(EXACTLY, scope="layers"))[0]
    values = dict(found.values) | {"head": {"name": "<b>h", "kind": "Linear", "tied": []}}
    for key in ("layers", "layers_stderr"):
        values[key] = {f"<i>{name}": each for name, each in values[key].items()}
    card = {**found.card, "model": "<u>m", "checkpoint": {"name": "<img>"}}
    drawn = replace(found, values=values, card=card).figures()
    for figure in drawn.values():
        for sign in ("<b>", "<i>", "<u>", "<img>", "\\u003cb\\u003e", "\\u003ci\\u003e", "\\u003cimg"):
            assert sign not in figure.to_json()
