"""Gradients of every example of whole models against autograd, one example at a time; what has no rule, too."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn, gpt, mlp
from gradient_oracles import figures, materialised
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from probes.architecture.modules import CifarResNet, SmallGPT
from probes.errors import ObjectiveError
from probes.ghosts import Ghosts
from probes.objective import Objective
from probes.own_loss import OwnLoss
from probes.per_sample import PerExample, per_example

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}


def objective_of(net: nn.Module, x: Tensor, y: Tensor, **options) -> Objective:
    loss = "causal_lm" if y.ndim == 2 else "cross_entropy"
    return Objective.of(net, batches(x, y), loss, **{"dtype": "float64", "micro_batch": 3, **options})


def same(found: PerExample, net: nn.Module, x: Tensor, y: Tensor, tolerance: float = 1e-9) -> None:
    """Compare with materialised gradients, each relative to the largest of its parameter (and 1e-6 of the whole)."""
    dots, squares = figures(net, x, y)
    scale = np.sqrt(squares).max(0) + 1e-6 * np.sqrt(squares.sum(1).max())
    sizes = np.sqrt(found.weights) + 1e-300
    np.testing.assert_allclose(np.sqrt(found.squares) / scale, np.sqrt(squares) / scale, atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.dots / scale / sizes, dots / scale / sizes, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_they_add_up_to_the_gradient_of_the_mean_loss(name: str) -> None:
    make, loss = NETS[name]
    net, data = make()
    objective = Objective.of(net, data, loss, dtype="float64", micro_batch=4)
    found = per_example(objective)
    flat = objective.like_theta(objective.gradient())
    expected = [float((g * w.detach()).sum()) for g, w in zip(flat, objective.theta, strict=True)]
    np.testing.assert_allclose(found.dots.sum(0) / objective.units, expected, rtol=1e-10, atol=1e-13)
    assert found.losses.sum() / objective.units == pytest.approx(objective.evaluate().loss, rel=1e-12)
    same(found, net, data.inputs, data.targets)
    assert found.fallback == found.doubts == ()


class Logits(nn.Module):
    """A model of transformers as a function from ids to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits


def families() -> dict[str, nn.Module]:
    """Tiny models of the kinds that are looked at here."""
    from timm import create_model
    from torchvision.models import VisionTransformer
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 3}
    vit = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 12, "mlp_dim": 16}
    ids = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    bert = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "num_labels": 3,
    }
    gpt2 = GPT2Config(n_positions=6, n_embd=8, n_layer=1, n_head=2, **ids)
    return {
        "mnist CNN": nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 9, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 3),
        ),
        "ResNet A": CifarResNet(8, classes=3, width=4),
        "ResNet B": CifarResNet(8, "B", classes=3, width=4),
        "small GPT": SmallGPT(11, 6, 1, 2, 8),
        "small GPT, transposed": SmallGPT(11, 6, 1, 2, 8, transposed=True, bias=False, tied=False),
        "GPT-2": Logits(GPT2LMHeadModel(gpt2)),
        "BERT": Logits(BertForSequenceClassification(BertConfig(max_position_embeddings=8, **bert, **ids))),
        "torchvision's ViT": VisionTransformer(num_classes=3, **vit),
        "timm's ViT": create_model("vit_tiny_patch16_224", **sizes),
    }


def examples(name: str) -> tuple[Tensor, Tensor]:
    """Five examples for a family."""
    if "GPT" in name or name == "BERT":
        x, y = torch.randint(11, (5, 6)), torch.randint(11, (5, 6))
        y[2, 1:] = -100
        return x, torch.randint(3, (5,)) if name == "BERT" else y
    size = (1, 14, 14) if name == "mnist CNN" else (3, 16, 16)
    return torch.randn(5, *size), torch.randint(3, (5,))


def test_families_of_models_need_no_gradients_of_single_examples() -> None:
    for name, net in families().items():
        torch.manual_seed(3)
        with torch.no_grad():
            for each in net.parameters():
                each += 0.2 * torch.randn_like(each)
        x, y = examples(name)
        found = per_example(objective_of(net, x, y))
        assert found.fallback == found.doubts == (), name
        same(found, net, x, y)
        fast = per_example(objective_of(net, x, y, dtype="float32"))
        rough = found.losses < 0.01  # 1 - p loses digits in float32, in autograd's gradient, too
        np.testing.assert_allclose(fast.cosines()[~rough], found.cosines()[~rough], atol=1e-6)


