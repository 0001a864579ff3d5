"""The final linear head: that it is found, or refused in words."""

from __future__ import annotations

import pytest
import torch
from curvature_oracles import batches
from head_nets import objective_of
from torch import Tensor, nn
from torch.nn import functional

from probes.errors import ModelError, ObjectiveError
from probes.head import find_head
from probes.head_alignment import align
from probes.models import build
from probes.objective import Objective
from probes.own_loss import OwnLoss
from probes.specs import ModelSpec


def spec_head(family: str, arguments: dict[str, object], inputs: Tensor, targets: Tensor, loss: str) -> tuple[str, ...]:
    objective = Objective.of(build(ModelSpec("catalogue", family, arguments)), batches(inputs, targets), loss)
    head = find_head(objective)
    return head.name, head.kind, *head.shared


def test_the_head_is_found() -> None:
    objective = objective_of("mlp")
    assert (find_head(objective).name, find_head(objective).kind) == ("4", "Linear")
    assert find_head(objective_of("gpt")).shared == ("token",)
    assert find_head(objective_of("mse labels")).name == ""
    assert find_head(objective_of("mse labels")).shared == ()
    assert find_head(objective_of("conv")).kind == "Conv2d"
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(11, (2, 8))
    assert spec_head("cifar_resnet", {"depth": 20}, images, torch.tensor([1, 2]), "cross_entropy") == (
        "linear",
        "Linear",
    )
    sizes = {"vocabulary": 11, "context": 8, "layers": 1, "heads": 2, "width": 16}
    assert spec_head("small_gpt", sizes, tokens, tokens, "causal_lm") == ("lm_head", "Linear", "transformer.wte")


def test_the_head_of_a_model_of_transformers_is_found() -> None:
    from probes.hugging_face import _as_logits

    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    net = _as_logits(transformers.GPT2LMHeadModel(config))
    tokens = torch.randint(11, (3, 8))
    objective = Objective(net, batches(tokens, tokens.roll(-1, 1)), "causal_lm", dtype="float64")
    head = find_head(objective)
    assert (head.name, head.shared) == ("lm_head", ("transformer.wte",))
    (found,) = align(objective, head)
    assert found.evaluation(objective).loss == pytest.approx(objective.evaluate().loss, rel=1e-12)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0 + super().forward(x).mul_(3)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.normalize(x), functional.normalize(self.weight)) * 8


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, :4]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.LogSoftmax(1)), r"last layer is `1` \(LogSoftmax\)"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True)), r"last layer is `1` \(ReLU\)"),
        (nn.Sequential(Scaled(5, 4)), r"not that of a linear layer: the last layer is `0` \(Scaled\)"),
        (nn.Sequential(Cosine(5, 4)), r"\(Cosine\)"),
        (Twice(), "`layer` is used more than once"),
        (Part(), r"last layer is `layer` \(Linear\)"),
    ],
)
def test_what_is_no_head_is_refused_in_words(net: nn.Module, words: str) -> None:
    objective = Objective.of(net, batches(torch.randn(6, 5), torch.randint(4, (6,))), "cross_entropy")
    with pytest.raises(ModelError, match=words) as caught:
        find_head(objective)
    assert "Choose the scope network" in str(caught.value)


def test_classes_at_several_places_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten())
    objective = Objective.of(net, batches(torch.randn(4, 2, 2, 2), torch.randint(9, (4,))), "cross_entropy")
    with pytest.raises(ModelError, match="several places"):
        find_head(objective)


def test_the_operators_own_loss_is_refused() -> None:
    own = OwnLoss(lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]))
    objective = Objective.of(nn.Linear(5, 4), batches(torch.randn(6, 5), torch.randint(4, (6,))), "operator", own=own)
    with pytest.raises(ObjectiveError, match="of a loss that runs the model itself"):
        find_head(objective)
    (found,) = align(objective, None)
    assert found.losses.mean() == pytest.approx(objective.evaluate().loss)
    assert found.evaluation(objective).accuracy is None


def test_no_hook_is_left() -> None:
    objective = objective_of("cnn")
    head = find_head(objective)
    align(objective, head)
    objective.inputs = objective.inputs[:, :, :2]
    with pytest.raises(RuntimeError):
        align(objective, head)
    for layer in objective.module.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
