"""Figures and tables of attributions: they show the numbers of the result, and nothing from files becomes markup."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from attribution_cases import objective_of
from scipy.stats import spearmanr
from series_runs import a_run, moved

from analyzers._attribution_drawn import drawn
from analyzers._attribution_panels import Cell, Grid, scale_of
from analyzers._base import Quiet
from analyzers.attribution import Attribution, AttributionResult
from probes.errors import ProbeError
from probes.objective import Objective

HOSTILE = "<b>%{x}</b>$y$<img src=x>"
ONE = (SimpleNamespace(name=HOSTILE, sha256="0" * 64, facts={}),)


def run(net, **options):
    objective = objective_of(net)
    data = objective.batches
    ids = tuple(f"{HOSTILE} {row}" for row in range(len(data)))
    about = {"columns": tuple(f"{HOSTILE} {each}" for each in range(6))} if net == "tabular" else {}
    names = (HOSTILE, "a dog", "three") if net != "gpt2" else ()
    data = replace(data, ids=ids, classes=names, about=about)
    hostile = Objective(objective.module, data, objective.loss, dtype="float64", device="cpu")
    asked = Attribution(**{"dtype": "float64", "methods": "gradient,input_x_gradient,grad_cam", **options})
    return asked.run(hostile, ONE, Quiet())


@pytest.fixture(scope="module")
def results():
    """A result of every kind, judged, with three methods on three examples."""
    kinds = {"image": "cnn", "table": "tabular", "text": "bert", "language_model": "gpt2"}
    target = {"image": "1", "table": "1", "text": "0", "language_model": "3"}
    return {kind: run(net, examples="0-2", target=target[kind], sanity=True) for kind, net in kinds.items()}


@pytest.fixture(scope="module")
def over_time(tmp_path_factory):
    """The objective and the checkpoints of a run of three."""
    base = objective_of("cnn")
    return a_run(tmp_path_factory.mktemp("run"), base.module, moved(base.module, 3, 0.2), base.batches,
                 dtype="float64", device="cpu")  # fmt: skip


def heat(figure):
    return [each for each in figure.data if each.type == "heatmap"]


@pytest.mark.parametrize("kind", ["image", "table", "text", "language_model"])
def test_all_figures_are_drawn_harmless_and_with_titles(results, kind):
    result = results[kind]
    figures = result.figures()
    assert {"maps", "curves", "sanity", "agreement", "scoreboard", "class_summary"} <= set(figures)
    for name, figure in figures.items():
        text = figure.to_json()
        assert "<b>" not in text and "<img" not in text and "$y$" not in text, name
        assert "eval mode" in text and figure.layout.title.text
        axes = [each for each in figure.layout if each.startswith(("xaxis", "yaxis"))]
        assert any(figure.layout[each].title.text for each in axes)
    assert set(result.tables()) >= set(figures) - {"maps"} | {"maps"}


def test_a_picture_lies_under_its_map_on_one_scale_a_row(results):
    result = results["image"]
    figure = result.figures(opacity=0.35)["maps"]
    maps, images = heat(figure), [each for each in figure.data if each.type == "image"]
    assert len(maps) == 6 and len(images) == 6  # grad-cam too has maps of the CNN: three rows
    values = result.arrays["map_0"].sum(0)
    assert np.allclose(np.array(maps[0].z), values) and {each.opacity for each in maps} == {0.35}
    rows = [result.arrays[f"map_{3 * case}"].sum(0) for case in range(3)]
    axis = figure.layout.coloraxis
    assert axis.cmax == -axis.cmin == pytest.approx(np.quantile(np.abs(rows), 0.995))
    assert all(place == 0.5 and colour.endswith(",0.0)") for place, colour in axis.colorscale[1:3])  # zero is clear
    assert "%{z:.4g}" in maps[0].hovertemplate


def test_views_choose_a_case_a_method_and_sizes(results):
    result = results["image"]
    one = heat(result.figures(case=1, method="gradient", absolute=True)["maps"])
    assert len(one) == 1 and np.allclose(np.array(one[0].z), np.abs(result.arrays["map_3"]).sum(0))
    whole = result.figures(case=99, method="none", opacity=7)["maps"]
    assert len(heat(whole)) == len(heat(result.figures()["maps"])) and heat(whole)[0].opacity == 1.0


def test_bars_are_the_columns_of_a_table_in_one_order(results):
    result = results["table"]
    bars = [each for each in result.figures()["maps"].data if each.type == "bar"]
    maps = np.stack([result.arrays[f"map_{3 * case}"] for case in range(3)])
    order = np.argsort(-np.abs(maps).mean(0))
    for bar, own in zip(bars[:3], maps, strict=True):
        assert np.allclose(bar.x, own[order]) and [each[-1] for each in bar.customdata] == [f"{k}" for k in order]
    assert bars[0].y == bars[1].y and len(set(bars[0].y)) == 6 and all("<b>" not in each for each in bars[0].y)
    features = result.tables()["features"]
    assert np.allclose(features[features["map"] == 1].attribution, result.arrays["map_1"])


def test_tokens_have_their_numbers_printed_and_special_ones_no_colour():
    values = np.array([9.0, 1.0, -2.0, 0.5])
    special = (True, False, False, False)
    cells = (Cell(values, labels=("[CLS]", "a<b>", "b", "a<b>"), special=special),
             Cell(None, reason="<i>no</i>", labels=("[CLS]", "a", "b", "c"), special=special))  # fmt: skip
    figure = drawn("text", Grid("t", "s", ("one",), ("x", "y"), (cells,)))
    first, second = heat(figure)
    assert list(first.z[0]) == [0.0, 0.5, -1.0, 0.25] and list(first.text[0]) == ["9", "1", "-2", "0.5"]
    assert figure.layout.xaxis.ticktext[0] == "<i>[CLS]</i>" and figure.layout.xaxis.ticktext[1] == "a&lt;b&gt;"
    assert "±2" in first.y[0] and "refused" in second.y[0] and list(second.z[0]) == [None] * 4
    assert scale_of(cells) == 2.0


def test_long_texts_go_on_in_lines():
    cell = Cell(np.arange(40.0), labels=tuple(map(str, range(40))), special=(False,) * 40)
    lines = heat(drawn("text", Grid("t", "s", ("one",), ("x",), ((cell,),))))
    assert [len(each.x) for each in lines] == [16, 16, 8] and lines[1].x[0] == 16


def test_large_maps_are_averaged_for_the_screen_only():
    values = np.random.default_rng(0).normal(size=(1, 300, 520))
    cell = Cell(values, picture=np.zeros((300, 520, 3), np.uint8))
    figure = drawn("image", Grid("t", "s", ("one",), ("x",), ((cell,),)))
    shown = heat(figure)[0]
    z = np.array(shown.z)
    assert z.shape == (100, 174) and shown.dx == 3 and shown.x0 == 1
    assert z[2, 3] == pytest.approx(values[0, 6:9, 9:12].mean())
    assert z[-1, -1] == pytest.approx(values[0, 297:, 519:].mean())


def test_a_refusal_stands_in_its_cell(results):
    text = results["table"].figures()["maps"].to_json()
    assert "Class-activation maps" in text and results["table"].values["maps"][2]["badge"] == "refused"


def test_curves_are_means_beside_random_orders(results):
    result = results["image"]
    figure = result.figures()["curves"]
    by = {(each.name, each.xaxis, each.yaxis): np.array(each.y) for each in figure.data}
    shares = result.arrays["curve_shares"]
    expected = np.mean([np.interp(np.linspace(0, 1, 33), shares, result.arrays[f"insertion_{3 * case}"][0])
                        for case in range(3)], 0)  # fmt: skip
    assert np.allclose(by["Gradient", "x", "y"], expected)
    assert {"Random orders", "Edges of the image"} <= {each.name for each in figure.data}
    table = result.tables()["curves"]
    own = table[(table.method == "gradient") & (table.row == 0) & (table.curve == "deletion")]
    assert own.probability.iloc[0] == pytest.approx(result.arrays["deletion_0"][0, 0])


def test_agreement_is_spearman_s(results):
    result = results["table"]
    names = result.values["agreement_methods"]
    assert names == ["gradient", "input_x_gradient"]
    found = [spearmanr(result.arrays[f"map_{3 * case}"], result.arrays[f"map_{3 * case + 1}"]).statistic
             for case in range(3)]  # fmt: skip
    assert result.arrays["agreement"][0, 1] == pytest.approx(np.mean(found))
    assert heat(result.figures()["agreement"])[0].z[0][1] == pytest.approx(np.mean(found))


def test_the_scoreboard_has_the_means(results):
    result = results["text"]
    board = result.values["scoreboard"]
    own = [each["insertion_auc"] for each in result.values["maps"] if each["method"] == "gradient"]
    assert board[0]["insertion_auc"]["mean"] == pytest.approx(np.mean(own)) and board[2]["refused"] == 3
    assert board[0]["insertion_auc"]["low"] <= np.mean(own) <= board[0]["insertion_auc"]["high"]
    assert result.figures()["scoreboard"].data[0].x[0] == pytest.approx(np.mean(own))


def test_classes_are_means_with_standard_errors(results):
    result = results["table"]
    table = result.tables()["class_summary"]
    maps = np.stack([result.arrays[f"map_{3 * case}"] for case in range(3)])
    own = table[table.method == "gradient"]
    assert np.allclose(own["mean"], maps.mean(0)) and np.allclose(own["stderr"], maps.std(0, ddof=1) / np.sqrt(3))
    image = heat(results["image"].figures()["class_summary"])[0]
    assert np.allclose(
        np.array(image.z), np.mean([results["image"].arrays[f"map_{3 * k}"].sum(0) for k in range(3)], 0)
    )


def test_two_checkpoints_and_their_difference_on_one_scale(over_time, tmp_path):
    objective, checkpoints = over_time
    asked = Attribution(dtype="float64", methods="gradient", examples="1", judge=False)
    result = asked.run(objective, checkpoints[:2], Quiet())
    figure = result.figures()["difference"]
    first, second, third = (np.array(each.z) for each in heat(figure))
    assert np.allclose(third, second - first) and np.abs(third).max() > 0
    assert len([each for each in figure.layout if each.startswith("coloraxis")]) == 1
    alone = [asked.run(objective.at(each), (each,), Quiet()) for each in checkpoints[:2]]
    fixed = replace(asked, target=str(result.values["target"][0]))
    alone = [fixed.run(objective.at(each), (each,), Quiet()) for each in checkpoints[:2]]
    laid = alone[0].overlay([alone[1]])["difference"]
    assert np.allclose(np.array(heat(laid)[2].z), third, atol=1e-6)
    with pytest.raises(ProbeError, match="one other run"):
        alone[0].overlay(alone)
    other = replace(fixed, examples="2").run(objective, checkpoints[:1], Quiet())
    with pytest.raises(ProbeError, match=r"differ in rows: \[1\] against \[2\]"):
        alone[0].overlay([other])


def test_a_run_ranks_as_its_last_checkpoint(over_time):
    objective, checkpoints = over_time
    asked = Attribution(dtype="float64", methods="gradient,input_x_gradient", examples="0,1", judge=False)
    result = asked.run(objective, checkpoints, Quiet())
    figure = result.figures()["run"]
    maps = {
        (each["method"], each["case"]): result.arrays[each["array"]].sum(0).ravel() for each in result.values["maps"]
    }
    expected = np.mean([spearmanr(maps["gradient", row], maps["gradient", row + 4]).statistic for row in (0, 1)])
    assert figure.data[0].y[0] == pytest.approx(expected) and figure.data[0].y[2] == pytest.approx(1)
    assert list(figure.data[0].x) == [0, 1, 2] and figure.layout.xaxis.title.text == "Step"
    assert len(heat(result.figures(case=1)["run_maps"])) == 6


def test_tables_carry_reasons_and_numbers(results):
    table = results["table"].tables()["maps"]
    assert table.badge.tolist()[:3] == ["ok", "ok", "refused"] and "choose" in table.reasons[2]
    assert table.infidelity[0] == results["table"].values["maps"][0]["infidelity"]
    assert table.id[0] == f"{HOSTILE} 0"  # raw: csv_of makes cells harmless
    assert isinstance(results["table"], AttributionResult)


def test_the_matrix_of_an_answer_has_its_numbers_printed():
    result = run("gpt2", target="answer", position=4, methods="occlusion", judge=False)
    shown = result.figures()["token_matrix"]
    matrix = result.arrays["token_matrix_0"]
    special = np.array(result.values["cases"][0]["special"])
    assert np.allclose(np.array(shown.data[0].z)[:, ~special], matrix[:, ~special])
    assert shown.data[0].text[0][0] == f"{matrix[0, 0]:.2g}" and "<img" not in shown.to_json()
    table = result.tables()["token_matrix"]
    assert np.allclose(table.attribution, matrix.ravel()) and table.answer_place.min() == 4
