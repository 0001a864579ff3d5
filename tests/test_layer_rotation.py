"""Real runs to three digits, wrong seeds, times, several runs over one another, drawings of few and many layers."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test, spearmanr

from analyzers._base import Quiet, Result
from analyzers._series_figures import as_labels, depth_colours, time_axis
from analyzers.layer_rotation import LayerRotation, LayerRotationResult
from probes.checkpoint import read_checkpoint
from probes.errors import DataError, ProbeError
from probes.ranks import rank_correlation
from probes.seed_match import seed_match

EPOCHS = ("000", "050", "100", "150", "200")
LAYERS = ["0.weight", "3.weight", "7.weight"]


def run(paths: list[Path], **options: Any) -> LayerRotationResult:
    checkpoints = tuple(read_checkpoint(path, sha256=path.name) for path in paths)
    return LayerRotation(**options).run(None, checkpoints, Quiet())


def files(real: Path, name: str) -> list[Path]:
    return [real / "mnist-cnn" / name / f"epoch-{epoch}.pt" for epoch in EPOCHS]


def made(folder: Path, layers: int, count: int = 3, size: float = 0.1, prefix: str = "h.") -> list[Path]:
    """Write a run of so many layers: two to a block."""
    generator = torch.Generator().manual_seed(layers)
    state = {f"{prefix}{index}.weight": torch.randn(20, 30, generator=generator) for index in range(layers)}
    paths = [folder / f"epoch-{epoch}.pt" for epoch in range(count)]
    for path in paths:
        torch.save({"model": state}, path)
        state = {name: each + size * torch.randn(20, 30, generator=generator) for name, each in state.items()}
    return paths


@pytest.mark.parametrize(
    ("name", "ends", "ratios"),
    [("run1", (0.553, 0.892, 0.977), (3.3, 0.61, 2.82)), ("run2", (0.550, 0.896, 0.974), (3.3, 0.61, 2.82))],
)
def test_real_runs_to_three_digits(real: Path, name: str, ends: Any, ratios: Any) -> None:
    found = run(files(real, name)).values
    assert list(found["rotation"]) == LAYERS
    assert [round(found["rotation"][layer][-1], 3) for layer in LAYERS] == list(ends)
    np.testing.assert_allclose([found["norm_ratio"][layer][-1] for layer in LAYERS], ratios, rtol=0.01)
    assert found["checkpoints"] == [f"epoch-{epoch}.pt" for epoch in EPOCHS]
    assert (found["times"], found["unit"], found["since"]) == ([0, 50, 100, 150, 200], "epoch", "initialisation")
    assert found["seed_match"]["verdict"] == "plausible"
    assert found["mean_rotation"][-1] == pytest.approx(np.mean([found["rotation"][each][-1] for each in LAYERS]))
    assert found["accuracy"] is None
    for key in ("rotation", "null", "norm", "norm_ratio", "angular_step", "radial_share"):
        assert {len(row) for row in found[key].values()} == {5}


def test_any_order_and_two_checkpoints_give_the_same(real: Path) -> None:
    paths = files(real, "run1")
    whole = run(paths).values
    assert run([paths[3], paths[0], paths[4], paths[2], paths[1]]).values == whole
    ends = run([paths[0], paths[4]]).values
    assert {layer: ends["rotation"][layer][-1] for layer in LAYERS} == pytest.approx(
        {layer: whole["rotation"][layer][-1] for layer in LAYERS}, abs=1e-13
    )


def test_the_initialisation_of_another_seed_is_flagged(real: Path) -> None:
    one, two = files(real, "run1"), files(real, "run2")
    found = run([two[0], *one[1:]])
    assert found.values["seed_match"]["verdict"] == "unlikely"
    assert found.values["seed_match"]["layers_within"] == found.values["seed_match"]["layers"] == 3
    assert "probably not this run's initialisation" in found.values["seed_match"]["sentence"]
    assert found.values["seed_match"]["sentence"] in found.caveats
    assert all("NOT this run's" in each.layout.title.subtitle.text for each in found.figures().values())


def test_without_an_initialisation_figures_count_since_the_first_epoch(real: Path) -> None:
    found = run(files(real, "run1")[1:])
    assert found.values["since"] == "epoch 50"
    assert found.values["seed_match"]["verdict"] == "not applicable"
    assert any("count since epoch 50" in each for each in found.caveats)
    titles = [each.layout.title.text for name, each in found.figures().items() if name != "angular_steps"]
    assert all("epoch 50" in each for each in titles)


def test_times_may_be_typed_and_may_be_unknown(real: Path, tmp_path: Path) -> None:
    for index, path in enumerate((*files(real, "run2")[:1], *files(real, "run1")[3:])):
        state = read_checkpoint(path).load()
        torch.save(state, tmp_path / f"{'abc'[index]}.pt")
    paths = [tmp_path / f"{letter}.pt" for letter in "abc"]
    typed = run(paths, times="steps 0, 10, 30").values
    assert (typed["times"], typed["unit"]) == ([0, 10, 30], "step")
    unknown = run(paths)
    assert unknown.values["since"] == "the first checkpoint"
    assert unknown.values["seed_match"]["verdict"] == "unlikely"
    assert any("stand in the order given" in each for each in unknown.caveats)


def test_fine_tuning_is_no_alarm(tmp_path: Path) -> None:
    match = run(made(tmp_path, 3, size=0.001)).values["seed_match"]
    assert (match["verdict"], match["layers_within"]) == ("fine-tuning", 0)
    assert "normal when fine-tuning" in match["sentence"]


@pytest.mark.parametrize(
    ("layers", "outside", "verdict"), [(9, 1, "plausible"), (20, 2, "unlikely"), (20, 3, "plausible")]
)
def test_one_layer_in_ten_may_leave_the_band_by_chance(layers: int, outside: int, verdict: str) -> None:
    turned = np.ones((layers, 3))
    turned[:, 0] = 0
    turned[:outside, 1] = 0.8
    assert seed_match(turned, [10_000] * layers, "initialisation", is_start=True).verdict == verdict


def test_small_kernels_cannot_tell_a_seed() -> None:
    turned = np.array([[0.0, 1.0], [0.0, 0.3]])
    found = seed_match(turned, [10_000, 9], "initialisation", is_start=True)
    assert (found.verdict, found.layers) == ("unlikely", 1)
    assert seed_match(turned, [9, 9], "initialisation", is_start=True).verdict == "not applicable"


def test_independent_vectors_lie_in_the_band() -> None:
    generator = np.random.default_rng(0)
    one, two = generator.standard_normal((2, 2000, 400))
    cosine = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert np.mean(np.abs(cosine) < 3 / np.sqrt(400)) == pytest.approx(0.9973, abs=4 * np.sqrt(0.0027 / 2000))


def test_what_files_store_of_accuracy_is_taken(tmp_path: Path) -> None:
    paths = made(tmp_path, 2)
    torch.save({"model": read_checkpoint(paths[-1]).load(), "epoch": 2, "test_acc": 91.5}, paths[-1])
    assert run(paths).values["accuracy"] == pytest.approx(0.915)


def test_one_checkpoint_is_not_enough(real: Path) -> None:
    with pytest.raises(DataError, match="at least one more"):
        run(files(real, "run1")[:1])


def test_layers_of_zeros_are_left_out_and_named(tmp_path: Path) -> None:
    paths = made(tmp_path, 2)
    for path in paths[:2]:
        state = read_checkpoint(path).load()
        state["h.1.weight"].zero_()
        torch.save({"model": state}, path)
    found = run(paths)
    assert found.values["rotation"]["h.1.weight"] == [None, None, None]
    assert any("h.1.weight is not defined everywhere" in each for each in found.caveats)
    json.dumps(found.to_json(), allow_nan=False)
    assert set(found.figures(null=True)) == {"rotation", "final_rotation", "norms", "angular_steps"}
    assert found.tables()["layers"].final.isna().tolist() == [False, True]


def test_neither_module_nor_gpu_is_asked_for(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = {name for name in sys.modules if name.startswith(("probes.models", "probes.objective"))}
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("a module was made"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("a GPU was asked for"))
    assert LayerRotation.needs_objective is False
    run(files(real, "run1"))
    assert {name for name in sys.modules if name.startswith(("probes.models", "probes.objective"))} == loaded


def test_saved_and_read_again_it_draws_the_same(tmp_path: Path) -> None:
    found = run(made(tmp_path, 4))
    found.save(tmp_path / "out")
    again = LayerRotationResult.read(tmp_path / "out")
    assert again.values == json.loads((tmp_path / "out" / "result.json").read_text())["values"] == found.values
    assert {name: each.to_json() for name, each in again.figures(null=True).items()} == {
        name: each.to_json() for name, each in found.figures(null=True).items()
    }


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


@pytest.mark.parametrize("count", [3, 5, 7, 12])
def test_rank_correlation_is_scipys(count: int) -> None:
    generator = np.random.default_rng(count)
    x = generator.integers(0, 8, count).astype(float)
    y = x + generator.integers(0, 6, count)
    found = rank_correlation(list(x), list(y))
    assert found is not None
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert (found.interval is None) == (count < 5)
    if found.interval:
        assert -1 <= found.interval[0] <= found.value <= found.interval[1] <= 1
    if count > 8:
        assert found.p is None
        return
    statistic = lambda each: spearmanr(each, y).statistic
    exact = permutation_test((x,), statistic, permutation_type="pairings", n_resamples=np.inf)
    scipys = np.mean(np.abs(exact.null_distribution) >= abs(found.value) - 1e-12)
    assert found.p == pytest.approx(scipys, abs=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of normal pairs with correlation r, Spearman's is 6/pi asin(r/2); 60 samples of 25."""
    generator, truth, covered = np.random.default_rng(1), 6 / np.pi * np.arcsin(0.3), 0
    for _ in range(60):
        x = generator.standard_normal(25)
        y = 0.6 * x + 0.8 * generator.standard_normal(25)
        found = rank_correlation(list(x), list(y))
        assert found is not None and found.interval is not None
        covered += found.interval[0] <= truth <= found.interval[1]
    assert covered >= 50


def test_no_correlation_where_there_is_none_to_have() -> None:
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


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
