"""Folders of torch.distributed.checkpoint are read without unpickling; torch writes them and is the oracle."""

from __future__ import annotations

import io
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import LIMITS, answer, mutants, refusal
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Limits, Stored
from probes.formats.distributed import is_distributed, read_distributed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
Box = tuple[tuple[int, ...], tuple[int, ...]]
SAVED = {
    "model": {"w": torch.randn(7, 5), "half": torch.randn(3).half(), "n": torch.tensor(4), "e": torch.zeros(0, 3)},
    "odd": [torch.randn(4, 3).t(), 3, {"x": torch.randn(2).bfloat16()}],
    "epoch": 7, "lr": 0.125, "note": "hello", "flag": True, "none": None, "set": {1, 2},
}  # fmt: skip


def content(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert (f"torch.{found.dtype}", found.shape) == (str(expected.dtype), tuple(expected.shape))
        assert found.read().tobytes() == content(expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, each in expected.items():
            same(found[key], each)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            same(one, two)
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_what_torch_saved_is_read_bit_for_bit(tmp_path: Path) -> None:
    dcp.save(SAVED, checkpoint_id=tmp_path / "x", no_dist=True)
    assert is_distributed(tmp_path / "x")
    contents = read_distributed(tmp_path / "x", "x", LIMITS)
    contents.verify()
    assert contents.format == "torch.distributed checkpoint"
    assert contents.bytes == sum(each.stat().st_size for each in (tmp_path / "x").iterdir())
    assert contents.left == ("1 values that are no tensors (set)",)
    dcp_to_torch_save(tmp_path / "x", tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    del loaded["set"]
    same({key: contents.value[key] for key in sorted(contents.value)}, {key: loaded[key] for key in sorted(loaded)})
    same(contents.value["model"], SAVED["model"])


def write(folder: Path, tensors: dict[str, tuple[torch.Tensor, list[Box]]], change: Any = None) -> Path:
    """Write what two processes would, each every other chunk. change: may change the metadata or return others."""
    folder.mkdir(exist_ok=True)
    files: dict[str, bytes] = {"__0_0.distcp": b"", "__1_0.distcp": b""}
    about, places = {}, {}
    for name, (tensor, boxes) in tensors.items():
        chunks = [metadata.ChunkStorageMetadata(torch.Size(at), torch.Size(size)) for at, size in boxes]
        kind = metadata.TensorProperties.create_from_tensor(tensor)
        about[name] = metadata.TensorStorageMetadata(kind, tensor.size(), chunks)
        for number, (at, size) in enumerate(boxes):
            file = f"__{number % 2}_0.distcp"
            stream = io.BytesIO()
            torch.save(tensor[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))].clone(), stream)
            index = metadata.MetadataIndex(name, at, number)
            places[index] = filesystem._StorageInfo(file, len(files[file]), len(stream.getvalue()))
            files[file] += stream.getvalue()
    whole = metadata.Metadata(about, {name: (name,) for name in tensors}, places)
    other = change(whole) if change is not None else None
    whole = other if isinstance(other, metadata.Metadata | dict) else whole
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    for file, each in files.items():
        (folder / file).write_bytes(each)
    return folder


W = torch.arange(35.0).reshape(7, 5)
ROWS: list[Box] = [((0, 0), (4, 5)), ((4, 0), (3, 5))]
TILINGS: dict[str, list[Box]] = {
    "rows": ROWS,
    "columns": [((0, 0), (7, 2)), ((0, 2), (7, 2)), ((0, 4), (7, 1))],
    "grid": [((0, 0), (4, 2)), ((0, 2), (4, 3)), ((4, 0), (3, 2)), ((4, 2), (3, 3))],
    "one by one": [((row, column), (1, 1)) for row in range(7) for column in range(5)],
    "pinwheel": [((0, 0), (2, 4)), ((0, 4), (5, 1)), ((5, 1), (2, 4)), ((2, 0), (5, 1)), ((2, 1), (3, 3))],
}


@pytest.mark.parametrize("tiling", TILINGS)
def test_chunks_are_put_together(tiling: str, tmp_path: Path) -> None:
    half = W[:4].half()
    folder = write(tmp_path / "x", {"a.w": (W, TILINGS[tiling]), "h": (half, [((2, 0), (2, 5)), ((0, 0), (2, 5))])})
    contents = read_distributed(folder, "x", LIMITS)
    contents.verify()
    loaded = {"a.w": torch.empty(7, 5), "h": torch.empty(4, 5).half()}
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    assert torch.equal(loaded["a.w"], W)
    same(contents.value, loaded)


def test_chunks_without_elements_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"w": (W, [*ROWS, ((7, 0), (0, 5))])})
    assert read_distributed(folder, "x", LIMITS).value["w"].read().tobytes() == content(W)


