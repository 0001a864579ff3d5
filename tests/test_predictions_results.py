"""Figures, tables and examples of predictions: they show the numbers, and nothing from files is taken for markup."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_cases import objective_of
from curvature_oracles import Notes, batches, gpt, mlp
from series_runs import a_run, moved
from test_predictions import Fixed, Point, of_logits, three

from analyzers import _predictions_shown as shown
from analyzers._base import Quiet
from analyzers.predictions import Predictions, PredictionsResult
from probes.objective import Objective

HOSTILE = ("<i>cat</i>", "$x$ %{zz}", "=1+1 :red[z]")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> PredictionsResult:
    module, data = mlp()
    data = replace(data, classes=HOSTILE, ids=tuple(f"<b>{row}</b> $x$" for row in range(13)))
    folder = tmp_path_factory.mktemp("run")
    objective, checkpoints = a_run(folder, module, moved(module, 2, 0.3), data)
    objective.about["model"] = "<u>net</u>"
    found = Predictions(listed=4).run(objective, checkpoints, Quiet())
    return replace(found, values={**found.values, "checkpoints": ["<img>a", "<img>b"]})


def many_classes(count: int, rows: int = 400):
    """Logits of which the label's is raised, so that some are right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(count, (rows,), generator=generator)
    logits = torch.randn(rows, count, generator=generator, dtype=torch.float64)
    logits[torch.arange(rows), labels] += 2.0
    return logits, labels


def test_nothing_from_files_is_taken_for_markup(hostile) -> None:
    assert set(hostile.figures()) == {"confusion", "classes", "reliability", "losses", "disagreement"}
    for drawn in hostile.figures().values():
        text = drawn.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        for sign in ("<b>", "<i>", "<u>", "<img>", "$x$", "%{zz}"):
            assert sign not in text, sign


def test_the_matrix_holds_the_counts(hostile) -> None:
    drawn = hostile.figures()["confusion"]
    right, wrong = drawn.data
    counts = hostile.arrays["confusion"][-1]
    share = 100 * counts / counts.sum(1, keepdims=True)
    for row in range(3):
        assert right.z[row][row] == pytest.approx(share[row, row])
        for column in range(3):
            assert wrong.z[row][column] == (
                pytest.approx(share[row, column]) if row != column and counts[row, column] else None
            )
            assert f"{counts[row, column]} examples" in right.customdata[row][column]
            written = (right if row == column else wrong).text[row][column]
            assert written == (str(counts[row, column]) if counts[row, column] else "")
    assert drawn.layout.yaxis.autorange == "reversed"
    first = hostile.figures(checkpoint=0)["confusion"].data[0]
    assert first.customdata != right.customdata


def test_recall_stands_with_its_interval_the_lowest_first(hostile) -> None:
    drawn = hostile.figures()["classes"]
    last = drawn.data[1]
    recall = hostile.arrays["recall"][1]
    assert list(last.x) == sorted(last.x)
    np.testing.assert_allclose(np.sort(last.x), np.sort(100 * recall[:, 0]))
    np.testing.assert_allclose(last.x + last.error_x.array, 100 * recall[np.argsort(recall[:, 0], kind="stable"), 2])
    assert list(drawn.layout.yaxis.ticktext) == [words.split(": recall")[0] for words in last.customdata]
    assert drawn.layout.yaxis.range[0] > drawn.layout.yaxis.range[1]


def test_reliability_is_drawn_with_its_bins(hostile) -> None:
    drawn = hostile.figures()["reliability"]
    lines = [each for each in drawn.data if each.type == "scatter"][1:]
    for line, found in zip(lines, hostile.values["reliability"], strict=True):
        kept = [place for place, count in enumerate(found["counts"]) if count]
        np.testing.assert_allclose(line.y, [100 * found["accuracy"][place] for place in kept])
        np.testing.assert_allclose(line.y + line.error_y.array, [100 * found["high"][place] for place in kept])
    bars = [each for each in drawn.data if each.type == "bar"]
    assert [sum(each.y) for each in bars] == pytest.approx([100, 100])


def test_a_disagreement_is_a_matrix_of_predictions_with_a_test(hostile) -> None:
    drawn = hostile.figures()["disagreement"]
    one, two = hostile.arrays["prediction"]
    told = " ".join(each for row in drawn.data[0].customdata for each in row)
    assert (
        sum(int(words.split(" examples")[0].split("<br>")[1]) for row in drawn.data[0].customdata for words in row)
        == 13
    )
    assert "first" in told and "second" in told
    subtitle = drawn.layout.title.subtitle.text
    assert f"{(one != two).sum()} of 13 predictions differ" in subtitle
    assert f"p = {hostile.values['disagreement'][0]['p_value']:.3g}" in subtitle
    turned = hostile.figures(first=1, second=0)["disagreement"]
    assert turned.layout.xaxis.title.text == drawn.layout.yaxis.title.text


