"""Weight matching against brute force, a counterexample set by hand, planted permutations, and the trend with width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from matching_oracles import TICK, attention, everything, heads_spec, mlp_spec, product_of, random_mlp, rows, units
from torch import Tensor, nn

from probes import matching as module
from probes.assignment import best_assignment
from probes.errors import ModelError
from probes.matching import assigned_alike, distance_between, overall, weight_matching
from probes.objective import Objective
from probes.paths import readings
from probes.permutations import (
    Permutation,
    PermutationSpec,
    Use,
    drawn,
    identity,
    permuted,
)
from probes.points import between, point_from


@pytest.mark.parametrize("seed", range(5))
def test_one_hidden_layer_is_solved_exactly(seed: int) -> None:
    a, b, spec = random_mlp(seed, 5), random_mlp(seed + 50, 5), mlp_spec(5)
    found = weight_matching(a, b, spec, restarts=1, tick=TICK)
    best = max(product_of(a, permuted(b, spec, each)) for each in everything(spec))
    assert product_of(a, permuted(b, spec, found.found)) == pytest.approx(best, rel=1e-12)
    squares = sum(float((a[name] - permuted(b, spec, found.found)[name]).square().sum()) for name in a)
    assert found.distance == pytest.approx(squares**0.5, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_restarts_keep_the_best_and_reach_the_best_of_all(seed: int) -> None:
    widths = (3, 3, 3, 3)
    a, b, spec = random_mlp(seed, *widths), random_mlp(seed + 50, *widths), mlp_spec(*widths)
    found = weight_matching(a, b, spec, restarts=30, seed=seed, tick=TICK)
    least = min(distance_between(a, permuted(b, spec, each), spec) for each in everything(spec))
    assert found.distance == pytest.approx(least, rel=1e-12)
    assert found.distance == min(each.distance for each in found.restarts)
    assert [each.start for each in found.restarts[:3]] == ["fixed axes", "identity", "random"]
    others = [each for each in found.restarts if each.distance > found.distance * (1 + 1e-9)]
    assert others and all(each.agreement < 1 for each in others), "here some starts end in a worse place"


@pytest.mark.parametrize("seed", range(4))
def test_no_single_permutation_could_do_better_and_the_start_is_never_beaten(seed: int) -> None:
    widths = (6, 7, 5, 6)
    a, b, spec = random_mlp(seed, *widths), random_mlp(seed + 50, *widths), mlp_spec(*widths)
    start = drawn(spec, seed + 7)
    for given in (identity(spec), start):
        found = weight_matching(a, b, spec, restarts=1, start=given, tick=TICK)
        assert found.restarts[0].start == "given" and found.agreement is None
        assert found.distance <= distance_between(a, permuted(b, spec, given), spec)
        here = permuted(b, spec, found.found)
        for k, width in enumerate(widths):
            worth = a[f"{k}.weight"] @ here[f"{k}.weight"].T + torch.outer(a[f"{k}.bias"], here[f"{k}.bias"])
            worth = worth + a[f"{k + 1}.weight"].T @ here[f"{k + 1}.weight"]
            pi = best_assignment(worth.numpy())
            assert float(worth[np.arange(width), pi].sum()) <= float(worth.trace()) + 1e-9


def test_threads_and_repetition_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = (9,) * 8
    a, b, spec = random_mlp(0, *widths), random_mlp(1, *widths), mlp_spec(*widths)
    ends = []
    for threads in (1, 4, 4):
        monkeypatch.setattr(module, "_threads", lambda threads=threads: threads)
        ends.append(weight_matching(a, b, spec, seed=3, restarts=3, tick=TICK))
    for each in ends[1:]:
        assert each.restarts == ends[0].restarts
        assert all(np.array_equal(each.found[name], ends[0].found[name]) for name in each.found)
    assert ends[0].seconds_assignment > 0 < ends[0].seconds_products
    other = weight_matching(a, b, spec, seed=4, restarts=3, tick=TICK)
    assert other.restarts != ends[0].restarts


def test_side_by_side_is_one_after_the_other() -> None:
    """The same order, every permutation in every sweep, none at the same time: the reference ends in the same place."""
    widths = (6,) * 7
    a, b, spec = random_mlp(2, *widths), random_mlp(3, *widths), mlp_spec(*widths)
    names, here = [each.name for each in spec], dict(b)
    generator = np.random.default_rng([5, 0, 1])
    for _ in range(50):
        before = product_of(a, here)
        for place in generator.permutation(len(names)):
            worth = np.zeros((6, 6))
            for use in spec[names[place]].uses:
                flat = lambda tensor, axis=use.axis: tensor.movedim(axis, 0).reshape(6, -1)
                worth += (flat(a[use.tensor]) @ flat(here[use.tensor]).T).numpy()
            here = permuted(here, spec, {names[place]: best_assignment(worth)})
        if product_of(a, here) <= before + 1e-12:
            break
    found = weight_matching(a, b, spec, seed=5, restarts=1, start=identity(spec), tick=TICK)
    moved = permuted(b, spec, found.found)
    assert all(torch.equal(moved[name], here[name]) for name in here)


def test_progress_rises_and_says_where_it_is() -> None:
    seen: list[tuple[float, str]] = []
    a, spec = random_mlp(0, 5, 5), mlp_spec(5, 5)
    weight_matching(a, random_mlp(1, 5, 5), spec, restarts=2, tick=lambda share, doing: seen.append((share, doing)))
    assert [share for share, _ in seen] == sorted(share for share, _ in seen) and seen[-1][0] <= 1
    assert seen[0][1] == "restart 1 of 2, sweep 1"


class Quadrant(nn.Sequential):
    """Two hidden layers of two units that say, by hand, whether both coordinates are positive.

    first: which unit carries which coordinate and its sign, (2, 2), and its bias; second: the same for the next layer.
    """

    def __init__(self, first: list[list[float]], shift: list[float], second: list[list[float]], then: list[float]):
        slope = lambda: nn.LeakyReLU(0.01)
        super().__init__(nn.Linear(2, 2), slope(), nn.Linear(2, 2), slope(), nn.Linear(2, 1))
        given = (first, shift, second, then, [[-1.0, -1.0]], [0.0])
        for each, value in zip(self.parameters(), given, strict=True):
            each.data = torch.tensor(value, dtype=torch.float64)


def quadrants() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One net bends x first and y second, the other the other way round, in units of the other order."""
    one = Quadrant([[1, 0], [0, -1]], [1, 0], [[-1, 0], [0, 1]], [1, 0])
    other = Quadrant([[-1, 0], [0, 1]], [0, 1], [[1, 0], [0, -1]], [0, 1])
    return dict(one.state_dict()), dict(other.state_dict())


