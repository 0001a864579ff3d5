"""Units left out, against networks thinned by hand; the path through halves against the bound that it promises."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from curvature_oracles import batches, gpt
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from probes.dropout_path import dropout_path
from probes.dropout_stability import drawn, dropout_stability, read_masked, silenced
from probes.errors import ModelError
from probes.objective import Objective
from probes.paths import readings
from probes.permutations import Permutation, PermutationSpec, Use
from probes.points import Point, point_of, tensors_of

silent = lambda _share, _doing: None
one = lambda size: np.arange(size)[:, None]


def mlp(seed: int, widths: tuple[int, ...] = (9, 7, 8), activation: type[nn.Module] = nn.Tanh) -> Objective:
    torch.manual_seed(seed)
    sizes, layers = (5, *widths), []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    net = nn.Sequential(*layers, nn.Linear(sizes[-1], 3)).double()
    with torch.no_grad():
        for each in net.parameters():
            each.mul_(2)
    x = torch.randn(17, 5, generator=torch.Generator().manual_seed(0)).double()
    return Objective.of(net, batches(x, torch.arange(17) % 3), "cross_entropy", dtype="float64", micro_batch=6)


def chain_spec(widths: tuple[int, ...] = (9, 7, 8)) -> PermutationSpec:
    found = [
        Permutation(f"hidden {at}", size, (
            Use(f"{2 * at}.weight", 0, one(size)), Use(f"{2 * at}.bias", 0, one(size)),
            Use(f"{2 * at + 2}.weight", 1, one(size)),
        ))
        for at, size in enumerate(widths)
    ]  # fmt: skip
    return PermutationSpec(tuple(found[::-1]), "by hand")  # in another order than that of the layers


def cnn(seed: int) -> tuple[Objective, PermutationSpec]:
    """Convolution, BatchNorm with statistics of its own, pooling, convolution, flatten, linear twice."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 3),
    ).double()  # fmt: skip
    x = torch.randn(14, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.2, 2)
    for each in (net[1].weight, net[1].bias):
        nn.init.uniform_(each, 0.5, 1.5)
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    first = tuple(Use(name, 0, one(6), counts="running" not in name) for name in names)
    second = (Use("4.weight", 0, one(5)), Use("4.bias", 0, one(5)), Use("7.weight", 1, np.arange(20).reshape(5, 4)))
    third = (Use("7.weight", 0, one(8)), Use("7.bias", 0, one(8)), Use("9.weight", 1, one(8)))
    made = PermutationSpec((
        Permutation("first", 6, (*first, Use("4.weight", 1, one(6))), "channels"),
        Permutation("second", 5, second, "channels"), Permutation("third", 8, third),
    ), "by hand")  # fmt: skip
    data = batches(x, torch.arange(14) % 3)
    return Objective.of(net, data, "cross_entropy", dtype="float64", micro_batch=5), made


def loss(net: nn.Module, objective: Objective) -> float:
    with torch.no_grad():
        return float(cross_entropy(net(objective.inputs), objective.targets))


def thinned(net: nn.Sequential, layers: dict[int, tuple[np.ndarray, int, int]]) -> nn.Sequential:
    """A copy in which a layer's weight reads only some of its `size` units of `slots` inputs each, scaled up."""
    net = copy.deepcopy(net)
    for layer, (kept, size, slots) in layers.items():
        mask = np.zeros((size, slots))
        mask[kept] = size / len(kept)
        weight = net[layer].weight.data
        shape = (1, -1, *[1] * (weight.ndim - 2))
        weight.mul_(torch.as_tensor(mask.ravel()).view(shape))
    return net


def test_masks_are_networks_without_these_units() -> None:
    here, plan = cnn(1)
    hidden, notes = silenced(here, plan)
    assert [each.name for each in hidden] == ["first", "second", "third"] and not notes
    kept = {"first": np.array([1, 4]), "second": np.array([0, 2, 3]), "third": np.array([7])}
    found = read_masked(here, point_of(here), hidden, kept).loss[0]
    by_hand = thinned(here.module, {4: (kept["first"], 6, 1), 7: (kept["second"], 5, 4), 9: (kept["third"], 8, 1)})
    assert found == pytest.approx(loss(by_hand, here), rel=1e-12)
    only = read_masked(here, point_of(here), hidden[1:2], kept).loss[0]
    assert only == pytest.approx(loss(thinned(here.module, {7: (kept["second"], 5, 4)}), here), rel=1e-12)
    assert not any(each._forward_pre_hooks for each in here.module.modules())
    assert here.evaluate().loss == pytest.approx(loss(here.module, here))


