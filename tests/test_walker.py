"""The walker of pickles reads what torch.load reads, bit for bit, and what torch.load refuses though it is honest."""

from __future__ import annotations

import argparse
import datetime
import enum
import functools
import io
import pathlib
import pickle
import random
import struct
import tarfile
import warnings
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from probes.checkpoint import inspect, read_checkpoint
from probes.errors import RefusedCheckpoint
from probes.formats.contents import Record, Stored
from probes.formats.files import open_contents
from probes.formats.numbers import numbers
from probes.formats.pickles import read_pickle


class Mode(enum.Enum):
    TRAIN = "train"


@dataclass
class Settings:
    rate: float
    folder: pathlib.PurePosixPath


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.head = nn.Linear(4, 2, bias=False)
        self.head.weight = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("seen", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.activation = torch.nn.functional.relu


def equal(mine: Any, theirs: Any) -> bool:
    """Compare what was read with what torch.load gives, in values and kinds, bit for bit."""
    if isinstance(theirs, torch.Tensor):
        flat = torch.empty(theirs.numel(), dtype=theirs.dtype)
        flat.copy_(theirs.detach().reshape(-1))
        raw = flat.view(torch.uint8).numpy().tobytes()
        dtype = str(theirs.dtype).removeprefix("torch.")
        return (mine.dtype, mine.shape, mine.read().tobytes()) == (dtype, tuple(theirs.shape), raw)
    if isinstance(theirs, dict):
        return list(mine) == list(theirs) and all(equal(mine[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(map(equal, mine, theirs))
    if isinstance(theirs, torch.dtype | torch.device):
        return isinstance(mine, Record)
    return bool(mine == theirs)


def tensors(legacy: bool = False) -> dict[str, Any]:
    base = torch.randn(4, 6)
    floats = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    newer = {"uint16": torch.arange(3).to(torch.uint16)}
    newer |= {str(each): torch.randn(3).to(each) for each in (torch.float8_e4m3fn, torch.float8_e5m2)}
    kinds = {str(each): torch.randn(3, 2).to(each) for each in (*floats, torch.complex64, torch.complex128)}
    return {
        **kinds, "view": base[1:3, ::2], "turned": base.t(), "tied": base, "tied twin": base, "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3), "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.randn(2)), **({} if legacy else newer),  # torch does not read its own there
    }  # fmt: skip


def plain() -> dict[str, Any]:
    return {
        "numbers": [1, -1, 2**40, 2**80, 0.5, float("inf"), True, None], "texts": ["a", "ü", "日本", ""],
        7: (1, (2, 3)),
        "bytes": b"abc", "set": {1, 2}, "ordered": OrderedDict(a=1), "size": torch.Size([2, 3]), "dtype": torch.float16,
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_it_equals_torch_load_bit_for_bit(legacy: bool, protocol: int, tmp_path: Path) -> None:
    value = {"state": tensors(legacy), "plain": plain(), "nested": [tensors(legacy), {"a": {"b": plain()}}]}
    torch.save(value, tmp_path / "x", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    expected = torch.load(tmp_path / "x", weights_only=protocol == 2)
    assert equal(open_contents(tmp_path / "x", "x").value, expected)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_gives_the_same(protocol: int) -> None:
    content = pickle.dumps(plain() | {"dtype": 1}, protocol=protocol)
    assert equal(read_pickle(io.BytesIO(content), "x").value, plain() | {"dtype": 1})


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_plain_pickle_of_a_state_dict_is_read(protocol: int, tmp_path: Path) -> None:
    state = Net().state_dict()
    (tmp_path / "x").write_bytes(pickle.dumps(state, protocol=protocol))
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.format == "pickle"
    assert all(torch.equal(tensor, state[name]) for name, tensor in checkpoint.load().items())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_honest_files_that_torch_refuses_give_their_tensors(protocol: int, legacy: bool, tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    state = Net().state_dict()
    extras = {
        "args": argparse.Namespace(lr=0.1, model="net"), "mode": Mode.TRAIN,
        "settings": Settings(0.1, pathlib.PurePosixPath("a")),
        "when": datetime.datetime(2026, 1, 2), "defaults": defaultdict(list, a=[1]), "last": deque([1, 2]),
        "partial": functools.partial(nn.Linear, 3), "conf": omegaconf.OmegaConf.create({"a": {"b": 1}}),
        "best_acc": np.float64(0.75), "rng": random.getstate(), "numpy_rng": np.random.get_state(),
        "generator": np.random.default_rng(0), "epoch": 12,
    }  # fmt: skip
    torch.save(
        {"model": state, **extras}, tmp_path / "x", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol
    )
    with pytest.raises(pickle.UnpicklingError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(tmp_path / "x", weights_only=True)
    checkpoint = read_checkpoint(tmp_path / "x")
    assert all(torch.equal(tensor, state[name]) for name, tensor in checkpoint.load().items())
    assert checkpoint.facts["epoch"] == 12
    assert checkpoint.facts["metrics"] == {"best_acc": 0.75}
    assert checkpoint.facts["arguments"] == {"lr": 0.1, "model": "net"}
    for name in ("argparse.Namespace", "Settings", "omegaconf"):
        assert any(name in each for each in checkpoint.left), checkpoint.left


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_gives_its_state_dict_and_its_classes(legacy: bool, tmp_path: Path) -> None:
    net = Net()
    torch.save({"model": net}, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "x")
    assert list(checkpoint.tensors) == list(net.state_dict())
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in checkpoint.load().items())
    assert ["body.0", "torch.nn.modules.linear.Linear"] in checkpoint.facts["modules"]


def test_a_module_of_torchs_own_layers_gives_its_text(tmp_path: Path) -> None:
    from probes.models import recognise

    inner = nn.Sequential(nn.Linear(16, 3), nn.LeakyReLU(0.2))
    conv = nn.Conv2d(1, 4, (3, 5), padding="same", bias=False)
    pool = nn.AdaptiveAvgPool2d((2, 2))
    layers = [conv, nn.BatchNorm2d(4, eps=1e-3), nn.SiLU(), pool, nn.Flatten(), inner]
    net = nn.Sequential(*layers).eval()
    torch.save(net, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    found = recognise(checkpoint)
    assert found.spec is not None
    from probes.models import load_model

    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_model(found.spec, checkpoint)(x), net(x))


def tar_of(tensors: dict[str, torch.Tensor], path: Path, state: dict[str, Any]) -> None:
    """Write what torch 0.1 wrote, after torch.serialization's reader of it."""
    storages, described = io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, protocol=2)
    pickle.dump(len(tensors), described, protocol=2)
    for key, tensor in enumerate(tensors.values()):
        pickle.dump((100 + key, "cpu", torch.FloatStorage), storages, protocol=2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((200 + key, 100 + key, torch.FloatTensor), described, protocol=2)
        sizes = [*tensor.shape, *tensor.stride(), 0]
        described.write(struct.pack(f"<i4x{len(sizes)}q", tensor.dim(), *sizes))
    pickle.dump([], storages, protocol=2)
    outer = io.BytesIO()
    pickler = pickle.Pickler(outer, protocol=2)
    pickler.persistent_id = lambda each: each.key if isinstance(each, Key) else None  # type: ignore[method-assign]
    pickler.dump(state)
    with tarfile.open(path, "w") as archive:
        for name, content in (("storages", storages), ("tensors", described), ("pickle", outer)):
            about = tarfile.TarInfo(name)
            about.size = len(content.getvalue())
            archive.addfile(about, io.BytesIO(content.getvalue()))


class Key:
    def __init__(self, key: int) -> None:
        self.key = key


def test_the_tar_of_torch_0_1_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    saved = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    tar_of(saved, tmp_path / "x", OrderedDict(a=Key(200), b=Key(201)))
    theirs = torch.load(tmp_path / "x", weights_only=False)
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.format == "torch tar"
    for name, tensor in checkpoint.load().items():
        assert torch.equal(tensor, saved[name])
        assert torch.equal(theirs[name], saved[name])


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu],
)
def test_all_floats_of_eight_bits_widen_as_torch_widens_them(dtype: torch.dtype) -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    mine = numbers(bits.numpy(), str(dtype).removeprefix("torch."))
    assert np.array_equal(mine, bits.view(dtype).float().numpy(), equal_nan=True)


def test_bfloat16_widens_as_torch_widens_it() -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    mine = numbers(bits.view(torch.uint8).numpy(), "bfloat16")
    assert np.array_equal(mine, bits.view(torch.bfloat16).float().numpy(), equal_nan=True)


def test_the_inspection_gives_triples_and_reads_lazily(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4).half()}, tmp_path / "x")
    found = inspect(tmp_path / "x")
    assert list(found) == [("a", (2, 3), "float32"), ("b", (4,), "float16")]
    assert torch.equal(found.read("a"), torch.ones(2, 3))
    assert found.verdict == "warning"
    assert isinstance(found.found.tensors["a"], Stored)


def test_bytes_behind_the_end_of_the_pickle_are_refused() -> None:
    content = pickle.dumps({"a": 1}) + b"hidden"
    assert read_pickle(io.BytesIO(content), "x").value == {"a": 1}
    with pytest.raises(RefusedCheckpoint):
        read_pickle(io.BytesIO(b"\x80\x02" + b"]" * 50 + b"a" * 49), "x")


def test_repeated_lists_and_modules_that_contain_themselves_are_no_trap(tmp_path: Path) -> None:
    bomb: list[Any] = []
    for _ in range(60):
        bomb = [bomb, bomb]
    torch.save({"model": {"w": torch.ones(1)}, "bomb": bomb}, tmp_path / "x")
    del bomb
    assert list(read_checkpoint(tmp_path / "x").tensors) == ["w"]
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["self"] = module
    torch.save({"net": module}, tmp_path / "x")
    with pytest.raises(RefusedCheckpoint, match="no named tensors"):
        read_checkpoint(tmp_path / "x")
