"""What is refused is refused in words, whatever is wrong with it."""

from __future__ import annotations

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
from checkpoints import MAGIC, SAVE, refusal, state

from probes.checkpoint import read_checkpoint
from probes.errors import RefusedCheckpoint

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


def test_sparse_and_hooked_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    assert "sparse" in refusal(tmp_path / "sparse.pt")
    hooked = torch.ones(2, requires_grad=True)
    hooked.register_hook(print)
    hooks = OrderedDict([(0, print)])
    call = Call(torch._utils._rebuild_tensor_v2, Call(torch.FloatStorage, 1), 0, (2,), (1,), True, hooks)
    zipped({"w": call}, tmp_path / "hooked.pt")
    assert refusal(tmp_path / "hooked.pt")


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
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "without a PyTorch checkpoint" in refusal(tmp_path / "other.zip")
    content = bytearray((tmp_path / "other.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    content[6] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    assert "encrypted" in refusal(tmp_path / "locked.zip")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>login</html>", "web page"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"\x08\x07\x12\x07pytorch\x1a\x032.0", "ONNX"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (bytes(257) + b"ustar\x00" + bytes(300), "unpacked"),
        (b"hello world, this is text", "no checkpoint"),
        (pickle.dumps({"a": [1, 2]}, protocol=2), "its keys: a"),
        (pickle.dumps({"a": [1, 2]}, protocol=2) + b"more", "plain pickle with bytes behind its end"),
        (bytes(5000), "only zeros"),
        (b'{"error": "Repository not found"}', "error message of a server"),
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
