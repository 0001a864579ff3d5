"""The objective: means over examples, standard errors, chance, clear refusals, out of memory."""

from __future__ import annotations

import math

import pytest
import torch
from curvature_oracles import batches, cnn, dense_hessian, gpt, mean_loss, mlp
from torch import nn
from torch.nn import functional

from probes import objective as objectives
from probes.errors import DataError, ObjectiveError
from probes.objective import Objective
from probes.strict import strict


@pytest.mark.parametrize("net", [mlp, cnn, gpt])
@pytest.mark.parametrize("micro_batch", [1, 4, 0])
def test_loss_and_gradient_are_means_over_all_whatever_the_micro_batch(net, micro_batch) -> None:
    module, data = net()
    name = "causal_lm" if net is gpt else "cross_entropy"
    objective = Objective.of(module, data, name, dtype="float64", micro_batch=micro_batch)
    module = module.double().eval()
    x = data.inputs.double() if data.inputs.is_floating_point() else data.inputs
    loss = mean_loss(module(x), data.targets)
    loss.backward()
    expected = torch.cat([each.grad.reshape(-1) for each in module.parameters()])
    assert objective.evaluate().loss == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(objective.gradient(), expected, rtol=1e-9, atol=1e-12)
    assert objective.size == len(expected)


def test_the_module_is_left_as_it_is() -> None:
    module, data = cnn()
    module.train()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    objective = Objective.of(module, data, "cross_entropy")
    objective.evaluate()
    objective.gradient()
    assert module.training
    assert all(each.grad is None for each in module.parameters())
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())


def test_language_model_does_not_depend_on_padding() -> None:
    module, data = gpt()
    longer_x = torch.cat([data.inputs, torch.zeros(3, 6, dtype=torch.int64)])
    longer_y = torch.cat([data.targets, torch.full((3, 6), -100)])
    padded = Objective.of(module, batches(longer_x, longer_y), "causal_lm", dtype="float64", micro_batch=2)
    plain = Objective.of(module, data, "causal_lm", dtype="float64")
    assert padded.evaluate().loss == pytest.approx(plain.evaluate().loss, rel=1e-12)
    assert padded.evaluate().predictions == plain.evaluate().predictions == 25
    torch.testing.assert_close(padded.gradient(), plain.gradient())


def test_standard_errors_and_chance_of_a_classifier() -> None:
    module, data = mlp()
    found = Objective.of(module, data, "cross_entropy").evaluate()
    logits = module(data.inputs).double()
    each = functional.cross_entropy(logits, data.targets, reduction="none")
    accuracy = (logits.argmax(1) == data.targets).double().mean().item()
    counts = data.targets.bincount().double()
    share = counts / counts.sum()
    assert found.loss_stderr == pytest.approx(each.std().item() / math.sqrt(13), rel=1e-4)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.accuracy_stderr == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 13))
    assert found.chance == pytest.approx(counts.max().item() / 13)
    assert found.chance_loss == pytest.approx(-(share * share.log()).sum().item())


def test_regression_is_the_mean_over_examples_and_outputs() -> None:
    net, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)
    found = Objective.of(net, batches(x, y), "mse", micro_batch=2).evaluate()
    assert found.loss == pytest.approx(functional.mse_loss(net(x), y).item(), rel=1e-6)
    assert found.accuracy is None
    assert found.chance_loss == pytest.approx(y.var(0, unbiased=False).mean().item(), rel=1e-6)


def test_single_output_takes_flat_targets() -> None:
    net, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randint(2, (5,))
    found = Objective.of(net, batches(x, y), "bce_with_logits", micro_batch=2).evaluate()
    expected = functional.binary_cross_entropy_with_logits(net(x)[:, 0], y.float())
    assert found.loss == pytest.approx(expected.item(), rel=1e-6)
    assert found.accuracy == pytest.approx(((net(x)[:, 0] > 0) == (y > 0)).float().mean().item())


def test_a_model_may_drop_the_axis_of_its_single_output() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    x, y = torch.randn(7, 3), torch.randint(0, 2, (7,))
    found = Objective.of(net, batches(x, y), "bce_with_logits", micro_batch=2).evaluate()
    assert found.accuracy == pytest.approx(float(((net(x) > 0) == (y > 0)).double().mean()))


def test_class_labels_become_one_hot_for_mse_with_a_caveat() -> None:
    net, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    objective = Objective.of(net, batches(x, y), "mse")
    expected = functional.mse_loss(net(x), functional.one_hot(y, 4).float())
    assert objective.evaluate().loss == pytest.approx(expected.item(), rel=1e-6)
    assert "one-hot" in objective.caveats[0]


def test_images_are_flattened_for_a_model_of_rows_and_it_is_said() -> None:
    net = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))
    objective = Objective.of(net, batches(torch.randn(6, 1, 4, 4), torch.randint(3, (6,))), "cross_entropy")
    assert objective.evaluate().examples == 6
    assert "flattened" in objective.caveats[0]


CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))


