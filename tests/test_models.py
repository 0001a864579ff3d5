"""Models are recognised from names and shapes exactly, or not at all; torch's own modules are the oracles."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Deep, Digits, Features, LeNet5, same, saved, stir
from safetensors.torch import save_file
from torch import nn

from probes.architecture.modules import CifarResNet
from probes.checkpoint import read_checkpoint
from probes.models import build, load_model, recognise
from probes.specs import ModelSpec


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)), (2, 3, 2, 2)),
        (nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)), (2, 5)),
        (nn.Sequential(nn.Linear(5, 2)), (3, 5)),
        (nn.Sequential(*[nn.Linear(4, 4), nn.ReLU()] * 6, nn.Linear(4, 2)), (2, 4)),
        (Deep(), (2, 6)),
    ],
)
def test_mlps_of_any_names_are_recognised(module: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    checkpoint = saved(module, tmp_path)
    same(module, checkpoint, torch.randn(shape))
    found = recognise(checkpoint)
    assert found.spec is not None
    assert found.spec.name == "mlp"


def test_an_mlp_whose_file_is_sorted_as_text_keeps_its_order(tmp_path: Path) -> None:
    layers = [nn.Linear(6, 6) for _ in range(12)]  # all alike: shapes cannot tell the order
    module = nn.Sequential(*[each for layer in layers[:-1] for each in (layer, nn.ReLU())], layers[-1])
    save_file(module.state_dict(), tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert list(checkpoint.tensors).index("10.weight") < list(checkpoint.tensors).index("2.weight")
    same(module, checkpoint, torch.randn(2, 6))


@pytest.mark.parametrize("kind", ["Features", "LeNet5"])
def test_parts_in_alphabetical_order_are_put_right(kind: str, tmp_path: Path) -> None:
    module = Features() if kind == "Features" else LeNet5()
    save_file(module.state_dict(), tmp_path / "x")  # "classifier" comes before "features" in such a file
    same(module, read_checkpoint(tmp_path / "x"), torch.randn(2, 3, 32, 32))


def test_norms_are_put_behind_their_convolutions(tmp_path: Path) -> None:
    module = nn.Sequential(
        OrderedDict(
            [
                ("conv1", nn.Conv2d(3, 4, 3, padding=1)),
                ("bn1", nn.BatchNorm2d(4)),
                ("relu1", nn.ReLU()),
                ("pool1", nn.MaxPool2d(2)),
                ("conv2", nn.Conv2d(4, 4, 3, padding=1)),
                ("bn2", nn.BatchNorm2d(4)),
                ("relu2", nn.ReLU()),
                ("pool2", nn.MaxPool2d(2)),
                ("flatten", nn.Flatten()),
                ("fc", nn.Linear(256, 5)),
            ]
        )
    )
    save_file(stir(module).state_dict(), tmp_path / "x")
    same(module, read_checkpoint(tmp_path / "x"), torch.randn(2, 3, 32, 32))


def test_the_activation_is_a_choice_with_a_reason(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    checkpoint = saved(module, tmp_path)
    found = recognise(checkpoint)
    assert "tanh" in found.choices["activation"]
    assert any("activation" in reason for reason in found.reasons)
    chosen = ModelSpec("catalogue", "mlp", {**found.spec.arguments, "activation": "tanh"})
    x = torch.randn(2, 5)
    assert torch.allclose(load_model(chosen, checkpoint)(x), module(x))


@pytest.mark.parametrize(
    ("text", "stated"), [("Sequential(Linear(5, 4), Tanh(), Linear(4, 3))", True), ("Sequential(x)", False)]
)
def test_a_model_that_the_file_states_comes_first_if_it_fits(text: str, stated: bool, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    save_file(module.state_dict(), tmp_path / "x", metadata={"model": text})
    found = recognise(read_checkpoint(tmp_path / "x"))
    assert (found.spec == ModelSpec("text", text=text)) is stated
    assert found.spec is not None


@pytest.mark.parametrize(
    ("module", "shape"),
    [(LeNet5(), (2, 3, 32, 32)), (LeNet5(2, 1), (2, 1, 28, 28)), (Digits(), (2, 1, 28, 28))],
)
def test_lenets_are_recognised_with_their_layout(module: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    checkpoint = saved(module, tmp_path)
    same(module, checkpoint, torch.randn(shape))
    assert recognise(checkpoint).spec.name == "lenet"


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
@pytest.mark.parametrize("option", ["A", "B"])
def test_cifar_resnets_are_recognised(depth: int, option: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = CifarResNet(depth, option, classes=100, width=4)
    checkpoint = saved(module.to_empty(device="cpu"), tmp_path)
    found = recognise(checkpoint)
    assert found.spec is not None
    assert (found.spec.arguments["depth"], found.spec.arguments["option"]) == (depth, option)
    assert found.title == f"CIFAR ResNet-{depth}, shortcut option {option}, width 4"


def test_the_parameters_of_resnets_are_those_of_the_paper() -> None:
    # He et al. (2016), table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million
    for depth, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)):
        count = sum(
            each.numel() for each in build(ModelSpec("catalogue", "cifar_resnet", {"depth": depth})).parameters()
        )
        assert count / 1e6 == pytest.approx(millions, abs=0.05 if depth == 110 else 0.01)


def test_the_real_resnet_is_recognised_and_classifies_its_training_images(real: Path) -> None:
    checkpoint = read_checkpoint(real / "cifar10-resnet20" / "resnet20-12fca82f.th")
    found = recognise(checkpoint)
    assert found.title == "CIFAR ResNet-20, shortcut option A"
    assert found.mismatch is None
    assert any("19 batch counters" in reason for reason in found.reasons)
    with np.load(real / "cifar10-resnet20" / "cifar10-train-1000.npz") as file:
        images, labels = torch.tensor(file["images"][:200]), torch.tensor(file["labels"][:200]).long()
    x = images.permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        predicted = load_model(found.spec, checkpoint)((x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)).argmax(1)
    assert (predicted == labels).float().mean() > 0.99


def test_the_real_cnn_is_proposed_as_it_was_trained(real: Path) -> None:
    checkpoint = read_checkpoint(real / "mnist-cnn" / "run1" / "epoch-200.pt")
    found = recognise(checkpoint)
    expected = (
        "Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(1600, 10)"
    )
    assert found.spec == ModelSpec("text", text=f"Sequential({expected})")
    assert any("cannot be seen in the file" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Features(), (2, 3, 32, 32)),
        (
            nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
                nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10),
            ),
            (2, 1, 8, 8),
        ),
        (
            nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
            ),
            (2, 3, 9, 9),
        ),
        (nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), (4, 5)),
    ],
)  # fmt: skip
def test_chains_are_proposed_from_gaps_and_shapes(module: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    checkpoint = saved(module, tmp_path)
    same(module, checkpoint, torch.randn(shape))
    assert recognise(checkpoint).title.startswith("proposed:")


def test_deep_chains_are_proposed_in_time(tmp_path: Path) -> None:
    widths = [3, 4, 4, 6, 6, 6, 6, 8, 8, 8, 8, 8, 8, 8]  # as VGG-16 has them: a pool after 2, 4, 7, 10, 13
    layers: list[nn.Module] = []
    for count in range(13):
        layers += [nn.Conv2d(widths[count], widths[count + 1], 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if count + 1 in (2, 4, 7, 10, 13) else []
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 49, 5))
    same(module, saved(module, tmp_path), torch.randn(1, 3, 224, 224))
    names = {f"part{count}": layer for count, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)}
    unnumbered = {chr(97 + place) + name: layer for place, (name, layer) in enumerate(names.items())}
    odd = nn.ModuleDict({**unnumbered, "z": nn.Linear(8 * 49, 5)})
    assert recognise(saved(odd, tmp_path)).to_json()["reasons"]
