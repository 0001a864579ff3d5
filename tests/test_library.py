"""Models of torchvision and timm are recognised and rebuilt; the libraries' own modules are the oracle."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from probes import library
from probes.architecture import nearest
from probes.architecture.index import read_index
from probes.checkpoint import Checkpoint, TensorInfo, read_checkpoint
from probes.errors import ModelError
from probes.models import build, compare, load_model, recognise, title_of
from probes.specs import ModelSpec

IMAGE = (2, 3, 64, 64)


def made(name: str, **sizes: Any) -> nn.Module:
    """Build the owner's module, with statistics of its own in every norm."""
    kind, _, bare = name.partition("/")
    make: Callable[..., nn.Module] = timm.create_model if kind == "timm" else torchvision.models.get_model
    module = make(bare, **sizes)
    for tensor in module.state_dict().values():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return module.eval()


def saved(module: nn.Module, tmp_path: Path, **more: Any) -> Checkpoint:
    torch.save({"state_dict": module.state_dict(), **more} if more else module.state_dict(), tmp_path / "x.pt")
    return read_checkpoint(tmp_path / "x.pt")


def declared(tensors: dict[str, tuple[int, ...]], **facts: Any) -> Checkpoint:
    """Make a checkpoint that only says what it holds: for shapes that nobody wants to store."""
    infos = {name: TensorInfo(shape, "float32") for name, shape in tensors.items()}
    return Checkpoint(Path("x"), "x", "0" * 64, 0, "test", infos, MappingProxyType(facts), (), lambda: iter(()))


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in module.state_dict().items()}


def same(module: nn.Module, checkpoint: Checkpoint, shape: tuple[int, ...] = IMAGE) -> ModelSpec:
    """Check that the model which is recognised gives the owner's logits, bit for bit; return its spec."""
    found = recognise(checkpoint)
    assert found.spec is not None, found
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(load_model(found.spec, checkpoint)(x), module.eval()(x))
    return found.spec


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("torchvision/resnet18", {"num_classes": 10}, IMAGE),
        ("torchvision/mobilenet_v2", {"num_classes": 3}, IMAGE),
        ("torchvision/mobilenet_v3_small", {"num_classes": 7}, IMAGE),
        ("torchvision/squeezenet1_1", {"num_classes": 5}, IMAGE),
        ("torchvision/shufflenet_v2_x0_5", {"num_classes": 4}, IMAGE),
        ("torchvision/mnasnet0_5", {"num_classes": 6}, IMAGE),
        ("torchvision/regnet_y_400mf", {"num_classes": 9}, IMAGE),
        ("torchvision/densenet121", {"num_classes": 2}, IMAGE),
        ("torchvision/googlenet", {"num_classes": 4, "init_weights": False}, IMAGE),
        ("torchvision/googlenet", {"num_classes": 4, "init_weights": False, "aux_logits": False}, IMAGE),
        ("torchvision/efficientnet_b0", {"num_classes": 8}, IMAGE),
        ("timm/efficientnet_b0", {"num_classes": 8}, IMAGE),
        ("timm/convnext_atto", {"num_classes": 10, "in_chans": 1}, (2, 1, 64, 64)),
        ("timm/mobilenetv3_small_050", {"num_classes": 12}, IMAGE),
        ("timm/resnet10t", {"num_classes": 10}, IMAGE),
        ("timm/resnet18", {"num_classes": 0}, IMAGE),
        ("timm/deit_tiny_distilled_patch16_224", {"num_classes": 3}, (1, 3, 224, 224)),
        ("timm/vit_tiny_patch16_224", {"num_classes": 10, "img_size": 32, "patch_size": 4}, (2, 3, 32, 32)),
        ("timm/vit_tiny_patch16_224", {"num_classes": 10, "img_size": 96}, (2, 3, 96, 96)),
        ("timm/mixer_s32_224", {"num_classes": 5}, (1, 3, 224, 224)),
    ],
)
def test_models_give_the_logits_of_their_owner(
    name: str, sizes: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    module = made(name, **sizes)
    spec = same(module, saved(module, tmp_path), shape)
    assert (spec.source, spec.name) == ("library", name)
    wanted = {key: value for key, value in sizes.items() if key != "init_weights"}
    assert {key: spec.arguments[key] for key in wanted if key != "aux_logits" or not wanted[key]} == wanted
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def in_front(module: nn.Module) -> None:
    module.conv1, module.maxpool, module.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Linear(512, 10)


def grey(module: nn.Module) -> None:
    module.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)


