"""What mode connectivity does where it is asked to: curves, matrices, checkpoints, dropout, single layers."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from connectivity_runs import Pair, Shown, mlp, pair_of, run
from connectivity_states import State, loss_of, mixed, states

from analyzers.mode_connectivity import ModeConnectivity
from probes.errors import ProbeError
from probes.points import at


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    return pair_of(tmp_path_factory.mktemp("pair"), mlp, test=True, dtype="float64")


def test_the_curve_runs_between_the_two_as_they_are(pair: Pair) -> None:
    asked = {"curve": "polygonal", "bends": 2, "curve_epochs": 4, "curve_points": 7, "dtype": "float64"}
    found = run(pair, **asked)
    a, b = states(pair)
    curve, bends = found.values["curve"], [found.arrays[f"curve_bend_{place}"] for place in (0, 1)]
    flat = lambda state: np.concatenate([each.numpy().ravel() for each in state.values()])
    nodes = [flat(a), *bends, flat(b)]
    steps = [math.dist(x, y) for x, y in pairwise(nodes)]
    assert curve["straight_length"] == pytest.approx(math.dist(nodes[0], nodes[-1]))
    at_t = [np.array([np.interp(t, [0, 1 / 3, 2 / 3, 1], row) for row in zip(*nodes, strict=True)]) for t in curve["t"]]
    assert curve["length"] == pytest.approx(sum(math.dist(x, y) for x, y in pairwise(at_t)))
    assert curve["length"] == pytest.approx(sum(steps)), "the nodes are among the points"
    sizes = [each.numel() for each in a.values()]

    def state_of(row: np.ndarray) -> State:
        parts = torch.as_tensor(row).split(sizes)
        return {name: part.view_as(each) for (name, each), part in zip(a.items(), parts, strict=True)}

    np.testing.assert_allclose(curve["loss"], [loss_of(mlp(0), state_of(row)) for row in at_t], rtol=1e-8)
    assert curve["summary"]["highest"]["value"] == pytest.approx(max(curve["loss"]))
    assert max(curve["loss"]) < max(found.values["loss"]["naive"])
    assert curve["barrier"]["git_rebasin"] == pytest.approx(
        max(curve["loss"]) - (curve["loss"][0] + curve["loss"][-1]) / 2
    )
    assert "along the curve" in " ".join(found.values["verdict_evidence"])


def test_the_plane_of_the_curve_holds_the_losses_of_its_points(pair: Pair) -> None:
    found = run(pair, curve="bezier", curve_epochs=3, curve_points=3, curve_plane=True, dtype="float64")
    a, b = states(pair)
    bend = torch.as_tensor(found.arrays["curve_bend_0"])
    flat = [torch.cat([each.flatten() for each in state.values()]) for state in (a, b)]
    u = (flat[1] - flat[0]) / (flat[1] - flat[0]).norm()
    v = bend - flat[0] - u * ((bend - flat[0]) @ u)
    v = v / v.norm()
    plane, cells = found.values["curve"]["plane"], found.arrays["curve_plane"]
    assert plane["points"] == len(found.arrays["curve_plane_points"]) <= 31 * 31 // 5
    sizes = [each.numel() for each in a.values()]
    for x, y in found.arrays["curve_plane_points"][:5]:
        parts = (flat[0] + x * u + y * v).split(sizes)
        state = {name: part.view_as(each) for (name, each), part in zip(a.items(), parts, strict=True)}
        row, column = (int(np.abs(np.array(plane[side]) - place).argmin()) for side, place in (("y", y), ("x", x)))
        assert cells[row, column] == pytest.approx(loss_of(mlp(0), state), rel=1e-6)
    assert "curve_plane" in found.figures()


def test_the_matrix_holds_the_barrier_of_every_pair(tmp_path: Path) -> None:
    three = pair_of(tmp_path, mlp, (1, 2, 3), dtype="float64")
    found = run(three, dtype="float64").values
    every = states(three)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        row = [loss_of(mlp(0), mixed(every[i], every[j], share)) for share in np.linspace(0, 1, 5)]
        expected = max(row) - (row[0] + row[-1]) / 2
        assert found["matrix"]["naive"][i][j] == found["matrix"]["naive"][j][i] == pytest.approx(expected)
        assert found["matrix"]["matched"][i][j] < expected
        assert found["matrix"]["naive_low"][i][j] < expected < found["matrix"]["naive_high"][i][j]
    assert found["matrix"]["matched"][0][1] == found["barrier"]["matched"]["git_rebasin"]
    assert [found["matrix"]["naive"][i][i] for i in range(3)] == [0, 0, 0]


def test_every_checkpoint_that_is_offered_has_the_loss_that_the_result_says(tmp_path: Path) -> None:
    three = pair_of(tmp_path, mlp, (1, 2, 3), dtype="float64")
    asked = {"soup": True, "repair": True, "curve": "bezier", "curve_epochs": 2, "curve_points": 3, "dtype": "float64"}
    found = run(three, **asked)
    analyzer = ModeConnectivity(points=5, restarts=2, controls=False, **asked)
    values, middle = found.values, 2
    expected = {stage: values["loss"][stage][middle] for stage in ("naive", "matched", "repaired")}
    expected |= {"permuted": values["loss"]["naive"][-1], "curve": values["curve"]["loss"][1]}
    expected |= {row["soup"]: row["loss"] for row in values["soups"]["rows"]}
    assert set(analyzer.merges(found)) == set(expected) and next(iter(analyzer.merges(found))) == "matched"
    for which, loss in expected.items():
        made = at(three[0], analyzer.merged(*three, found, which, Shown()))
        assert float(made.tallied().losses.mean()) == pytest.approx(loss, rel=1e-9), which
    every = states(three)
    mean = {name: sum(each[name] for each in every) / 3 for name in every[0]}
    assert expected["soup"] == pytest.approx(loss_of(mlp(0), mean))
    with pytest.raises(ProbeError, match="holds no 'nothing'"):
        analyzer.merged(*three, found, "nothing", Shown())


def test_dropout_stability_of_both_and_the_path_through_their_halves(pair: Pair) -> None:
    found = run(pair, dropout_draws=3, points=3).values
    assert set(found["dropout"]) == {"first", "second"}
    first = found["dropout"]["first"]
    assert first["loss"] == pytest.approx(found["loss"]["naive"][0], rel=1e-5) and first["draws"] == 3
    path = found["dropout_path"]
    assert path["loss"][0] == pytest.approx(found["loss"]["naive"][0], rel=1e-5)
    assert path["loss"][-1] == pytest.approx(found["loss"]["naive"][-1], rel=1e-5)
    assert path["highest"] == max(path["loss"])


def test_one_layer_at_a_time(pair: Pair) -> None:
    found = run(pair, layer_barriers=True, points=3, dtype="float64").values["layer_barriers"]
    a, b = states(pair)
    moved = {name: 0.5 * a[name] + 0.5 * b[name] if name.startswith("2.") else each for name, each in a.items()}
    rows = {each["layer"]: each for each in found["naive"]}
    assert rows["2"]["first"]["loss"][2] == pytest.approx(loss_of(mlp(0), moved))
