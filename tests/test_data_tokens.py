"""Token files as nanoGPT and llm.c write them (NumPy's tofile), token arrays, and tokenizers of a checkpoint."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from probes.data import preview, read_batches
from probes.dataset.examples import Own
from probes.errors import DataError
from probes.specs import DataFormat, DataSpec, ModelSpec
from probes.token_tables import vocabulary_of

GPT2, LLAMA3 = (20240520, 1, "<u2"), (20240801, 7, "<u4")


def raw(path: Path, ids: Any, dtype: str = "<u2", **options: Any) -> DataSpec:
    np.asarray(ids, dtype).tofile(path)
    return DataSpec((str(path),), **options)


def llmc(path: Path, ids: Any, magic: int, version: int, dtype: str, count: int | None = None) -> DataSpec:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype).tobytes())
    return DataSpec((str(path),), context=3)


def npz(path: Path, **arrays: Any) -> DataSpec:
    np.savez(path, **arrays)
    return DataSpec((str(path),))


def windows(ids: Any, context: int) -> tuple[list[list[int]], list[list[int]]]:
    """Cut as nanoGPT does, one window after another: y is x moved by one."""
    starts = range(0, len(ids) - 1, context)
    pairs = [(list(ids[at : at + context]), list(ids[at + 1 : at + 1 + context])) for at in starts]
    x = [one[: len(other)] + [0] * (context - len(other)) for one, other in pairs]
    return x, [other + [-100] * (context - len(other)) for _, other in pairs]


@pytest.mark.parametrize("context", [1, 3, 4, 9, 50])
def test_plain_uint16_is_cut_into_windows(tmp_path: Path, context: int) -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, 10)
    batches = read_batches(raw(tmp_path / "val.bin", ids, context=context))
    x, y = windows(ids.tolist(), context)
    assert batches.inputs.tolist() == x and batches.targets.tolist() == y
    assert batches.ids[0] == "val[0]:0" and "uint16" in batches.about["tokenizer"]


@pytest.mark.parametrize(("magic", "version", "dtype"), [GPT2, LLAMA3])
def test_llmc_files_have_a_header(tmp_path: Path, magic: int, version: int, dtype: str) -> None:
    ids = [50_256, 7, 9, 11, 13, 2]
    for name in ("train.bin", "0a1b2c"):  # the header tells, not the name
        batches = read_batches(llmc(tmp_path / name, ids, magic, version, dtype))
        assert (batches.inputs.tolist(), batches.targets.tolist()) == windows(ids, 3)
        assert "llm.c" in batches.about["tokenizer"]


def test_uint32_is_noticed_or_chosen(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 128_256, 500)
    spec = raw(tmp_path / "a.bin", ids, "<u4", context=499)
    batches = read_batches(spec)
    assert batches.inputs[0].tolist() == ids[:-1].tolist() and "32 bits wide" in batches.doubts[0]
    chosen = read_batches(DataSpec(spec.files, format="tokens32", context=499))
    assert chosen.inputs[0].tolist() == ids[:-1].tolist() and chosen.doubts == ()
    halves = read_batches(DataSpec(spec.files, format="tokens16", context=999))
    assert halves.inputs[0].tolist() == ids.astype("<u4").view("<u2")[:-1].tolist()


@pytest.mark.parametrize("ids", [np.arange(300) % 7, np.random.default_rng(0).integers(0, 65, 400)])
def test_small_vocabularies_are_not_taken_for_uint32(tmp_path: Path, ids: Any) -> None:
    assert read_batches(raw(tmp_path / "a.bin", ids, context=5)).inputs[0].tolist() == ids[:5].tolist()


def test_ids_above_the_vocabulary_are_named_by_position(tmp_path: Path) -> None:
    spec = raw(tmp_path / "a.bin", [1, 2, 3, 4, 99, 5], context=2)
    message = r"a\.bin: the token at position 4 is 99, but the model knows 65 \(0 to 64\)"
    with pytest.raises(DataError, match=message):
        read_batches(spec, own_vocabulary=65)
    assert len(read_batches(DataSpec(spec.files, context=2, examples=1), own_vocabulary=65)) == 1
    with pytest.raises(DataError, match=r"position 1 is 50257, but the model knows 50,257"):
        read_batches(llmc(tmp_path / "b.bin", [1, 50_257], *GPT2))
    rows = npz(tmp_path / "c.npz", input_ids=np.array([[1, 2], [3, 70]]))
    with pytest.raises(DataError, match="position 1 of row 2 is 70"):
        read_batches(rows, own_vocabulary=65)


def test_the_vocabulary_is_found_in_arguments_or_in_the_table() -> None:
    shapes = {"transformer.wte.weight": (50257, 8), "transformer.wpe.weight": (64, 8)}
    assert vocabulary_of(ModelSpec("hugging_face", folder="x"), shapes) == 50257
    assert vocabulary_of(ModelSpec("catalogue", "small_gpt", {"vocabulary": 65}), {}) == 65
    assert vocabulary_of(ModelSpec("text", text=""), {"0.weight": (5, 8)}) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"abc", "3 bytes, which is no whole number of 16-bit tokens"),
        (b"\x01\x00", "no text has two tokens"),
        (struct.pack("<i", 20240520), "ends inside llm.c's header"),
        (struct.pack("<3i", 20240520, 9, 2) + b"\0" * 1016, "version 1, this file is of version 9"),
        (struct.pack("<3i", 20240520, 1, 2_000_000_000) + b"\0" * 1016, r"says 2000000000 tokens, that is 4000000000"),
        (struct.pack("<3i", 20240520, 1, -1) + b"\0" * 1012, "says -1 tokens"),
        (struct.pack("<3i", 20240520, 1, 0) + b"\0" * 1012, "holds no tokens"),
        (struct.pack("<i", 20240326) + b"\0" * 2000, "a checkpoint of llm.c"),
        (b"\x80\x04\x95aaaa", "a Python pickle"),
        (b"<!DOCTYPE html>.", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_token_files_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_batches(DataSpec((str(tmp_path / "t.bin"),)))
    assert str(caught.value).startswith("t.bin")


def test_a_file_of_terabytes_is_mapped_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.bin").open("wb") as file:  # sparse: it takes no space
        file.write(np.array([1, 2, 3], "<u2").tobytes())
        file.truncate(4 * 10**12)
    spec = DataSpec((str(tmp_path / "huge.bin"),), context=4, examples=2)
    assert read_batches(spec).inputs.tolist() == [[1, 2, 3, 0], [0, 0, 0, 0]]
    with pytest.raises(DataError, match="Choose at most 67108864 examples"):
        read_batches(DataSpec(spec.files, context=4, examples=2**26 + 1))
    with pytest.raises(DataError, match="too many to shuffle"):
        read_batches(DataSpec(spec.files, context=4, examples=2, shuffle=1))


def test_token_arrays_in_an_npz(tmp_path: Path) -> None:
    ids = np.array([[5, 6, 7], [9, 8, 0]], np.uint16)
    batches = read_batches(npz(tmp_path / "a.npz", input_ids=ids, attention_mask=np.array([[1, 1, 1], [1, 1, 0]])))
    assert batches.inputs.tolist() == [[5, 6], [9, 8]] and batches.targets.tolist() == [[6, 7], [8, -100]]
    labels = np.array([[-100, -100, 7], [9, 8, 0]])
    assert read_batches(npz(tmp_path / "b.npz", input_ids=ids, labels=labels)).targets.tolist() == [[-100, 7], [8, 0]]
    named = read_batches(npz(tmp_path / "c.npz", input_ids=ids, label=np.array(["y", "x"]), ids=np.array(["p", "q"])))
    assert named.inputs.tolist() == ids.tolist() and named.targets.tolist() == [1, 0] and named.classes == ("x", "y")
    assert named.ids == ("p", "q")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": np.zeros((2, 3))}, "float64 of shape"),
        ({"input_ids": np.zeros(3, int)}, "give whole numbers, one row each"),
        ({"input_ids": np.ones((2, 3), int), "labels": np.ones((2, 4), int)}, "labels have shape"),
        ({"input_ids": np.ones((2, 3), int), "attention_mask": np.ones(2)}, "attention_mask has shape"),
        ({"input_ids": np.array([[1, -1]])}, "position 1 is -1"),
        ({"input_ids": np.ones((2, 3), int), "ids": np.ones(3)}, "the ids are float64"),
        ({"input_ids": np.ones((2, 3), object)}, "Python objects"),
    ],
)
def test_token_arrays_that_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_batches(npz(tmp_path / "a.npz", **arrays))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "sat": 3, "[PAD]": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "model").mkdir()
    words.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model" / "tokenizer.json"


def test_the_checkpoints_own_tokenizer_is_what_auto_means(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sat there")
    spec = DataSpec((str(tmp_path / "t.txt"),), context=3)
    batches = read_batches(spec, own_tokenizer=tokenizer)
    assert batches.inputs.tolist() == [[1, 2, 3]] and batches.targets.tolist() == [[2, 3, 0]]
    assert batches.about["tokenizer"] == "tokenizer.json of the checkpoint" and batches.about["vocabulary"] == 5
    chosen = read_batches(DataSpec(spec.files, context=3, tokenizer="characters"), own_tokenizer=tokenizer)
    assert chosen.about["tokenizer"] == "characters"
    (tmp_path / "l.jsonl").write_text('{"text": "the cat", "label": 1}\n{"text": "sat", "label": 0}\n')
    padded = read_batches(DataSpec((str(tmp_path / "l.jsonl"),)), own_tokenizer=tokenizer)
    assert padded.inputs.tolist() == [[1, 2], [3, 4]] and padded.targets.tolist() == [1, 0] and padded.doubts == ()


def test_a_broken_tokenizer_beside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sat there")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer\.json that can be read"):
        read_batches(DataSpec((str(tmp_path / "t.txt"),)), own_tokenizer=tmp_path / "tokenizer.json")


@pytest.mark.parametrize(("choice", "shown"), [("auto", "the cat sat"), ("bytes", "the cat sat the")])
def test_examples_are_shown_as_text(tmp_path: Path, tokenizer: Path, choice: str, shown: str) -> None:
    (tmp_path / "t.txt").write_text("the cat sat the")
    spec = DataSpec((str(tmp_path / "t.txt"),), context=14 if choice == "bytes" else 3, tokenizer=choice)
    (sample,) = preview(spec, own=Own(tokenizer=tokenizer))["samples"]
    assert shown.startswith(sample["text"]) and len(sample["text"]) > 8


@pytest.mark.parametrize("format", ["tokens16", "tokens32"])
def test_a_chosen_format_overrides_what_the_bytes_look_like(tmp_path: Path, format: DataFormat) -> None:
    content = b"\0\0\x08\x03" + bytes(range(60))  # would be IDX
    (tmp_path / "a.bin").write_bytes(content)
    batches = read_batches(DataSpec((str(tmp_path / "a.bin"),), format=format, context=3))
    first = np.frombuffer(content, "<u2" if format == "tokens16" else "<u4")[:3]
    assert batches.inputs[0].tolist() == first.tolist()
