"""Real runs to three digits, wrong seeds, times, several runs over one another, drawings of few and many layers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rotation_runs import EPOCHS, files, made, run

from analyzers.layer_rotation import LayerRotation, LayerRotationResult
from probes.checkpoint import read_checkpoint
from probes.errors import DataError
from probes.seed_match import seed_match

LAYERS = ["0.weight", "3.weight", "7.weight"]


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
