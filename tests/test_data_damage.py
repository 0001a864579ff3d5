"""Whatever is broken in a file of data, the reader says so in one line, as a DataError, and does it quickly."""

import gzip
import io
import random
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from probes.data import preview, read_batches
from probes.errors import DataError
from probes.specs import DataSpec

IMAGES = b"\0\0\x08\x03" + b"".join(each.to_bytes(4, "big") for each in (4, 3, 3)) + bytes(range(36))
LABELS = b"\0\0\x08\x01\0\0\0\x04" + bytes([0, 1, 2, 1])


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zip_of_images(buffer):
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(4):
            archive.writestr(f"c{index % 2}/{index}.png", png())


FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0], "label": ["x", "y", "x"]})
WHOLE = {
    "a.npz": written(lambda file: np.savez(file, x=np.ones((5, 6, 6), np.uint8), y=np.arange(5))),
    "b.npz": written(lambda file: np.savez_compressed(file, x=np.ones((3, 2)), y=np.array(list("aba")))),
    "i.zip": written(zip_of_images),
    "t.csv": FRAME.to_csv(index=False).encode(),
    "t.csv.gz": gzip.compress(FRAME.to_csv(index=False).encode()),
    "t.parquet": written(FRAME.to_parquet),
    "x.jsonl": b'{"input_ids": [1, 2, 3]}\n{"input_ids": [4, 5, 6], "labels": [1, -100, 3]}\n',
    "y.jsonl": b'{"text": "hello"}\n{"text": "w\\u00f6rld"}\n',
    "images": IMAGES,
    "images.gz": gzip.compress(IMAGES),
}


def damaged(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place, kind = chance.randrange(len(content) + 1), chance.random()
        if kind < 0.6:
            content[place : place + 1] = bytes([chance.randrange(256)])
        elif kind < 0.8:
            content[place : place + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b""])
        else:
            del content[place:]
    return bytes(content)


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, name):
    chance = random.Random(name)
    (tmp_path / "labels").write_bytes(LABELS)
    files = (str(tmp_path / name), *([str(tmp_path / "labels")] if name.startswith("images") else []))
    (tmp_path / name).write_bytes(WHOLE[name])
    whole = read_batches(DataSpec(files))
    refused = 0
    for turn in range(60):
        (tmp_path / name).write_bytes(damaged(WHOLE[name], chance))
        started = time.process_time()
        try:
            (preview if turn % 3 == 0 else read_batches)(DataSpec(files))
        except DataError as error:
            refused += 1
            assert len(str(error)) < 500 and "\n" not in str(error)
        assert time.process_time() - started < 5
    assert len(whole) >= 2 and refused > 10