@pytest.mark.parametrize("count", [2, 60, 61, 1001])
def test_any_number_of_classes_can_be_drawn(count: int) -> None:
    logits, labels = many_classes(count)
    found = of_logits(logits, labels)
    drawn = found.figures()["confusion"]
    guess = logits.argmax(1)
    pairs = {}
    for label, one in zip(labels.tolist(), guess.tolist(), strict=True):
        if label != one:
            pairs[label, one] = pairs.get((label, one), 0) + 1
    if count > 60:
        (bars,) = drawn.data
        assert bars.x[0] == max(pairs.values()) and len(bars.x) == min(40, len(pairs))
        label, one = map(int, bars.y[0].split(" → "))
        assert pairs[label, one] == bars.x[0]
    else:
        assert len(drawn.data) == 2
    assert ("confusion" in found.arrays) == (count <= 1000)
    listed = {(each["label"], each["prediction"]): each["count"] for each in found.values["confused"]}
    assert listed.items() <= pairs.items() and len(listed) == min(200, len(pairs))
    assert len(found.figures()["classes"].data[0].x) <= 40
    assert len(drawn.to_json()) < 1_000_000
    table = found.tables()["confusion"]
    assert table["count"].sum() == 400 or count > 200


def test_two_checkpoints_of_many_classes_disagree_in_bars() -> None:
    logits, labels = many_classes(80)
    found = of_logits(logits, labels)
    other = (found.arrays["prediction"][0] + np.arange(400) % 2) % 80
    arrays = {**found.arrays, "prediction": np.array([found.arrays["prediction"][0], other])}
    pair = {"first": 0, "second": 1, "differ": 200, "low": 0.4, "high": 0.6, "only_first": 1, "only_second": 2}
    values = {**found.values, "checkpoints": ["a", "b"], "disagreement": [{**pair, "p_value": 0.5}]}
    values |= {key: 2 * found.values[key] for key in ("accuracy", "wrong", "ece", "ece_debiased_low", "reliability")}
    values["ece_debiased_high"] = 2 * found.values["ece_debiased_high"]
    arrays |= {"recall": np.repeat(arrays["recall"], 2, 0), "loss": np.repeat(arrays["loss"], 2, 0)}
    bars = replace(found, arrays=arrays, values=values).figures()["disagreement"].data[0]
    assert all((int(a) + 1) % 80 == int(b) for a, b in (each.split(" → ") for each in bars.y))


def test_right_and_wrong_losses_add_up() -> None:
    found = of_logits(*many_classes(5))
    right, wrong = found.figures()["losses"].data
    assert sum(wrong.y) == found.values["wrong"][0]
    assert sum(right.y) + sum(wrong.y) == 400


def test_losses_of_zero_and_of_one_value_can_be_drawn() -> None:
    logits = torch.tensor([[900.0, 0.0], [800.0, 0.0]], dtype=torch.float64)
    found = of_logits(logits, torch.zeros(2, dtype=torch.int64))
    assert found.values["loss"] == [0.0]
    assert sum(sum(each.y) for each in found.figures()["losses"].data) == 2


def test_language_models_are_drawn_by_place(tmp_path: Path) -> None:
    objective, checkpoints, _ = three(tmp_path, gpt, "causal_lm")
    found = Predictions(listed=2).run(objective, checkpoints, Quiet())
    figures = found.figures()
    assert set(figures) == {"positions", "reliability", "losses", "disagreement"}
    np.testing.assert_allclose(figures["positions"].data[2].y, found.arrays["position_loss"][2, :, 0])
    _, points = figures["disagreement"].data
    np.testing.assert_array_equal(points.x, found.arrays["loss"][0])
    assert set(figures) <= set(found.tables())


def test_examples_to_check_are_the_most_wrong_and_the_least_sure() -> None:
    logits, labels = many_classes(4)
    found = of_logits(logits, labels, listed=5)
    arrays, told = found.arrays, found.values["examples"]
    wrong = np.flatnonzero(arrays["prediction"][0] != labels.numpy())
    worst = sorted(wrong, key=lambda row: -arrays["loss"][0, row])[:5]
    unsure = [row for row in np.argsort(arrays["gap"][0]) if row not in worst][:5]
    assert [each["row"] for each in told] == [*worst, *unsure]
    assert [each["group"] for each in told] == ["most wrong"] * 5 + ["most unsure"] * 5
    assert all(each["loss"] == arrays["loss"][0, each["row"]] for each in told)
    assert len(found.tables()["examples"]) == 10
    none = of_logits(logits, labels, listed=0)
    assert none.values["examples"] == [] and list(none.tables()["examples"].columns)[:2] == ["id", "row"]


