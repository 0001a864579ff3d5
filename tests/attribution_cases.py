"""One tiny objective for every kind of model that attributions are tested on; random weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from curvature_oracles import batches
from family_nets import _hub, bert, gpt2, llama, perturbed, small_gpt, small_llama, vit
from torch import Tensor, nn

from probes.architecture.modules import CifarResNet
from probes.attribution import Case, Target, attribute, case_of
from probes.objective import Objective

VOCABULARY, LENGTH = 23, 7


def objective_of(name: str, dtype: str = "float64", seed: int = 0) -> Objective:
    """The objective of a tiny model with perturbed weights; names are those of NETS."""
    torch.manual_seed(seed)
    module = perturbed(NETS[name](), seed) if name in HUB else settled(NETS[name](), seed)
    inputs = _inputs(name)
    if name in LANGUAGE:
        return Objective(module, batches(inputs, inputs), "causal_lm", dtype=dtype, device="cpu")
    return Objective(module, batches(inputs, torch.randint(3, (len(inputs),))), "cross_entropy", dtype=dtype,
                     device="cpu")  # fmt: skip


def case(name: str, row: int = 0, target: Target | None = None, dtype: str = "float64") -> Case:
    """The case of one example of a tiny model."""
    return case_of(objective_of(name, dtype), row, target)


def of_module(module: nn.Module, row: Tensor, target: int = 0) -> Case:
    """The case of one row of numbers."""
    inputs = torch.stack([row, row + 1]).float()
    objective = Objective.of(module, batches(inputs, torch.zeros(2, dtype=torch.int64)), "cross_entropy",
                             dtype="float64", device="cpu")  # fmt: skip
    return case_of(objective, 0, Target(target))


def settled(module: nn.Module, seed: int) -> nn.Module:
    """Give batch norms statistics other than 0 and 1, and biases values, as training would; in place."""
    generator = torch.Generator().manual_seed(seed)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.copy_(0.2 * torch.randn(each.num_features, generator=generator))
            each.running_var.copy_(0.5 + torch.rand(each.num_features, generator=generator))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def cnn() -> nn.Module:
    """Two convolutions with ReLU modules and max pools, two linear layers; 1 x 12 x 12 images."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip


def resnet20() -> nn.Module:
    """The ResNet-20 for CIFAR: functional ReLU, shortcuts of option A; 3 x 16 x 16 images."""
    return CifarResNet(20, "A", classes=3, width=4)


def hub_resnet() -> nn.Module:
    """A ResNet of transformers: two stages of basic blocks."""
    return _hub("resnet", "ResNetForImageClassification", embedding_size=6, hidden_sizes=[6, 10], depths=[1, 2],
                layer_type="basic", attention="eager", num_labels=3, num_channels=3)  # fmt: skip


def convnext() -> nn.Module:
    """A ConvNeXt of transformers: two stages, GELU, layer norm, layer scale."""
    return _hub("convnext", "ConvNextForImageClassification", hidden_sizes=[6, 10], depths=[1, 1], num_stages=2,
                patch_size=2, num_labels=3, num_channels=3, layer_scale_init_value=0.5,
                attention="eager")  # fmt: skip


def tabular() -> nn.Module:
    """An MLP with ReLU modules on rows of 6 numbers."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def linear() -> nn.Module:
    """A linear model on rows of 6 numbers: everything about it has a closed form."""
    return nn.Sequential(nn.Linear(6, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "cnn": cnn, "resnet20": resnet20, "hub resnet": hub_resnet, "vit": vit, "convnext": convnext, "bert": bert,
    "gpt2": gpt2, "llama": llama, "small gpt": small_gpt, "small llama": small_llama, "tabular": tabular,
    "linear": linear,
}  # fmt: skip
HUB = {"vit", "bert", "gpt2", "llama", "small gpt", "small llama", "convnext"}
LANGUAGE = {"gpt2", "llama", "small gpt", "small llama"}
TEXT = {"bert"}
IMAGES = {"cnn", "resnet20", "hub resnet", "vit", "convnext"}
TABLES = {"tabular", "linear"}


def _inputs(name: str) -> Tensor:
    if name in LANGUAGE:
        return torch.randint(1, VOCABULARY, (5, LENGTH))
    if name in TEXT:
        tokens = torch.randint(2, VOCABULARY, (5, LENGTH))
        tokens[2, 5:] = 0  # padding
        return tokens
    if name in TABLES:
        return torch.randn(6, 6)
    return torch.rand(4, 1, 12, 12) if name == "cnn" else torch.randn(4, 3, 16, 16)


def traces(one):
    """Hooks, modes, requires_grad and outputs: what a method must leave as it was."""
    modules = list(one.module.modules())
    hooks = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) + len(each._backward_hooks) for each in modules)
    modes = [each.training for each in modules]
    needs = [each.requires_grad for each in [*one.module.parameters(), *one.objective.theta]]
    gradients = [each.grad is None for each in [*one.module.parameters(), *one.objective.theta]]
    return hooks, modes, needs, gradients, one.scores(one.features).detach()


def left_as_it_was(found, tried):
    """Assert that methods leave modes, hooks, parameters and outputs of the model as they were."""
    module = found.module
    before = found.logits(found.features)
    state = {key: each.clone() for key, each in module.state_dict().items()}
    held = lambda: [(each.training, len(each._forward_hooks), len(each._backward_hooks), len(each._forward_pre_hooks))
                    for each in module.modules()]  # fmt: skip
    hooks, needs = held(), [each.requires_grad for each in module.parameters()]
    for method in tried:
        if not method.refuse(found):
            attribute(found, method.name)
    assert hooks == held()
    assert needs == [each.requires_grad for each in module.parameters()]
    assert all(torch.equal(each, state[key]) for key, each in module.state_dict().items())
    assert torch.equal(found.logits(found.features), before)
