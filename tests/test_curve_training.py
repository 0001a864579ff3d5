"""Training of a curve against a plain loop with torch's own optimizer, a killed one, and a landscape known in full."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, gpt, mean_loss, mlp
from scipy.optimize import minimize
from torch import nn
from torch.func import functional_call

from probes import curve_training
from probes.curve_training import rate_at, trained
from probes.curves import coefficients
from probes.errors import ObjectiveError
from probes.objective import Objective
from probes.points import Point, point_of


def quiet(share: float, doing: str) -> None:
    assert 0 <= share <= 1 and doing


def pair(made, **options) -> tuple[Objective, Point, Point]:
    """An objective and two points of it, the second moved at random."""
    module, data = made
    here = Objective.of(module, data, "causal_lm" if data.targets.ndim == 2 else "cross_entropy",
                        dtype="float64", **options)  # fmt: skip
    one = point_of(here)
    theta = tuple(each + 0.3 * torch.randn_like(each) for each in one.theta)
    return here, one, Point(theta, {name: each + 0.1 for name, each in one.buffers.items()})


def plain(objective: Objective, one: Point, other: Point, *, kind, bends, epochs, rate, decay, batch, seed):
    """Train as the text says: autograd through the combination, torch's SGD, the model called as a whole."""
    module = copy.deepcopy(objective.module)
    for each in module.modules():
        each.training = isinstance(each, nn.modules.batchnorm._BatchNorm)
    count, nodes = len(objective.inputs), bends + 2
    middle = [
        [
            (torch.lerp(a, b, (j + 1) / (nodes - 1))).requires_grad_()
            for a, b in zip(one.theta, other.theta, strict=True)
        ]
        for j in range(bends)
    ]
    optimizer = torch.optim.SGD([each for row in middle for each in row], lr=rate, momentum=0.9)
    each_epoch, losses = math.ceil(count / batch), []
    for epoch in range(epochs):
        generator = np.random.default_rng([seed, epoch])
        parts, ts = np.array_split(generator.permutation(count), each_epoch), generator.random(each_epoch)
        for place, (part, t) in enumerate(zip(parts, ts, strict=True)):
            share = (epoch * each_epoch + place) / (epochs * each_epoch)
            optimizer.param_groups[0]["lr"] = rate * np.interp(share, [0, 0.5, 0.9, 1], [1, 1, 0.01, 0.01])
            weights = coefficients(kind, nodes, t)
            rows = zip(one.theta, *middle, other.theta, strict=True)
            phi = [sum(w * each for w, each in zip(weights, row, strict=True)) for row in rows]
            values = {**dict(module.named_buffers()), **dict(zip(objective.names, phi, strict=True))}
            values = {name: each.clone() for name, each in values.items()}
            loss = mean_loss(functional_call(module, values, (objective.inputs[part],)), objective.targets[part])
            losses.append(loss.item())
            optimizer.zero_grad()
            (loss + 0.5 * decay * sum(each.square().sum() for each in phi)).backward()
            optimizer.step()
    return middle, losses


@pytest.mark.parametrize("made", [mlp, gpt, cnn])
@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("polygonal", 1), ("bezier", 2), ("polygonal", 3)])
def test_the_bends_are_those_of_a_plain_loop(made, kind, bends) -> None:
    """Uneven minibatches, tokens that do not count, tied weights, BatchNorm and dropout among the models."""
    module, data = made()
    objective, one, other = pair((module.double(), data), micro_batch=4 if made is mlp else 50)
    batch = 6 if made is mlp else 4
    flags = {name: each.training for name, each in objective.module.named_modules()}
    before = {name: each.clone() for name, each in objective.constants.items()}
    found = trained(objective, one, other, kind=kind, bends=bends, epochs=3, learning_rate=0.05, weight_decay=0.01,
                    batch=batch, seed=5, tick=quiet)  # fmt: skip
    truth, losses = plain(objective, one, other, kind=kind, bends=bends, epochs=3, rate=0.05, decay=0.01, batch=batch,
                          seed=5)  # fmt: skip
    np.testing.assert_allclose(found.losses, losses, rtol=1e-10)
    for bend, row in zip(found.curve.bends, truth, strict=True):
        for a, b in zip(bend.theta, row, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-11)
    assert found.curve.ends == (one, other)
    assert {name: each.training for name, each in objective.module.named_modules()} == flags
    assert all(torch.equal(before[name], each) for name, each in objective.constants.items()), "it was written to"
    said = " ".join(found.caveats)
    assert ("BatchNorm" in said) == ("dropout was off" in said) == (made is cnn)


def test_killed_and_gone_on_gives_the_same_bends_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(curve_training, "SAVE_SHARE", 1e9)
    recipe = {"bends": 2, "epochs": 4, "learning_rate": 0.05, "batch": 4, "seed": 3}
    objective, one, other = pair(cnn())
    whole = trained(objective, one, other, tick=quiet, **recipe)
    for killed_at in (1, 4, 7, 11):
        notes = Notes(stop_after=killed_at)
        with pytest.raises(KeyboardInterrupt):
            trained(objective, one, other, tick=notes, **recipe)
        assert not any(each.training for each in objective.module.modules())
        notes.stop_after, steps = None, len(notes.shares)
        again = trained(objective, one, other, tick=notes, **recipe)
        assert len(notes.shares) == 12 and steps == killed_at, "it began anew"
        assert again.losses.tolist() == whole.losses.tolist()
        for a, b in zip(again.curve.bends, whole.curve.bends, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.theta, b.theta, strict=True))
        assert trained(objective, one, other, tick=notes, **recipe).caveats == whole.caveats
        assert len(notes.shares) == 12, "a training that is done was done again"


