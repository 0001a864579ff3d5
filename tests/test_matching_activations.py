"""Activation matching against plain correlations; what is looked at; planted permutations of many kinds of network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from matching_oracles import TICK, grouped_spec, mlp_spec, rows
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from probes.matching_activations import Moments, activation_matching
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, Use, composed, drawn, permuted
from probes.points import Point, point_from, point_of, tensors_of
from probes.unit_views import best_views, seen, views_of


def objective_of(net: nn.Module, *shape: int, count: int = 60, classes: int = 3) -> Objective:
    generator = torch.Generator().manual_seed(5)
    data = batches(
        torch.randn(count, *shape, generator=generator), torch.randint(classes, (count,), generator=generator)
    )
    return Objective.of(net, data, "cross_entropy", dtype="float64", device="cpu", micro_batch=17)


def planted(objective: Objective, spec: PermutationSpec, seed: int) -> tuple[dict[str, np.ndarray], Point]:
    chosen = drawn(spec, seed)
    return chosen, point_from(objective, permuted(tensors_of(objective, point_of(objective)), spec, chosen))


def test_correlations_are_those_of_numpy_and_dead_units_have_none() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)) + 100, rng.normal(size=(50, 3)) * 1e-3
    b[:, 1] += 1e-3 * a[:, 2]
    a[:, 0], b[:, 2] = 7.3, 0.0
    moments = Moments()
    for part in (slice(0, 1), slice(1, 20), slice(20, 50)):
        moments.add(torch.from_numpy(a[part]), torch.from_numpy(b[part]))
    found = moments.correlations().numpy()
    truth = np.corrcoef(a[:, 1:], b[:, :2], rowvar=False)[:3, 3:]
    np.testing.assert_allclose(found[1:, :2], truth, atol=1e-10)
    assert not found[0].any() and not found[:, 2].any()


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


@pytest.mark.parametrize("seed", range(3))
def test_an_mlp_is_matched_by_the_correlation_of_what_its_units_answer(seed: int) -> None:
    objectives = [objective_of(mlp(2 * seed + k), 5) for k in range(2)]
    found = activation_matching(objectives[0], *map(point_of, objectives), mlp_spec(8, 7, step=2), TICK)
    for depth, name in ((2, "p0"), (4, "p1")):
        with torch.no_grad():
            a, b = (each.module.double()[:depth](each.inputs).numpy() for each in objectives)
        spread = lambda x: np.where(x.std(0) > 0, x.std(0), np.inf)
        worth = (a - a.mean(0)).T @ (b - b.mean(0)) / len(a) / np.outer(spread(a), spread(b))
        pi = linear_sum_assignment(worth, maximize=True)[1]
        live = worth[np.arange(len(pi)), pi] != 0
        assert live.sum() >= 4 and np.array_equal(found.found[name][live], pi[live])
    assert found.restarts == () and found.agreement is None and found.notes == ()


class Net(nn.Module):
    """Convolutions with BatchNorm and one ReLU in place for all, a residual stream, pooling, a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.stem_norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.one_norm = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.two, self.two_norm = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.thin, self.head = nn.Conv2d(6, 4, 1), nn.Linear(16, 3)
        for each in self.parameters():
            each.data += 0.2 * torch.randn_like(each)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        inside = self.relu(self.one_norm(self.one(x)))
        x = x + self.two_norm(self.two(inside))
        return self.head(self.pool(self.relu(self.thin(x))).flatten(1))


def net_spec() -> PermutationSpec:
    whole = lambda size, *places: tuple(Use(tensor, axis, rows(size)) for tensor, axis in places)
    norm = lambda name: [(f"{name}.{kind}", 0) for kind in ("weight", "bias", "running_mean", "running_var")]
    layer = lambda name: [(f"{name}.weight", 0), (f"{name}.bias", 0)]
    stream = [
        *layer("stem"),
        *norm("stem_norm"),
        *layer("two"),
        *norm("two_norm"),
        ("one.weight", 1),
        ("thin.weight", 1),
    ]
    inside = [*layer("one"), *norm("one_norm"), ("two.weight", 1)]
    flat = Use("head.weight", 1, rows(4, slots=4))
    each = (
        Permutation("stream", 6, whole(6, *stream), "stream"),
        Permutation("inside", 5, whole(5, *inside), "channels"),
        Permutation("thin", 4, (*whole(4, *layer("thin")), flat), "channels"),
    )
    return PermutationSpec(each, "by hand")


