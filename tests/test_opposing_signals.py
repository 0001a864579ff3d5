"""Opposing signals against autograd loops, a case by hand, digits at the edge of stability, real checkpoints."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, gpt, mlp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from analyzers._base import Quiet
from analyzers.opposing_signals import OpposingSignals, OpposingSignalsResult
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.data import read_batches
from probes.errors import DataError
from probes.objective import Objective, build_objective
from probes.opposing import answers, correlation, group_size, groups_of, p_value, random_groups, share_of_top
from probes.specs import DataSpec, ModelSpec

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}
FEW = OpposingSignals(null_groups=10, dtype="float64")


def a_run(folder: Path, module: nn.Module, states, data, loss="cross_entropy", **options):
    """An objective at the first of these states of a module, and the checkpoints of all."""
    checkpoints = []
    for step, state in enumerate(states):
        torch.save({"model": state, "step": step}, folder / f"step-{step}.pt")
        checkpoints.append(read_checkpoint(folder / f"step-{step}.pt"))

    def load(checkpoint: Checkpoint) -> nn.Module:
        other = copy.deepcopy(module)
        other.load_state_dict(checkpoint.load(), strict=False)
        return other

    objective = Objective.of(load(checkpoints[0]), data, loss, **options)
    objective.load = load
    return objective, tuple(checkpoints)


def moved(module: nn.Module, count: int, size: float = 0.05):
    """States of a module, each moved at random from the one before."""
    states = [copy.deepcopy(module.state_dict())]
    for _ in range(count - 1):
        state = {k: v + size * torch.randn_like(v) if v.is_floating_point() else v for k, v in states[-1].items()}
        if "head.weight" in state:
            state["head.weight"] = state["token.weight"]
        states.append(state)
    return states


def larger(net):
    """A net of `curvature_oracles` with 23 examples or sequences."""
    module, data = net()
    rows = torch.arange(23) % len(data.inputs)
    shape = (23, *data.inputs.shape[1:])
    return module, batches(torch.randint(7, shape) if net is gpt else torch.randn(shape), data.targets[rows])


def each_loss(module: nn.Module, data) -> Tensor:
    """(N,) float64 losses, sums over the tokens of a sequence, by cross_entropy itself."""
    x = data.inputs.double() if data.inputs.is_floating_point() else data.inputs
    out = module(x)
    if out.ndim == 2:
        return functional.cross_entropy(out, data.targets, reduction="none")
    return functional.cross_entropy(out.mT, data.targets, reduction="none", ignore_index=-100).sum(1)


def each_gradient(module: nn.Module, data) -> np.ndarray:
    rows = []
    for loss in each_loss(module, data):
        found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        rows.append(torch.cat([each.reshape(-1) for each in found]).numpy())
    return np.array(rows)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("name", NETS)
def test_an_objective_of_chosen_examples_and_the_loss_of_each(name) -> None:
    module, data = larger(NETS[name][0])
    objective = Objective.of(module, data, NETS[name][1], dtype="float64", micro_batch=4)
    expected = each_loss(module.double().eval(), data)
    np.testing.assert_allclose(objective.example_losses(), expected.detach(), rtol=1e-10)
    rows = [7, 2, 2, 20]
    chosen = objective.chosen(rows)
    np.testing.assert_allclose(chosen.example_losses(), expected[rows].detach(), rtol=1e-10)
    G = each_gradient(module, data)
    np.testing.assert_allclose(chosen.gradient() * chosen.units, G[rows].sum(0), rtol=1e-8, atol=1e-10)
    assert len(objective.inputs) == 23
    np.testing.assert_allclose(objective.gradient() * objective.units, G.sum(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_everything_agrees_with_gradients_taken_one_by_one(name, tmp_path) -> None:
    module, data = larger(NETS[name][0])
    states = moved(module, 3)
    objective, checkpoints = a_run(tmp_path, module, states, data, NETS[name][1], micro_batch=5)
    found = replace(FEW, group=4, pair=2, listed=3).run(objective, checkpoints, Quiet())
    losses, gradients, thetas = [], [], []
    for state in states:
        module.load_state_dict(state)
        module = module.double().eval()
        losses.append(each_loss(module, data).detach().numpy())
        gradients.append(each_gradient(module, data))
        thetas.append(torch.cat([each.reshape(-1) for each in module.parameters()]).detach().numpy())
    counts = (data.targets != -100).reshape(23, -1).sum(1).numpy()
    for pair in (0, 1):
        d, G = losses[pair + 1] - losses[pair], gradients[pair]
        order = np.argsort(d)
        step = thetas[pair + 1] - thetas[pair]
        step /= np.linalg.norm(step)

        def compared(up, down, G=G, step=step):
            one, other = G[up].sum(0) / counts[up].sum(), G[down].sum(0) / counts[down].sum()
            return cosine(one, other), cosine(one - one @ step * step, other - other @ step * step), one, other

        whole = np.linalg.norm(G.sum(0)) / counts.sum()
        cos, beside, up, down = compared(order[-4:], order[:4])
        values = {key: each[pair] for key, each in found.values.items() if isinstance(each, list) and len(each) == 2}
        assert values["cosine"] == pytest.approx(cos, abs=1e-9)
        assert values["cosine_beside_step"] == pytest.approx(beside, abs=1e-9)
        assert values["ratio_rising"] == pytest.approx(np.linalg.norm(up) / whole, rel=1e-9)
        assert values["ratio_falling"] == pytest.approx(np.linalg.norm(down) / whole, rel=1e-9)
        assert values["gradient_norm"] == pytest.approx(whole, rel=1e-9)
        assert values["share_of_top_1_percent"] == pytest.approx(np.abs(d).max() / np.abs(d).sum(), rel=1e-9)
        null = [compared(each.rising, each.falling) for each in random_groups(23, 4, 10, (0, pair))]
        np.testing.assert_allclose(found.arrays["null_cosines"][pair], [each[0] for each in null], atol=1e-9)
        np.testing.assert_allclose(found.arrays["null_beside"][pair], [each[1] for each in null], atol=1e-9)
        assert values["cosine_p_value"] == pytest.approx((sum(each[0] <= cos for each in null) + 1) / 11)
        low, high = np.quantile([each[0] for each in null], [0.025, 0.975])
        assert (values["cosine_null_low"], values["cosine_null_high"]) == pytest.approx((low, high))
    ids = [f"example {row}" for row in (*order[::-1][:3], *order[:3])]
    assert [each["id"] for each in found.values["examples"]] == ids
    rows = found.values["examples"]
    assert [each["rise"] for each in rows] == pytest.approx([d[int(each["id"][8:])] for each in rows], abs=1e-12)
    mean = [losses[time][order[-4:]].sum() / counts[order[-4:]].sum() for time in range(3)]
    assert found.values["loss_rising"] == pytest.approx(mean, rel=1e-9)
    assert found.values["loss"] == pytest.approx([each.sum() / counts.sum() for each in losses], rel=1e-9)


def constructed(folder: Path):
    """Squared error of w x at w = (0, 0) and (0.1, 0): who rises, who falls and all gradients are known."""
    kinds = [((1.0, 1.0), -1.0)] * 4 + [((1.0, 0.5), 1.0)] * 4 + [((0.0, 1.0), 0.5)] * 8
    x, y = torch.tensor([each[0] for each in kinds]), torch.tensor([each[1] for each in kinds])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    states = [{"weight": torch.tensor([[w, 0.0]])} for w in (0.0, 0.1)]
    return a_run(folder, nn.Linear(2, 1, bias=False), states, batches(x[order], y[order]), "mse")


def test_a_case_worked_out_by_hand(tmp_path) -> None:
    found = replace(FEW, group=4, listed=10).run(*constructed(tmp_path), Quiet()).values
    assert found["cosine"] == pytest.approx([-6 / np.sqrt(8 * 5)])
    assert found["cosine_beside_step"] == pytest.approx([-1.0])
    assert found["ratio_rising"] == pytest.approx([np.sqrt(8) / 0.25])
    assert found["ratio_falling"] == pytest.approx([np.sqrt(5) / 0.25])
    assert found["share_of_top_1_percent"] == pytest.approx([0.21 / (4 * 0.21 + 4 * 0.19)])
    assert (found["rose"], found["fell"]) == ([4], [4])
    assert found["loss_rising"] == pytest.approx([1.0, 1.21])
    assert found["loss_falling"] == pytest.approx([1.0, 0.81])
    assert found["correlation"] is None
    assert [each["group"] for each in found["examples"]] == ["rising"] * 4 + ["falling"] * 4
    first = found["examples"][0]
    assert first["rise"] == pytest.approx(0.21)
    assert (first["label"], first["prediction"], first["margin"], first["text"]) == (-1.0, 0.0, None, None)
    assert first["prediction_after"] == pytest.approx(0.1)


def test_where_nothing_changes_there_is_no_number_and_no_warning(tmp_path) -> None:
    x, y = torch.zeros(9, 2), torch.zeros(9)
    states = [{"weight": torch.tensor([[w, 0.0]])} for w in (0.0, 0.1)]
    objective, checkpoints = a_run(tmp_path, nn.Linear(2, 1, bias=False), states, batches(x, y), "mse")
    found = FEW.run(objective, checkpoints, Quiet())
    json.dumps(found.to_json(), allow_nan=False)
    assert found.values["cosine"] == found.values["cosine_p_value"] == found.values["ratio_rising"] == [None]
    assert any("Only 0 of the 2 examples of the rising group rose" in each for each in found.caveats)
    assert set(found.figures()) == {"opposition", "loss_change", "groups"}


@cache
def descent(rate: float) -> tuple[nn.Module, list, Tensor, Tensor]:
    """Full-batch gradient descent on the squared error of 300 digits: steps 200 to 207."""
    torch.manual_seed(0)
    found = load_digits()
    x, y = torch.tensor(found.data[:300] / 16, dtype=torch.float32), torch.tensor(found.target[:300])
    module, states = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)), []
    for _ in range(208):
        states.append(copy.deepcopy(module.state_dict()))
        loss = functional.mse_loss(module(x), functional.one_hot(y, 10).float())
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for each, g in zip(module.parameters(), gradients, strict=True):
                each -= rate * g
    return module, states[-8:], x, y


def descended(folder: Path, rate: float) -> OpposingSignalsResult:
    module, states, x, y = descent(rate)
    objective, checkpoints = a_run(folder, module, states, batches(x, y), "mse")
    return OpposingSignals(group=6, null_groups=40, dtype="float64").run(objective, checkpoints, Quiet())


def test_at_the_edge_of_stability_the_extremes_oppose_far_beyond_random_groups(tmp_path) -> None:
    found = descended(tmp_path, 2.0)
    values = found.values
    assert max(values["cosine"]) < -0.75
    assert min(values["cosine_null_low"]) > -0.5
    assert values["cosine_p_value"] == pytest.approx([1 / 41] * 7)
    assert max(values["cosine_beside_step"]) < -0.5
    assert values["correlation"] < -0.95
    assert values["correlation_changes"] == 6
    swing = np.diff(values["loss_rising"])
    assert (swing[:-1] * swing[1:] < 0).all()
    assert not any("single steps" in each for each in found.caveats)


def test_where_a_small_step_lowers_nearly_every_loss_there_is_no_opposition(tmp_path) -> None:
    found = descended(tmp_path, 0.1)
    values = found.values
    assert (np.array(values["cosine"]) > np.array(values["cosine_null_low"])).all()
    assert min(values["cosine_p_value"]) > 0.05
    assert any("of the 6 examples of the rising group rose" in each for each in found.caveats)


def test_groups_by_size_of_change() -> None:
    changes = np.array([0.0, 3.0, -1.0, 0.5, -4.0, 0.5, 0.0, -0.5])
    found = groups_of(changes, 3)
    assert found.rising.tolist() == [1, 3, 5]
    assert found.falling.tolist() == [4, 2, 7]
    assert share_of_top(changes) == pytest.approx(4 / 9.5)
    assert share_of_top(np.r_[np.full(150, 1.0), np.full(50, -3.0)]) == pytest.approx(6 / 300)
    assert share_of_top(np.zeros(4)) == 0
    normal = np.random.default_rng(0).normal(size=200_000)
    assert share_of_top(normal) == pytest.approx(0.0363, abs=0.001)


@pytest.mark.parametrize(("count", "asked", "size"), [(20_000, 0, 200), (1000, 0, 32), (40, 0, 10), (40, 20, 20)])
def test_the_size_of_a_group(count, asked, size) -> None:
    assert group_size(count, asked) == size


def test_random_groups_share_no_example_and_are_all_drawn_alike() -> None:
    drawn = random_groups(20, 4, 2000, (1, 2))
    assert all(len({*each.rising, *each.falling}) == 8 for each in drawn)
    counts = np.bincount(np.concatenate([each.rising for each in drawn]), minlength=20)
    assert abs(counts - 400).max() < 4 * np.sqrt(400 * 0.8)
    assert random_groups(20, 4, 1, (1, 2))[0].rising.tolist() == drawn[0].rising.tolist()
    assert random_groups(20, 4, 1, (1, 3))[0].rising.tolist() != drawn[0].rising.tolist()


def test_the_p_value_counts_what_was_found_among_the_null() -> None:
    null = np.array([-0.5, 0.0, 0.5, 1.0])
    assert [p_value(each, null) for each in (-0.6, -0.5, 0.2, 1.0)] == [1 / 5, 2 / 5, 3 / 5, 5 / 5]


def test_correlation_leaves_out_the_pair_that_chose_the_groups() -> None:
    draw = np.random.default_rng(0)
    losses = draw.normal(size=(6, 30)).cumsum(0)
    groups, *null = random_groups(30, 5, 4, (0,))
    found = correlation(losses, groups, null, 3)
    changes = np.diff(losses, axis=0)[[0, 1, 2, 4]]
    expected = np.corrcoef(changes[:, groups.rising].mean(1), changes[:, groups.falling].mean(1))[0, 1]
    assert found.value == pytest.approx(expected)
    assert (found.changes, len(found.null)) == (4, 3)
    assert correlation(losses[:4], groups, null, 0) is None
    assert correlation(np.ones((6, 30)), groups, null, 0) is None


class Stopped(Notes):
    """A tick that stops the run in the gradients of the second pair."""

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        super().__call__(share, doing, seconds_left)
        if doing == "gradients of random groups, pair 2":
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_and_gives_the_same(tmp_path) -> None:
    module, data = larger(mlp)
    states = moved(module, 4)
    ask = replace(FEW, group=4)
    whole = ask.run(*a_run(tmp_path, module, states, data), Notes())
    stopped = Stopped()
    with pytest.raises(KeyboardInterrupt):
        ask.run(*a_run(tmp_path, module, states, data), stopped)
    assert set(stopped.kept) == {"losses_0", "losses_1", "losses_2", "losses_3", "pair_0"}
    tick = Notes()
    tick.kept = stopped.kept
    again = ask.run(*a_run(tmp_path, module, states, data), tick)
    assert again.to_json() == whole.to_json()
    assert tick.shares == sorted(tick.shares)
    assert len(tick.shares) < len(stopped.shares) + 20


def test_checkpoints_are_put_in_the_order_of_time(tmp_path) -> None:
    module, data = larger(cnn)
    objective, (first, second, third) = a_run(tmp_path, module, moved(module, 3), data)
    ask = replace(FEW, group=4, pair=1)
    ordered = ask.run(objective, (first, second, third), Quiet())
    turned = ask.run(objective.at(third), (third, first, second), Quiet())
    assert turned.values == ordered.values
    typed = replace(ask, times="steps 5 1 3").run(objective.at(third), (third, first, second), Quiet())
    assert typed.values["times"] == [1.0, 3.0, 5.0]
    assert typed.values["cosine"] == ordered.values["cosine"]
    assert any("not single steps apart" in each for each in typed.caveats)


def test_what_cannot_be_asked_is_refused_in_words(tmp_path) -> None:
    objective, checkpoints = constructed(tmp_path)
    with pytest.raises(DataError, match="two checkpoints or more; there is 1"):
        FEW.run(objective, checkpoints[:1], Quiet())
    with pytest.raises(DataError, match="Pair 2 was asked for, the last is 1"):
        replace(FEW, pair=2).run(objective, checkpoints, Quiet())
    with pytest.raises(DataError, match="Two groups of 9 examples were asked for, there are 16; give 8 or less"):
        replace(FEW, group=9).run(objective, checkpoints, Quiet())
    with pytest.raises(DataError, match="There are 7 examples"):
        group_size(7, 0)


def test_classes_are_named_and_nothing_from_files_is_taken_for_markup(tmp_path) -> None:
    module, data = larger(mlp)
    data = replace(data, classes=("<b>cat</b>", "dog", "$x$"))
    objective, checkpoints = a_run(tmp_path, module, moved(module, 3, 0.3), data)
    objective.about["model"] = "<b>net</b>"
    found = replace(FEW, group=4).run(objective, checkpoints, Quiet())
    rows = found.values["examples"]
    assert {each["label"] for each in rows} <= set(data.classes)
    module.load_state_dict(checkpoints[1].load())
    logits = module.double()(data.inputs.double()).detach()
    for each in rows:
        row = int(each["id"][8:])
        label = int(data.targets[row])
        others = np.delete(logits[row].numpy(), label)
        assert each["prediction"] == data.classes[int(logits[row].argmax())]
        assert each["margin"] == pytest.approx(float(logits[row, label]) - others.max(), rel=1e-9)
    for figure in found.figures().values():
        text = figure.to_json()
        assert "<b>net" not in text and "\\u003cb\\u003enet" not in text
        assert figure.layout.template.layout.colorway
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


@pytest.mark.parametrize(
    ("outputs", "loss", "targets", "expected"),
    [
        (1, "mse", torch.zeros(9), lambda out: out[:, 0].tolist()),
        (1, "bce_with_logits", torch.arange(9) % 2, lambda out: (out[:, 0] > 0).int().tolist()),
        (3, "mse", torch.arange(9) % 3, lambda out: out.argmax(1).tolist()),
        (3, "mse", torch.zeros(9, 3), lambda out: [None] * 9),
        (3, "cross_entropy", torch.arange(9) % 3, lambda out: out.argmax(1).tolist()),
    ],
)
def test_what_the_model_says_of_an_example(outputs, loss, targets, expected) -> None:
    module, x = nn.Linear(4, outputs), torch.randn(9, 4)
    found = answers(Objective.of(module, batches(x, targets), loss, dtype="float64", micro_batch=2), [*range(9)][::-1])
    said = zip([each[0] for each in found], expected(module(x).detach())[::-1], strict=True)
    assert all(one is other or one == pytest.approx(other, rel=1e-5) for one, other in said)
    assert [each[1] is not None for each in found] == [loss == "cross_entropy"] * 9


def test_a_result_is_saved_read_and_drawn_again(tmp_path) -> None:
    found = replace(FEW, group=4).run(*constructed(tmp_path), Quiet())
    found.save(tmp_path / "result")
    again = OpposingSignalsResult.read(tmp_path / "result")
    assert again.to_json() == found.to_json()
    assert {name: each.to_json() for name, each in again.figures().items()} == {
        name: each.to_json() for name, each in found.figures().items()
    }
    tables = again.tables()
    assert set(tables) == {"opposition", "loss_change", "groups", "examples"}
    assert len(tables["opposition"]) == 1 and len(tables["groups"]) == 2 and len(tables["examples"]) == 8
    ranked = tables["loss_change"]
    assert ranked["change"].is_monotonic_decreasing
    assert ranked["group"].tolist() == ["rising"] * 4 + ["rest"] * 8 + ["falling"] * 4


MNIST_CNN = ModelSpec(
    "text",
    text="Sequential(Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), "
    "Linear(1600, 10))",
)


def test_the_real_training_run(real) -> None:
    checkpoints = tuple(
        read_checkpoint(real / "mnist-cnn" / "run1" / f"epoch-{epoch:03d}.pt") for epoch in (200, 0, 50)
    )
    data = read_batches(DataSpec((str(real / "mnist"),), examples=400))
    objective = build_objective(MNIST_CNN, checkpoints[0], data, "cross_entropy", device="cpu")
    found = OpposingSignals(null_groups=10, group=16, listed=4).run(objective, checkpoints, Quiet())
    values = found.values
    assert values["times"] == [0.0, 50.0, 200.0]
    assert values["share_of_top_1_percent"][1] > 0.3 > 0.05 > values["share_of_top_1_percent"][0]
    assert values["loss"][0] == pytest.approx(2.305, abs=0.01)
    assert found.arrays["pictures"].shape == (8, 28, 28, 3)
    first = values["examples"][0]
    row = data.ids.index(first["id"])
    pixels = (data.inputs[row, 0] * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(found.arrays["pictures"][0, :, :, 0], pixels)
    assert first["checkpoint"] == "epoch-050.pt"
    assert first["rise"] == pytest.approx(first["loss_after"] - first["loss"])
    assert first["rise"] == pytest.approx(found.arrays["changes"].max())
    json.dumps(found.to_json(), allow_nan=False)