def test_a_store_can_be_given_apart_from_the_tick() -> None:
    objective, one, other = pair(mlp())
    notes = Notes()
    recipe = {"epochs": 2, "learning_rate": 0.05, "batch": 5, "tick": quiet}
    first = trained(objective, one, other, store=notes, key="matched", **recipe)
    assert set(notes.kept) == {"matched"}
    assert trained(objective, one, other, store=notes, key="matched", **recipe).losses.tolist() == first.losses.tolist()
    assert not any(trained(objective, one, other, bends=2, store=notes, key="matched", **recipe).losses[:1] == 0)


def test_another_seed_gives_another_curve() -> None:
    objective, one, other = pair(mlp())
    made = [trained(objective, one, other, epochs=1, batch=5, seed=seed, tick=quiet) for seed in (0, 0, 1)]
    assert made[0].losses.tolist() == made[1].losses.tolist() != made[2].losses.tolist()


class Small(nn.Module):
    """A model that has memory for three examples."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.most = inner, 10**9

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("not enough")
        return self.inner(x)


def test_too_little_memory_halves_the_parts_and_changes_nothing_else() -> None:
    module, data = mlp()
    objective, one, other = pair((Small(module), data), micro_batch=12)
    recipe = {"epochs": 2, "learning_rate": 0.05, "batch": 7, "tick": quiet}
    truth = trained(objective, one, other, **recipe)
    objective.module.most = 3
    found = trained(objective, one, other, **recipe)
    assert objective.micro_batch == 3 and any("halved" in each for each in objective.caveats)
    np.testing.assert_allclose(found.losses, truth.losses, rtol=1e-12)


def test_batch_norm_sees_two_examples_at_least() -> None:
    objective, one, other = pair(cnn(), micro_batch=1)
    found = trained(objective, one, other, epochs=1, batch=4, tick=quiet)
    assert "up to 2 parts" in " ".join(found.caveats)
    with pytest.raises(ObjectiveError, match="choose larger minibatches"):
        trained(objective, one, other, epochs=1, batch=1, tick=quiet)


def test_a_loss_that_is_not_finite_is_said_in_words() -> None:
    objective, *ends = circle()
    with pytest.raises(ObjectiveError, match=r"at step \d+ of .*learning rate, 1e\+06, .*Try a tenth"):
        trained(objective, *ends, epochs=9, learning_rate=1e6, batch=5, tick=quiet)
    with pytest.raises(ObjectiveError, match="Try a tenth"):
        trained(objective, *ends, epochs=1, learning_rate=math.inf, batch=64, tick=quiet)
    far = replace(ends[1], theta=tuple(each * math.nan for each in ends[1].theta))
    with pytest.raises(ObjectiveError, match="straight line between"):
        trained(objective, ends[0], far, epochs=1, batch=5, tick=quiet)


def test_the_rate_is_constant_then_falls_then_stays() -> None:
    shares = np.linspace(0, 1, 101)
    truth = np.interp(shares, [0, 0.5, 0.9, 1], [1, 1, 0.01, 0.01])
    np.testing.assert_allclose([rate_at(each) for each in shares], truth, atol=1e-12)


class Circle(nn.Module):
    """Predict |w|^2 times the input: of targets equal to the inputs, every w on the unit circle is a minimum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w.square().sum() * x


def circle() -> tuple[Objective, Point, Point]:
    """An objective and two of its minima, a quarter of a turn apart."""
    x = torch.ones(64, 1)
    one, other = (Point((torch.tensor(each, dtype=torch.float64),), {}) for each in ([1.0, 0.0], [0.0, 1.0]))
    return Objective.of(Circle(), batches(x, x), "mse", dtype="float64"), one, other


def test_the_curve_finds_the_arc_between_two_minima() -> None:
    objective, *ends = circle()
    found = trained(objective, *ends, epochs=400, learning_rate=0.1, batch=16, tick=quiet).curve
    t = np.linspace(0, 1, 2001)[:, None]

    def mean_loss_of(bend: np.ndarray) -> float:
        w = (1 - t) ** 2 * np.array([1.0, 0.0]) + 2 * t * (1 - t) * bend + t**2 * np.array([0.0, 1.0])
        return float(np.mean((np.square(w).sum(1) - 1) ** 2))

    best = minimize(mean_loss_of, [0.5, 0.5]).x
    np.testing.assert_allclose(found.bends[0].theta[0].numpy(), best, atol=0.02)
    radii = [float(found.at(float(each)).theta[0].norm()) for each in np.linspace(0, 1, 61)]
    assert max(abs(each - 1) for each in radii) < 0.03 < 1 - math.sqrt(0.5), "the straight line goes down to 0.71"
