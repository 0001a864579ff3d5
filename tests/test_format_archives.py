"""Zips and tars of folders give the folder's tensors, and hostile ones write nothing anywhere."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from probes.checkpoint import inspect, read_checkpoint
from probes.errors import RefusedCheckpoint
from probes.formats import archives
from probes.formats.archives import is_folder_archive, unpack
from probes.formats.contents import Limits
from probes.formats.files import open_contents

CONFIG = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
STATE = {"transformer.wte.weight": torch.arange(12.0).reshape(4, 3), "transformer.ln_f.bias": torch.ones(3) / 3}
EVIL = b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "gpt"
    home.mkdir()
    (home / "config.json").write_text(json.dumps(CONFIG))
    save_file(STATE, home / "model.safetensors")
    (home / "training_args.bin").write_bytes(EVIL)
    (home / "evil.py").write_text("1/0")
    return home


def zipped(folder: Path, target: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in folder.iterdir():
            archive.write(path, f"{folder.name}/{path.name}")
    return target


def tarred(folder: Path, target: Path, mode: str = "w", form: int = tarfile.PAX_FORMAT, name: str = "gpt") -> Path:
    with tarfile.open(target, mode, format=form) as archive:
        archive.add(folder, name)
    return target


LONG = "é" * 120
WAYS: dict[str, Callable[[Path, Path], Path]] = {
    "zip": zipped,
    "stored zip": lambda folder, target: zipped(folder, target, zipfile.ZIP_STORED),
    "tar": tarred,
    "tar.gz": lambda folder, target: tarred(folder, target, "w:gz"),
    "tar of the dot": lambda folder, target: tarred(folder, target, name="."),
    "tar with long names, pax": lambda folder, target: tarred(folder, target, name=LONG),
    "tar with long names, GNU": lambda folder, target: tarred(folder, target, form=tarfile.GNU_FORMAT, name=LONG),
    "ustar": lambda folder, target: tarred(folder, target, form=tarfile.USTAR_FORMAT, name="a" * 90 + "/" + "b" * 60),
}  # fmt: skip


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("way", WAYS)
def test_archives_give_the_tensors_of_the_folder(way: str, form: str, folder: Path, tmp_path: Path) -> None:
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(STATE, folder / "pytorch_model.bin")
    path = WAYS[way](folder, tmp_path / "archive")
    assert is_folder_archive(path)
    archives._unpacked.clear()
    checkpoint = read_checkpoint(path, name="gpt.zip")
    found = checkpoint.load()
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)
    kind = {"safetensors": "safetensors", "bin": "torch zip"}[form]
    assert checkpoint.format == f"Hugging Face {'zip' if 'zip' in way else 'tar'}, {kind}"
    assert json.loads(checkpoint.texts["config.json"]) == CONFIG
    shut = " ".join(checkpoint.left)
    assert "training_args.bin" in shut
    assert "evil.py" in shut
    assert bool(archives._unpacked) == (way in ("zip", "tar.gz")), "weights that are not compressed stay where they are"


def test_flipped_bits_are_found_where_weights_stay_in_the_zip(folder: Path, tmp_path: Path) -> None:
    path = zipped(folder, tmp_path / "gpt.zip", zipfile.ZIP_STORED)
    inspect(path)
    content = path.read_bytes()
    at = content.index(STATE["transformer.wte.weight"].numpy().tobytes())
    path.write_bytes(content[: at + 5] + bytes([content[at + 5] ^ 1]) + content[at + 6 :])
    with pytest.raises(RefusedCheckpoint, match="checksum"):
        inspect(path)


def test_only_what_is_needed_is_unpacked_and_once(folder: Path, tmp_path: Path) -> None:
    path = zipped(folder, tmp_path / "gpt.zip")
    target = tmp_path / "target"
    target.mkdir()
    assert unpack(path, "gpt.zip", Limits(), target) == target
    assert {each.name for each in target.iterdir()} == {"config.json", "model.safetensors"}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for _ in range(2):
        open_contents(path, "gpt.zip", Limits(), scratch)
    assert len(list(scratch.iterdir())) == 1


def test_what_macos_adds_and_other_folders_do_no_harm(folder: Path, tmp_path: Path) -> None:
    path = zipped(folder, tmp_path / "gpt.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/gpt/._model.safetensors", b"\0" * 9)
        archive.writestr("gpt/runs/events.bin", b"x")
    checkpoint = read_checkpoint(path)
    assert checkpoint.load().keys() == STATE.keys()
    assert "gpt/runs/events.bin" in " ".join(checkpoint.left)


def test_an_archive_of_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "best.pt")
    with zipfile.ZipFile(tmp_path / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "best.pt", "run/best.pt")
    checkpoint = read_checkpoint(tmp_path / "run.zip")
    assert checkpoint.facts["epoch"] == 3
    assert checkpoint.load().keys() == STATE.keys()


@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.parametrize("way", ["zip", "stored zip", "tar", "tar.gz"])
def test_distributed_checkpoints_come_in_archives_too(way: str, tmp_path: Path) -> None:
    from torch.distributed import checkpoint as dcp

    dcp.save(dict(STATE), checkpoint_id=tmp_path / "dcp", no_dist=True)
    found = read_checkpoint(WAYS[way](tmp_path / "dcp", tmp_path / "archive")).load()
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.filterwarnings("ignore")  # of torch.jit, which is old
def test_other_archives_are_no_folders(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "torch.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "jit.pt")
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("cats/1.png", b"x")
    for path in tmp_path.iterdir():
        assert not is_folder_archive(path), path.name


# Hostile ones


def zip_of(path: Path, entries: list[tuple[str, bytes]], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16 if name != "config.json" else 0
            archive.writestr(info, content)
    return path


def tar_of(path: Path, entries: list[tuple[str, bytes]], mode: str = "w", **more: Any) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in more.items() if name != "config.json" else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


BASE = ("config.json", b"{}")
ACCENTS = [(unicodedata.normalize(form, "é.bin"), b"x") for form in ("NFC", "NFD")]
ZEROS = bytes(80 * 2**20)
OUTSIDE = ["../model.safetensors", "/model.safetensors", "a/../../model.safetensors", "..\\model.bin", "C:/model.bin"]
HOSTILE: dict[str, Callable[[Path], Path]] = {
    **{f"zip {name}": lambda path, name=name: zip_of(path, [BASE, (name, b"x")]) for name in OUTSIDE},
    **{f"tar {name}": lambda path, name=name: tar_of(path, [BASE, (name, b"x")]) for name in OUTSIDE},
    "zip link": lambda path: zip_of(path, [BASE, ("model.safetensors", b"/etc/passwd")], 0o120777),
    "zip fifo": lambda path: zip_of(path, [BASE, ("model.safetensors", b"")], 0o010777),
    "tar link": lambda path: tar_of(path, [BASE, ("model.bin", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "tar hard link": lambda path: tar_of(path, [BASE, ("model.bin", b"")], type=tarfile.LNKTYPE, linkname="../x"),
    "tar device": lambda path: tar_of(path, [BASE, ("model.bin", b"")], type=tarfile.CHRTYPE),
    "tar fifo": lambda path: tar_of(path, [BASE, ("model.bin", b"")], type=tarfile.FIFOTYPE),
    "tar of another kind": lambda path: tar_of(path, [BASE, ("model.bin", b"x")], type=b"V"),
    "tar sparse": lambda path: tar_of(path, [BASE, ("model.bin", b"x")], pax_headers={"GNU.sparse.major": "1"}),
    "zip twins": lambda path: zip_of(path, [BASE, ("CONFIG.json", b"{}")]),
    "tar twins": lambda path: tar_of(path, [BASE, ("Config.JSON", b"{}")]),
    "tar doubles": lambda path: tar_of(path, [BASE, BASE]),
    "zip accents": lambda path: zip_of(path, [BASE, *ACCENTS]),
    "tar accents": lambda path: tar_of(path, [BASE, *ACCENTS]),
    "zip bomb": lambda path: zip_of(path, [BASE, ("model.safetensors", ZEROS)]),
    "tar.gz bomb": lambda path: tar_of(path, [BASE, ("model.safetensors", ZEROS)], "w:gz"),
    "tar.gz bomb aside": lambda path: tar_of(path, [("a/README", ZEROS), BASE], "w:gz"),
    "several folders": lambda path: zip_of(path, [("a/model.bin", b"x"), ("b/model.bin", b"x")]),
    "zip in zip": lambda path: zip_of(path, [BASE, ("model.zip", zip_of(path, [BASE]).read_bytes())]),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing(case: str, tmp_path: Path) -> None:
    target, scratch = tmp_path / "deep" / "target", tmp_path / "scratch"
    target.mkdir(parents=True)
    scratch.mkdir()
    path = HOSTILE[case](tmp_path / "x")
    with pytest.raises(RefusedCheckpoint) as caught:
        open_contents(path, "upload.zip", Limits(), scratch)
    assert "upload.zip" in str(caught.value) or str(path.name) in str(caught.value)
    if case != "zip in zip":  # there is nothing in it but config.json
        with pytest.raises(RefusedCheckpoint):
            unpack(path, "upload.zip", Limits(), target)
        assert {each.name for each in tmp_path.rglob("*")} == {"x", "deep", "target", "scratch"}


def test_damage_found_while_unpacking_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(torch.rand(10_000).numpy().tobytes())
    for path in (zipped(folder, tmp_path / "a"), tarred(folder, tmp_path / "b", "w:gz")):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        target = tmp_path / f"{path.name}-target"
        target.mkdir()
        with pytest.raises(RefusedCheckpoint):
            unpack(path, "x", Limits(), target)
        assert not list(target.iterdir())


def test_lists_and_names_without_end_are_refused_unread(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "zip", [BASE, *((f"{n}", b"") for n in range(50))])
    with pytest.raises(RefusedCheckpoint, match="at most 20"):
        unpack(path, "x", Limits(members=20), tmp_path)
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    headers = tarfile.TarInfo("x")
    headers.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "tar.gz").write_bytes(gzip.compress(headers.tobuf(tarfile.GNU_FORMAT) * 100_000))
    zeros = gzip.compress(tar_of(tmp_path / "small", [BASE]).read_bytes() + ZEROS)
    (tmp_path / "zeros.tar.gz").write_bytes(zeros)
    for name in ("tar", "tar.gz", "zeros.tar.gz"):
        with pytest.raises(RefusedCheckpoint):
            unpack(tmp_path / name, "x", Limits(), tmp_path)


def _seeds() -> list[bytes]:
    stream, seeds = io.BytesIO(), []
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("gpt/config.json", json.dumps(CONFIG))
        archive.writestr("gpt/model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ")
    seeds.append(stream.getvalue())
    for mode in ("w", "w:gz"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            for name, content in (("é" * 60 + "/config.json", b"{}"), ("é" * 60 + "/model.bin", EVIL)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        seeds.append(stream.getvalue())
    return seeds


SEEDS = _seeds()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), changes=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=9)), max_size=6))
def test_mutated_archives_are_read_or_refused(seed: bytes, changes: Any, tmp_path: Path) -> None:
    content = bytearray(seed)
    for place, piece in changes:
        at = int(place * len(content))
        content[at : at + len(piece)] = piece
    path, target = tmp_path / "archive", tmp_path / "target"
    path.write_bytes(content)
    target.mkdir(exist_ok=True)
    for act in (lambda: is_folder_archive(path), lambda: unpack(path, "x", Limits(), target)):
        try:
            act()
        except RefusedCheckpoint as error:
            assert "\n" not in str(error)
    for each in target.iterdir():
        each.unlink()
