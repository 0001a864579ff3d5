"""The closed form of the alignment at a final linear head against autograd, example by example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from head_nets import net_of, objective_of
from networks import IndependentGPT
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from probes import head_alignment
from probes.head import find_head
from probes.head_alignment import Aligned, align, class_of
from probes.objective import Objective

NAMES = ("mlp", "cnn", "gpt", "bce", "bce one", "mse", "mse labels", "mse tokens", "mse map", "conv", "conv1d")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
}


def by_autograd(name: str) -> np.ndarray:
    """The cosine of each example's negative gradient with the kernel of the head, by one backward pass for each."""
    net, data, loss, kernel = net_of(name)
    net = copy.deepcopy(net).double().eval()
    if name == "gpt":  # the head alone: its weights apart from those of the embedding
        net.head.weight = nn.Parameter(net.head.weight.detach().clone())
    W, found = dict(net.named_parameters())[kernel], []
    inputs = data.inputs.double() if data.inputs.is_floating_point() else data.inputs
    for x, y in zip(inputs, data.targets, strict=True):
        outputs = net(x[None])[0]
        if loss == "causal_lm":
            places = (y != -100).nonzero()[:, 0]
            losses = [functional.cross_entropy(outputs[t], y[t]) for t in places]
        else:
            hot = functional.one_hot(y, outputs.shape[-1]) if name == "mse labels" else y
            losses = [LOSSES[loss](outputs, hot if loss == "cross_entropy" else hot.double())]
        found.append(np.mean([cosine(each, W) for each in losses]))
    return np.array(found)


def cosine(loss: Tensor, W: Tensor) -> float:
    (g,) = torch.autograd.grad(loss, W, retain_graph=True)
    return -float((g * W).sum().detach() / (g.norm() * W.norm().detach()))


@pytest.mark.parametrize("name", NAMES)
def test_the_closed_form_is_the_cosine_by_autograd(name: str) -> None:
    objective, expected = objective_of(name), by_autograd(name)
    (found,) = align(objective, find_head(objective))
    np.testing.assert_allclose(found.alignment, expected, atol=1e-12)
    np.testing.assert_allclose(found.exact, expected, atol=1e-12)
    assert np.ptp(expected) > 0.02
    (single,) = align(objective_of(name, dtype="float32"), find_head(objective))
    np.testing.assert_allclose(single.alignment, expected, atol=2e-6)


@pytest.mark.parametrize("name", [each for each in NAMES if each != "bce one"])
def test_loss_and_accuracy_are_those_of_the_objective_with_and_without_a_head(name: str) -> None:
    objective = objective_of(name)
    expected = objective.evaluate()
    for head in (find_head(objective), None):
        (found,) = align(objective, head)
        got = found.evaluation(objective)
        for each in fields(expected):
            one, two = getattr(expected, each.name), getattr(got, each.name)
            assert two == (None if one is None else pytest.approx(one, rel=1e-12, nan_ok=True)), each.name
        assert np.isnan(found.alignment).all() == (head is None)


@pytest.mark.parametrize("name", ["cnn", "gpt", "bce", "mse map"])
def test_no_number_depends_on_the_micro_batch(name: str) -> None:
    head = find_head(objective_of(name))
    whole, *others = (align(objective_of(name, size), head)[0] for size in (100, 1, 3))
    for each in fields(Aligned):
        for other in others:
            np.testing.assert_allclose(getattr(other, each.name), getattr(whole, each.name), rtol=1e-9, atol=1e-12)


def test_predictions_and_margins() -> None:
    objective = objective_of("cnn")
    logits = objective.outputs(objective.theta, slice(0, 11)).detach().numpy()
    labels = objective.targets.numpy()
    (found,) = align(objective, find_head(objective))
    np.testing.assert_array_equal(found.predicted, logits.argmax(1))
    rest = np.where(np.eye(4, dtype=bool)[labels], -np.inf, logits).max(1)
    np.testing.assert_allclose(found.margins, logits[np.arange(11), labels] - rest, rtol=1e-9)
    np.testing.assert_array_equal(found.right, logits.argmax(1) == labels)

    objective = objective_of("bce one")
    logits = objective.outputs(objective.theta, slice(0, 13)).detach().numpy()
    (found,) = align(objective, find_head(objective))
    np.testing.assert_array_equal(found.predicted, logits > 0)
    np.testing.assert_array_equal(found.right, (logits > 0) == (objective.targets.numpy() == 1))
    losses = functional.binary_cross_entropy_with_logits(torch.tensor(logits), objective.targets, reduction="none")
    np.testing.assert_allclose(found.losses, losses.numpy())
    np.testing.assert_allclose(found.margins, np.where(objective.targets.numpy() == 1, logits, -logits))
    assert np.isnan(align(objective_of("mse"), find_head(objective_of("mse")))[0].margins).all()


def test_a_language_model_in_pieces_gives_the_same_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of("gpt", 2)
    (whole,) = align(objective, find_head(objective))
    for rows, columns in ((5, 3), (1, 7), (4, 1)):
        monkeypatch.setattr(head_alignment, "ROWS", rows)
        monkeypatch.setattr(head_alignment, "COLUMNS", columns)
        (pieces,) = align(objective, find_head(objective))
        for each in fields(Aligned):
            np.testing.assert_allclose(getattr(pieces, each.name), getattr(whole, each.name), rtol=1e-12)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor has."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.most = max(self.most, each.numel())
        return out


