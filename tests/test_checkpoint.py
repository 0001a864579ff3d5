"""Checkpoints are read whole and safely, or refused in words; torch and safetensors are the oracles."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from probes.checkpoint import read_checkpoint
from probes.errors import RefusedCheckpoint

SAVE: dict[str, Callable[[Any, Path], None]] = {
    "torch zip": lambda value, path: torch.save(value, path),
    "torch legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda value, path: save_file(value, path),
}
MAGIC = 0x1950A86A20F9469CFC6C


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, 3)


def state() -> dict[str, torch.Tensor]:
    return dict(Net().state_dict())


def refusal(path: Path) -> str:
    with pytest.raises(RefusedCheckpoint) as caught:
        read_checkpoint(path).load()
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", SAVE)
def test_every_format_gives_back_what_was_saved(form: str, tmp_path: Path) -> None:
    saved = state()
    SAVE[form](saved, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    loaded = checkpoint.load()
    assert checkpoint.format == form
    assert set(loaded) == set(saved) == set(checkpoint.tensors)
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.tensors[name].dtype == str(tensor.dtype).removeprefix("torch.")
    assert checkpoint.parameters == sum(each.numel() for each in Net().parameters())


@pytest.mark.parametrize("form", ["torch zip", "torch legacy"])
def test_views_parameters_and_rare_dtypes_are_loaded_as_fresh_contiguous_copies(form: str, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    saved = {
        "view": base[1:3, ::2],
        "turned": base.t(),
        "parameter": nn.Parameter(torch.randn(3)),
        "half": torch.randn(2).bfloat16(),
        "whole": torch.arange(3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
    }
    SAVE[form](saved, tmp_path / "x")
    for name, tensor in read_checkpoint(tmp_path / "x").load().items():
        assert torch.equal(tensor, saved[name])
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_unsigned_integers_beyond_bytes_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, dtype=torch.uint16), "b": torch.ones(2)}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.tensors["a"].dtype == "uint16"
    assert checkpoint.load()["a"].dtype == torch.uint16


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state", "model_state_dict", "model", "net", "weights"])
def test_wrapper_and_prefix_are_removed(wrapper: str, prefix: str, tmp_path: Path) -> None:
    saved = {prefix + name: tensor for name, tensor in state().items()}
    torch.save({wrapper: saved, "epoch": 7, "global_step": 900, "best_acc": 0.5}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert list(checkpoint.tensors) == list(state())
    assert checkpoint.facts["wrapper"] == wrapper
    assert checkpoint.facts["prefix"] == prefix
    assert (checkpoint.facts["epoch"], checkpoint.facts["step"]) == (7, 900)
    assert checkpoint.facts["metrics"] == {"best_acc": 0.5}
    assert torch.equal(checkpoint.load()["fc.bias"], saved[f"{prefix}fc.bias"])


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x")
    assert list(read_checkpoint(tmp_path / "x").tensors) == ["module.a", "b"]


def test_metrics_are_found_wherever_recipes_put_them(tmp_path: Path) -> None:
    value = {
        "state_dict": state(), "best_prec1": 91.78, "val_loss": 0.25, "best_acc1": torch.tensor(76.5), "epoch": 3,
        "metrics": {"accuracy": 0.9, "broken": float("nan")}, "seed": 5, "loss": float("inf"), "amp": True,
    }  # fmt: skip
    torch.save(value, tmp_path / "x")
    found = read_checkpoint(tmp_path / "x").describe()
    assert found["metrics"] == {"best_prec1": 91.78, "val_loss": 0.25, "best_acc1": 76.5, "accuracy": 0.9}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_numpy_numbers_are_read_as_numbers(legacy: bool, old: bool, tmp_path: Path) -> None:
    value = {"model": state(), "best_acc": np.float64(0.93), "val_loss": np.float32(0.5), "epoch": np.int64(4)}
    torch.save({**value, "flag": np.bool_(True)}, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    if old and legacy:  # as NumPy 1 wrote them
        content = (tmp_path / "x").read_bytes()
        (tmp_path / "x").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.facts["metrics"] == {"best_acc": 0.93, "val_loss": 0.5}
    assert checkpoint.facts["epoch"] == 4
    assert torch.equal(checkpoint.load()["fc.bias"], value["model"]["fc.bias"])


@pytest.mark.parametrize(
    "value", [np.ones(3), np.array("text"), np.datetime64("2020-01-01"), np.dtype("O"), np.str_("a")]
)
def test_other_numpy_values_are_refused(value: Any, tmp_path: Path) -> None:
    torch.save({"model": state(), "value": value}, tmp_path / "x")
    assert refusal(tmp_path / "x")


def test_safetensors_metadata_gives_epoch_and_metrics(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "x", metadata={"epoch": "12", "accuracy": "0.97", "format": "pt"})
    found = read_checkpoint(tmp_path / "x").describe()
    assert found["epoch"] == 12
    assert found["metrics"] == {"accuracy": 0.97}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "SGD with momentum 0.9, learning rate 0.1"),
        (lambda p: torch.optim.SGD(p, 0.1), "SGD, learning rate 0.1"),
        (lambda p: torch.optim.Adam(p, 0.001), "Adam"),
        (lambda p: torch.optim.AdamW(p, 0.001), "AdamW"),
        (lambda p: torch.optim.RMSprop(p, 0.01), "RMSprop"),
        (lambda p: torch.optim.Adagrad(p, 0.01), "Adagrad"),
    ],
)
def test_the_optimizer_is_named_by_its_state(make: Any, words: str, tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    optimizer = make(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": layer.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").describe()["optimizer"].startswith(words)


def test_what_training_loops_keep_besides_is_no_obstacle(tmp_path: Path) -> None:
    import random

    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    schedules = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]),  # keeps a Counter
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),  # keeps an infinity
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10),
    ]
    besides = {
        "schedules": [each.state_dict() for each in schedules], "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "rng": torch.get_rng_state(), "python_rng": random.getstate(), "device": torch.device("cuda", 0),
        "dtype": torch.float16, "seen": {1, 2}, "note": b"bytes", "large": 2**70,
    }  # fmt: skip
    for legacy in (False, True):
        torch.save({"model": layer.state_dict(), **besides}, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
        assert torch.equal(read_checkpoint(tmp_path / "x").load()["bias"], layer.bias)


def test_model_args_and_tied_weights_are_facts(tmp_path: Path) -> None:
    shared = torch.randn(5, 4)
    value = {"model": {"wte": shared, "head": shared}, "model_args": {"n_head": 2, "bias": False}, "iter_num": 40}
    torch.save(value, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.facts["model_args"] == {"n_head": 2, "bias": False}
    assert checkpoint.facts["tied"] == {"head": "wte"}
    assert checkpoint.parameters == 20
    assert any("share their memory" in doubt for doubt in checkpoint.doubts)


def test_doubts_are_said(tmp_path: Path) -> None:
    value = {"w": torch.randn(2).half(), "q": torch.arange(3), "d": torch.ones(2).double(), "e": torch.zeros(0)}
    value["w"][0] = torch.nan
    torch.save({"model": value, "model_ema": {"w": torch.ones(2)}, "note": "hello"}, tmp_path / "x")
    said = " ".join(read_checkpoint(tmp_path / "x").describe()["doubts"])
    for words in ("half precision", "not floating", "float64", "no elements", "not finite", "model_ema"):
        assert words in said


def test_entries_that_are_no_tensors_are_left_out_and_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1), "extra": "text"}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert any("extra" in doubt for doubt in checkpoint.doubts)


def test_the_description_of_safetensors_reads_the_header_only(tmp_path: Path, monkeypatch: Any) -> None:
    save_file(state(), tmp_path / "x")
    monkeypatch.setattr("probes.checkpoint._stream", lambda *_: pytest.fail("a tensor was read"))
    assert len(read_checkpoint(tmp_path / "x", sha256="0" * 64).tensors) == len(state())


# What is refused


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.pair = (function, arguments)

    def __reduce__(self) -> Any:
        return self.pair


def zipped(value: Any, path: Path, protocol: int = 2) -> None:
    """Write a pickle as torch.save lays it out, without torch's help."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=protocol))
        archive.writestr("archive/version", "3\n")