def test_cosines_are_those_of_autograd() -> None:
    net, data = cnn()
    found = per_example(Objective.of(net, data, "cross_entropy", dtype="float64"))
    gradients = materialised(net, data.inputs, data.targets)
    weights = {name: each.detach().double().numpy().ravel() for name, each in net.named_parameters()}
    for names in (None, ["6.weight"], ["0.weight", "6.bias"]):
        chosen = list(weights) if names is None else names
        g = np.concatenate([gradients[name].reshape(len(data.inputs), -1) for name in chosen], 1)
        w = np.concatenate([weights[name] for name in chosen])
        expected = -(g @ w) / (np.linalg.norm(g, axis=1) * np.linalg.norm(w))
        np.testing.assert_allclose(found.cosines(names), expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"7\.weight"):
        found.cosines(["7.weight"])


def test_no_gradient_has_no_cosine() -> None:
    found = PerExample(("w",), np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]]), np.array([1.0]), np.zeros(2))
    np.testing.assert_array_equal(found.cosines(), [0.0, -1.0])


def test_only_the_parameters_asked_for() -> None:
    net, data = gpt()
    objective = Objective.of(net, data, "causal_lm", dtype="float64", micro_batch=2)
    every, some = per_example(objective), per_example(objective, names=["token.weight", "norm2.bias"])
    columns = [every.names.index(name) for name in some.names]
    assert some.names == ("token.weight", "norm2.bias")
    np.testing.assert_allclose(some.squares, every.squares[:, columns], rtol=1e-12)
    np.testing.assert_allclose(some.dots, every.dots[:, columns], atol=1e-14)
    with pytest.raises(ValueError, match=r"lm_head"):
        per_example(objective, names=["lm_head"])


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_losses_of_values(loss: str) -> None:
    net, x, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(5, 4), torch.rand(5, 3)
    objective = Objective.of(net, batches(x, y), loss, dtype="float64", micro_batch=2)
    found, net = per_example(objective), net.double()
    function = functional.mse_loss if loss == "mse" else functional.binary_cross_entropy_with_logits
    for row in range(5):
        value = function(net(x[row].double()), y[row].double())
        g = torch.autograd.grad(value, list(net.parameters()))
        assert found.losses[row] == pytest.approx(value.item(), rel=1e-12)
        np.testing.assert_allclose(found.squares[row], [float(each.square().sum()) for each in g], rtol=1e-12)


class Contracted(nn.Module):
    """A layer whose weight goes into einsum, which no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", self.first(x).tanh(), self.out.weight) + self.out.bias


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w, (d * x).sum(0)


class Hidden(nn.Module):
    """A parameter that goes where nobody can follow it: into a function of its own, which torch.func refuses, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(4, 3), nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        return _Double.apply(self.first(x), self.scale)


class Recurrent(nn.Module):
    """An LSTM, whose weights go into one large function."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Routed(nn.Linear):
    """A layer for each example, by its contents: other steps for several examples than for one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(
            [super(Routed, self).forward(each) * (2 if float(each.detach().sum()) > 0 else 1) for each in x]
        )


