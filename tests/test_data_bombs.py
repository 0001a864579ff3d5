"""Files that claim or unpack to far more than they are: refused in words before the memory is taken."""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from probes.data import preview, read_batches
from probes.dataset import parquet
from probes.dataset.files import Source
from probes.errors import DataError
from probes.specs import DataSpec

SPARE_BYTES = 2**30
SECONDS = 20


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Let each test take a gigabyte and a few seconds, not more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, before[1]))
    started = time.process_time()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - started < SECONDS


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        read_batches(DataSpec((str(path),), **options))
    assert "memory than there is" not in str(caught.value)


def png(extra: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    return content[:33] + extra + content[33:]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_a_zip_of_zeros(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(300 * 2**20))
    refused(tmp_path / "d.zip", "decompression bomb")


def test_a_zip_whose_members_lie_on_one_another(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(2**20))
        first = archive.infolist()[0]
        for turn in range(1, 3000):  # the directory names the same bytes again and again
            twin = zipfile.ZipInfo(f"a/{turn}.png")
            for name in ("CRC", "compress_size", "file_size", "compress_type", "header_offset", "flag_bits"):
                setattr(twin, name, getattr(first, name))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    (tmp_path / "d.zip").write_bytes(buffer.getvalue())
    refused(tmp_path / "d.zip", "decompression bomb")


def test_a_gigabyte_of_gzip(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(b"1,2\n" * 2**18) for _ in range(600))
    (tmp_path / "t.csv.gz").write_bytes(packed + packer.flush())
    refused(tmp_path / "t.csv.gz", "decompression bomb")
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + bytes([32]) * 2**28 + b'"}\n', 1))
    refused(tmp_path / "t.jsonl.gz", "decompression bomb|more than 64 MiB")


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_png_chunks_that_unpack_without_end(tmp_path: Path, name: bytes) -> None:
    content = b"x\0\0" + zlib.compress(bytes(2**29), 9)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(chunk(name, content)))
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20
    try:
        assert read_batches(DataSpec((str(tmp_path),))).inputs.shape == (1, 1, 4, 4)
    except DataError as error:
        assert "damaged image" in str(error)


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 2**62), (2**40, 0, 7), (-1,), (1,) * 70])
def test_npz_headers_that_claim_terabytes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy)
        archive.writestr("y.npy", npy)
    refused(tmp_path / "d.npz", r"d\.npz/x\.npy")


@pytest.mark.parametrize("kind", ["O", "M8[s],O", [("a", "O")]])
def test_objects_in_an_npz_are_never_unpickled(tmp_path: Path, kind: Any) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "canary",))

    if kind == "O":
        np.savez(tmp_path / "d.npz", x=np.array([Touch()], object), y=np.zeros(1))
    else:
        array = np.zeros(1, kind)
        array[0] = tuple(Touch() if each.hasobject else 0 for each, _ in array.dtype.fields.values())
        np.savez(tmp_path / "d.npz", x=array, y=np.zeros(1))
    refused(tmp_path / "d.npz", "Python objects")
    assert not (tmp_path / "canary").exists()


def test_an_idx_header_that_claims_terabytes(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"\0\0\x0e\x04" + struct.pack(">4I", *[2**32 - 1] * 4) + b"\0" * 99)
    (tmp_path / "labels").write_bytes(b"\0\0\x08\x01\0\0\0\1\0")
    with pytest.raises(DataError, match="images unpacks to more than 4 GiB"):
        read_batches(DataSpec((str(tmp_path / "images"), str(tmp_path / "labels"))))


def test_a_parquet_page_that_unpacks_too_far(tmp_path: Path) -> None:
    table = pa.table({"a": np.zeros(60_000_000, np.float32), "label": pa.array(np.zeros(60_000_000, np.int8))})
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, tmp_path / "t.parquet", data_page_size=2**30, **options)
    refused(tmp_path / "t.parquet", "decompression bomb")


def test_a_parquet_value_that_is_repeated_without_end(tmp_path: Path) -> None:
    """One picture of 20 MB, kept once in the dictionary, is that of a hundred thousand rows."""
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array([b"x" * 20_000_000]))
    images = pa.StructArray.from_arrays([values], ["bytes"])
    table = pa.table({"image": images, "label": pa.array(np.zeros(100_000, np.int8))})
    pq.write_table(table, tmp_path / "t.parquet", dictionary_pagesize_limit=2**30, store_schema=False)
    assert (tmp_path / "t.parquet").stat().st_size < 25_000_000
    refused(tmp_path / "t.parquet", "unpacks to more than 4 GiB|decompression bomb")


