"""Files in folders that the operator trusts are opened by torch's own loaders; the same files as uploads are not."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.architecture.naming import named
from probes.checkpoint import read_checkpoint
from probes.errors import ModelError, RefusedCheckpoint
from probes.models import build, compare, load_model, recognise, title_of
from probes.specs import ModelSpec
from probes.trusted import VARIABLE, hash_of, is_trusted, listed, load_trusted
from workspace.store import Store

SHAPE = (2, 1, 8, 8)


class Branched(nn.Module):
    """A module that nobody could tell from its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.norm(torch.tanh(self.conv(x))) + x).flatten(1))


class Harmful:
    """What an attacker saves: opening it touches a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'absent'}{os.pathsep}{trusted}")
    return trusted


def kept(kind: str, module: nn.Module, path: Path) -> Path:
    """Save a module as its owner would."""
    x = torch.randn(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but files of it abound
        if kind == "script":
            torch.jit.save(torch.jit.script(module), path)
        elif kind == "trace":
            torch.jit.save(torch.jit.trace(module, x), path)
        elif kind == "export":
            torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)), path)
        else:
            value = {"whole": module, "training": {"epoch": 3, "model": module}, "parallel": nn.DataParallel(module)}
            torch.save(value[kind], path)
    return path


def products(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Multiply the Hessian of a loss by a fixed vector, parameters passed in as analyses do."""
    theta = {name: each.detach().double().requires_grad_() for name, each in module.named_parameters()}
    rest = {name: each.double() if each.is_floating_point() else each for name, each in module.named_buffers()}
    loss = functional_call(module, {**theta, **rest}, (x.double(),)).square().mean()
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    total = sum((each * torch.ones_like(each)).sum() for each in gradients)
    return list(torch.autograd.grad(total, list(theta.values())))


@pytest.mark.parametrize("kind", ["whole", "training", "parallel", "script", "trace", "export"])
def test_a_trusted_module_gives_its_own_logits_and_second_derivatives(kind: str, folder: Path) -> None:
    module = Branched().eval()
    module.norm.running_var.uniform_(0.5, 2)
    path = kept(kind, module, folder / ("m.pt2" if kind == "export" else "m.pt"))
    spec = ModelSpec("trusted", folder=str(path), arguments={"sha256": hash_of(path)})
    built = build(spec)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(built(x), module(x))
    assert sorted(built.state_dict()) == sorted(module.state_dict())
    wanted = dict(zip([name for name, _ in module.named_parameters()], products(module, x), strict=True))
    for (name, _), found in zip(built.named_parameters(), products(built, x), strict=True):
        assert torch.allclose(found, wanted[name], atol=1e-12)
    assert named(str(path), {}) == spec
    assert "m.pt" in title_of(spec)


@pytest.mark.parametrize("kind", ["whole", "script", "export"])
def test_a_trusted_file_is_recognised_as_itself_and_takes_other_weights(kind: str, folder: Path) -> None:
    module = Branched().eval()
    path = kept(kind, module, folder / ("m.pt2" if kind == "export" else "m.pt"))
    found = recognise(read_checkpoint(path))
    assert found.spec.source == "trusted"
    other = Branched().eval()
    torch.save(other.state_dict(), folder.parent / "later.pt")
    later = read_checkpoint(folder.parent / "later.pt")
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(load_model(found.spec, later)(x), other(x))
    assert compare(ModelSpec("text", text="Sequential(Linear(2, 2))"), later)


def test_half_precision_is_widened_and_gradients_are_dropped(folder: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 2).half())
    module(torch.ones(1, 3).half()).sum().backward()
    torch.save(module, folder / "m.pt")
    built = load_trusted(folder / "m.pt")
    assert {each.dtype for each in built.parameters()} == {torch.float32}
    assert all(each.grad is None for each in built.parameters())


