"""Pasted models are parsed, never evaluated; the module that printed the text is the oracle."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from probes.architecture.model_text import LAYERS, build_text, parse_text, title_of_text
from probes.errors import ModelError
from probes.models import build, load_model
from probes.specs import ModelSpec

IMAGES, ROWS, TOKENS = (2, 3, 12, 12), (4, 6), (2, 5)
MODULES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 4, (3, 1), stride=(2, 1), padding=(1, 0), dilation=1, groups=4, padding_mode="reflect"),
            nn.GELU(approximate="tanh"), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Dropout(0.3), nn.Linear(24, 5),
        ),
        IMAGES,
    ),
    (
        nn.Sequential(
            nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.LeakyReLU(0.2), nn.Unflatten(1, (2, 2, 2)),
            nn.ConvTranspose2d(2, 4, 2, stride=2, output_padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(2),
            nn.Upsample(scale_factor=2), nn.ZeroPad2d((1, 0, 1, 0)), nn.Flatten(1, 3), nn.Softplus(beta=2.0),
            nn.RMSNorm(100), nn.Softmax(dim=1),
        ),
        ROWS,
    ),
    (
        nn.Sequential(
            nn.Embedding(7, 4, padding_idx=0), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Sequential(nn.ELU(0.5))),
            nn.PReLU(), nn.Flatten(), nn.Linear(20, 3),
        ),
        TOKENS,
    ),
    (
        nn.Sequential(
            OrderedDict(
                body=nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)]), norm=nn.BatchNorm1d(6, affine=False),
                head=nn.Linear(6, 2),
            )
        ),
        ROWS,
    ),
]  # fmt: skip


def inputs(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(7, shape) if shape == TOKENS else torch.randn(shape)


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=range(len(MODULES)))
def test_what_print_shows_is_rebuilt(module: nn.Module, shape: tuple[int, ...]) -> None:
    rebuilt = build_text(str(module))
    rebuilt.load_state_dict(module.state_dict())
    x = inputs(shape)
    assert torch.equal(rebuilt.eval()(x), module.eval()(x))
    assert not any(getattr(each, "inplace", False) for each in rebuilt.modules())


@pytest.mark.parametrize(
    "text",
    [
        "Sequential(Linear(6, 4), ReLU(), Linear(4, 2, bias=False))",
        "nn.Sequential(\n  nn.Linear(6, out_features=4),\n  nn.ReLU(True),  # a comment\n  nn.Linear(4, 2, False),\n)",
        "model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))",
        'Sequential(OrderedDict([("0", Linear(6, 4)), ("1", ReLU()), ("2", Linear(4, 2, bias=False))]))',
        'nn.Sequential(collections.OrderedDict({"0": Linear(6, 4), "1": ReLU(), "2": nn.Linear(4, 2, False)}))',
    ],
)
def test_expressions_give_the_same_model(text: str) -> None:
    oracle = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    rebuilt = build_text(text)
    rebuilt.load_state_dict(oracle.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(rebuilt(x), oracle(x))


def test_names_of_an_ordered_dict_are_the_names_of_the_parameters() -> None:
    text = 'Sequential(OrderedDict([("stem", Linear(2, 2)), ("rest", Sequential(Linear(2, 2), ReLU()))]))'
    assert list(build_text(text).state_dict()) == ["stem.weight", "stem.bias", "rest.0.weight", "rest.0.bias"]


def test_wrappers_that_only_pass_on_are_seen_through() -> None:
    inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    text = f"DataParallel(\n  (module): {str(inner).replace(chr(10), chr(10) + '  ')}\n)"
    assert list(build_text(text).state_dict()) == ["0.weight", "0.bias"]


def test_every_listed_layer_is_one_of_torch() -> None:
    assert all(issubclass(getattr(nn, name), nn.Module) for name in LAYERS)
    assert not LAYERS & {"ModuleList", "Module", "Transformer", "LSTM", "MultiheadAttention", "Bilinear"}


def test_a_pasted_text_is_a_model_like_any_other(tmp_path: Path) -> None:
    from probes.checkpoint import read_checkpoint

    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.save(module.state_dict(), tmp_path / "x")
    spec = ModelSpec("text", text=str(module))
    x = torch.randn(2, 3)
    assert torch.equal(load_model(spec, read_checkpoint(tmp_path / "x"))(x), module(x))
    assert title_of_text(spec.text) == "Sequential of 3 layers: Linear, Tanh, Linear"
    with pytest.raises(ModelError, match=r"1\.weight"):
        load_model(ModelSpec("text", text="Sequential(Linear(3, 4), Linear(4, 2))"), read_checkpoint(tmp_path / "x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Sequential(Linear(2, 3), __import__('os').system('touch canary'))", "__import__"),
        ("Sequential(Linear(2, 3),\n  exec('1'))", "Line 2: exec"),
        ("Sequential(lambda x: x)", "lambda"),
        ("Sequential(Linear(2, open('x')))", "open"),
        ("Sequential(Linear(2, [n for n in range(3)]))", "for n in range"),
        ("Sequential(*[Linear(2, 2)])", "*[Linear"),
        ("Sequential(**{'a': 1})", "takes layers only"),
        ("Sequential(Linear(2, 3, device='cuda'))", "not allowed"),
        ("Sequential(Linear(2, 3, **{'bias': 1}))", "not allowed"),
        ("Sequential(nn.functional.relu)", "functional.relu"),
        ("Sequential(os.Linear(2, 3))", "os.Linear"),
        ("Sequential(LSTM(2, 3))", "LSTM"),
        ("Sequential(Linear(2, 10**9))", "10 ** 9"),
        ("Sequential(Linear(2, 99999999999))", "too large"),
        ("Sequential(Linear(2))", "Linear cannot be built"),
        ("Sequential(Linear(2, -3))", "Linear cannot be built"),
        ("Sequential(Linear(2, 3, colour=1))", "colour"),
        ("Sequential(GroupNorm(0, 1))", "GroupNorm cannot be built"),
        ("Sequential(Conv2d(1, 2, 3, padding_mode='/etc/passwd'))", "/etc/passwd"),
        ("Sequential(OrderedDict([('a.b', ReLU())]))", "without dots"),
        ("Sequential(OrderedDict([('a', ReLU()), ('a', ReLU())]))", "same name"),
        ("Sequential(OrderedDict(a=ReLU()))", "OrderedDict needs"),
        ("import os\nSequential()", "one expression"),
        ("Sequential(", "neither"),
        ("hello world", "neither"),
        ("", "empty"),
        ("Sequential(ReLU()) or 3", "stands where a layer"),
        ("Net(\n  (conv): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))\n)", "Net is a class of its own"),
        (
            "Sequential(\n  (0): ModuleList(\n    (0): Linear(in_features=2, out_features=2)\n  )\n)",
            "ModuleList is a class",
        ),
        ("Sequential(\n  (0): Linear(in_features=2, out_features=evil())\n)", "evil()"),
        ("Sequential(\n  (0): Block()\n)", "Line 2: Block"),
        ("Sequential(\n  (0): ReLU()\n", "never closed"),
        ("Sequential(\n  (0): ReLU()\n)\nrm -rf", "follows the end"),
        ("Sequential(\n  (0): ReLU()\n  something\n)", "not a layer as print"),
        ("Sequential(\n  (0-999999): 1000000 x Linear(in_features=2, out_features=2)\n)", "not a list of layers"),
        ("Sequential(\n  (0): ReLU()\n  (0): ReLU()\n)", "doubled"),
    ],
)
def test_everything_else_is_refused_by_name_and_line(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        build_text(text)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "Sequential(" * 500 + ")" * 500,
        "Sequential(" * 40 + ")" * 40,
        "-" * 50_000 + "1",
        "Sequential(" + "ReLU()," * 3_000 + ")",
        "Sequential(Linear(16000000, 16000000))",
        "Sequential(Linear(2, 3))" + " " * 300_000,
        "\n".join([f"{'  ' * n}(0): Sequential(" for n in range(100)]),
        "Sequential(\n" + "(0-1999): 2000 x Sequential(\n" * 10 + "(0): ReLU()\n" + ")\n" * 11,
    ],
    ids=["deep", "nested", "minus", "many", "large", "long", "printed deep", "multiplied"],
)
def test_bombs_are_refused_before_they_go_off(text: str) -> None:
    with pytest.raises(ModelError):
        build(ModelSpec("text", text=text))


def test_repeated_layers_of_print_are_unfolded() -> None:
    layers = [nn.Linear(3, 3) for _ in range(4)]
    text = str(nn.Sequential(nn.Sequential(*layers)))
    folded = "Sequential(\n  (0): Sequential(\n    (0-3): 4 x Linear(in_features=3, out_features=3, bias=True)\n  )\n)"
    assert str(build_text(folded)) == str(build_text(text))
    assert len(parse_text(folded).children[0][1].children) == 4