def test_figures_are_those_of_the_draws() -> None:
    here, shares = mlp(1), []
    options = {"kept": (1.0, 0.5), "draws": 4, "layer_draws": 3, "seed": 7}
    found = dropout_stability(here, point_of(here), chain_spec(), lambda share, _: shares.append(share), **options)
    assert shares[-1] == 1 and shares == sorted(shares)
    assert found.losses.shape == (2, 4) and found.layer_losses.shape == (3, 2, 3)
    assert found.layers == ("hidden 2", "hidden 1", "hidden 0") and found.units == (8, 7, 9)
    assert found.loss == pytest.approx(loss(here.module, here))
    np.testing.assert_allclose(found.losses[0], found.loss)  # every unit is kept
    np.testing.assert_allclose(found.layer_epsilon[:, 0], 0, atol=1e-12)
    generator, truth = np.random.default_rng(7), []
    for share in (1.0, 0.5):
        for _ in range(4):
            kept = {at: drawn(size, share, generator) for at, size in ((2, 8), (1, 7), (0, 9))}
            by_hand = {2 * at + 2: (kept[at], size, 1) for at, size in ((2, 8), (1, 7), (0, 9))}
            truth.append(loss(thinned(here.module, by_hand), here))
    np.testing.assert_allclose(found.losses.ravel(), truth, rtol=1e-10)
    gaps = np.abs(np.array(truth[4:]) - found.loss)
    assert found.epsilon[1] == pytest.approx(gaps.mean())
    assert found.stderr[1] == pytest.approx(gaps.std(ddof=1) / 2)
    assert found.layer_stderr.shape == (3, 2) and (found.layer_epsilon[:, 1] > 0).all()
    again = dropout_stability(here, point_of(here), chain_spec(), silent, **options)
    np.testing.assert_array_equal(again.layer_losses, found.layer_losses)
    single = dropout_stability(here, point_of(here), chain_spec(), silent, kept=(0.5,), draws=1, layer_draws=1)
    assert np.isnan(single.stderr).all() and found.accuracies is not None and found.accuracies.shape == (2, 4)


def test_without_a_specification_the_inputs_of_every_later_layer_are_thinned() -> None:
    here, _ = cnn(1)
    hidden, notes = silenced(here, None)
    assert [(each.name, each.size) for each in hidden] == [("4", 6), ("7", 20), ("9", 8)]
    assert "by the pixel" in notes[0]
    kept = {"4": np.array([0, 5]), "7": np.arange(11), "9": np.arange(3)}
    by_hand = thinned(here.module, {4: (kept["4"], 6, 1), 7: (kept["7"], 20, 1), 9: (kept["9"], 8, 1)})
    assert read_masked(here, point_of(here), hidden, kept).loss[0] == pytest.approx(loss(by_hand, here))


def test_streams_keep_their_units_and_a_single_layer_has_none() -> None:
    here = mlp(1, ())
    with pytest.raises(ModelError, match="no hidden units"):
        dropout_stability(here, point_of(here), None, silent)
    deep, plan = mlp(1), list(chain_spec())
    stream = Permutation("stream", 7, plan[1].uses, "stream")
    hidden, notes = silenced(deep, PermutationSpec((plan[0], stream, plan[2]), "by hand"))
    assert [each.name for each in hidden] == ["hidden 2", "hidden 0"] and "1 permutations" in notes[0]


def corner(here: Objective, point: Point) -> nn.Sequential:
    net = copy.deepcopy(here.module)
    net.load_state_dict(tensors_of(here, point), strict=False)
    return net


def bound(
    here: Objective, ends: tuple[Point, Point], halves: tuple[list[np.ndarray], ...], layers: list[tuple]
) -> float:
    """The largest loss of both networks, whole and thinned from the last hidden layer downwards, by hand."""
    found = []
    for end, kept in zip(ends, halves, strict=True):
        for level in range(len(layers) + 1):
            plan = {layer: (kept[at], size, slots) for at, (layer, size, slots) in enumerate(layers) if at >= level}
            found.append(loss(thinned(corner(here, end), plan), here))
    return max(found)


@pytest.mark.parametrize("kind", ["one layer", "two layers", "three layers", "four layers", "cnn"])
def test_the_path_stays_below_the_thinned_networks(kind: str) -> None:
    if kind == "cnn":
        (here, plan), (there, _) = cnn(1), cnn(2)
        layers = [(4, 6, 1), (7, 5, 4), (9, 8, 1)]
    else:
        widths = {"one layer": (9,), "two layers": (9, 8), "three layers": (9, 7, 8), "four layers": (6, 5, 2, 7)}[kind]
        here, there, plan = mlp(1, widths), mlp(2, widths), chain_spec(widths)
        layers = [(2 * at + 2, size, 1) for at, size in enumerate(widths)]
    a, b = point_of(here), point_of(there)
    path = dropout_path(here, a, b, plan, tries=1)
    for one_end, other in ((path.points[0], a), (path.points[-1], b)):
        for name, each in tensors_of(here, one_end).items():
            assert torch.equal(each, tensors_of(here, other)[name]), name
    assert len(path.points) == len(path.labels) == 4 * len(layers) + 2 and not path.notes
    assert all(len(set(x) & set(y)) == 0 and len(x) == len(y) for x, y in zip(*path.halves, strict=True))
    found = readings(here, path.along(6), path.count(6), silent)
    highest = bound(here, (a, b), path.halves, layers)
    assert found.loss.max() <= highest + 1e-9
    assert found.loss.max() > highest - 0.2 * highest  # the bound is of these very networks
    still = [at for at, label in enumerate(path.labels) if "written" in label or "unused" in label]
    for at in still:  # rewriting what is not in use changes nothing
        before = "written" in path.labels[at] and not path.labels[at].startswith("B")  # the way from B goes backwards
        into = found.loss[6 * at - 6 : 6 * at + 1] if before else found.loss[6 * at : 6 * at + 7]
        np.testing.assert_allclose(into, into[0], rtol=1e-10)


