"""Images by class from folders and zips, compared with the pixels that Pillow was given."""

import io
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from probes.data import preview, read_batches
from probes.dataset import images, pictures
from probes.errors import DataError
from probes.specs import DataSpec


def encoded(array, kind="PNG", mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return DataSpec((str(path),))


def write_folder(path, members):
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return DataSpec((str(path),))


WRITERS = pytest.mark.parametrize("write", [write_zip, write_folder])


@WRITERS
def test_classes_are_the_sorted_folders_and_pixels_are_kept(tmp_path, write):
    arrays = {"dog/2.png": pixels(6, 5, 3), "cat/a.png": pixels(6, 5, 3, seed=1), "cat/b.PNG": pixels(6, 5, 3, seed=2)}
    spec = write(tmp_path / "data", {f"train/{name}": encoded(each) for name, each in arrays.items()})
    batches = read_batches(spec)
    assert batches.classes == ("cat", "dog") and batches.targets.tolist() == [0, 0, 1]
    assert batches.ids == ("train/cat/a.png", "train/cat/b.PNG", "train/dog/2.png")
    for row, name in enumerate(("cat/a.png", "cat/b.PNG", "dog/2.png")):
        expected = arrays[name].transpose(2, 0, 1) / 255
        assert np.allclose(batches.inputs[row].numpy(), expected, atol=1e-7)
    assert batches.doubts == ()


@WRITERS
def test_grey_images_have_one_channel_and_the_order_follows_the_seed(tmp_path, write):
    arrays = {f"{index % 2}/{index}.png": np.full((4, 4), index * 10, np.uint8) for index in range(8)}
    spec = write(tmp_path / "d", {name: encoded(each) for name, each in arrays.items()})
    order = np.random.default_rng(3).permutation(8)[:5]
    batches = read_batches(DataSpec(spec.files, shuffle=3, examples=5))
    names = sorted(arrays)
    assert batches.ids == tuple(names[each] for each in order) and batches.inputs.shape == (5, 1, 4, 4)
    expected = [arrays[names[each]][0, 0] / 255 for each in order]
    assert np.allclose(batches.inputs[:, 0, 0, 0].numpy(), expected)


def test_rubbish_of_operating_systems_is_skipped(tmp_path):
    members = {"a/1.png": encoded(pixels(4, 4)), "b/1.png": encoded(pixels(4, 4)), "a/notes.txt": b"hello"}
    rubbish = {"__MACOSX/a/._1.png": b"no image", "a/.hidden.png": b"no image", "Thumbs.db": b"x"}
    batches = read_batches(write_zip(tmp_path / "d.zip", {**members, **rubbish}))
    assert batches.ids == ("a/1.png", "b/1.png")


def test_what_is_changed_is_said(tmp_path):
    grey, colour = pixels(4, 4), pixels(4, 4, 3)
    members = {"a/1.png": encoded(grey), "b/1.png": encoded(colour), "b/2.png": encoded(colour, mode="RGBA")}
    batches = read_batches(write_zip(tmp_path / "d.zip", {**members, "b/3.jpg": encoded(colour, "JPEG")}))
    text = " ".join(batches.doubts)
    assert "mode RGBA" in text and "1 of 4 images are grey" in text and "JPEG is lossy" in text
    assert np.allclose(batches.inputs[0].numpy(), np.stack([grey] * 3) / 255)
    assert np.allclose(batches.inputs[2].numpy(), colour.transpose(2, 0, 1) / 255)


def test_palettes_with_transparency_become_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=b"\x00\x80\xff\xff")
    batches = read_batches(write_zip(tmp_path / "d.zip", {"a/1.png": buffer.getvalue()}))
    assert batches.inputs[0, :, 0, 1].tolist() == [1, 0, 0] and batches.inputs[0, :, 1, 1].tolist() == [0, 0, 1]


def test_one_class_only_is_a_doubt(tmp_path):
    batches = read_batches(write_zip(tmp_path / "d.zip", {"cats/1.png": encoded(pixels(4, 4))}))
    assert batches.classes == ("cats",) and "one class" in batches.doubts[0]


def png_claiming(width, height):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@WRITERS
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a/1.png": encoded(pixels(4, 4)), "b/2.png": encoded(pixels(5, 4))}, r"b/2.png is 4 x 5, a/1.png is 4 x 4"),
        ({"1.png": encoded(pixels(4, 4)), "b/2.png": encoded(pixels(4, 4))}, "'1.png' lies in no class"),
        (
            {"red/a/1.png": encoded(pixels(4, 4)), "blue/a/1.png": encoded(pixels(4, 4))},
            "folders inside of its folders 'blue', 'red'",
        ),
        ({"a/1.png": png_claiming(50_000, 50_000)}, "a/1.png.*(pixels|bomb)"),
        ({"a/1.png": png_claiming(9_000, 9_000)}, "a/1.png has 9000 x 9000 pixels"),
        ({"a/1.png": png_claiming(4, 4)}, "a/1.png is a damaged image"),
        ({"a/1.png": encoded(pixels(40, 40))[:-60]}, "a/1.png is a damaged image"),
        ({"a/1.png": b"GIF89a" + b"\0" * 40}, "a/1.png is no PNG, JPEG or WebP"),
        ({"a/1.png": encoded(np.full((4, 4), 1000, np.uint16))}, "16 bits a channel"),
    ],
)
def test_images_that_are_refused_by_name(tmp_path, write, members, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = write(tmp_path / "d", members)
        with pytest.raises(DataError, match=message):
            read_batches(spec)


def test_a_folder_or_zip_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no PNG, JPEG or WebP"):
        read_batches(DataSpec((str(tmp_path / "empty"),)))
    with pytest.raises(DataError, match=r"zip without PNG, JPEG or .npy files \(it holds 'a.gif'\)"):
        read_batches(write_zip(tmp_path / "d.zip", {"a.gif": b"GIF89a"}))
    with pytest.raises(DataError, match="PyTorch file, not data"):
        read_batches(write_zip(tmp_path / "d.zip", {"archive/data.pkl": b"\x80"}))


def test_a_linked_folder_is_refused(tmp_path):
    write_folder(tmp_path / "real", {"a/1.png": encoded(pixels(4, 4))})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "real" / "a")
    with pytest.raises(DataError, match="'a' is a link"):
        read_batches(DataSpec((str(tmp_path / "data"),)))


def test_members_are_read_under_a_budget(tmp_path, monkeypatch):
    spec = write_zip(tmp_path / "d.zip", {f"a/{index}.png": encoded(pixels(20, 20)) for index in range(9)})
    monkeypatch.setattr(pictures, "MAX_BYTES", 5 * 400)
    assert len(read_batches(DataSpec(spec.files, examples=5))) == 5
    with pytest.raises(DataError, match="unpack to over"):
        read_batches(spec)
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_batches(spec)


def test_only_the_chosen_images_are_opened(tmp_path):
    members = {f"a/{index}.png": encoded(pixels(4, 4)) for index in range(3)}
    spec = write_zip(tmp_path / "d.zip", {**members, "b/9.png": b"broken"})
    assert len(read_batches(DataSpec(spec.files, examples=3))) == 3
    seen = preview(DataSpec(spec.files, examples=3))
    assert seen["classes"] == [["a", 3], ["b", 0]] and seen["shape"] == [1, 4, 4]
