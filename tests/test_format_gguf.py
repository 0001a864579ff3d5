"""GGUF files are read whole or refused in words; the `gguf` package writes them and is the oracle."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import LIMITS, answer, mutants, refusal

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Limits
from probes.formats.gguf import is_gguf, read_gguf
from probes.formats.gguf_blocks import BLOCKS, OTHERS, PLAIN

Kind = gguf.GGMLQuantizationType
PLAIN_ARRAYS = {
    "float32": np.float32, "float16": np.float16, "float64": np.float64, "int8": np.int8, "int16": np.int16,
    "int32": np.int32, "int64": np.int64,
}  # fmt: skip


def write(path: Path, fill: Callable[[gguf.GGUFWriter], None], **options: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fill(writer: gguf.GGUFWriter) -> None:
    writer.add_name("a <b>model</b>\n")
    writer.add_block_count(2)
    writer.add_float32("llama.scale", float("inf"))
    writer.add_token_list(["a", "ü", "<s>"])
    writer.add_array("llama.nested", [[1, 2], [3]])
    writer.add_bool("llama.flag", True)
    writer.add_tensor("blk.0.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("blk.0.bias", quantize(np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), Kind.Q8_0),
                      raw_dtype=Kind.Q8_0)  # fmt: skip


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "x.gguf", fill)


def header(tensors: int = 0, settings_: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, settings_) + rest


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def alignment(code: str, kind: int, *numbers: int) -> bytes:
    return header(1, 1, text(b"general.alignment") + struct.pack(code, kind, *numbers) + tensor(b"a", (1,))) + bytes(64)


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_is_dequantised_bit_for_bit(kind: int) -> None:
    weights, size = gguf.GGML_QUANT_SIZES[Kind(kind)]
    block = BLOCKS[kind]
    assert (block.name, block.weights, block.layout.itemsize) == (Kind(kind).name, weights, size)
    content = np.random.default_rng(kind).integers(0, 256, (60, 3 * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = dequantize(content, Kind(kind))
    assert np.array_equal(block.dequantise(content.reshape(-1)), expected.reshape(-1).view(np.uint8))
    assert np.isfinite(expected).mean() > 0.5


def test_many_blocks_are_dequantised_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.formats.gguf_blocks._PIECE", 256 * 3)
    for kind, block in BLOCKS.items():
        content = np.random.default_rng(kind).integers(0, 64, (7, block.layout.itemsize * 4), dtype=np.uint8)
        with np.errstate(all="ignore"):
            expected = dequantize(content, Kind(kind)).reshape(-1).view(np.uint8)
        assert np.array_equal(block.dequantise(content.reshape(-1)), expected)


def test_every_type_of_ggml_is_known_by_name() -> None:
    names = {**{kind: block.name for kind, block in BLOCKS.items()}, **OTHERS}
    for kind in Kind:
        assert kind in PLAIN or names[kind] == kind.name


@pytest.mark.parametrize("dtype", PLAIN_ARRAYS)
def test_plain_tensors_are_read_as_they_are(dtype: str, tmp_path: Path) -> None:
    array = (np.random.default_rng(0).standard_normal((3, 4, 5)) * 50).astype(PLAIN_ARRAYS[dtype])
    path = write(tmp_path / "x", lambda writer: writer.add_tensor("a", array))
    found = read_gguf(path, "x", LIMITS).value["a"]
    assert (found.dtype, found.shape) == (dtype, (3, 4, 5))
    assert found.read().tobytes() == array.tobytes()


def test_bfloat16_is_read_as_bfloat16(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((3, 32), dtype=np.float32)
    packed = quantize(array, Kind.BF16)
    path = write(tmp_path / "x", lambda writer: writer.add_tensor("a", packed, raw_dtype=Kind.BF16))
    found = read_gguf(path, "x", LIMITS).value["a"]
    widened = (found.read().view("<u2").astype(np.uint32) << 16).view(np.float32)
    assert (found.dtype, found.shape) == ("bfloat16", (3, 32))
    assert np.array_equal(widened, dequantize(packed, Kind.BF16).reshape(-1))


@pytest.mark.parametrize("kind", [Kind(kind) for kind in BLOCKS])
def test_quantised_tensors_in_a_file_are_what_the_package_makes_of_them(kind: Kind, tmp_path: Path) -> None:
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(0).integers(0, 64, (4, 6, 2 * size), dtype=np.uint8)
    path = write(tmp_path / "x", lambda writer: writer.add_tensor("a", packed, raw_dtype=kind))
    (theirs,) = gguf.GGUFReader(path).tensors
    contents = read_gguf(path, "x", LIMITS)
    found = contents.value["a"]
    assert (found.dtype, found.shape) == ("float32", (4, 6, 2 * weights))
    assert found.read().tobytes() == dequantize(theirs.data, kind).tobytes()
    assert contents.facts["quantised"] == {kind.name: 1}
    assert kind.name in contents.doubts[0]


def test_settings_become_facts_and_lists_are_counted(good: Path) -> None:
    contents = read_gguf(good, "x", LIMITS)
    assert contents.format == "GGUF"
    assert contents.bytes == good.stat().st_size
    assert contents.metadata == {"general.architecture": "llama", "general.name": "a <b>model</b>?"}
    assert contents.facts["gguf"] == {
        "architecture": "llama", "name": "a <b>model</b>?", "version": 3, "block_count": 2, "scale": "inf",
        "flag": True,
    }  # fmt: skip
    assert contents.facts["quantised"] == {"Q8_0": 1}
    (left,) = contents.left
    assert left.startswith("2 lists")
    assert "tokenizer.ggml.tokens with 3 items" in left
    assert any("attn_q" in each for each in contents.doubts)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments_and_many_tensors_are_read(alignment: int, tmp_path: Path) -> None:
    arrays = {f"t{i}": np.full((i,), i, np.float32) for i in range(1, 30)}

    def several(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(alignment)
        for name, array in arrays.items():
            writer.add_tensor(name, array)

    path = write(tmp_path / "x", several)
    for name, found in read_gguf(path, "x", LIMITS).value.items():
        assert found.read().tobytes() == arrays[name].tobytes()


def test_a_large_file_is_described_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x"
    count, words = 2000, b"".join(text(b"word") for _ in range(300_000))
    tokens = text(b"tokens") + struct.pack("<IIQ", 9, 8, 300_000) + words
    infos = b"".join(tensor(b"t%d" % i, (1024, 640), 0, i * 1024 * 640 * 4) for i in range(count))
    content = header(count, 1, tokens + infos)
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(-(-len(content) // 32) * 32 + count * 1024 * 640 * 4)  # 5 GB, sparse
    started = time.process_time()
    contents = read_gguf(path, "x", LIMITS)
    assert time.process_time() - started < 1
    assert len(contents.value) == count
    assert contents.value["t1999"].read().sum() == 0


def test_big_endian_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x", fill, endianess=gguf.GGUFEndian.BIG)
    assert is_gguf(path.read_bytes()[:8])
    assert "big-endian" in refusal(read_gguf, path)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_quantisations_are_refused_by_type_and_tensor(kind: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(header(1, 0, tensor(b"some.weight", (256,), kind)) + bytes(4096))
    words = refusal(read_gguf, tmp_path / "x")
    assert OTHERS[kind] in words
    assert "some.weight" in words


HOSTILE: dict[str, tuple[bytes, str]] = {
    "version 1": (header(version=1), "version 1"),
    "version 9": (header(version=9), "version 9"),
    "nothing follows": (b"GGUF", "damaged"),
    "many settings": (header(0, 2**63), "settings"),
    "settings at the end": (header(0, 60_000), "header"),
    "many tensors": (header(2**64 - 1), "tensors"),
    "tensors at the end": (header(150_000), "header"),
    "key of exabytes": (header(0, 1, struct.pack("<Q", 2**63) + bytes(64)), "letters"),
    "text of exabytes": (header(0, 1, text(b"k") + struct.pack("<IQ", 8, 2**63) + bytes(64)), "bytes"),
    "key no UTF-8": (header(0, 1, text(b"\xff\xfe") + struct.pack("<IB", 0, 1)), "UTF-8"),
    "key twice": (header(0, 2, 2 * (text(b"k") + struct.pack("<IB", 0, 1))), "twice"),
    "unknown setting": (header(0, 1, text(b"k") + struct.pack("<I", 77) + bytes(64)), "type 77"),
    "long list": (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(64)), "list"),
    "long list of numbers": (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 12, 4_000_000) + bytes(64)), "bytes"),
    "list of what": (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 55, 2) + bytes(64)), "type 55"),
    "deep list": (header(0, 1, text(b"k") + struct.pack("<I", 9) + 2000 * struct.pack("<IQ", 9, 1)), "depth"),
    "list of lists": (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 4_000_000) + bytes(400_000)), "header"),
    "alignment 3": (alignment("<II", 4, 3), "alignment"),
    "alignment 0": (alignment("<II", 4, 0), "alignment"),
    "alignment of petabytes": (alignment("<IQ", 10, 2**50), "ends at byte"),
    "alignment in words": (alignment("<IQ", 8, 0), "alignment"),
    "long name": (header(1, 0, tensor(b"n" * 10_000, (1,))) + bytes(64), "letters"),
    "name twice": (header(2, 0, tensor(b"a", (8,)) + tensor(b"a", (8,), 0, 32)) + bytes(96), "same name"),
    "rank 100": (header(1, 0, tensor(b"a", (1,) * 100)) + bytes(64), "dimensions"),
    "rank of billions": (header(1, 0, text(b"a") + struct.pack("<I", 2**32 - 1)) + bytes(64), "dimensions"),
    "huge shape": (header(1, 0, tensor(b"a", (2**62, 2**62))) + bytes(64), "shape"),
    "huge empty shape": (header(1, 0, tensor(b"a", (2**62, 0))) + bytes(64), "shape"),
    "ten terabytes": (header(1, 0, tensor(b"a", (10**11,))) + bytes(64), "ends at byte"),
    "unknown type": (header(1, 0, tensor(b"a", (32,), 99)) + bytes(512), "number 99"),
    "removed type": (header(1, 0, tensor(b"a", (32,), 4)) + bytes(512), "number 4"),
    "half a block": (header(1, 0, tensor(b"a", (33,), 2)) + bytes(512), "blocks"),
    "scalar of blocks": (header(1, 0, tensor(b"a", (), 2)) + bytes(512), "blocks"),
    "offset outside": (header(1, 0, tensor(b"a", (8,), 0, 2**40)) + bytes(64), "gap"),
    "offset not aligned": (header(1, 0, tensor(b"a", (8,), 0, 4)) + bytes(64), "gap"),
    "overlap": (header(2, 0, tensor(b"a", (64,)) + tensor(b"b", (8,), 0, 32)) + bytes(512), "overlap"),
    "gap": (header(2, 0, tensor(b"a", (8,)) + tensor(b"b", (8,), 0, 96)) + bytes(160), "gap"),
    "more behind": (header(1, 0, tensor(b"a", (8,))) + bytes(512), "follow"),
    "a part": (header(0, 1, text(b"split.count") + struct.pack("<IH", 2, 3)), "parts"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_in_words(case: str, tmp_path: Path) -> None:
    content, words = HOSTILE[case]
    (tmp_path / "x").write_bytes(content)
    assert words in refusal(read_gguf, tmp_path / "x")


def test_limits_bound_what_is_read(good: Path) -> None:
    for bound in (Limits(tensors=1), Limits(parameters=100), Limits(index=64), Limits(name=3)):
        with pytest.raises(RefusedCheckpoint):
            read_gguf(good, "x", bound)


def test_a_file_cut_after_it_was_described_is_refused(good: Path) -> None:
    found = read_gguf(good, "x", LIMITS).value["blk.0.bias"]
    with good.open("r+b") as file:
        file.truncate(good.stat().st_size - 64)
    with pytest.raises(RefusedCheckpoint, match="changed"):
        found.read()


def test_every_truncation_is_refused(good: Path) -> None:
    content = good.read_bytes()
    needed = len(content) - 24  # the last tensor has 136 bytes, padded to 160
    for length in range(needed):
        good.write_bytes(content[:length])
        assert answer(read_gguf, good)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    good = folder / "good.gguf"
    content = good.read_bytes() if good.exists() else write(good, fill).read_bytes()
    (folder / "x.gguf").write_bytes(data.draw(mutants(content)))
    answer(read_gguf, folder / "x.gguf")
