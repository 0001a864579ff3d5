"""Gradients of every example of whole models against autograd, one example at a time; what has no rule, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import batches, cnn, gpt, mlp
from gradient_oracles import materialised, objective_of, same
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from probes.architecture.modules import CifarResNet, SmallGPT
from probes.ghosts import Ghosts
from probes.objective import Objective
from probes.per_sample import PerExample, per_example

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}


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