def test_the_pages_are_walked_as_they_were_written(tmp_path: Path) -> None:
    texts = pa.array([str(row) * 20 for row in range(5000)])
    pq.write_table(
        pa.table({"a": texts}), tmp_path / "t.parquet", data_page_size=2000, use_dictionary=False, write_batch_size=50
    )
    source = Source(tmp_path / "t.parquet", "t.parquet")
    with parquet.open_parquet(source) as file, source.path.open("rb") as raw:
        about = file.metadata.row_group(0).column(0)
        chunks = list(parquet._chunks(file.metadata))
        sizes = [size for start, stop, _ in chunks for size, _ in parquet._pages(source, raw, start, stop)]
    assert len(sizes) > 20 and 0.9 * about.total_uncompressed_size < sum(sizes) < about.total_uncompressed_size


@pytest.mark.parametrize(
    "header", [b"\x19\x19" * 30_000, b"\x1c" * 60_000, b"\x18\xff\xff\xff\xff\x7f", b"\x15" + b"\xff" * 20]
)
def test_page_headers_without_end(tmp_path: Path, header: bytes) -> None:
    pq.write_table(pa.table({"a": [1.0], "label": [0]}), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[:4] + header + content[4 + len(header) :])
    source = Source(tmp_path / "t.parquet", "t.parquet")
    with source.path.open("rb") as raw, pytest.raises(DataError, match="a page has no header"):
        list(parquet._pages(source, raw, 4, 10_000))


def arrow(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "data.arrow").write_bytes(content)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def stream(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def test_packed_arrow_is_refused(tmp_path: Path) -> None:
    table = pa.table({"x": np.zeros((10**7,)), "label": np.zeros(10**7, np.int8)})
    refused(arrow(tmp_path / "d", stream(table, compression="zstd")), "is packed inside. Save it uncompressed")


def test_arrow_offsets_that_lead_out_of_the_file(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([{"bytes": b"abc"}, {"bytes": b"defg"}]), "label": [0, 1]})
    whole = stream(table)
    at = whole.index(struct.pack("<3i", 0, 3, 7))
    for place, offset in enumerate((2**31 - 1, -(2**31))):
        content = whole[: at + 8] + struct.pack("<i", offset) + whole[at + 12 :]
        refused(arrow(tmp_path / str(place), content), "damaged arrow file")


def test_arrow_lengths_that_lead_out_of_the_file(tmp_path: Path) -> None:
    whole = stream(pa.table({"x": [1.0, 2.0], "label": [0, 1]}))
    for place in range(4, len(whole) - 8, 4):
        content = whole[:place] + b"\xff\xff\xff\x7f" + whole[place + 4 :]
        folder = tmp_path / str(place)
        try:
            read_batches(DataSpec((str(arrow(folder, content)),)))
        except DataError as error:
            assert "memory than there is" not in str(error)


def test_columns_that_need_no_bytes_are_refused(tmp_path: Path) -> None:
    rows = pa.nulls(2**28)
    refused(arrow(tmp_path / "a", stream(pa.table({"x": rows, "label": rows}))), "no columns with values")
    encoded = pa.RunEndEncodedArray.from_arrays(pa.array([2**30], pa.int32()), pa.array([1.0]))
    refused(arrow(tmp_path / "b", stream(pa.table({"x": encoded, "label": encoded}))), "which is not read here")


def test_one_long_label_is_not_repeated_in_memory(tmp_path: Path) -> None:
    long = "a" * 2_000_000
    (tmp_path / "t.csv").write_text("f,label\n" + f"1,{long}\n" + "1,b\n" * 5000)
    refused(tmp_path / "t.csv", "labels are too long")


def test_a_table_of_very_many_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",".join(f"c{each}" for each in range(100_000)) + ",label\n")
    refused(tmp_path / "t.csv", "at most 20000 are read")


def test_lines_without_number(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text":""}\n' * 1_100_000)
    refused(tmp_path / "t.jsonl", "over 1048576 lines")


def test_nesting_without_end(tmp_path: Path) -> None:
    folder = arrow(tmp_path / "d", stream(pa.table({"x": [1.0], "label": [0]})))
    (folder / "dataset_info.json").write_text('{"features": ' + "[" * 10**6)
    refused(folder, "is no JSON")
    (tmp_path / "t.jsonl").write_text('{"text": ' + "[" * 10**6 + "\n")
    refused(tmp_path / "t.jsonl", "is no JSON")


def test_names_of_ten_thousand_letters_stay_out_of_messages(tmp_path: Path) -> None:
    name = "\x1b[31m<b>" + "n" * 10_000
    (tmp_path / "t.csv").write_text(f"{name},label\nred,1\n")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr(f"a/{name}.png", b"broken")
    (tmp_path / "t.jsonl").write_text(json.dumps({name: 1}) + "\n")
    for each in ("t.csv", "d.zip", "t.jsonl"):
        with pytest.raises(DataError) as caught:
            preview(DataSpec((str(tmp_path / each),)))
        assert len(str(caught.value)) < 600 and str(caught.value).isprintable()
