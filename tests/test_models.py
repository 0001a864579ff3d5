"""Models are recognised from names and shapes exactly, or not at all; torch's own modules are the oracles."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from probes.architecture.modules import CifarResNet, SmallGPT
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.errors import ModelError
from probes.models import FAMILIES, build, compare, load_model, recognise, title_of
from probes.specs import ModelSpec


def saved(module: nn.Module, tmp_path: Path, **more: object) -> Checkpoint:
    torch.save({"state_dict": module.state_dict(), **more}, tmp_path / "x.pt")
    return read_checkpoint(tmp_path / "x.pt")


def stir(module: nn.Module) -> nn.Module:
    """Give every norm its own statistics, so that a wrong order shows."""
    for name, tensor in module.state_dict().items():
        if "running" in name or tensor.ndim == 1:
            tensor.uniform_(0.2, 2.0)
    return module


def same(module: nn.Module, checkpoint: Checkpoint, inputs: Tensor) -> None:
    """Check that what is recognised gives the outputs of the module that was saved."""
    found = recognise(checkpoint)
    assert found.spec is not None, found
    with torch.no_grad():
        assert torch.allclose(load_model(found.spec, checkpoint)(inputs), module.eval()(inputs), atol=1e-6)


class LeNet5(nn.Module):
    """LeCun's network as tutorials write it."""

    def __init__(self, padding: int = 0, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


class Digits(nn.Module):
    """PyTorch's MNIST example: no pool after the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(9216, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        x = functional.relu(self.fc1(functional.max_pool2d(x, 2).flatten(1)))
        return self.fc2(x)


class Deep(nn.Module):
    """An MLP whose layers lie two names deep."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.body.layers
        return last(second(first(x).relu()).relu())


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


class Features(nn.Module):
    """A network in two numbered parts, as torchvision's VGG has them."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [(3, 4), (4, 6)]
        layers = [[nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)] for a, b in blocks]
        self.features = nn.Sequential(*layers[0], *layers[1])
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(6 * 64, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


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


class Attention(nn.Module):
    """An independent GPT: nanoGPT's names, attention written out."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int, bias: bool) -> None:
        super().__init__()
        block = lambda: nn.ModuleDict(
            {
                "ln_1": nn.LayerNorm(width, bias=bias),
                "attn": nn.ModuleDict(
                    {"c_attn": nn.Linear(width, 3 * width, bias), "c_proj": nn.Linear(width, width, bias)}
                ),
                "ln_2": nn.LayerNorm(width, bias=bias),
                "mlp": nn.ModuleDict(
                    {"c_fc": nn.Linear(width, 4 * width, bias), "c_proj": nn.Linear(4 * width, width, bias)}
                ),
            }
        )
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList([block() for _ in range(layers)]),
                "ln_f": nn.LayerNorm(width, bias=bias),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        t = self.transformer
        x = t.wte(tokens) + t.wpe.weight[: tokens.shape[1]]
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        for h in t.h:
            q, k, v = h.attn.c_attn(h.ln_1(x)).split(x.shape[-1], -1)
            outs = []
            for i in range(self.heads):
                part = slice(i * x.shape[-1] // self.heads, (i + 1) * x.shape[-1] // self.heads)
                scores = q[..., part] @ k[..., part].mT / (q[..., part].shape[-1] ** 0.5)
                outs.append((scores + mask).softmax(-1) @ v[..., part])
            x = x + h.attn.c_proj(torch.cat(outs, -1))
            x = x + h.mlp.c_proj(functional.gelu(h.mlp.c_fc(h.ln_2(x))))
        return self.lm_head(t.ln_f(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_nano_gpt_is_recognised_and_gives_the_logits_of_an_independent_one(bias: bool, tmp_path: Path) -> None:
    module = Attention(11, 8, 2, 4, 16, bias)
    checkpoint = saved(module, tmp_path, model_args={"n_head": 4, "n_layer": 2})
    same(module, checkpoint, torch.randint(11, (2, 6)))
    found = recognise(checkpoint)
    assert found.spec.arguments["tied"] is True
    assert "heads" not in found.choices
    assert checkpoint.parameters == sum(each.numel() for each in build(found.spec).parameters())


def test_heads_are_a_choice_where_the_file_does_not_say(tmp_path: Path) -> None:
    module = Attention(11, 8, 1, 2, 16, True)
    checkpoint = saved(module, tmp_path)
    found = recognise(checkpoint)
    assert {1, 2, 4, 8, 16} == set(found.choices["heads"])
    chosen = ModelSpec("catalogue", "small_gpt", {**found.spec.arguments, "heads": 2})
    tokens = torch.randint(11, (2, 8))
    assert torch.allclose(load_model(chosen, checkpoint)(tokens), module(tokens), atol=1e-6)


def test_a_tied_head_may_be_missing_from_the_file_but_not_differ(tmp_path: Path) -> None:
    module = SmallGPT(11, 8, 1, 2, 16)
    tensors = {name: each.clone() for name, each in module.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    spec = ModelSpec("catalogue", "small_gpt", {**recognise(checkpoint).spec.arguments, "heads": 2})
    assert spec.arguments["tied"] is True
    tokens = torch.randint(11, (2, 8))
    assert torch.allclose(load_model(spec, checkpoint)(tokens), module.eval()(tokens))
    save_file({**tensors, "lm_head.weight": torch.randn(11, 16)}, tmp_path / "y")
    other = read_checkpoint(tmp_path / "y")
    assert recognise(other).spec.arguments["tied"] is False
    with pytest.raises(ModelError, match="ties them"):
        load_model(spec, other)


# Exactness


def test_every_difference_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    tensors = CifarResNet(20, width=4).state_dict()
    tensors["extra"] = tensors.pop("bn1.weight")
    tensors["linear.bias"] = torch.zeros(7)
    torch.save(tensors, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    spec = ModelSpec("catalogue", "cifar_resnet", {"depth": 20, "width": 4})
    mismatch = compare(spec, checkpoint)
    assert mismatch
    assert mismatch.missing == ("bn1.weight",)
    assert mismatch.unexpected == ("extra",)
    assert mismatch.shapes == (("linear.bias", (10,), (7,)),)
    with pytest.raises(ModelError, match=r"bn1\.weight"):
        load_model(spec, checkpoint)
    found = recognise(checkpoint)
    assert found.spec is None
    assert "ResNet-20" in found.reasons[0]
    assert found.mismatch == mismatch
    json.dumps(found.to_json(), allow_nan=False)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(2, 3, dtype=torch.int8), "0.bias": torch.zeros(2)}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    with pytest.raises(ModelError, match="int8"):
        load_model(recognise(checkpoint).spec, checkpoint)


@pytest.mark.parametrize(("stored", "used"), [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")])
def test_half_precision_is_widened_and_double_kept(stored: str, used: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 2)).to(getattr(torch, stored))
    checkpoint = saved(module, tmp_path)
    loaded = load_model(recognise(checkpoint).spec, checkpoint)
    assert {str(each.dtype) for each in loaded.parameters()} == {f"torch.{used}"}
    assert torch.equal(next(loaded.parameters()), next(module.parameters()).to(getattr(torch, used)))


def test_building_neither_moves_the_seed_nor_trains() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module = build(ModelSpec("catalogue", "cifar_resnet", {"depth": 20}))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(each.training for each in module.modules())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("small_gpt", {"vocabulary": 10, "context": 8, "layers": 10**9, "heads": 1, "width": 8}),
        ("small_gpt", {"vocabulary": 2**24, "context": 8, "layers": 1, "heads": 1, "width": 2**20}),
        ("mlp", {"widths": [2**23, 2**23], "names": ["a"]}),
        ("mlp", {"widths": [-1, 3], "names": ["a"]}),
        ("mlp", {"widths": [2, 3], "names": ["forward"]}),
        ("mlp", {"widths": [2, 3], "names": ["a", "b"]}),
        ("mlp", {"widths": [2, 3, 4], "names": ["a", "b"], "activation": "evil"}),
        ("cifar_resnet", {"depth": 20, "unknown": 1}),
        ("cifar_resnet", {"depth": 10**8}),
        ("resnet50", {}),
    ],
)
def test_absurd_or_unknown_arguments_are_refused_before_memory_is_asked_for(name: str, arguments: dict) -> None:
    with pytest.raises(ModelError):
        build(ModelSpec("catalogue", name, arguments))


def test_hostile_names_end_in_not_recognised(tmp_path: Path) -> None:
    for names in (
        ("forward.weight",),
        ("a.weight", "a.b.weight"),
        ("weight",),
        (".weight",),
        ("')).weight", "'.weight"),
    ):
        torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "x")
        found = recognise(read_checkpoint(tmp_path / "x"))
        assert found.spec is None or compare(found.spec, read_checkpoint(tmp_path / "x")).to_json()["exact"]


def test_unknown_tensors_are_said_to_be_unknown(tmp_path: Path) -> None:
    torch.save({"lstm.weight_ih_l0": torch.ones(8, 3), "empty.weight": torch.ones(0, 3)}, tmp_path / "x")
    found = recognise(read_checkpoint(tmp_path / "x"))
    assert found.spec is None
    assert "Paste the model" in found.reasons[0]


def test_every_family_says_what_its_arguments_are(tmp_path: Path) -> None:
    modules = [LeNet5(), CifarResNet(20, width=2), SmallGPT(5, 4, 1, 1, 8), nn.Sequential(nn.Linear(2, 2))]
    found = [recognise(saved(module, tmp_path)).spec for module in modules]
    assert {spec.name for spec in found} == set(FAMILIES)
    for spec in found:
        assert set(spec.arguments) <= set(FAMILIES[spec.name].arguments)
        assert title_of(ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))))