def streamed(value: Any, path: Path, protocol: int = 2) -> None:
    parts = [MAGIC, 1001, {}, value, []]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=protocol) for part in parts))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("write", [zipped, streamed])
def test_a_program_in_the_pickle_is_named_and_never_run(write: Any, protocol: int, tmp_path: Path) -> None:
    import os

    canary = tmp_path / "canary"
    write({"model": {"w": Call(os.mkdir, str(canary))}}, tmp_path / "x", protocol)
    said = refusal(tmp_path / "x")
    assert "mkdir" in said or (protocol == 4 and "pickle protocol 4" in said)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Call(torch.FloatTensor, 64, 64), "torch.FloatTensor"),
        (Call(torch.FloatStorage, 64), "torch.FloatStorage"),
        (Call(bytearray, 2**37), "bytearray"),
        (Call(eval, "1 + 1"), "eval"),
        (Call(np.zeros, 2**40), "numpy"),
    ],
)
@pytest.mark.parametrize("write", [zipped, streamed])
def test_constructors_that_weights_only_admits_are_refused(write: Any, value: Any, words: str, tmp_path: Path) -> None:
    write({"model": {"w": value}}, tmp_path / "x")
    assert words in refusal(tmp_path / "x")


def test_whole_modules_sparse_quantized_and_hooked_tensors_are_refused(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "module.pt")
    assert "Net" in refusal(tmp_path / "module.pt")
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    assert "sparse" in refusal(tmp_path / "sparse.pt")
    hooked = torch.ones(2, requires_grad=True)
    hooked.register_hook(print)
    hooks = OrderedDict([(0, print)])
    call = Call(torch._utils._rebuild_tensor_v2, Call(torch.FloatStorage, 1), 0, (2,), (1,), True, hooks)
    zipped({"w": call}, tmp_path / "hooked.pt")
    assert refusal(tmp_path / "hooked.pt")