def test_what_is_looked_at() -> None:
    """The ReLU behind BatchNorm though it serves all, before the pooling; of a stream what its readers see."""
    objective = objective_of(Net(), 2, 4, 4)
    views = views_of(objective, net_spec())
    names = {name: {view.spot.name for view in best_views(each)} for name, each in views.items()}
    assert names == {
        "stream": {"input of one", "input of thin"},
        "inside": {"answer of one"},
        "thin": {"answer of thin"},
    }
    spots = [view.spot for each in views.values() for view in best_views(each)]
    found = {spot.name: each[0] for spot, each in seen(objective, slice(0, 9), spots).items()}
    net = copy.deepcopy(objective.module).double()
    net.relu = nn.ReLU()
    with torch.no_grad():
        stem = net.relu(net.stem_norm(net.stem(objective.inputs[:9])))
        inside = net.relu(net.one_norm(net.one(stem)))
        stream = stem + net.two_norm(net.two(inside))
        thin = net.relu(net.thin(stream))
    for name, truth in {
        "input of one": stem,
        "answer of one": inside,
        "input of thin": stream,
        "answer of thin": thin,
    }.items():
        torch.testing.assert_close(found[name], truth, msg=name)


def test_nothing_stays_behind() -> None:
    objective = objective_of(Net(), 2, 4, 4)
    before = {name: each.clone() for name, each in tensors_of(objective, point_of(objective)).items()}
    _, b = planted(objective, net_spec(), 1)
    activation_matching(objective, point_of(objective), b, net_spec(), TICK)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in objective.module.modules())
    assert all(torch.equal(before[name], each) for name, each in tensors_of(objective, point_of(objective)).items())


@pytest.mark.parametrize("seed", range(3))
def test_planted_channels_of_a_residual_network_are_found(seed: int) -> None:
    objective, spec = objective_of(Net(), 2, 4, 4), net_spec()
    chosen, b = planted(objective, spec, seed)
    found = activation_matching(objective, point_of(objective), b, spec, TICK)
    assert found.distance == 0
    back = composed(spec, chosen, found.found)
    assert all(np.array_equal(pi, np.arange(len(pi))) for pi in back.values())


class Grouped(nn.Module):
    """Two grouped layers one behind the other, with the names of `grouped_spec`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = nn.Conv1d(5, 12, 1), nn.Conv1d(12, 6, 1, groups=3), nn.Linear(6, 5)
        self.one, self.two, self.three = made

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x).relu()).relu().mean(-1))


def test_planted_groups_are_found() -> None:
    spec = grouped_spec()
    name = lambda use: Use(f"{use.tensor}.weight", use.axis, use.index, use.rows)
    bias = lambda use: [Use(f"{use.tensor}.bias", 0, use.index)] if use.axis == 0 and use.rows is None else []
    uses = lambda each: tuple(more for use in each.uses for more in (name(use), *bias(use)))
    spec = PermutationSpec(
        tuple(Permutation(each.name, each.size, uses(each), each.kind, each.inner) for each in spec), "by hand"
    )
    objective = objective_of(Grouped(), 5, 7, classes=5)
    chosen, b = planted(objective, spec, 2)
    torch.testing.assert_close(
        objective.outputs(list(b.theta), slice(0, 9)), objective.outputs(objective.theta, slice(0, 9))
    )
    found = activation_matching(objective, point_of(objective), b, spec, TICK)
    assert found.distance == 0
    assert all(np.array_equal(pi, np.arange(len(pi))) for pi in composed(spec, chosen, found.found).values())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "llama one head", "vit", "torch encoder"])
def test_planted_permutations_of_transformers_are_found(name: str) -> None:
    import family_nets

    from probes.families import family

    objective = family_nets.objective_of(name)
    spec = family(objective)
    assert spec is not None
    for seed in (0, 1):
        _, b = planted(objective, spec, seed)
        found = activation_matching(objective, point_of(objective), b, spec, TICK)
        assert found.distance == 0
    told = [note for note in found.notes if note.startswith("No layer shows")]
    assert bool(told) == (name == "torch encoder"), "torch's own attention runs without its modules being called"