BAD_TILINGS: dict[str, list[Box]] = {
    "a hole": ROWS[:1],
    "nothing": [],
    "an overlap": [((0, 0), (4, 5)), ((3, 0), (4, 5))],
    "a hole and an overlap": [((0, 0), (4, 5)), ((2, 0), (3, 5))],
    "a shifted pinwheel": [((0, 0), (2, 4)), ((0, 4), (5, 1)), ((5, 1), (2, 4)), ((2, 0), (5, 1)), ((2, 2), (3, 3))],
}


@pytest.mark.parametrize("case", BAD_TILINGS)
def test_holes_and_overlaps_are_refused_by_name(case: str, tmp_path: Path) -> None:
    words = refusal(read_distributed, write(tmp_path / "x", {"some.weight": (W, BAD_TILINGS[case])}))
    assert "some.weight" in words
    assert "tile" in words


def info(**fields: Any) -> Callable[[metadata.Metadata], None]:
    def change(whole: metadata.Metadata) -> None:
        for name, value in fields.items():
            setattr(list(whole.storage_data.values())[1], name, value)

    return change


def about(**fields: Any) -> Callable[[metadata.Metadata], None]:
    def change(whole: metadata.Metadata) -> None:
        for name, value in fields.items():
            found = whole.state_dict_metadata["w"]
            setattr(found if hasattr(found, name) else found.properties, name, value)

    return change