def test_eight_bit_floats_are_refused_by_their_type(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "x")
    assert "torch.float8_e4m3fn, which cannot be analysed" in refusal(tmp_path / "x")


def test_quantized_tensors_are_refused(tmp_path: Path) -> None:
    rebuild = torch._utils._rebuild_qtensor
    zipped({"w": Call(rebuild, None, 0, (2,), (1,), (), False, OrderedDict())}, tmp_path / "x")
    assert "quantized" in refusal(tmp_path / "x")


def edited(source: Path, target: Path, edit: Callable[[str, bytes], bytes], **options: Any) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for info in old.infolist():
            new.writestr(info.filename, edit(info.filename, old.read(info)))


def test_a_tensor_that_reaches_out_of_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4)}, tmp_path / "good")
    reach = struct.pack("<BB", ord("K"), 200)

    def grow(name: str, content: bytes) -> bytes:
        return content.replace(b"K\x04\x85", reach + b"\x85") if name.endswith("data.pkl") else content

    edited(tmp_path / "good", tmp_path / "x", grow)
    assert "does not lie within" in refusal(tmp_path / "x")


def test_every_flipped_byte_of_the_weights_is_noticed_in_a_zip(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(16.0), "v": torch.ones(3)}, tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    start = content.index(torch.arange(16.0).numpy().tobytes())
    for place in range(start, start + 64, 7):
        broken = bytearray(content)
        broken[place] ^= 0x10
        (tmp_path / "x").write_bytes(broken)
        assert "checksum" in refusal(tmp_path / "x")
        assert not torch.equal(torch.load(tmp_path / "x", weights_only=True)["w"], torch.arange(16.0))  # torch loads it


