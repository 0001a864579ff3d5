"""The store's own form, read back by safetensors and compared with what torch had saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from probes import admitted
from probes.admitted import read_admitted, write
from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits, Stored
from probes.formats.files import open_contents

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


def admit(path: Path, folder: Path, **more: object) -> Path:
    folder.mkdir()
    contents = open_contents(path, path.name)
    said: list[float] = []
    about = {"isolation": ["rlimits"], **more}
    write(
        contents,
        path.name,
        folder,
        sha256="a" * 64,
        about=about,
        limits=Limits(),
        tick=lambda share, _: said.append(share),
    )
    assert said == sorted(said) and said[-1] == 1
    return folder


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.dtype is right.dtype
        and left.shape == right.shape
        and left.contiguous().reshape(-1).view(torch.uint8).tolist()
        == right.contiguous().reshape(-1).view(torch.uint8).tolist()
    )


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    module[1].weight = module[1].weight
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    module(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    average = {key: each * 0.5 for key, each in module.state_dict().items() if each.is_floating_point()}
    whole = {"model": module.state_dict(), "ema": average, "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(whole, tmp_path / "t.pt")
    return tmp_path / "t.pt", module, optimizer


def test_every_type_comes_back_bit_for_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    state = {}
    for index, dtype in enumerate(DTYPES):
        item = torch.empty(0, dtype=dtype).element_size()
        raw = torch.from_numpy(generator.integers(0, 2 if dtype is torch.bool else 256, 6 * item, np.uint8))
        state[f"{index}.weight"] = raw.view(dtype).reshape(2, 3)
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "turned": torch.arange(12.0).reshape(3, 4).T}
    torch.save(state, tmp_path / "all.pt")
    folder = admit(tmp_path / "all.pt", tmp_path / "a")
    loaded = read_admitted(folder).load()
    assert list(loaded) == list(state)
    assert [key for key in state if not same(loaded[key], state[key])] == []
    assert all(each.is_contiguous() and not each.requires_grad for each in loaded.values())
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(state)
        known = [key for key in state if not state[key].dtype.is_complex]
        assert all(same(file.get_tensor(key), state[key]) for key in known)
        assert file.get_tensor("15.weight").dtype is torch.uint8  # complex128, which safetensors has not


def test_tied_tensors_are_stored_once_and_keep_their_place(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    state = {
        "head.bias": torch.ones(3),
        "embed.weight": weight,
        "middle.weight": torch.ones(2, 2),
        "head.weight": weight,
    }
    torch.save(state, tmp_path / "tied.pt")
    folder = admit(tmp_path / "tied.pt", tmp_path / "a")
    checkpoint = read_admitted(folder)
    assert list(checkpoint.tensors) == list(state) and checkpoint.facts["tied"] == {"head.weight": "embed.weight"}
    assert checkpoint.parameters == 10_000 + 3 + 4
    loaded = checkpoint.load()
    assert all(same(loaded[key], state[key]) for key in state)
    assert loaded["head.weight"].data_ptr() != loaded["embed.weight"].data_ptr()
    assert (folder / "weights.safetensors").stat().st_size < 41_000


def test_sets_moments_and_facts(trained: tuple[Path, nn.Module, torch.optim.Optimizer], tmp_path: Path) -> None:
    path, module, optimizer = trained
    folder = admit(path, tmp_path / "a", when="2026-01-01")
    checkpoint = read_admitted(folder)
    assert checkpoint.name == "t.pt" and checkpoint.weights == "model" and set(checkpoint.sets) == {"model", "ema"}
    assert checkpoint.facts["epoch"] == 3 and "Adam" in checkpoint.facts["optimizer"]
    assert all(same(each, module.state_dict()[key]) for key, each in checkpoint.stream())
    assert set(checkpoint.moments) == {"exp_avg", "exp_avg_sq"}
    for kind in checkpoint.moments:
        moments = dict(checkpoint.stream_moments(kind))
        for key, parameter in module.named_parameters():
            assert same(moments[key], optimizer.state[parameter][kind])
    average = read_admitted(folder, "ema")
    assert average.name == "t.pt (ema)" and average.sha256 == checkpoint.sha256 and average.moments == ()
    assert same(average.load()["0.weight"], module.state_dict()["0.weight"] * 0.5)
    with pytest.raises(RefusedCheckpoint, match="no weights called gone; it has model, ema"):
        read_admitted(folder, "gone")
    about = json.loads((folder / "provenance.json").read_text())
    assert (
        about["when"] == "2026-01-01"
        and about["isolation"] == ["rlimits"]
        and about["tensors"] == len(checkpoint.tensors)
    )
    assert [each["name"] for each in about["sets"]] == ["model", "ema"] and about["sets"][0][
        "parameters"
    ] == 12 + 4 + 20 + 8


def test_the_name_of_today_counts(trained: tuple[Path, nn.Module, torch.optim.Optimizer], tmp_path: Path) -> None:
    folder = admit(trained[0], tmp_path / "a")
    assert read_admitted(folder, name="renamed.pt").name == "renamed.pt"
    assert read_admitted(folder, "ema", name="renamed.pt").name == "renamed.pt (ema)"


def test_broken_and_empty_layers_are_doubts(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2, 2), "b.weight": torch.zeros(3, 3), "b.bias": torch.zeros(3)}
    state["a.weight"][0, 1] = float("nan")
    torch.save(state, tmp_path / "n.pt")
    doubts = " ".join(read_admitted(admit(tmp_path / "n.pt", tmp_path / "a")).doubts)
    assert "not a number (a.weight)" in doubts and "nothing but zeros (b.weight)" in doubts


@pytest.mark.parametrize("change", ["flip", "cut", "gone", "header"])
def test_a_rotten_copy_is_refused_and_never_returned(tmp_path: Path, change: str) -> None:
    torch.save({"a.weight": torch.ones(200, 2), "b.weight": torch.ones(2)}, tmp_path / "r.pt")
    folder = admit(tmp_path / "r.pt", tmp_path / "a")
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[10 if change == "header" else -5] ^= 1
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-4] if change == "cut" else content)
    with pytest.raises(RefusedCheckpoint, match=r"stored copy of r\.pt is damaged"):
        read_admitted(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 0}', '{"version": 1'])
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(RefusedCheckpoint, match="damaged"):
        read_admitted(tmp_path)
    with pytest.raises(RefusedCheckpoint, match="damaged"):
        read_admitted(tmp_path / "gone")


def test_a_small_file_cannot_fill_the_disk(tmp_path: Path) -> None:
    base = torch.zeros(2**20)
    torch.save({f"{index}.weight": base[index:] for index in range(200)}, tmp_path / "b.pt")
    with pytest.raises(RefusedCheckpoint, match="its tensors claim"):
        admit(tmp_path / "b.pt", tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_only_harmless_texts_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    tensor = Stored("float32", (1,), lambda: np.zeros(4, np.uint8), "x")
    texts = {"config.json": b"{}", "../up.json": b"x", "provenance.json": b"x", ".hidden": b"x", "x.safetensors": b"x"}
    contents = Contents(tmp_path / "x.pt", "test", 100, {"a": tensor}, texts=texts)
    write(contents, "x.pt", tmp_path / "a", sha256="", about={}, limits=Limits(), tick=lambda *_: None)
    assert sorted(each.name for each in (tmp_path / "a").iterdir()) == [
        "config.json",
        "provenance.json",
        "weights.safetensors",
    ]
    assert read_admitted(tmp_path / "a").texts == {"config.json": b"{}"}


def test_reading_back_needs_no_torch_until_a_tensor_is_asked_for() -> None:
    import subprocess
    import sys

    code = "import sys, probes.admitted; sys.exit('torch' in sys.modules)"
    root = Path(admitted.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