HOSTILE: dict[str, tuple[Callable[[metadata.Metadata], Any], str]] = {
    "path upwards": (info(relative_path="../other/__0_0.distcp"), "plain name"),
    "absolute path": (info(relative_path="/etc/hostname"), "plain name"),
    "path with a zero": (info(relative_path="__0_0\0.distcp"), "plain name"),
    "dots": (info(relative_path=".."), "plain name"),
    "long path": (info(relative_path="n" * 5000), "plain name"),
    "no such file": (info(relative_path="__7_0.distcp"), "missing"),
    "a link": (info(relative_path="link"), "a link"),
    "a folder": (info(relative_path="folder"), "missing"),
    "safetensors": (info(relative_path="x.safetensors"), "safetensors"),
    "path no text": (info(relative_path=7), "no place"),
    "offset outside": (info(offset=2**40), "cut short"),
    "length outside": (info(length=2**47), "cut short"),
    "negative": (info(offset=-1), "no place"),
    "length no number": (info(length="9"), "no place"),
    "shared bytes": (info(relative_path="__0_0.distcp", offset=0, length=1000), "share"),
    "a transform": (info(transform_descriptors=["zstd"]), "zstd"),
    "shape of terabytes": (about(size=torch.Size([2**40, 5])), "shape"),
    "rank 40": (about(size=torch.Size([1] * 40)), "no shape"),
    "another rank": (about(size=torch.Size([7, 5, 1])), "tile"),
    "sparse": (about(layout=torch.sparse_coo), "sparse"),
    "quantised": (about(dtype=torch.qint8), "quantised"),
    "another dtype": (about(dtype=torch.float64), ""),
    "no chunks": (about(chunks=None), "no chunks"),
    "odd chunks": (about(chunks=[3]), "Chunk"),
    "not stored": (lambda whole: whole.storage_data.popitem(), "not stored"),
    "no tensors": (lambda whole: metadata.Metadata({}, {}, {}), "no tensors"),
    "no index": (lambda whole: metadata.Metadata(None, None, None), "no list"),
    "a dict": (lambda whole: {"a": 1}, "something else"),
    "name of 10 000 letters": (lambda whole: whole.state_dict_metadata.update({"n" * 10_000: 1}), "name"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_is_refused_in_words(case: str, tmp_path: Path) -> None:
    change, words = HOSTILE[case]
    folder = write(tmp_path / "x", {"w": (W, ROWS)}, change)
    (folder / "link").symlink_to("__0_0.distcp")
    (folder / "folder").mkdir()
    if case == "another dtype":
        found = read_distributed(folder, "x", LIMITS)
        for act in (found.verify, found.value["w"].read):
            with pytest.raises(RefusedCheckpoint, match="not the tensor"):
                act()
    else:
        assert words in refusal(read_distributed, folder)


class Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = write(tmp_path / "x", {"w": (W, ROWS)}, lambda whole: setattr(whole, "planner_data", Trap(canary)))
    assert "not opened" in refusal(read_distributed, folder)
    dcp.save({"w": W, "value": Trap(canary)}, checkpoint_id=tmp_path / "y", no_dist=True)
    assert "not opened" in refusal(read_distributed, tmp_path / "y")
    write(folder, {"w": (W, ROWS)})
    part = folder / "__1_0.distcp"
    stream = io.BytesIO()
    torch.save(Trap(canary), stream)
    part.write_bytes(stream.getvalue().ljust(part.stat().st_size, b"\0"))
    assert refusal(read_distributed, folder)
    assert not canary.exists()


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_links_in_the_place_of_files_are_refused(file: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"w": (W, ROWS)})
    shutil.move(folder / file, tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    assert "a link" in refusal(read_distributed, folder)


def test_a_flipped_bit_is_found_on_reading_and_on_verifying(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"w": (W, ROWS)})
    part = bytearray((folder / "__1_0.distcp").read_bytes())
    part[part.index(content(W[4:])) + 5] ^= 1
    (folder / "__1_0.distcp").write_bytes(part)
    contents = read_distributed(folder, "x", LIMITS)
    for act in (contents.verify, contents.value["w"].read):
        with pytest.raises(RefusedCheckpoint, match="checksum"):
            act()


def test_limits_bound_what_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"first": (W, ROWS), "second": (W, ROWS)})
    (folder / "notes.txt").write_text("left")
    assert "notes.txt" in read_distributed(folder, "x", LIMITS).left[0]
    for bound in (Limits(tensors=1), Limits(parameters=60), Limits(index=90), Limits(name=4), Limits(bytes=900)):
        with pytest.raises(RefusedCheckpoint):
            read_distributed(folder, "x", bound)


def test_a_large_folder_is_described_at_once(tmp_path: Path) -> None:
    rows = [((row, 0), (1, 5)) for row in range(7)]
    folder = write(tmp_path / "x", {f"w{number}": (W, rows) for number in range(300)})
    started = time.process_time()
    value = read_distributed(folder, "x", LIMITS).value
    assert time.process_time() - started < 1
    assert value["w299"].read().tobytes() == content(W)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), file=st.sampled_from([".metadata", ".metadata", "__0_0.distcp"]))
def test_damaged_folders_are_read_or_refused(
    data: st.DataObject, file: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = tmp_path_factory.getbasetemp() / "good"
    if not good.exists():
        dcp.save({"model": {"w": W, "n": torch.tensor(1)}, "epoch": 3}, checkpoint_id=good, no_dist=True)
    folder = good.with_name("damaged")
    shutil.copytree(good, folder, dirs_exist_ok=True)
    (folder / file).write_bytes(data.draw(mutants((good / file).read_bytes())))
    if not answer(read_distributed, folder) and file != ".metadata":
        found = read_distributed(folder, "x", LIMITS).value["model"]["w"]
        assert isinstance(found, Stored)
        assert found.read().tobytes() == content(W)