def test_no_array_of_tokens_by_vocabulary_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_alignment, "ROWS", 8)
    monkeypatch.setattr(head_alignment, "COLUMNS", 16)
    torch.manual_seed(0)
    net = IndependentGPT(900, 12, 1, 2, 4, True)
    x = torch.randint(900, (3, 12))
    objective = Objective.of(net, batches(x, x.roll(-1, 1)), "causal_lm", micro_batch=3)
    head = find_head(objective)
    with Largest() as seen:
        (found,) = align(objective, head)
    assert np.isfinite(found.alignment).all()
    assert seen.most <= 900 * 4 < 3 * 12 * 900


def sure() -> tuple[nn.Module, Tensor, Tensor]:
    """A layer that is so sure of some of its examples that softmax minus one is zero, or a few bits, in float32."""
    torch.manual_seed(0)
    net, x = nn.Linear(6, 5), torch.randn(200, 6) * 60
    y = net(x).argmax(1)
    with torch.no_grad():
        short = 1 - net(x).softmax(1).max(1).values
    assert (short == 0).sum() > 20
    assert ((short > 0) & (short < 1e-5)).sum() > 20
    return net, x, y


def test_the_exact_alignment_of_sure_predictions_is_that_of_float64() -> None:
    net, x, y = sure()
    one, two = (Objective.of(net, batches(x, y), "cross_entropy", dtype=each) for each in ("float32", "float64"))
    (single,), (double,) = align(one, find_head(one)), align(two, find_head(two))
    np.testing.assert_allclose(single.exact, double.exact, rtol=1e-3, atol=1e-5)
    W, logits = net.weight.detach().double(), two.outputs(two.theta, slice(None)).detach()
    rest = functional.one_hot(y, 5) == 1
    p = logits.masked_fill(rest, -torch.inf).softmax(1)
    d = p - functional.one_hot(y, 5)
    truth = -((d @ W) * x.double()).sum(1) / (d.norm(dim=1) * x.double().norm(dim=1) * W.norm())
    certain = double.losses < 1e-9  # then d is in this direction, but for a part in 10^9
    assert certain.sum() > 20
    np.testing.assert_allclose(double.exact[certain], truth[certain].numpy(), atol=1e-8)


def test_in_float32_the_alignment_is_that_of_softmax_minus_one() -> None:
    net, x, y = sure()
    objective = Objective.of(net, batches(x, y), "cross_entropy", dtype="float32")
    (found,) = align(objective, find_head(objective))
    W, z = net.weight.detach().double(), x.double()
    d = (net(x).softmax(1) - functional.one_hot(y, 5)).detach().double()
    truth = (-((d @ W) * z).sum(1) / (d.norm(dim=1) * z.norm(dim=1) * W.norm())).numpy()
    assert (np.abs(found.alignment - truth) < 1e-3).mean() > 0.97  # a last bit may be rounded the other way
    assert (np.abs(found.exact - truth) < 1e-3).mean() < 0.8


def test_in_float32_the_alignment_of_binary_outputs_is_that_of_sigmoid_minus_one() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(6, 3), torch.randn(50, 6) * 40
    y = (net(x) > 0).float()
    one, two = (Objective.of(net, batches(x, y), "bce_with_logits", dtype=each) for each in ("float32", "float64"))
    (single,), (double,) = align(one, find_head(one)), align(two, find_head(two))
    np.testing.assert_allclose(single.exact, double.exact, rtol=1e-3, atol=1e-5)
    d = net(x).detach().sigmoid() - y
    W = net.weight.detach()
    truth = -((d @ W) * x).sum(1) / (d.norm(dim=1) * x.norm(dim=1) * W.norm())
    np.testing.assert_allclose(single.alignment, truth.nan_to_num(0.0).numpy(), atol=1e-4)
    assert np.abs(single.alignment - single.exact).max() > 0.01


def test_labels_of_another_set_are_answered_apart() -> None:
    objective = objective_of("cnn")
    head = find_head(objective)
    other = (objective.targets + 1) % 4
    own, moved = align(objective, head, (objective.targets, other))
    np.testing.assert_array_equal(own.alignment, align(objective, head)[0].alignment)
    net, data, _, _ = net_of("cnn")
    again = Objective.of(net, batches(data.inputs, other), "cross_entropy", dtype="float64", micro_batch=4)
    np.testing.assert_array_equal(moved.alignment, align(again, head)[0].alignment)
    assert not np.allclose(own.alignment, moved.alignment)


def test_without_gradient_or_weights_the_alignment_is_zero() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(5, 3)
    with torch.no_grad():
        net[0].bias[:] = -100
    dead = Objective.of(net, batches(x, torch.arange(5) % 3), "cross_entropy")
    (found,) = align(dead, find_head(dead))
    assert found.alignment.tolist() == [0.0] * 5
    assert found.zeros.tolist() == [1.0] * 5
    one = Objective.of(nn.Linear(3, 1), batches(x, torch.zeros(5, dtype=torch.long)), "cross_entropy")
    (found_one,) = align(one, find_head(one))
    assert found_one.alignment.tolist() == found_one.losses.tolist() == [0.0] * 5


def test_a_sequence_without_tokens_to_predict_has_no_alignment() -> None:
    net, data, loss, _ = net_of("gpt")
    targets = data.targets.clone()
    targets[2] = -100
    objective = Objective.of(net, batches(data.inputs, targets), loss, dtype="float64", micro_batch=2)
    (found,) = align(objective, find_head(objective))
    assert np.flatnonzero(np.isnan(found.alignment)).tolist() == [2]
    assert found.evaluation(objective).loss == pytest.approx(objective.evaluate().loss)


def test_the_class_of_targets() -> None:
    hot = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 1, 0], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(class_of(hot), [1, 0, np.nan, np.nan])
    assert class_of(torch.tensor([2, 0])).tolist() == [2, 0]
    assert class_of(torch.tensor([[1, 0], [0, 1]])).isnan().all()