def test_better_halves_are_taken_where_more_are_tried() -> None:
    here, there = mlp(1), mlp(2)
    highest = []
    for tries in (1, 20):
        path = dropout_path(here, point_of(here), point_of(there), chain_spec(), seed=3, tries=tries)
        thin = [
            loss(thinned(each.module, {2 * at + 2: (kept[at], size, 1) for at, size in enumerate((9, 7, 8))}), here)
            for each, kept in zip((here, there), path.halves, strict=True)
        ]
        highest.append(max(thin))
    assert highest[1] < highest[0]


class Residual(nn.Module):
    """A block that adds its input; a chain but for that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        return self.last(x + self.inner(x).tanh())


def test_other_models_are_refused_in_words() -> None:
    data = batches(torch.randn(6, 5), torch.arange(6) % 3)
    here = Objective.of(Residual(), data, "cross_entropy")
    uses = [Use("first.weight", 0, one(6)), Use("inner.weight", 1, one(6)), Use("inner.weight", 0, one(6))]
    stream = Permutation("stream", 6, (*uses, Use("last.weight", 1, one(6))), "stream")
    with pytest.raises(ModelError, match=r"plain chains.*of the kind stream.*Train a curve"):
        dropout_path(here, point_of(here), point_of(here), PermutationSpec((stream,), "by hand"))
    mixed = Permutation("stream", 6, stream.uses)
    with pytest.raises(ModelError, match="read by 2"):
        dropout_path(here, point_of(here), point_of(here), PermutationSpec((mixed,), "by hand"))
    deep = mlp(1)
    with pytest.raises(ModelError, match=r"belongs to no layer|single chain"):
        part = PermutationSpec((chain_spec()["hidden 2"], chain_spec()["hidden 0"]), "by hand")
        dropout_path(deep, point_of(deep), point_of(deep), part)
    with pytest.raises(ModelError, match=r"0\.weight belongs to no layer"):
        part = PermutationSpec((chain_spec()["hidden 2"], chain_spec()["hidden 1"]), "by hand")
        dropout_path(deep, point_of(deep), point_of(deep), part)
    net, texts = gpt()
    with pytest.raises(ModelError, match=r"no hidden units|plain chains"):
        small = Objective.of(net, texts, "causal_lm")
        dropout_path(small, point_of(small), point_of(small), PermutationSpec((), "by hand"))


class Softened(nn.Module):
    """A chain whose outputs are not linear in its last layer: no bound."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()).tanh()


def test_outputs_must_be_those_of_the_last_layer() -> None:
    here = Objective.of(Softened(), batches(torch.randn(6, 5), torch.arange(6) % 3), "cross_entropy")
    uses = (Use("first.weight", 0, one(6)), Use("first.bias", 0, one(6)), Use("last.weight", 1, one(6)))
    with pytest.raises(ModelError, match="not those of its last layer"):
        plan = PermutationSpec((Permutation("hidden", 6, uses),), "by hand")
        dropout_path(here, point_of(here), point_of(here), plan)


def trained(width: int, seed: int) -> Objective:
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        for part in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return Objective.of(net, batches(x, y), "cross_entropy", micro_batch=2000)


def test_wide_networks_lose_less_and_are_joined_through_their_halves() -> None:
    drops, paths = [], []
    for width in (16, 64, 256):
        here = trained(width, 1)
        plan = chain_spec((width, width))
        found = dropout_stability(here, point_of(here), plan, silent, kept=(0.5,), draws=10, layer_draws=1)
        drops.append(found.epsilon[0])
        there = trained(width, 2)
        path = dropout_path(here, point_of(here), point_of(there), plan, tries=4)
        paths.append(readings(here, path.along(2), path.count(2), silent).loss.max())
        ends = [here.evaluate().loss, there.evaluate().loss]
    assert drops[0] > 2 * drops[1] > 3 * drops[2]
    assert paths[0] > paths[1] > paths[2] and paths[2] < max(ends) + 3 * drops[2]