def test_pictures_of_all_rows_or_of_the_most_interesting(monkeypatch) -> None:
    objective = objective_of("cnn")
    found = Predictions().run(objective, (Point(),), Quiet())
    pixels = found.arrays["thumbnails"]
    assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 12, 12, 3))
    expected = np.rint(255 * objective.batches.inputs[:, 0].double().numpy())
    np.testing.assert_array_equal(pixels[..., 0], expected)
    assert found.arrays["shown_rows"].tolist() == [0, 1, 2, 3]
    rows = [each["row"] for each in found.values["examples"]]
    np.testing.assert_array_equal(found.arrays["pictures"], pixels[rows])
    monkeypatch.setattr(shown, "BYTES", 2 * 12 * 12 * 3)
    few = Predictions().run(objective, (Point(),), Quiet())
    wrong = np.flatnonzero(found.arrays["right"][0] < 1)
    order = [*wrong[np.argsort(-found.arrays["loss"][0, wrong])], *np.argsort(found.arrays["gap"][0])]
    assert few.arrays["shown_rows"].tolist() == sorted(list(dict.fromkeys(order))[:2])
    np.testing.assert_array_equal(few.arrays["thumbnails"], pixels[few.arrays["shown_rows"]])


def test_large_pictures_are_made_small_and_alike_in_parts(monkeypatch) -> None:
    monkeypatch.setattr(shown, "PART", 2)
    inputs = 5 * torch.randn(5, 3, 128, 96)
    data = batches(inputs, torch.randint(3, (5,)))
    found = shown.shown(data, {"loss": np.zeros((1, 5))})[0]["thumbnails"]
    assert found.shape == (5, 64, 48, 3)
    one = (inputs - inputs.min()) / (inputs.max() - inputs.min())
    mean = one.reshape(5, 3, 64, 2, 48, 2).mean((3, 5)).permute(0, 2, 3, 1).numpy()
    assert np.abs(found / 255 - mean).max() < 0.01


def test_rows_of_tables_and_beginnings_of_texts(monkeypatch) -> None:
    objective = objective_of("tabular")
    found = Predictions().run(objective, (Point(),), Quiet())
    np.testing.assert_array_equal(found.arrays["raw"], objective.batches.inputs.numpy())
    assert found.values["columns"] == [f"column {each}" for each in range(6)]
    monkeypatch.setattr(shown, "ROWS", 2)
    monkeypatch.setattr(shown, "CHARACTERS", 6)
    few = Predictions().run(objective_of("bert"), (Point(),), Quiet())
    assert len(few.values["texts"]) == len(few.arrays["shown_rows"]) == 2
    assert all(len(each) <= 6 for each in few.values["texts"])
    row = int(few.arrays["shown_rows"][0])
    first = " ".join(str(each) for each in objective_of("bert").batches.inputs[row].tolist())
    assert few.values["texts"][0][:4] == first[:4]


def test_saved_and_read_again_it_draws_the_same(hostile, tmp_path: Path) -> None:
    hostile.save(tmp_path)
    again = PredictionsResult.read(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["values"] == hostile.values
    for name, figure in hostile.figures().items():
        assert again.figures()[name].to_json() == figure.to_json()


def test_few_examples_and_missing_classes_are_said() -> None:
    found = of_logits(torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 1, 1, 2, 2]))
    assert any("5 examples tell little about calibration" in each for each in found.caveats)
    assert any("4 of 7 classes have no examples here" in each for each in found.caveats)
    assert np.isnan(found.arrays["recall"][0, 5]).all()
    assert len(found.figures()["classes"].data[0].x) == 3


def test_all_right_has_no_wrong_ones() -> None:
    labels = torch.arange(4)
    found = of_logits(9 * torch.eye(4, dtype=torch.float64), labels)
    assert found.values["confused"] == [] and found.values["wrong"] == [0]
    assert {each["group"] for each in found.values["examples"]} == {"most unsure"}
    assert found.figures() and len(found.tables()["confusion"]) == 4


def test_progress_never_goes_back() -> None:
    notes = Notes()
    data = batches(torch.randn(23, 3), torch.randint(3, (23,)))
    Predictions().run(Objective(Fixed(), data, "cross_entropy", micro_batch=5), (Point(),), notes)
    assert notes.shares == sorted(notes.shares) and len(notes.shares) == 6
