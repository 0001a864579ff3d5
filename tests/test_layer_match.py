"""Layers and units beside each other: planted permutations, NumPy's correlations, losses of networks mixed by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from probes.layer_match import layer_barriers, layers_of, tensor_matches, variance_ratios
from probes.layer_moments import moments_at
from probes.objective import Objective
from probes.paths import resamples
from probes.permutations import Permutation, PermutationSpec, Use, drawn, identity, inverse, permuted
from probes.points import between, point_from, point_of, tensors_of
from probes.pool import Moments
from probes.unit_pairs import Activity, activities, unit_pairs

silent = lambda _share, _doing: None


def made(seed: int, *, norm: bool = False) -> Objective:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)] if norm else [nn.Conv2d(1, 4, 3)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    x = torch.randn(13, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    return Objective.of(net, batches(x, torch.arange(13) % 3), "cross_entropy", dtype="float64", micro_batch=5)


def spec() -> PermutationSpec:
    one = lambda size: np.arange(size)[:, None]
    pixels = np.arange(16).reshape(4, 4)
    channels = (Use("0.weight", 0, one(4)), Use("0.bias", 0, one(4)), Use("3.weight", 1, pixels))
    units = (Use("3.weight", 0, one(7)), Use("3.bias", 0, one(7)), Use("5.weight", 1, one(7)))
    return PermutationSpec((Permutation("channels", 4, channels, "channels"), Permutation("units", 7, units)), "hand")


def planted() -> tuple[Objective, object, dict[str, np.ndarray]]:
    """A and a permuted, slightly shrunk copy of it, and what undoes the permutation."""
    one = made(1)
    there = drawn(spec(), 5)
    copied = permuted(tensors_of(one, point_of(one)), spec(), there)
    return one, point_from(one, {name: 0.5 * each for name, each in copied.items()}), inverse(spec(), there)


def test_a_planted_permutation_makes_every_tensor_alike() -> None:
    one, other, found = planted()
    rows = {each.tensor: each for each in tensor_matches(one, point_of(one), other, spec(), found)}
    held, a = tensors_of(one, other), tensors_of(one, point_of(one))
    total = sum(float((0.5 * each).square().sum()) for each in a.values())
    for name, row in rows.items():
        assert row.cosine == pytest.approx(1, abs=1e-12)
        x, y = a[name].flatten().numpy(), held[name].flatten().numpy()
        assert row.cosine_naive == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert row.distance_share == pytest.approx(float((0.5 * a[name]).square().sum()) / total)
    naive = [float(torch.cosine_similarity(x, y, dim=0)) for x, y in zip(a["3.weight"], held["3.weight"], strict=True)]
    assert rows["3.weight"].unit_cosine == pytest.approx(1)
    assert rows["3.weight"].unit_cosine_naive == pytest.approx(np.mean(naive))
    assert rows["3.bias"].unit_cosine is None
    assert rows["0.weight"].displaced == np.mean(found["channels"] != np.arange(4)) > 0
    assert rows["3.bias"].displaced == rows["3.weight"].displaced == np.mean(found["units"] != np.arange(7))
    assert rows["5.weight"].displaced is None
    still = tensor_matches(one, point_of(one), other, spec(), identity(spec()))
    assert still[0].displaced == 0 and still[0].cosine == still[0].cosine_naive


def test_rows_move_with_their_head_and_within_it() -> None:
    """Two heads of two rows: exchanging the heads and turning one over moves all rows; undoing both moves none."""
    heads = Permutation("heads", 2, (Use("0.weight", 0, np.array([[0, 1], [2, 3]])),), "heads", (("h0",), ("h1",)))
    rows = [Permutation(f"h{at}", 2, (Use("0.weight", 0, np.array([[2 * at], [2 * at + 1]])),)) for at in (0, 1)]
    plan = PermutationSpec((heads, *rows), "hand")
    one = made(1)
    share = lambda **found: (
        tensor_matches(one, point_of(one), point_of(one), plan, {name: np.array(each) for name, each in found.items()})[
            0
        ].displaced
    )
    assert share(heads=[1, 0]) == 1
    assert share(h0=[1, 0]) == 0.5
    assert share(heads=[1, 0], h0=[1, 0]) == 1
    assert share() == 0


def test_the_variance_ratio_is_that_of_the_mean_variances() -> None:
    moments = lambda *values: {"x": Moments(torch.zeros(len(values)), torch.tensor(values))}
    assert variance_ratios(moments(1.0, 3.0), moments(2.0, 2.0), moments(8.0, 4.0)) == {"x": 0.5}
    assert variance_ratios(moments(1.0), moments(0.0), moments(0.0)) == {"x": None}
    assert variance_ratios(moments(float("nan")), moments(1.0), moments(1.0)) == {"x": None}
    one, two = made(1), made(2)
    middle = between(point_of(one), point_of(two), 0.5)
    found = variance_ratios(moments_at(one, middle), *(moments_at(one, point_of(each)) for each in (one, two)))
    nets = [one.module, two.module, copy.deepcopy(one.module)]
    nets[2].load_state_dict(tensors_of(one, middle))
    with torch.no_grad():
        a, b, m = (net[:4](one.inputs).var(0, correction=0).mean() for net in nets)
    assert found["3"] == pytest.approx(float(m / ((a + b) / 2)))
    assert 0.1 < found["3"] < 1


@pytest.mark.parametrize("norm", [False, True])
def test_one_layer_moves_and_the_others_stay(norm: bool) -> None:
    one, two = made(1, norm=norm), made(2, norm=norm)
    if norm:
        for each in (one, two):
            each.module[1].running_mean.uniform_(-1, 1)
        one, two = (Objective.of(each.module, each.batches, "cross_entropy", dtype="float64") for each in (one, two))
    shares: list[float] = []
    weights = resamples(13, seed=0, draws=50)
    rows = layer_barriers(one, point_of(one), point_of(two), weights, lambda share, _: shares.append(share))
    layers = ["0", "1", "4", "6"] if norm else ["0", "3", "5"]
    assert [each.layer for each in rows] == layers == list(layers_of(one))
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 2 * len(layers)
    for row in rows:
        for stays, goes, side in ((one, two, row.first), (two, one, row.second)):
            truth = []
            for share in (0, 0.25, 0.5, 0.75, 1):
                net = copy.deepcopy(stays.module)
                target, tensors = dict(goes.module.named_modules())[row.layer], net.get_submodule(row.layer)
                mixed = {
                    name: (1 - share) * each + share * target.state_dict()[name] if each.is_floating_point() else each
                    for name, each in tensors.state_dict().items()
                }
                tensors.load_state_dict(mixed)
                with torch.no_grad():
                    truth.append(float(cross_entropy(net(one.inputs), one.targets)))
            np.testing.assert_allclose(side.loss, truth, rtol=1e-10)
            assert side.rise.value == pytest.approx(max(truth) - truth[0], abs=1e-12)
            assert side.barrier.midpoint.value == pytest.approx(truth[2] - (truth[0] + truth[4]) / 2)
            assert side.accuracy is not None and len(side.accuracy) == 5


def numpy_pairs(one: Objective, other: object, found: dict[str, np.ndarray], layer: int) -> tuple[Tensor, Tensor]:
    """Pre-activations (positions, units) of A and of B, B's units put in the order of A's."""
    net = copy.deepcopy(one.module)
    net.load_state_dict(tensors_of(one, other))
    with torch.no_grad():
        both = [each[: layer + 1](one.inputs).movedim(1, -1) for each in (one.module, net)]
    x, y = (each.reshape(-1, each.shape[-1]) for each in both)
    return x, y[:, torch.as_tensor(found["channels" if layer == 0 else "units"])]


def test_pairs_have_the_cosines_and_correlations_of_their_units() -> None:
    one, two = made(1), made(2)
    found = drawn(spec(), 3)
    other = point_of(two)
    activity = activities(one, point_of(one), other, spec(), found, silent)
    rows = unit_pairs(one, point_of(one), other, spec(), found, activities=activity, limit=100)
    assert len(rows) == 11 and {each.permutation for each in rows} == {"channels", "units"}
    a, b = (tensors_of(each, point_of(each)) for each in (one, two))
    for row in rows:
        assert row.second == found[row.permutation][row.first]
        layer = 0 if row.permutation == "channels" else 3
        x, y = numpy_pairs(one, other, found, layer)
        assert row.correlation == pytest.approx(np.corrcoef(x[:, row.first], y[:, row.first])[0, 1])
        assert row.active == pytest.approx([float((each[:, row.first] > 0).double().mean()) for each in (x, y)])
    units = next(each for each in rows if each.permutation == "units" and each.first == 2)
    columns = np.concatenate([4 * found["channels"][:, None] + np.arange(4)], 1).ravel()
    mine = np.concatenate([a["3.weight"][2], a["3.bias"][2:3], a["5.weight"][:, 2]])
    at = units.second
    theirs = np.concatenate([b["3.weight"][at][columns], b["3.bias"][at : at + 1], b["5.weight"][:, at]])
    assert units.cosine == pytest.approx(mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs))
    assert units.norms == pytest.approx((np.linalg.norm(mine), np.linalg.norm(theirs)))


def test_the_worst_and_the_dead_come_first() -> None:
    one, _, found = planted()
    held = tensors_of(one, point_of(one))
    with torch.no_grad():
        held["3.bias"] += 2.0  # all others are active
        other = point_from(one, permuted(held, spec(), inverse(spec(), found)))
        held["3.bias"][5] = -100.0  # never active in A
        for name, at in (("3.weight", (2,)), ("3.bias", (2,)), ("5.weight", (slice(None), 2))):
            held[name][at] = 0.0  # no weights at all
    activity = activities(one, point_of(one), other, spec(), found, silent)
    rows = [
        each
        for each in unit_pairs(one, point_of(one), other, spec(), found, activities=activity, limit=3)
        if each.permutation == "units"
    ]
    assert len(rows) == 3
    assert {(each.first, each.state) for each in rows[:2]} == {(2, "dead in the first"), (5, "dead in the first")}
    nothing = next(each for each in rows if each.first == 2)
    assert nothing.cosine is None and nothing.correlation is None
    assert rows[2].state == "" and rows[2].cosine == pytest.approx(1)
    without = unit_pairs(one, point_of(one), other, spec(), found)
    assert all(each.correlation is None and each.active is None for each in without)
    assert {each.first for each in without if each.state} == {2}


def test_a_unit_is_dead_when_its_readers_get_nothing_whatever_its_sign() -> None:
    """Below zero before tanh is not dead; nor are the units of a residual stream, which no activation follows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    net[0].bias.data -= 50
    here = Objective.of(net, batches(torch.randn(9, 5), torch.arange(9) % 3), "cross_entropy")
    one = np.arange(4)[:, None]
    uses = (Use("0.weight", 0, one), Use("0.bias", 0, one), Use("2.weight", 1, one))
    for kind, active in (("units", (1.0, 1.0)), ("stream", None)):
        plan = PermutationSpec((Permutation("hidden", 4, uses, kind),), "hand")
        of = here, point_of(here), point_of(here), plan, identity(plan)
        rows = unit_pairs(*of, activities=activities(*of, silent))
        assert [(each.state, each.active) for each in rows] == 4 * [("", active)]
        assert all(each.correlation == pytest.approx(1) for each in rows)


def test_units_that_no_layer_gives_have_no_activity() -> None:
    one = made(1)
    lost = PermutationSpec((Permutation("inputs", 16, (Use("3.weight", 1, np.arange(16)[:, None]),)),), "hand")
    seen = activities(one, point_of(one), point_of(one), lost, identity(lost), silent)
    rows = unit_pairs(one, point_of(one), point_of(one), lost, identity(lost), activities=seen, limit=2)
    assert len(rows) == 2 and rows[0].cosine == pytest.approx(1) and rows[0].correlation is None
    vectors = PermutationSpec((Permutation("biases", 7, (Use("3.bias", 0, np.arange(7)[:, None]),)),), "hand")
    assert activities(one, point_of(one), point_of(one), vectors, identity(vectors), silent) == {}
    assert isinstance(activities(one, point_of(one), point_of(one), spec(), {}, silent)["units"], Activity)