def test_the_counterexample_has_no_permutation_without_a_barrier() -> None:
    a, b = quadrants()
    spec = mlp_spec(2, 2, step=2)
    points = torch.rand(40_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    truth = (points >= 0).all(1)
    net = Quadrant([[0, 0], [0, 0]], [0, 0], [[0, 0], [0, 0]], [0, 0])

    def error(tensors: dict[str, Tensor]) -> float:
        with torch.no_grad():
            answer = torch.func.functional_call(net, tensors, (points,))[:, 0] >= 0
        return float((answer != truth).double().mean())

    assert error(a) < 3e-3 and error(b) < 3e-3
    swap = np.array([1, 0])
    four = {"none": {}, "first": {"p0": swap}, "second": {"p1": swap}, "both": {"p0": swap, "p1": swap}}
    moved = {name: permuted(b, spec, each) for name, each in four.items()}
    mix = lambda other, alpha: {name: (1 - alpha) * a[name] + alpha * other[name] for name in a}
    halves = {name: error(mix(each, 0.5)) for name, each in moved.items()}
    assert list(halves.values()) == pytest.approx([0.25] * 4, abs=0.01)
    tenths = {name: error(mix(each, 0.9)) for name, each in moved.items()}
    assert list(tenths.values()) == pytest.approx([0.251, 0.041, 0.251, 0.028], abs=0.012)
    distances = [distance_between(a, each, spec) for each in moved.values()]
    assert distances == pytest.approx([4.472, 3.162, 3.742, 2.0], abs=1e-3)
    for seed in range(5):
        found = weight_matching(a, b, spec, seed=seed, tick=TICK)
        assert found.distance == pytest.approx(2.0, abs=1e-12)
        assert all(np.array_equal(pi, swap) for pi in found.found.values())


@pytest.mark.parametrize("seed", range(4))
def test_both_axes_of_a_tensor(seed: int) -> None:
    """A layer from a stream to itself: the worth of a pair depends on the other pairs, yet no step may lose."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    spec = PermutationSpec((units("stream", 8, ("in", 0), ("mix", 0), ("mix", 1)),), "by hand")
    a, b = ({"in": draw(8, 6), "mix": draw(8, 8)} for _ in range(2))
    apart = weight_matching(a, b, spec, tick=TICK, seed=seed)
    assert apart.restarts[1].distance <= distance_between(a, b, spec) and apart.distance < distance_between(a, b, spec)
    planted = drawn(spec, seed)
    found = weight_matching(a, permuted(a, spec, planted), spec, tick=TICK, seed=seed)
    assert found.distance == 0


def test_running_statistics_follow_and_do_not_count() -> None:
    a, b, spec = random_mlp(0, 6), random_mlp(1, 6), mlp_spec(6)
    plain = weight_matching(a, b, spec, tick=TICK)
    silent = Use("norm.running_mean", 0, rows(6), counts=False)
    more = PermutationSpec(tuple(Permutation(p.name, p.size, (*p.uses, silent)) for p in spec), "by hand")
    loud = {"norm.running_mean": 1e3 * torch.arange(6.0, dtype=torch.float64)}
    found = weight_matching({**a, **loud}, {**b, **loud}, more, tick=TICK)
    assert found.distance == plain.distance
    assert np.array_equal(found.found["p0"], plain.found["p0"])
    assert weight_matching(a, b, more, tick=TICK).distance == plain.distance, "parameters alone may be given"


def test_what_is_alike_within_slots_counts_only_where_the_slots_are() -> None:
    spec = heads_spec(3, 2)
    here = identity(spec)
    swapped = {**here, "heads": np.array([1, 0, 2])}
    alike = assigned_alike(spec, here, swapped)
    assert alike["heads"].tolist() == [False, False, True]
    assert not alike["qk0"].any() and not alike["vo1"].any() and alike["qk2"].all() and alike["stream"].all()
    assert overall(alike) == (6 + 1 + 4) / (6 + 3 + 12)


def test_what_cannot_be_matched_is_refused_in_words() -> None:
    a, spec = random_mlp(0, 4), mlp_spec(4)
    with pytest.raises(ModelError, match=r"names 1\.weight, which the checkpoints do not have"):
        weight_matching({k: v for k, v in a.items() if k != "1.weight"}, a, spec, tick=TICK)
    with pytest.raises(ModelError, match=r"0\.weight has the shapes \(4, 4\) and \(5, 4\)"):
        weight_matching(a, random_mlp(1, 5), spec, tick=TICK)
    with pytest.raises(ModelError, match="not finite"):
        weight_matching(a, {**a, "0.bias": a["0.bias"] * torch.nan}, spec, tick=TICK)
    heads = heads_spec(3, 2)
    stray = tuple(
        Permutation(p.name, 2, (Use("q", 0, rows(2, 4)),)) if p.name == "qk0" else p for p in heads
    )  # the rows of the third head
    with pytest.raises(ModelError, match=r"qk0 lies within heads, but it moves parts of q"):
        weight_matching(attention(0, 3, 2), attention(1, 3, 2), PermutationSpec(stray, "by hand"), tick=TICK)


def trained(width: int, seed: int, x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(40):
        for part in torch.randperm(len(x)).split(256):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            adam.step()
    return net


def test_barriers_fall_with_width_and_far_more_after_matching() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target).long()
    naive, matched = [], []
    for width in (16, 64, 256):
        nets = [trained(width, seed, x, y) for seed in (1, 2)]
        objective = Objective.of(nets[0], batches(x, y), "cross_entropy", device="cpu")
        a, b = ({name: each.detach() for name, each in net.named_parameters()} for net in nets)
        spec = mlp_spec(width, width, step=2)
        found = weight_matching(a, b, spec, tick=TICK)
        for kept, end in ((naive, b), (matched, permuted(b, spec, found.found))):
            line = [
                between(point_from(objective, a), point_from(objective, end), each) for each in np.linspace(0, 1, 11)
            ]
            loss = readings(objective, line, 11, TICK).loss
            kept.append(float((loss - (loss[0] + loss[-1]) / 2).max()))
    assert naive[0] > naive[1] > naive[2] > 0.1
    assert matched[0] > matched[1] > matched[2]
    assert all(after < before / 3 for before, after in zip(naive, matched, strict=True)), (naive, matched)
