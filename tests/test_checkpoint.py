"""Checkpoints are read whole and safely, or refused in words; torch and safetensors are the oracles."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SAVE, Net, state
from safetensors.torch import save_file
from torch import nn

from probes.checkpoint import inspect, read_checkpoint


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


def test_the_architecture_that_recipes_store_is_a_fact(tmp_path: Path) -> None:
    torch.save({"arch": "resnet18", "state_dict": state()}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").facts["arch"] == "resnet18"


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


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_values_are_plain_or_left_behind(legacy: bool, protocol: int, tmp_path: Path) -> None:
    arrays = {
        "plain": np.arange(6.0).reshape(2, 3), "turned": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"), "none": np.ones((0, 2)), "text": np.array("text"),
    }  # fmt: skip
    others = {"when": np.datetime64("2020-01-01"), "type": np.dtype("O"), "said": np.str_("a")}
    torch.save(
        {**arrays, **others}, tmp_path / "x", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol
    )
    loaded = read_checkpoint(tmp_path / "x").load()
    assert set(loaded) == {"plain", "turned", "big", "none"}
    for name, tensor in loaded.items():
        assert np.array_equal(tensor.numpy(), arrays[name])
        assert tensor.numpy().dtype == arrays[name].dtype.newbyteorder("=")


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
    assert any("share their memory" in note for note in checkpoint.facts["notes"])
    assert not checkpoint.doubts


def test_doubts_are_said(tmp_path: Path) -> None:
    value = {"w": torch.randn(2).half(), "q.weight": torch.arange(3), "d": torch.ones(2).double(), "e": torch.zeros(0)}
    value["w"][0] = torch.nan
    torch.save({"model": value, "model_ema": {"w": torch.ones(2)}, "note": "hello"}, tmp_path / "x")
    said = " ".join(read_checkpoint(tmp_path / "x").describe()["doubts"])
    said += inspect(tmp_path / "x").message
    for words in ("half precision", "not floating", "float64", "no elements", "not a number", "model_ema"):
        assert words in said


def test_entries_that_are_no_tensors_are_left_out_and_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1), "extra": "text"}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert any("extra" in doubt for doubt in checkpoint.doubts)


def test_the_description_of_safetensors_reads_the_header_only(tmp_path: Path, monkeypatch: Any) -> None:
    save_file(state(), tmp_path / "x")
    monkeypatch.setattr("probes.formats.raw.gathered", lambda *_: pytest.fail("a tensor was read"))
    assert len(read_checkpoint(tmp_path / "x", sha256="0" * 64).tensors) == len(state())


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