@pytest.mark.parametrize("form", SAVE)
def test_truncated_files_are_refused_at_every_length(form: str, tmp_path: Path) -> None:
    SAVE[form](state(), tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    for length in {0, 1, 4, 9, 20, 100, len(content) // 2, len(content) - 30, len(content) - 1}:
        (tmp_path / "x").write_bytes(content[:length])
        assert refusal(tmp_path / "x")


@pytest.mark.parametrize("form", SAVE)
def test_damaged_files_are_read_or_refused_but_never_crash(form: str, tmp_path: Path) -> None:
    SAVE[form](state(), tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(content)
        broken[random.integers(min(len(content), 2500))] = random.integers(256)
        (tmp_path / "x").write_bytes(broken)
        try:
            read_checkpoint(tmp_path / "x").load()
        except RefusedCheckpoint:
            refused += 1
    assert refused > 20


def test_doubled_compressed_encrypted_and_foreign_zips_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "good")
    edited(tmp_path / "good", tmp_path / "x", lambda _, content: content, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(tmp_path / "x")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "good", "a") as archive:
        name = archive.namelist()[0]
        archive.writestr(name, b"")
    assert "doubled" in refusal(tmp_path / "good")
    np.savez(tmp_path / "data.npz", x=np.ones(2))
    assert ".npz" in refusal(tmp_path / "data.npz")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "without a PyTorch checkpoint" in refusal(tmp_path / "other.zip")
    content = bytearray((tmp_path / "other.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    content[6] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    assert "encrypted" in refusal(tmp_path / "locked.zip")


def test_torchscript_is_refused_as_a_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/net.py"):
            archive.writestr(name, b"\x80\x02}.")
    assert "TorchScript" in refusal(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>login</html>", "web page"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"\x08\x07\x12\x07pytorch\x1a\x032.0", "ONNX"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (bytes(257) + b"ustar\x00" + bytes(300), "tar archive"),
        (b"hello world, this is text", "no checkpoint"),
        (pickle.dumps({"a": [1, 2]}, protocol=2), "plain pickle"),
    ],
)
def test_other_files_are_called_by_their_names(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert words in refusal(tmp_path / "x")


def test_values_without_named_tensors_are_refused_with_what_they_are(tmp_path: Path) -> None:
    for value, words in ((torch.ones(2), "a single tensor"), ([1], "a list"), ({"epoch": 3}, "epoch"), ({}, "nothing")):
        torch.save(value, tmp_path / "x")
        assert words in refusal(tmp_path / "x")


def test_names_that_cannot_be_printed_are_refused_or_left_out(tmp_path: Path) -> None:
    for name in ("a\nb", "a\ud800", "\x1b[31m"):
        torch.save({name: torch.ones(1)}, tmp_path / "x")
        assert "cannot be printed" in refusal(tmp_path / "x")
    torch.save({"model": state(), "loss\x1b": 1.0, "loss": 2.0, "__metadata__": {"loss": "3"}}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").describe()["metrics"] == {"loss": 2.0}


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    assert "not there" in refusal(tmp_path / "nothing.pt")


def test_a_small_file_cannot_claim_large_tensors(tmp_path: Path) -> None:
    one = torch.ones(20_000)
    torch.save({f"w{count}": one[count:] for count in range(1_000)}, tmp_path / "x")
    assert "claim" in refusal(tmp_path / "x")


def test_a_file_that_changed_after_its_description_is_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    torch.save({"w": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(RefusedCheckpoint, match="changed"):
        checkpoint.load()


def test_safetensors_with_overlapping_or_wrong_offsets_are_refused(tmp_path: Path) -> None:
    about = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    for offsets in ([4, 12], [0, 4], [8, 0], [-4, 4]):
        header = json.dumps({**about, "b": {**about["a"], "data_offsets": offsets}}).encode()
        (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
        assert refusal(tmp_path / "x")


# Real files


@pytest.mark.parametrize("run", ["run1", "run2"])
@pytest.mark.parametrize("epoch", [0, 50, 100, 150, 200])
def test_the_real_mnist_runs_are_read(run: str, epoch: int, real: Path) -> None:
    path = real / "mnist-cnn" / run / f"epoch-{epoch:03d}.pt"
    checkpoint = read_checkpoint(path)
    assert checkpoint.facts["epoch"] == epoch
    assert checkpoint.facts["wrapper"] == "model_state"
    assert checkpoint.facts["optimizer"].startswith("SGD with momentum 0.9")
    assert checkpoint.parameters == 34_826
    expected = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint.load().items())


def test_the_real_resnet_is_read_with_its_stored_precision(real: Path) -> None:
    found = read_checkpoint(real / "cifar10-resnet20" / "resnet20-12fca82f.th").describe()
    assert found["format"] == "torch legacy"
    assert found["metrics"] == {"best_prec1": pytest.approx(91.78)}
    assert found["facts"]["prefix"] == "module."
    assert found["sha256"].startswith("12fca82f")  # the hash that its authors put into the name
    assert found["parameters"] == 269_722


def test_the_outline_never_moves_past_one_pickle() -> None:
    from probes.formats.pickles import read_pickle

    stream = io.BytesIO(pickle.dumps({"a": 1}, protocol=2) + b"rest")
    assert read_pickle(stream, "x").value == {"a": 1}
    assert stream.read() == b"rest"
