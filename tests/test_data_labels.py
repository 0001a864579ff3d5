"""A labels.csv beside images, splits as folders, and the picture formats, against what Pillow and pandas wrote."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from probes.data import read_batches
from probes.dataset import pictures
from probes.errors import DataError
from probes.specs import DataSpec


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def written(path: Path, members: dict[str, bytes | str], zipped: bool) -> DataSpec:
    contents = {name: each.encode() if isinstance(each, str) else each for name, each in members.items()}
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return DataSpec((str(path),))
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return DataSpec((str(path),))


ARRAYS = {f"{row}.png": pixels(4, 4, seed=row) for row in range(5)}
IMAGES: dict[str, bytes | str] = {name: encoded(each) for name, each in ARRAYS.items()}
WAYS = pytest.mark.parametrize("zipped", [False, True])


def listed(rows: list[tuple[str, Any]], columns: tuple[str, str] = ("file", "label"), **options: Any) -> str:
    return str(pd.DataFrame(rows, columns=list(columns)).to_csv(index=False, **options))


@WAYS
@pytest.mark.parametrize("columns", [("file", "label"), ("Filename", "class"), ("path", "target"), ("image", "label")])
@pytest.mark.parametrize("options", [{}, {"sep": ";"}, {"encoding": "utf-8", "lineterminator": "\r\n"}])
def test_labels_and_order_are_those_of_the_list(
    tmp_path: Path, zipped: bool, columns: tuple[str, str], options: dict[str, Any]
) -> None:
    rows = [("3.png", "owl"), ("0.png", "a, b"), ("4.png", "owl"), ("1.png", "cat"), ("2.png", "cat")]
    members = {**IMAGES, "labels.csv": listed(rows, columns, **options)}
    batches = read_batches(written(tmp_path / "d", members, zipped))
    assert batches.ids == tuple(name for name, _ in rows) and batches.classes == ("a, b", "cat", "owl")
    assert [batches.classes[each] for each in batches.targets.tolist()] == [label for _, label in rows]
    for row, (name, _) in enumerate(rows):
        assert np.allclose(batches.inputs[row, 0].numpy(), ARRAYS[name] / 255)
    assert batches.about["label"] == columns[1]


@WAYS
@pytest.mark.parametrize(("folder", "prefix"), [("", "pics/"), ("pics/", "pics/"), ("./pics/", "pics/"), ("", "")])
def test_the_list_may_lie_above_the_images(tmp_path: Path, zipped: bool, folder: str, prefix: str) -> None:
    members = {f"top/{prefix}{name}": content for name, content in IMAGES.items()}
    rows = [(f"{folder}{name}", row % 2) for row, name in enumerate(IMAGES)]
    batches = read_batches(written(tmp_path / "d", {**members, "top/labels.csv": listed(rows)}, zipped))
    assert batches.targets.tolist() == [0, 1, 0, 1, 0] and batches.classes == ("0", "1")


@pytest.mark.parametrize(
    ("labels", "dtype"), [([0.5, 1.5, -1, 2, 3], "torch.float32"), ([3, 1, 0, 2, 1], "torch.int64")]
)
def test_numbers_are_values_or_classes(tmp_path: Path, labels: list[float], dtype: str) -> None:
    members = {**IMAGES, "labels.csv": listed(list(zip(IMAGES, labels, strict=True)))}
    batches = read_batches(written(tmp_path / "d", members, False))
    assert batches.targets.tolist() == labels and str(batches.targets.dtype) == dtype


def test_another_column_of_labels_may_be_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"file": list(IMAGES), "label": 0, "breed": list("abcab")})
    spec = written(tmp_path / "d", {**IMAGES, "labels.csv": frame.to_csv(index=False)}, False)
    batches = read_batches(DataSpec(spec.files, label="breed"))
    assert batches.classes == ("a", "b", "c") and batches.about["not_used"] == ["label"]


def test_formulas_are_only_text(tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://evil.example","x")'
    members = {**IMAGES, "labels.csv": listed([(name, formula) for name in IMAGES])}
    assert read_batches(written(tmp_path / "d", members, True)).classes == (formula,)
    (tmp_path / "t.csv").write_text('a,label\n1,"=1+1"\n2,@SUM(A1)\n')
    assert read_batches(DataSpec((str(tmp_path / "t.csv"),))).classes == ("=1+1", "@SUM(A1)")


@WAYS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (listed([(name, 1) for name in list(IMAGES)[:4]]), r"does not list the image '4\.png'"),
        (listed([*((name, 1) for name in IMAGES), ("5.png", 1)]), r"row 6 names '5\.png', which is not there"),
        (listed([*((name, 1) for name in IMAGES), ("2.png", 2)]), r"row 6 names '2\.png' again"),
        (listed([("../../etc/passwd", 1)]), r"row 1 names '\.\./\.\./etc/passwd', which is not there"),
        (listed([("0.png", "x"), ("1.png", "")]), r"row 2 \('1\.png'\) has no label"),
        ("file,label\n0.png,x\n1.png\n", "row 2 has 1 values, the first line names 2"),
        ("file,label\n0.png,x,y\n", "row 1 has 3 values"),
        ("name,label\n0.png,x\n", "has no column of files"),
        ("file,path,label\n0.png,0.png,x\n", "has more than one column of files"),
        ("file,kind\n0.png,x\n", r"no column of labels \(label, class, target\); it has 'file', 'kind'"),
        ("", "has no column of files"),
        (b"file,label\n0.png,\xff\n", "is not UTF-8"),
        ("file,label\n0.png,x\0y\n" + "a" * 200_000, "labels.csv"),
    ],
)
def test_lists_that_are_refused_by_row(tmp_path: Path, zipped: bool, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_batches(written(tmp_path / "d", {**IMAGES, "labels.csv": content}, zipped))


def test_two_lists_are_refused(tmp_path: Path) -> None:
    members = {**IMAGES, "labels.csv": listed([]), "more/labels.csv": listed([])}
    with pytest.raises(DataError, match="holds 2 lists of labels"):
        read_batches(written(tmp_path / "d", members, True))


@WAYS
def test_folders_named_after_splits_are_splits(tmp_path: Path, zipped: bool) -> None:
    places = {"train/cat/0.png": 0, "train/dog/1.png": 1, "test/cat/2.png": 2, "test/dog/3.png": 3, "test/owl/4.png": 4}
    spec = written(tmp_path / "d", {f"pets/{place}": IMAGES[f"{row}.png"] for place, row in places.items()}, zipped)
    unsaid = read_batches(spec)
    assert unsaid.classes == ("cat", "dog") and "'train' is taken" in unsaid.doubts[0]
    batches = read_batches(DataSpec(spec.files, split="test"))
    assert batches.ids == ("pets/test/cat/2.png", "pets/test/dog/3.png", "pets/test/owl/4.png")
    assert batches.about["splits"] == ["test", "train"] and batches.doubts == ()
    with pytest.raises(DataError, match="no split 'dev'; it has 'test', 'train'"):
        read_batches(DataSpec(spec.files, split="dev"))


@WAYS
def test_splits_may_have_a_list_each(tmp_path: Path, zipped: bool) -> None:
    members = {f"{split}/{name}": content for split in ("train", "val") for name, content in IMAGES.items()}
    lists = {f"{split}/labels.csv": listed([(name, split) for name in IMAGES]) for split in ("train", "val")}
    spec = written(tmp_path / "d", {**members, **lists}, zipped)
    assert read_batches(DataSpec(spec.files, split="val")).classes == ("val",)


@pytest.mark.parametrize(
    ("options", "tolerance", "doubt"), [({"lossless": True}, 0, False), ({"quality": 90}, 60, True)]
)
def test_webp_is_read(tmp_path: Path, options: dict[str, Any], tolerance: int, doubt: bool) -> None:
    smooth = np.add.outer(np.arange(16), np.arange(16))[:, :, None] * np.array([4, 6, 8])
    array = smooth.astype(np.uint8)
    batches = read_batches(written(tmp_path / "d", {"a/1.webp": encoded(array, "WEBP", **options)}, True))
    found = (batches.inputs[0].numpy().transpose(1, 2, 0) * 255).round()
    assert np.abs(found - array).max() <= tolerance
    assert any("WebP is lossy" in each for each in batches.doubts) == doubt


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(pixels(4, 4, 3, seed=row)) for row in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def webp_claiming(width: int, height: int) -> bytes:
    plain = bytearray(encoded(pixels(4, 4, 4), "WEBP", quality=50))  # with transparency, so in a VP8X container
    assert plain[12:16] == b"VP8X"
    plain[24:27], plain[27:30] = (width - 1).to_bytes(3, "little"), (height - 1).to_bytes(3, "little")
    return bytes(plain)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.webp", animated("WEBP"), r"a/1\.webp is animated"),
        ("1.png", animated("PNG"), r"a/1\.png is animated"),
        ("1.webp", webp_claiming(2**24, 2**24), "has 16777216 x 16777216 pixels"),
        ("1.webp", webp_claiming(5000, 5000), "has 5000 x 5000 pixels"),
        ("1.webp", encoded(pixels(40, 40, 3), "WEBP")[:60], "damaged image|no PNG"),
        ("1.webp", b"RIFF\x10\0\0\0WEBPVP8X", "damaged image|no PNG"),
        ("1.png", encoded(np.full((4, 4), 1000, np.uint16)), "16 bits a channel"),
        ("1.jpg", encoded(pixels(8, 8), "JPEG")[:2] + b"\xff\xda\0\2" * 900, "a JPEG of 900 passes"),
        ("1.png", encoded(pixels(8, 8), "GIF"), r"no PNG, JPEG or WebP"),
    ],
)
def test_pictures_that_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_batches(written(tmp_path / "d", {f"a/{name}": content}, True))


def test_sixteen_bits_of_colour_are_not_halved_in_silence() -> None:
    plain = bytearray(encoded(pixels(4, 4, 3)))
    plain[24] = 16  # the depth of a channel, in the header
    with pytest.raises(DataError, match="16 bits a channel"):
        pictures.decode("a.png", bytes(plain))