def test_what_cannot_be_opened_is_told_in_words(folder: Path) -> None:
    torch.save({"weights": torch.ones(3)}, folder / "state.pt")
    with pytest.raises(ModelError, match="no whole module"):
        load_trusted(folder / "state.pt")
    (folder / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.pt cannot be opened by torch"):
        load_trusted(folder / "text.pt")
    old = hash_of(kept("whole", nn.Linear(2, 2), folder / "m.pt"))
    kept("whole", nn.Linear(2, 3), folder / "m.pt")
    with pytest.raises(ModelError, match=r"m\.pt has changed"):
        load_trusted(folder / "m.pt", old)


# What is trusted, and what never is


def test_only_what_lies_in_the_folder_is_trusted(folder: Path, tmp_path: Path) -> None:
    inside, outside = kept("whole", nn.Linear(2, 2), folder / "m.pt"), kept("whole", nn.Linear(2, 2), tmp_path / "o.pt")
    (folder / "link.pt").symlink_to(outside)
    (folder / "deep").mkdir()
    shutil.copy(inside, folder / "deep" / "n.PTH")
    (tmp_path / "trusted2").mkdir()
    shutil.copy(inside, tmp_path / "trusted2" / "m.pt")
    assert is_trusted(inside)
    refused = [outside, folder / "link.pt", folder / ".." / "o.pt", folder, folder / "absent.pt", Path("\0"), Path()]
    refused += [tmp_path / "trusted2" / "m.pt"]
    assert not any(map(is_trusted, refused))
    assert listed() == (inside, folder / "deep" / "n.PTH")
    for path in refused:
        with pytest.raises(ModelError, match="trusts"):
            build(ModelSpec("trusted", folder=str(path)))


def test_nothing_is_trusted_unless_the_operator_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept("whole", nn.Linear(2, 2), tmp_path / "m.pt")
    for value in (None, "", os.pathsep, str(path)):
        monkeypatch.delenv(VARIABLE, raising=False) if value is None else monkeypatch.setenv(VARIABLE, value)
        assert not is_trusted(path)
        assert listed() == ()


@pytest.mark.parametrize("kind", ["pickle", "module", "script"])
@pytest.mark.parametrize("where", ["workspace", "above", "below"])
def test_the_same_file_as_an_upload_is_not_executed(
    kind: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, store = tmp_path / "canary", Store(tmp_path / "workspace")
    path = tmp_path / "evil.pt"
    if kind == "script":
        kept("script", Branched(), path)
    else:
        module = nn.Linear(2, 2)
        module.extra = Harmful(canary)
        torch.save(module if kind == "module" else Harmful(canary), path)
    stored = store.add_file(path, "evil.pt")
    upload = store.path_of(stored.sha256)
    trusted = {"workspace": store.root, "above": tmp_path, "below": upload.parent}[where]
    monkeypatch.setenv(VARIABLE, str(trusted))
    assert upload.read_bytes() == path.read_bytes()
    assert not is_trusted(upload)
    assert upload not in listed()
    with pytest.raises(ModelError, match="trusts"):
        build(ModelSpec("trusted", folder=str(upload)))
    try:
        found = recognise(read_checkpoint(upload))
    except RefusedCheckpoint:
        found = None
    assert found is None or found.spec is None or found.spec.source != "trusted"
    assert not canary.exists()


def test_the_canary_sings_where_the_operator_trusts_the_file(folder: Path, tmp_path: Path) -> None:
    torch.save(Harmful(tmp_path / "canary"), folder / "evil.pt")
    with pytest.raises(ModelError, match="no whole module"):
        load_trusted(folder / "evil.pt")
    assert (tmp_path / "canary").exists()  # without this the test above would prove nothing


def test_a_link_to_an_upload_does_not_make_it_trusted(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "workspace")
    stored = store.add_file(kept("whole", nn.Linear(2, 2), tmp_path / "m.pt"), "m.pt")
    (folder / "upload.pt").symlink_to(store.path_of(stored.sha256))
    assert not is_trusted(folder / "upload.pt")
    shutil.copy(tmp_path / "m.pt", folder / stored.sha256)
    assert not is_trusted(folder / stored.sha256)  # named like an object of a store