def dropped(module: nn.Module) -> None:
    module.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 4))


def deeper(module: nn.Module) -> None:
    module.fc = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4, bias=False))


def normed(module: nn.Module) -> None:
    module.classifier = nn.Sequential(nn.Linear(576, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def single(module: nn.Module) -> None:
    module.classifier = nn.Linear(576, 4)


@pytest.mark.parametrize(
    ("name", "change", "channels", "words"),
    [
        ("resnet18", in_front, 3, "first convolution replaced"),
        ("resnet18", grey, 1, "1 channel"),
        ("resnet18", dropped, 3, "classifier replaced"),
        ("resnet18", deeper, 3, "classifier replaced"),
        ("mobilenet_v3_small", normed, 3, "classifier replaced"),
        ("mobilenet_v3_small", single, 3, "classifier replaced"),
    ],
)
def test_what_fine_tuning_replaces_is_found(
    name: str, change: Callable[[nn.Module], None], channels: int, words: str, tmp_path: Path
) -> None:
    module = made(f"torchvision/{name}")
    change(module)
    spec = same(module, saved(module, tmp_path), (2, channels, 64, 64))
    assert words in title_of(spec)


def test_the_stride_and_the_pool_behind_a_replaced_stem_are_choices(tmp_path: Path) -> None:
    module = made("torchvision/resnet18")
    module.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    checkpoint = saved(module, tmp_path)
    found = recognise(checkpoint)
    assert dict(found.choices) == {"stem_stride": (1, 2), "stem_pool": (False, True)}
    chosen = ModelSpec("library", found.spec.name, {**found.spec.arguments, "stem_stride": 2, "stem_pool": True})
    x = torch.randn(IMAGE)
    with torch.no_grad():
        assert torch.equal(load_model(chosen, checkpoint)(x), module(x))


# Models that no file of tensors can tell apart


def test_models_with_the_same_tensors_are_choices_and_torchvision_comes_first() -> None:
    found = recognise(declared(shapes_of(made("torchvision/resnet18"))))
    assert found.spec.name == "torchvision/resnet18"
    assert found.choices["variant"] == ("torchvision/resnet18", "timm/resnet18", "timm/resnetblur18")
    assert any("timm/resnetblur18 have the same tensors" in reason for reason in found.reasons)
    chosen = ModelSpec("library", found.spec.name, {**found.spec.arguments, "variant": "timm/resnetblur18"})
    assert not compare(chosen, declared(shapes_of(made("timm/resnetblur18"))))
    assert "resnetblur18" in title_of(chosen)
    assert any("BlurPool" in type(each).__name__ for each in build(chosen).modules())


@pytest.mark.parametrize(
    "facts", [{"arguments": {"model": "tf_efficientnet_b0.ns_jft_in1k"}}, {"timm": "tf_efficientnet_b0"}]
)
def test_an_architecture_that_the_file_names_comes_first_among_its_like(facts: dict[str, Any]) -> None:
    tensors = shapes_of(made("timm/tf_efficientnet_b0"))
    assert recognise(declared(tensors)).spec.name == "timm/efficientnet_b0"
    found = recognise(declared(tensors, **facts))
    assert found.spec.name == found.spec.arguments["variant"] == "timm/tf_efficientnet_b0"
    assert "The file names its architecture: tf_efficientnet_b0." in found.reasons
    other = recognise(declared(shapes_of(made("torchvision/squeezenet1_1")), **facts))
    assert other.spec.name == "torchvision/squeezenet1_1"  # a name alone proves nothing


def test_the_runner_up_is_named_with_what_is_wrong_about_it() -> None:
    found = recognise(declared(shapes_of(made("torchvision/squeezenet1_1"))))
    assert found.runner_up.title == "torchvision squeezenet1_0, 1,000 classes"
    assert len(found.runner_up.mismatch) > 10
    told = json.loads(json.dumps(found.to_json()))["runner_up"]
    assert set(told) == {"title", "mismatch", "sentence"}
    assert told["sentence"].startswith("The file does not fit")
    assert told["mismatch"]["exact"] is False


# What is near, but no such model


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_a_near_miss_is_not_trusted(change: str, tmp_path: Path) -> None:
    module = made("torchvision/squeezenet1_1")
    tensors = dict(module.state_dict())
    name = "features.6.squeeze.bias"
    if change == "shape":
        tensors[name] = torch.zeros(7)
    elif change == "missing":
        del tensors[name]
    else:
        tensors["features.6.squeeze.extra"] = torch.zeros(7)
    torch.save(tensors, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    found = recognise(checkpoint)
    assert found.spec is None
    assert len(found.mismatch) == 1
    assert "features.6.squeeze" in found.mismatch.sentence()
    assert "squeezenet1_1" in found.reasons[0]
    with pytest.raises(ModelError, match=r"features\.6\.squeeze"):
        load_model(ModelSpec("library", "torchvision/squeezenet1_1"), checkpoint)


@pytest.mark.parametrize(
    ("name", "size"),
    [("fc.weight", (2**40, 512)), ("fc.weight", (-5, 512)), ("conv1.weight", (64, 2**40, 7, 7)), ("fc.weight", ())],
)
def test_absurd_sizes_are_refused_before_memory_is_asked_for(name: str, size: tuple[int, ...]) -> None:
    tensors = shapes_of(made("torchvision/resnet18"))
    assert recognise(declared({**tensors, name: size})).spec is None


def test_tensors_that_are_listed_but_do_not_come_are_never_random() -> None:
    tensors = shapes_of(made("torchvision/squeezenet1_1"))
    with pytest.raises(ModelError, match=r"features\.0\.weight"):
        load_model(ModelSpec("library", "torchvision/squeezenet1_1"), declared(tensors))


# Names and arguments


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("timm/hf-hub:evil/model", {}, "There is no model"),
        ("hf-hub:evil/model", {}, "There is no model"),
        ("timm/local-dir:/tmp", {}, "There is no model"),
        ("timm/../resnet18", {}, "There is no model"),
        ("torchvision/resnet19", {}, "has no model"),
        ("torchvision/fasterrcnn_resnet50_fpn", {}, "has no model"),
        ("torchvision/resnet18", {"weights": "DEFAULT"}, "'weights' is no argument"),
        ("timm/resnet18", {"pretrained": True}, "'pretrained' is no argument"),
        ("timm/resnet18", {"checkpoint_path": "/etc/passwd"}, "no argument"),
        ("timm/resnet18", {"num_classes": 1e6}, "whole number"),
        ("timm/resnet18", {"num_classes": True}, "whole number"),
        ("timm/resnet18", {"num_classes": 10**9}, "whole number"),
        ("timm/resnet18", {"variant": "timm/hf-hub:evil/model"}, "There is no model"),
        ("timm/resnet18", {"img_size": 10**6}, "whole number"),
        ("torchvision/resnet18", {"head_at": "fc", "head": "__import__('os')"}, "not a layer"),
        ("torchvision/resnet18", {"head_at": "nowhere", "head": "Linear(2, 2)"}, "nowhere"),
        ("torchvision/resnet18", {"img_size": 64}, "cannot be built"),
    ],
)
def test_other_names_and_arguments_are_refused_in_words(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words.replace("(", r"\(")):
        build(ModelSpec("library", name, arguments))


def test_building_never_goes_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("torchvision/resnet18", "torchvision/inception_v3", "timm/vit_tiny_patch16_224", "timm/resnet18"):
        assert sum(each.numel() for each in build(ModelSpec("library", name)).parameters()) > 10**6


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = shapes_of(made("timm/resnet10t"))
    here = lambda name: name.startswith("torchvision/")
    monkeypatch.setattr(nearest, "is_here", here)
    monkeypatch.setattr(library, "is_here", here)
    found = recognise(declared(tensors))
    assert found.spec is None
    assert any("resnet10t of timm, which is not installed here" in reason for reason in found.reasons)
    with pytest.raises(ModelError, match="pip install timm"):
        build(ModelSpec("library", "timm/resnet10t"))
    both = recognise(declared(shapes_of(made("torchvision/resnet18"))))
    assert "variant" not in both.choices  # timm's are left out


def test_the_index_is_read_without_torch_or_the_libraries() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from probes.architecture.nearest import likely; "
        "found = list(likely({'conv1.weight': (64, 3, 7, 7)}, {})); "
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
    assert len(read_index().entries) > 1000
