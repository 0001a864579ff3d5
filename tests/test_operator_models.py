"""The operator's own Python files: listed without being run, and run with errors in words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

from probes.architecture.naming import named
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.errors import DataError, ModelError
from probes.models import build, compare, load_model, recognise, title_of
from probes.operator_models import VARIABLE, Offered, listed, operator_loss, read_operator_data
from probes.specs import ModelSpec

ROOT = Path(__file__).resolve().parents[1]
GOOD = """
from torch import nn
from neighbour import WIDTH

def build_model():
    return nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))

MODELS = {"wide": lambda: nn.Linear(3, 50), "deep": build_model}
"""


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")

    def write(text: str, name: str = "mine.py") -> Path:
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(VARIABLE, str(tmp_path / name))
        return tmp_path / name

    return write


def saved(module: nn.Module, tmp_path: Path) -> Checkpoint:
    torch.save(module.state_dict(), tmp_path / "x.pt")
    return read_checkpoint(tmp_path / "x.pt")


def test_models_are_listed_without_running_the_file(offer, tmp_path: Path) -> None:
    offer(f"open({str(tmp_path / 'canary')!r}, 'w')\n{GOOD}\ndef loss(model, batch): ...\n")
    assert [(each.name, each.data, each.loss) for each in listed()] == [
        ("mine:build_model", False, True), ("mine:wide", False, True), ("mine:deep", False, True),
    ]  # fmt: skip
    code = "import sys; from probes import operator_models; operator_models.listed(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("def build_model(:\n", "mine.py, line 1"), ("x = 1\n", "neither build_model"), ("\0", "mine.py")],
)
def test_files_that_offer_nothing_say_why(text: str, words: str, offer) -> None:
    offer(text)
    (found,) = listed()
    assert words in found.problem


def test_several_files_and_modules_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    canary = f"open({str(tmp_path / 'canary')!r}, 'w').close()"
    (tmp_path / "package" / "__init__.py").write_text(canary)
    text = "from torch import nn\ndef build_model():\n    return nn.Linear(1, 2)\n"
    (tmp_path / "package" / "nets.py").write_text(text)
    (tmp_path / "other.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["package.nets", str(tmp_path / "other.py"), "not.there"]))
    assert [each.name for each in listed()][:2] == ["package.nets:build_model", "other:build_model"]
    assert "No such file" in listed()[-1].problem
    assert not (tmp_path / "canary").exists()
    assert isinstance(build(ModelSpec("operator", "package.nets:build_model")), nn.Linear)


def test_a_checkpoint_is_recognised_as_the_operators_own_and_loaded(offer, tmp_path: Path) -> None:
    offer(GOOD)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    checkpoint = saved(module, tmp_path)
    found = recognise(checkpoint)
    assert found.spec.source == "operator"
    assert found.spec.name == "mine:build_model"
    assert title_of(found.spec) == "build_model of the operator's mine"
    assert "MLP" in found.runner_up.title or "deep" in found.runner_up.title
    x = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.equal(load_model(found.spec, checkpoint)(x), module(x))  # tanh: the catalogue would guess ReLU
    assert named("mine:wide", {}) == ModelSpec("operator", "mine:wide", {"sha256": listed()[0].sha256})
    assert compare(ModelSpec("operator", "mine:wide"), checkpoint)


def test_a_file_that_changed_is_refused_by_old_specs_and_run_anew(offer) -> None:
    offer(GOOD)
    old = ModelSpec("operator", "mine:wide", {"sha256": listed()[1].sha256})
    assert build(old).out_features == 50
    offer(GOOD.replace("50", "60"))
    with pytest.raises(ModelError, match=r"mine\.py has changed"):
        build(old)
    assert build(ModelSpec("operator", "mine:wide")).out_features == 60


def test_a_model_that_cannot_be_built_on_the_meta_device_is_built_plainly(offer) -> None:
    offer("import torch\ndef build_model():\n    return torch.nn.Linear(int(torch.arange(5).sum()), 1)\n")
    assert build(ModelSpec("operator", "mine:build_model")).in_features == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "def build_model():\n    x = 1\n    return x / 0\n",
            r"mine.py, line 3: build_model\(\) fails with ZeroDivision",
        ),
        ("import nowhere_at_all\ndef build_model(): ...\n", "mine.py, line 1: the file fails with ModuleNotFoundError"),
        ("def build_model():\n    return 3\n", "returns a int, not a torch.nn.Module"),
        ("import sys\nsys.exit(3)\ndef build_model(): ...\n", "mine.py, line 2: the file fails with SystemExit"),
        ("def build_model(", "mine.py, line 1: the file fails with SyntaxError"),
        ("MODELS = {}\n", "has no model 'build_model'"),
    ],
)
def test_errors_name_file_and_line_and_keep_the_traceback(text: str, words: str, offer) -> None:
    offer(text)
    with pytest.raises(ModelError, match=words) as caught:
        build(ModelSpec("operator", "mine:build_model"))
    if "fails" in words:
        assert caught.value.__cause__ is not None
        assert "mine.py" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "name", ["mine:__import__", "os:system", "torch:load", "mine:nn", "../mine:x", ":", "mine:_import"]
)
def test_only_models_that_the_file_offers_can_be_named(name: str, offer) -> None:
    offer(GOOD)
    with pytest.raises(ModelError):
        build(ModelSpec("operator", name))


def test_broken_files_of_the_operator_do_not_hide_other_models(offer, tmp_path: Path) -> None:
    offer("def build_model():\n    raise RuntimeError('not today')\n")
    found = recognise(saved(nn.Sequential(nn.Linear(3, 2)), tmp_path))
    assert found.spec.name == "mlp"
    assert any("mine.py, line 2" in reason and "not today" in reason for reason in found.reasons)


# Data and loss


@pytest.mark.parametrize(
    "text",
    [
        "def build_data():\n    return torch.arange(12.).view(6, 2), torch.arange(6)\n",
        "def build_data():\n    return np.arange(12, dtype='f4').reshape(6, 2), np.arange(6)\n",
        "def build_data():\n    data = TensorDataset(torch.arange(12.).view(6, 2), torch.arange(6))\n"
        "    return DataLoader(data, batch_size=4)\n",
        "class Own:\n    inputs, targets, ids = torch.arange(12.).view(6, 2), torch.arange(6), list('abcdef')\n"
        "build_data = Own\n",
    ],
    ids=["tensors", "arrays", "loader", "object"],
)
def test_data_of_the_operator(text: str, offer) -> None:
    offer(f"import numpy as np, torch\nfrom torch.utils.data import DataLoader, TensorDataset\n{text}")
    inputs, targets, ids = read_operator_data("mine")
    assert torch.equal(inputs, torch.arange(12.0).view(6, 2))
    assert torch.equal(targets, torch.arange(6))
    assert len(set(ids)) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def build_data():\n    return torch.zeros(3), torch.zeros(2)\n", "3 inputs and 2 targets"),
        ("def build_data():\n    return 1 / 0\n", "line 3: build_data"),
        ("def build_data():\n    return 5\n", "fails with TypeError"),
        ("x = 1\n", "has no build_data"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_words(text: str, words: str, offer) -> None:
    offer(f"import torch\n{text}")
    with pytest.raises(DataError, match=words):
        read_operator_data("mine:build_model")


def test_a_file_without_a_loss_says_so(offer) -> None:
    offer(GOOD)
    with pytest.raises(ModelError, match="no loss"):
        operator_loss("mine:build_model")


def test_the_template_in_the_documentation_works(offer, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    (template,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = offer(template, "digits.py")
    sha256 = listed()[0].sha256
    assert listed() == (
        Offered("digits:build_model", "digits.py", sha256, data=True, loss=True),
        Offered("digits:wide", "digits.py", sha256, data=True, loss=True),
    )
    wide = build(ModelSpec("operator", "digits:wide"))
    checkpoint = saved(wide, tmp_path)
    assert recognise(checkpoint).spec.name == "digits:wide"
    inputs, targets, _ = read_operator_data("digits")
    with torch.no_grad():
        value = operator_loss("digits:wide")(wide, (inputs, targets))
        assert torch.allclose(value, nn.functional.cross_entropy(wide(inputs), targets, label_smoothing=0.1))
    assert path.name in text
