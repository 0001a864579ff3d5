"""Mode connectivity of small trained networks: every number against a plain loop or a sum written out here."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from connectivity_runs import Pair, Shown, blobs, laid, mlp, normed, pair_of, run, trained
from connectivity_states import in_order, loss_of, mixed, states
from family_nets import objective_of
from torch import nn

from analyzers.mode_connectivity import ModeConnectivity, ModeConnectivityResult
from probes.errors import DataError, ModelError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    return pair_of(tmp_path_factory.mktemp("pair"), mlp, test=True, dtype="float64")


@pytest.fixture(scope="module")
def found(pair: Pair) -> ModeConnectivityResult:
    return run(pair, controls=True, repair=True, points=9, dtype="float64")


def test_the_lines_are_those_of_the_usual_loop_on_data_and_test_data(pair: Pair, found: ModeConnectivityResult) -> None:
    a, b = states(pair)
    assert found.values["lambda"] == np.linspace(0, 1, 9).tolist()
    for stage, other in (("naive", b), ("matched", in_order(b, dict(found.arrays)))):
        points = [mixed(a, other, share) for share in found.values["lambda"]]
        np.testing.assert_allclose(found.values["loss"][stage], [loss_of(mlp(0), each) for each in points], rtol=1e-9)
        tested = [loss_of(mlp(0), each, seed=1, count=90) for each in points]
        np.testing.assert_allclose(found.values["test_loss"][stage], tested, rtol=1e-9)
    for name in ("loss", "accuracy", "test_loss", "test_accuracy"):
        rows, low, high = (found.values[f"{name}{end}"] for end in ("", "_low", "_high"))
        for stage in ("naive", "matched", "repaired"):
            assert all(x <= y <= z for x, y, z in zip(low[stage], rows[stage], high[stage], strict=True))


def test_barriers_follow_from_the_lines_by_their_definitions(found: ModeConnectivityResult) -> None:
    for of in ("", "test_"):
        for stage, row in found.values[f"{of}loss"].items():
            line = np.linspace(row[0], row[-1], 9)
            by_hand = {
                "git_rebasin": max(row) - (row[0] + row[-1]) / 2,
                "entezari": (row - line).max(),
                "midpoint": row[4] - (row[0] + row[-1]) / 2,
            }
            assert found.values[f"{of}barrier"][stage] == pytest.approx(by_hand, rel=1e-9, abs=1e-12)
            for name, value in by_hand.items():
                low, high = (found.values[f"{of}barrier_{end}"][stage][name] for end in ("low", "high"))
                assert low <= value + 1e-12 and value <= high + 1e-12


def test_distances_and_their_loss_are_those_of_the_permuted_weights(pair: Pair, found: ModeConnectivityResult) -> None:
    a, b = states(pair)
    gap = lambda one, other: math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))
    assert found.values["distance_naive"] == pytest.approx(gap(a, b), rel=1e-12)
    assert found.values["distance"] == pytest.approx(gap(a, in_order(b, dict(found.arrays))), rel=1e-12)
    assert found.values["distance"] == pytest.approx(min(each["distance"] for each in found.values["restarts"]))
    assert len(found.values["restarts"]) == 2
    assert 0 < found.values["equivalence_error"] < 1e-10 or found.values["equivalence_error"] == 0
    rows = found.values["loss"]
    gains = max(rows["naive"]) - max(rows["matched"])
    reduction = found.values["reduction"]["matched"]
    assert reduction["value"] == pytest.approx(gains, rel=1e-9)
    assert reduction["low"] < gains < reduction["high"]


def test_the_threshold_is_two_percent_of_the_way_to_the_entropy_of_the_labels(found: ModeConnectivityResult) -> None:
    shares = np.bincount(blobs(200, 0)[1].numpy()) / 200
    entropy = float(-(shares * np.log(shares)).sum())
    ends = found.values["loss"]["naive"]
    assert found.values["chance_loss"] == pytest.approx(entropy)
    assert found.values["threshold"] == pytest.approx(0.02 * (entropy - (ends[0] + ends[-1]) / 2))
    limit, barrier = found.values["threshold"], found.values["barrier_high"]
    stages = [each for each in ("naive", "matched", "repaired") if barrier[each]["git_rebasin"] <= limit]
    names = {"naive": "same_basin", "matched": "same_after_permutation", "repaired": "same_after_repair"}
    assert found.values["verdict"] == (names[stages[0]] if stages else "not_connected")
    assert "the best of 2 restarts" in found.values["verdict_sentence"]


def test_results_are_json_and_come_back_the_same(found: ModeConnectivityResult, tmp_path: Path) -> None:
    found.save(tmp_path)
    again = ModeConnectivityResult.read(tmp_path)
    assert again.values == json.loads(json.dumps(found.values, allow_nan=False)) == found.values
    for name, figure in found.figures().items():
        assert figure.to_json() == again.figures()[name].to_json()
    assert {"verdict", "specification", "controls"} <= set(again.tables())


def test_controls_find_the_copy_and_know_what_chance_gives(pair: Pair, found: ModeConnectivityResult) -> None:
    controls = found.values["controls"]
    assert controls["permuted_copy"] == {"found_again": 1.0, "distance": 0.0, "units": 48, "exact": True}
    noise, naive = controls["noise"], found.values["distance_naive"]
    assert noise["gain"] == pytest.approx(1 - (noise["distance"] / noise["distance_naive"]) ** 2)
    assert controls["gain"] == pytest.approx(1 - (found.values["distance"] / naive) ** 2)
    assert 0 < noise["gain"] < 1


def planted(folder: Path, **options: object) -> ModeConnectivityResult:
    """The second is the first with its units in another order, and moved a little."""
    a = trained(mlp(1))
    order = [torch.randperm(24, generator=torch.Generator().manual_seed(each)).numpy() for each in (1, 2)]
    b = in_order(a, {"permutation_0": order[0], "permutation_2": order[1]})
    found = run(laid(folder, mlp(0), [a, b]), **options)
    for name, hidden in zip(("0", "2"), order, strict=True):
        np.testing.assert_array_equal(hidden[found.arrays[f"permutation_{name}"]], np.arange(24))
    return found


@pytest.mark.parametrize("matcher", ["weights", "activations"])
def test_a_planted_permutation_is_found_and_leaves_no_barrier(tmp_path: Path, matcher: str) -> None:
    found = planted(tmp_path, matcher=matcher)
    assert found.values["distance"] == 0
    assert found.values["barrier"]["matched"]["git_rebasin"] < 1e-3 < found.values["barrier"]["naive"]["git_rebasin"]
    assert (found.values["verdict"], found.values["verdict_firm"]) == ("same_after_permutation", True)
    assert found.values["displaced"] > 0.8


def test_best_of_all_tries_all_and_keeps_the_lowest_loss_half_way(tmp_path: Path) -> None:
    found = run(pair_of(tmp_path, lambda seed: mlp(seed, 8)), matcher="best of all", points=3)
    tried = found.values["matchers"]
    assert len(tried) == 4
    least = min(tried, key=lambda each: each["loss_half_way"])
    assert least["loss_half_way"] == pytest.approx(found.values["loss"]["matched"][1], rel=1e-5)
    assert any("chosen by the loss half-way" in each for each in found.caveats)


def test_a_network_and_itself_lie_in_one_basin(tmp_path: Path) -> None:
    a = trained(mlp(1))
    found = run(laid(tmp_path, mlp(0), [a, a]))
    assert (found.values["verdict"], found.values["verdict_firm"]) == ("same_basin", True)
    assert found.values["distance_naive"] == found.values["distance"] == 0


def test_networks_that_learned_nothing_get_a_doubt_with_their_verdict(tmp_path: Path) -> None:
    found = run(laid(tmp_path, mlp(0), [{k: 5 * v for k, v in mlp(seed).state_dict().items()} for seed in (1, 2)]))
    assert any("no better than a constant answer" in each for each in found.caveats)


def test_a_specification_that_changes_the_function_is_refused_by_the_gate(
    pair: Pair, found: ModeConnectivityResult
) -> None:
    text = found.values["specification"]
    lines = [
        each for each in text.splitlines() if "2.weight  1" not in each
    ]  # the second layer does not follow the first
    tick = Shown()
    with pytest.raises(ModelError, match=r"permutation '0'.*layer `2`"):
        run(pair, tick, specification="\n".join(lines))
    assert not tick.results, "nothing may be shown"
    again = run(pair, specification=text, points=9, dtype="float64")
    assert again.values["loss"]["matched"] == found.values["loss"]["matched"]


def test_units_that_must_stay_can_be_taken_out_of_the_specification(pair: Pair, found: ModeConnectivityResult) -> None:
    text = "\n".join(each for each in found.values["specification"].splitlines() if not each.startswith("2  "))
    part = run(pair, specification=text)
    assert set(part.arrays) == {"permutation_0", "pairs_0"}
    assert part.values["distance"] > found.values["distance"]


def test_what_is_known_is_shown_and_progress_never_falls(pair: Pair) -> None:
    tick = Shown()
    found = run(pair, tick, repair=True, controls=True, soup=True, layer_barriers=True, dropout_draws=1)
    assert all(x <= y + 1e-12 for x, y in pairwise(tick.shares)) and tick.shares[-1] == pytest.approx(1)
    kinds = [set(each.figures()) for each in tick.results]
    assert kinds[0] == {"restarts"} and {"loss", "barriers"} <= kinds[1]
    assert "verdict" not in tick.results[0].values and "verdict" in tick.results[1].values
    assert tick.results[-1].values == found.values


def test_a_run_that_was_killed_goes_on_and_ends_the_same(pair: Pair) -> None:
    asked = {"repair": True, "curve": "bezier", "curve_epochs": 3, "curve_points": 5}
    whole = run(pair, **asked)
    first = Shown(stop_after=30)
    with pytest.raises(KeyboardInterrupt):
        run(pair, first, **asked)
    kept = first.kept
    assert {"matching", "line_naive", "line_matched"} <= set(kept)
    second = Shown()
    second.kept = dict(kept)
    again = run(pair, second, **asked)
    assert len(second.shares) < 30 + 20
    assert again.values == whole.values and set(again.arrays) == set(whole.arrays)


def test_the_same_seed_gives_the_same_answer(pair: Pair) -> None:
    assert run(pair, controls=True).values == run(pair, controls=True).values


def test_batch_norm_is_measured_anew_and_the_line_as_interpolated_is_kept_beside_it(tmp_path: Path) -> None:
    both = pair_of(tmp_path, normed, dtype="float64")
    anew = run(both, dtype="float64")
    as_is = run(both, batch_norm="as interpolated", dtype="float64")
    assert anew.values["uncorrected"]["loss"] == as_is.values["loss"]
    assert "uncorrected" not in as_is.values
    a, b = states(both)
    middle = mixed(a, b, 0.5)
    assert as_is.values["loss"]["naive"][2] == pytest.approx(loss_of(normed(0), middle))
    x, _ = blobs(200, 0)
    before = x.double() @ middle["0.weight"].T + middle["0.bias"]
    middle |= {"1.running_mean": before.mean(0), "1.running_var": before.var(0)}
    assert anew.values["loss"]["naive"][2] == pytest.approx(loss_of(normed(0), middle))
    assert "measured anew" in anew.figures()["loss"].layout.title.subtitle.text
    assert "as interpolated" in as_is.figures()["loss"].layout.title.subtitle.text


def test_a_loss_that_overflows_is_no_number_and_no_connection(tmp_path: Path) -> None:
    a = trained(mlp(1))
    b = copy.deepcopy(a)
    for name, scale in (("2.weight", 1e36), ("2.bias", 1e36), ("4.weight", 1e-36)):
        b[name] = scale * b[name]  # the same answers, up to rounding; half-way they overflow
    c = copy.deepcopy(a)
    for name, scale in (("2.weight", 1e-30), ("2.bias", 1e-30), ("4.weight", 1e30)):
        c[name] = scale * c[name]
    found = run(laid(tmp_path, mlp(0), [b, c]))
    assert None in found.values["loss"]["naive"] and found.values["barrier"]["naive"]["git_rebasin"] is None
    assert found.values["verdict"] == "not_connected" and "not finite" in found.values["verdict_sentence"]
    found.save(tmp_path / "out")
    assert found.figures()["barriers"] is not None


def test_one_checkpoint_is_refused(pair: Pair) -> None:
    with pytest.raises(DataError, match="choose a second one"):
        ModeConnectivity().run(pair[0], pair[1][:1], Shown())


def test_ends_of_different_loss_get_a_doubt_by_one_definition_and_none_by_the_other(tmp_path: Path) -> None:
    early = laid(tmp_path, mlp(0), [trained(mlp(1), 3), trained(mlp(1))])
    doubts = [any("differ in loss" in each for each in run(early, definition=name).caveats)
              for name in ("git_rebasin", "entezari")]  # fmt: skip
    assert doubts == [True, False]


@pytest.mark.parametrize("family", ["gpt2"])
def test_a_transformer_goes_through_whole(family: str, tmp_path: Path) -> None:
    one, two = objective_of(family, seed=0), objective_of(family, seed=1)
    _, checkpoints = laid(tmp_path, nn.Linear(8, 5), [nn.Linear(8, 5).state_dict()] * 2)
    one.load = lambda checkpoint: one.module if checkpoint is checkpoints[0] else two.module
    everything = {"repair": True, "controls": True, "layer_barriers": True, "soup": True, "dropout_draws": 1}
    curve = {"curve": "bezier", "curve_epochs": 1, "curve_points": 3}
    found = run((one, checkpoints), points=3, dtype="float64", **everything, **curve)
    assert found.values["equivalence_error"] < 1e-10
    assert found.values["controls"]["permuted_copy"]["exact"]
    assert found.values["distance"] < found.values["distance_naive"]
    assert {"heads"} <= {each["kind"] for each in found.values["permutations"]}
    assert {"layers", "unit_pairs", "curve", "layer_barriers"} <= set(found.figures())
    found.save(tmp_path / "out")