@pytest.mark.parametrize(
    ("net", "x", "y", "loss", "words"),
    [
        (CONV, torch.randn(4, 1, 8, 8), torch.zeros(4).long(), "cross_entropy", ["`0`", "3 channels", "(1, 8, 8)"]),
        (CONV, torch.randn(4, 3, 9, 9), torch.zeros(4).long(), "cross_entropy", ["`2`", "144", "196"]),
        (CONV, torch.randn(4, 3, 8, 8), torch.full((4,), 5), "cross_entropy", ["label is 5", "5 classes"]),
        (CONV, torch.randn(4, 3, 8, 8), torch.full((4,), -1), "cross_entropy", ["label is -1"]),
        (CONV, torch.randn(4, 3, 8, 8), torch.rand(4), "cross_entropy", ["class", "float32"]),
        (CONV, torch.randn(4, 3, 8, 8), torch.rand(4, 2), "mse", ["5 values", "2"]),
    ],
)
def test_data_that_do_not_fit_are_refused_by_name(net, x, y, loss, words) -> None:
    with pytest.raises(DataError) as caught:
        Objective.of(net, batches(x, y), loss)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_token_ids_and_context_are_checked() -> None:
    module, data = gpt()
    ids = data.inputs.clone()
    ids[3, 2] = 9
    with pytest.raises(DataError, match="token id is 9, but the model's vocabulary has 7"):
        Objective.of(module, batches(ids, data.targets), "causal_lm")
    long = torch.cat([data.inputs, data.inputs], 1)
    with pytest.raises(DataError, match="12 tokens, but the model's context is 6"):
        Objective.of(module, batches(long, long), "causal_lm")
    with pytest.raises(DataError, match="padding"):
        Objective.of(module, batches(data.inputs, torch.full((5, 6), -100)), "causal_lm")


def test_a_loss_that_is_not_finite_names_the_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    objective = Objective.of(net, batches(torch.ones(4, 3), torch.zeros(4).long()), "cross_entropy")
    with pytest.raises(ObjectiveError, match="`2` \\(Linear\\)"):
        objective.evaluate()


class Hungry(nn.Linear):
    """Fails like a GPU that is full when it gets more examples than fit."""

    fits = 3

    def forward(self, x):
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def test_out_of_memory_halves_the_micro_batch_and_says_so() -> None:
    x, y = torch.randn(13, 3), torch.randint(2, (13,))
    objective = Objective.of(Hungry(3, 2), batches(x, y), "cross_entropy", micro_batch=13)
    expected = functional.cross_entropy(functional.linear(x, *objective.theta), y).item()
    assert objective.evaluate().loss == pytest.approx(expected, rel=1e-6)
    assert objective.micro_batch == 3
    assert objective.caveats == ["Out of memory: the micro-batch was halved to 3 (the numbers do not depend on it)."]


def test_a_single_example_that_does_not_fit_is_refused() -> None:
    x, y = torch.randn(4, 3), torch.randint(2, (4,))
    objective = Objective.of(Hungry(3, 2), batches(x, y), "cross_entropy", micro_batch=4)
    objective.module.fits = 0
    with pytest.raises(ObjectiveError, match="single example"):
        objective.gradient()


def test_the_card_says_of_what() -> None:
    module, data = cnn()
    card = Objective.of(module, data, "cross_entropy", dtype="float64").card()
    assert card["examples_sha256"] == data.sha256
    assert (card["loss"], card["examples"], card["dtype"], card["parameters"]) == ("cross_entropy", 11, "float64", 196)
    assert "running statistics" in card["mode"]


def test_unused_parameters_count_and_have_no_gradient() -> None:
    class Spare(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.unused = nn.Parameter(torch.ones(4))

    objective = Objective.of(Spare(), batches(torch.randn(4, 3), torch.zeros(4).long()), "cross_entropy")
    places = dict(zip(objective.names, objective.like_theta(objective.gradient()), strict=True))
    assert objective.size == 12
    assert not places["unused"].any()


def test_the_oracle_knows_a_closed_form() -> None:
    net, x, y = nn.Linear(2, 1, bias=False), torch.randn(6, 2), torch.randn(6, 1)
    H = dense_hessian(net, batches(x, y.double()), lambda out, y: ((out - y) ** 2).mean())
    torch.testing.assert_close(torch.from_numpy(H), (2 * x.T @ x / 6).double(), rtol=1e-5, atol=1e-6)


def test_the_automatic_micro_batch_fits_the_caches_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = nn.Sequential(nn.Linear(6, 100), nn.Tanh(), nn.Linear(100, 3)), torch.randn(40, 6), torch.arange(40) % 3
    whole = Objective.of(net, batches(x, y), "cross_entropy", device="cpu")
    assert whole.micro_batch == 40
    monkeypatch.setattr(objectives, "ON_CPU", 20_000)
    cut = Objective.of(net, batches(x, y), "cross_entropy", device="cpu")
    assert 1 < cut.micro_batch < 40
    assert cut.evaluate().loss == pytest.approx(whole.evaluate().loss, rel=1e-6)


def test_attention_is_fused_where_nothing_is_differentiated() -> None:
    was = torch.backends.cuda.flash_sdp_enabled()
    with strict():
        assert not torch.backends.cuda.flash_sdp_enabled()
    with torch.no_grad(), strict():
        assert torch.backends.cuda.flash_sdp_enabled() == was
    assert was and torch.backends.cuda.math_sdp_enabled()
