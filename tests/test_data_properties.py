"""Whatever bytes a file of data holds, it is read or refused in one sentence: no crash, no hang, no gigabytes."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from probes.data import Batches, preview, read_batches
from probes.errors import DataError
from probes.specs import DataSpec

EXAMPLES = int(os.environ.get("THEODOLITE_FUZZ_EXAMPLES", "40"))
SPARE_BYTES = 2**30
SECONDS = 10
FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4, 5, 6], "label": ["x", "y", "x"]})
ARRAY = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)

Whole = tuple[str, bytes]  # the name of a file, and its content


def made(write: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    array = np.random.default_rng(0).integers(0, 256, (9, 7, len(mode)), dtype=np.uint8)
    return made(lambda file: Image.fromarray(array, mode).save(file, kind, **options))


def zipped(members: dict[str, bytes]) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return made(write)


def stream(columns: dict[str, Any], compression: str | None = None) -> bytes:
    table = pa.table(columns)

    def write(file: io.BytesIO) -> None:
        with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table)

    return made(write)


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


NESTED = {"label": [0, 1], "x": [[[1.0, 2.0]], [[3.0, 4.0]]], "id": ["a", "b"]}
IMAGES = {
    "image": [{"bytes": picture("PNG"), "path": "a.png"}, {"bytes": picture("PNG"), "path": None}],
    "label": [0, 1],
}
TOKENS = {"input_ids": [[1, 2, 3], [4, 5]], "labels": [[1, -100, 3], [4, 5]]}
HEADER = struct.pack("<3i", 20240520, 1, 6) + b"\0" * 1012
CASES: dict[str, Whole] = {
    "csv": ("t.csv", FRAME.to_csv(index=False).encode()),
    "csv.gz": ("t.csv.gz", made(lambda file: FRAME.to_csv(file, index=False, compression="gzip"))),
    "npz": ("a.npz", made(lambda file: np.savez(file, x=ARRAY, y=np.arange(5)))),
    "packed npz": ("a.npz", made(lambda file: np.savez_compressed(file, x=ARRAY, y=np.array(list("abcab"))))),
    "tokens npz": ("a.npz", made(lambda file: np.savez(file, input_ids=np.arange(12).reshape(3, 4)))),
    "idx": ("images-idx3-ubyte", idx(ARRAY)),
    "arrow of arrays": ("set/data.arrow", stream(NESTED)),
    "arrow of images": ("set/data.arrow", stream(IMAGES)),
    "arrow of tokens": ("set/data.arrow", stream(TOKENS)),
    "packed arrow": ("set/data.arrow", stream(NESTED, "zstd")),
    "arrow's info": ("set/dataset_info.json", b'{"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}'),
    "arrow's state": ("set/state.json", b'{"_data_files": [{"filename": "data.arrow"}]}'),
    "bin": ("t.bin", np.arange(40, dtype="<u2").tobytes()),
    "llm.c": ("t.bin", HEADER + np.arange(6, dtype="<u2").tobytes()),
    "png": ("pics/a/1.png", picture("PNG")),
    "palette": ("pics/a/1.png", made(lambda file: Image.fromarray(ARRAY[0]).convert("P").save(file, "PNG"))),
    "jpeg": ("pics/a/1.jpg", picture("JPEG", progressive=True)),
    "webp": ("pics/a/1.webp", picture("WEBP", "RGBA", quality=60)),
    "lossless webp": ("pics/a/1.webp", picture("WEBP", lossless=True)),
    "labels.csv": ("pics/labels.csv", b"file,label\n0.png,a\n"),
    "zip": ("i.zip", zipped({"a/1.png": picture("PNG"), "b/2.png": picture("PNG")})),
    "parquet": ("t.parquet", made(FRAME.to_parquet)),
    "parquet of images": ("t.parquet", made(lambda file: pa.parquet.write_table(pa.table(IMAGES), file))),
    "jsonl": ("x.jsonl", b'{"input_ids": [1, 2, 3], "id": 7}\n{"input_ids": [4, 5], "labels": [1, -100]}\n'),
    "jsonl text": ("x.jsonl", b'{"text": "hello", "label": "a"}\n{"text": "w\\u00f6rld", "label": "b"}\n'),
    "text": ("t.txt", "one\ntwo wörd\n".encode()),
}
BESIDE: dict[str, tuple[Whole, ...]] = {
    "images-idx3-ubyte": (("labels-idx1-ubyte", idx(np.arange(5, dtype=np.uint8))),),
    "set/data.arrow": (CASES["arrow's info"], CASES["arrow's state"]),
    "set/dataset_info.json": (CASES["arrow of arrays"], CASES["arrow's state"]),
    "set/state.json": (CASES["arrow of arrays"], CASES["arrow's info"]),
    "pics/labels.csv": (("pics/0.png", picture("PNG")),),
}
ODD = st.sampled_from(
    [b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0" * 7 + b"\x7f", b"9" * 12, b"[" * 300, b'"', b"\n"]
)
EDIT = st.tuples(st.integers(0, 2**16), st.integers(0, 8), ODD | st.binary(max_size=6))


def changed(content: bytes, edits: list[tuple[int, int, bytes]], end: int) -> bytes:
    """Put other bytes in the place of some, and cut off what is behind the end (0: nothing)."""
    for place, length, other in edits:
        at = place % (len(content) + 1)
        content = content[:at] + other + content[at + length :]
    return content[: -(end % (len(content) + 1))] if end else content


def outcome(folder: Path, whole: Whole, content: bytes, look: bool) -> Batches | dict[str, Any] | DataError:
    """Read a changed file in a folder of its own."""
    name, _ = whole
    for place, each in ((name, content), *BESIDE.get(name, ())):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(each)
    spec = DataSpec((str(folder / name.split("/")[0]),))
    try:
        return preview(spec) if look else read_batches(spec)
    except DataError as error:
        return error


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let the process take only so much more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(whole: Whole, content: bytes, look: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, bounded():
        started = time.process_time()
        found = outcome(Path(folder), whole, content, look)
        assert time.process_time() - started < SECONDS
    if isinstance(found, DataError):
        assert 10 < len(str(found)) < 700 and str(found).isprintable()
        assert "memory" not in str(found)
    elif isinstance(found, Batches):
        assert len(found.inputs) == len(found.targets) == len(found.ids) > 0


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES < 1000)
@given(edits=st.lists(EDIT, min_size=1, max_size=4), end=st.just(0) | st.integers(0, 2**16), look=st.booleans())
def test_changed_files_are_read_or_refused(case: str, edits: list[Any], end: int, look: bool) -> None:
    check(CASES[case], changed(CASES[case][1], edits, end), look)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES.values()}))
@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES < 1000)
@given(content=st.binary(max_size=3000), look=st.booleans())
def test_any_bytes_are_read_or_refused(name: str, content: bytes, look: bool) -> None:
    check((name, b""), content, look)


@pytest.mark.parametrize("case", CASES)
def test_unchanged_files_are_read(case: str, tmp_path: Path) -> None:
    found = outcome(tmp_path, CASES[case], CASES[case][1], False)
    assert isinstance(found, Batches) or case == "packed arrow", found