@pytest.mark.parametrize(
    ("net", "shape", "fallback", "doubtful"),
    [
        (Contracted(), (4,), {"out.weight"}, False),
        (Hidden(), (4,), {"scale"}, True),
        (Recurrent(), (3, 4), {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}, False),
        (Routed(4, 3), (4,), {"weight", "bias"}, False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_no_rule_covers_is_taken_one_example_at_a_time_and_named(net, shape, fallback, doubtful) -> None:
    x, y = torch.randn(8, *shape), torch.randint(3, (8,))
    shares: list[float] = []
    found = per_example(objective_of(net, x, y), lambda share, doing: shares.append(share))
    same(found, net, x, y)
    assert set(found.fallback) == fallback
    assert bool(found.doubts) == doubtful
    assert all("`scale`" in each and "autograd" in each for each in found.doubts)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_rule_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes import ghost_ledger

    monkeypatch.setattr(ghost_ledger.ghost_norms, "lookup_squares", lambda ids, d: d.square().sum((1, 2)))
    net, data = gpt()
    found = per_example(Objective.of(net, data, "causal_lm", dtype="float64", micro_batch=2))
    same(found, net, data.inputs, data.targets)
    assert found.fallback == ("token.weight",)
    assert "`token.weight`" in found.doubts[0]


class Mixing(nn.Linear):
    """A model in which every example sees the others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0) / 2)


@pytest.mark.parametrize(
    "net",
    [Mixing(4, 3), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))],
    ids=["mean", "norm"],
)
def test_examples_that_influence_each_other_are_refused(net: nn.Module) -> None:
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(ObjectiveError, match=r"influence each other|by itself"):
        per_example(objective_of(net, x, y))


def test_a_loss_without_gradient_is_refused() -> None:
    class Cut(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(ObjectiveError, match=r"does not depend on any parameter"):
        per_example(objective_of(Cut(4, 3), torch.randn(5, 4), torch.randint(3, (5,))))


def test_gradients_that_are_not_finite_are_refused_by_name() -> None:
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square().sum(1, keepdim=True).sqrt().expand(-1, 3) * torch.arange(3)

    x = torch.randn(5, 4)
    x[3] = 0
    with pytest.raises(ObjectiveError, match=r"example 3 by `weight` is not finite"):
        per_example(objective_of(Root(4, 3, bias=False), x, torch.randint(3, (5,))))


def test_a_single_example() -> None:
    net, x, y = nn.Linear(4, 3), torch.randn(1, 4), torch.tensor([1])
    found = per_example(objective_of(net, x, y))
    same(found, net, x, y)
    assert found.fallback == ()


def test_the_loss_of_the_operator() -> None:
    net, x, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(7, 4), torch.randint(3, (7,))
    own = OwnLoss(lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]))
    objective = Objective(copy.deepcopy(net), batches(x, y), "operator", own=own, dtype="float64", micro_batch=3)
    found = per_example(objective)
    same(found, net, x, y)
    built_in = per_example(objective_of(net, x, y))
    np.testing.assert_allclose(found.losses, built_in.losses, rtol=1e-12)


def test_out_of_memory_halves_and_goes_on() -> None:
    class Hungry(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    net, x, y = Hungry(4, 3), torch.randn(13, 4), torch.randint(3, (13,))
    objective = objective_of(net, x, y, micro_batch=12)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(net.state_dict())
    same(per_example(objective), plain, x, y)
    assert objective.micro_batch == 3
    assert "Out of memory" in objective.caveats[0]


def test_nothing_is_left_behind() -> None:
    net, data = cnn()
    objective = Objective.of(net, data, "cross_entropy")
    before = [each.detach().clone() for each in objective.theta]
    per_example(objective)
    assert all(torch.equal(each, old) and each.grad is None for each, old in zip(objective.theta, before, strict=True))
    assert all(not each._forward_hooks and not each._backward_hooks for each in objective.module.modules())


def test_no_gradient_of_a_weight_is_computed_nor_one_for_each_example() -> None:
    class Sizes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[tuple[int, ...]] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func not in (torch.ops.aten.t.default, torch.ops.aten.detach.default, torch.ops.aten.transpose.int):
                self.seen.update(
                    tuple(each.shape)
                    for each in (out if isinstance(out, tuple | list) else (out,))
                    if isinstance(each, Tensor)
                )
            return out

    net = nn.Sequential(
        nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.Unflatten(1, (2, 10)), nn.Linear(10, 11), nn.Flatten()
    )
    objective = objective_of(net, torch.randn(6, 40), torch.randint(22, (6,)), micro_batch=6)
    ghosts = Ghosts(objective)
    with Sizes() as sizes:
        sums = ghosts.sums(slice(0, 6), range(len(objective.names)))
    assert not sums.lost
    assert (6, 20) in sizes.seen
    assert not {(30, 40), (20, 30), (11, 10), (6, 30, 40), (6, 20, 30), (6, 11, 10)} & sizes.seen
