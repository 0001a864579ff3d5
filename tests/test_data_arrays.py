"""IDX pairs and npz files against hand parses; scaling, layout, order and hash against NumPy and hashlib."""

import gzip
import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from probes.data import preview, read_batches
from probes.errors import DataError
from probes.specs import DataSpec


def write_idx(path, array, packed=False):
    codes = {"uint8": 8, "int32": 0x0C, "float32": 0x0D}
    head = bytes([0, 0, codes[str(array.dtype)], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)
    return str(path)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return DataSpec((str(path),))


@pytest.fixture
def pair(tmp_path):
    images, labels = pixels(7, 5, 4), np.array([3, 1, 0, 2, 2, 1, 3], np.uint8)
    files = (write_idx(tmp_path / "a-idx3-ubyte.gz", images, packed=True), write_idx(tmp_path / "b", labels))
    return files, images, labels


def test_real_mnist_is_what_a_hand_parse_gives(real):
    folder = real / "mnist"
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    count, height, width = struct.unpack(">3I", raw[4:16])
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    files = tuple(str(folder / f"t10k-{each}-ubyte.gz") for each in ("images-idx3", "labels-idx1"))
    batches = read_batches(DataSpec(files))
    assert (count, height, width) == (10_000, 28, 28)
    assert batches.inputs.shape == (10_000, 1, 28, 28) and batches.inputs.dtype == torch.float32
    expected = np.frombuffer(raw, np.uint8, offset=16).reshape(count, 1, height, width) / 255
    assert np.allclose(batches.inputs.numpy(), expected, atol=1e-7, rtol=0)
    assert batches.targets.tolist() == list(labels) and batches.targets.dtype == torch.int64
    assert batches.classes == tuple("0123456789") and len(batches) == 10_000
    assert batches.ids[17] == "t10k-images[17]" and batches.doubts == ()


def test_real_cifar_goes_channels_first_and_is_normalised_by_channel(real):
    file = real / "cifar10-resnet20" / "cifar10-train-1000.npz"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batches = read_batches(DataSpec((str(file),), mean=mean, std=std))
    with np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    for channel in range(3):
        expected = (images[..., channel].astype(np.float64) / 255 - mean[channel]) / std[channel]
        assert np.abs(batches.inputs[:, channel].numpy() - expected).max() < 1e-6
    assert batches.targets.tolist() == labels.tolist()


def test_a_pair_is_recognised_in_either_order_and_in_a_folder(pair, tmp_path):
    files, images, labels = pair
    first, second = read_batches(DataSpec(files)), read_batches(DataSpec(files[::-1]))
    third = read_batches(DataSpec((str(tmp_path),)))
    assert first.sha256 == second.sha256 == third.sha256
    assert first.targets.tolist() == labels.tolist() and first.about["of"] == 7
    assert torch.equal((first.inputs[:, 0] * 255).round().to(torch.uint8), torch.from_numpy(images))


def test_big_endian_numbers_are_read_and_only_uint8_is_scaled(tmp_path):
    images = np.array([[[1.5, -2.0]], [[0.25, 40.0]]], np.float32)
    labels = np.array([70_000, 2], np.int32)
    files = (write_idx(tmp_path / "x", images), write_idx(tmp_path / "y", labels))
    batches = read_batches(DataSpec(files))
    assert batches.inputs[:, 0].tolist() == images.tolist() and batches.targets.tolist() == [70_000, 2]
    assert any("not divided by 255" in each for each in batches.doubts)


def test_order_limit_and_hash(pair):
    files, images, labels = pair
    first = read_batches(DataSpec(files, examples=3))
    assert first.targets.tolist() == labels[:3].tolist() and first.ids == ("a[0]", "a[1]", "a[2]")
    shuffled = read_batches(DataSpec(files, examples=3, shuffle=5))
    order = np.random.default_rng(5).permutation(7)[:3]
    assert shuffled.ids == tuple(f"a[{each}]" for each in order)
    assert shuffled.targets.tolist() == labels[order].tolist()
    assert torch.equal(shuffled.inputs, read_batches(DataSpec(files)).inputs[order.copy()])
    assert shuffled.sha256 != first.sha256
    digest = hashlib.sha256(b"torch.float32 (3, 1, 5, 4)\n" + (images[:3, None] / np.float32(255)).tobytes())
    digest.update(b"torch.int64 (3,)\n" + labels[:3].astype(np.int64).tobytes())
    assert first.sha256 == digest.hexdigest()


def test_more_examples_than_there_are_is_a_doubt(pair):
    batches = read_batches(DataSpec(pair[0], examples=50))
    assert len(batches) == 7 and "the data has 7" in batches.doubts[0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 5, 6), (2, 1, 5, 6)),
        ((2, 5, 6, 3), (2, 3, 5, 6)),
        ((2, 5, 6, 1), (2, 1, 5, 6)),
        ((2, 3, 5, 6), (2, 3, 5, 6)),
    ],
)
def test_channels_come_first(tmp_path, shape, expected):
    images = pixels(*shape)
    batches = read_batches(npz(tmp_path / "d.npz", x=images, y=np.array([0, 1])))
    assert batches.inputs.shape == expected
    value = float(images[1, 2, 4, 2] if shape[-1] == 3 else images.reshape(expected)[1, 0, 2, 4]) / 255
    channel = 2 if shape[-1] == 3 else 0
    assert float(batches.inputs[1, channel, 2, 4]) == pytest.approx(value)


@pytest.mark.parametrize("inputs", ["images", "x", "X", "data"])
@pytest.mark.parametrize("targets", ["labels", "y", "targets"])
def test_npz_names(tmp_path, inputs, targets):
    spec = npz(tmp_path / "d.npz", **{inputs: np.eye(3, dtype=np.float32), targets: np.array([2, 0, 1]), "extra": [1]})
    batches = read_batches(spec)
    assert batches.inputs.tolist() == np.eye(3).tolist() and batches.targets.tolist() == [2, 0, 1]
    assert batches.about["not_used"] == ["extra"] and batches.ids[2] == "d[2]"


@pytest.mark.parametrize(
    ("labels", "dtype", "values", "classes"),
    [
        (np.array(["b", "a", "b"]), torch.int64, [1, 0, 1], ("a", "b")),
        (np.array([[2], [0], [1]]), torch.int64, [2, 0, 1], ("0", "1", "2")),
        (np.array([0.5, 1.25, -3.0]), torch.float32, [0.5, 1.25, -3.0], ()),
        (np.array([[0, 1], [1, 1], [0, 0]]), torch.float32, [[0, 1], [1, 1], [0, 0]], ()),
        (np.array([True, False, True]), torch.int64, [1, 0, 1], ("0", "1")),
    ],
)
def test_kinds_of_labels(tmp_path, labels, dtype, values, classes):
    batches = read_batches(npz(tmp_path / "d.npz", x=np.ones((3, 2), np.float32), y=labels))
    assert batches.targets.dtype == dtype and batches.targets.tolist() == values and batches.classes == classes


def test_doubts_about_labels_are_said(tmp_path):
    def doubts(labels):
        return " ".join(read_batches(npz(tmp_path / "d.npz", x=np.ones((3, 2)), y=labels)).doubts)

    assert "class 0 does not occur" in doubts(np.array([1, 2, 3]))
    assert "from -1 to 1" in doubts(np.array([-1, 1, 1]))
    assert "all whole" in doubts(np.array([0.0, 1.0, 2.0]))
    assert "one-hot" in doubts(np.eye(3, dtype=np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.1, 0.2)}, "mean has 2 values, the inputs have 3 channels"),
        ({"std": (0.1, 0.0, 0.2)}, "every value must be above 0"),
        ({"std": (-1.0,)}, "every value must be above 0"),
        ({"mean": (float("nan"),)}, "must be finite"),
        ({"examples": -1}, "-1 examples"),
        ({"shuffle": -3}, "seed of the order is -3"),
        ({"format": "idx"}, "is npz, not idx"),
    ],
)
def test_choices_that_make_no_sense_are_refused(tmp_path, change, message):
    np.savez(tmp_path / "d.npz", x=pixels(4, 8, 8, 3), y=np.arange(4))
    with pytest.raises(DataError, match=message):
        read_batches(DataSpec((str(tmp_path / "d.npz"),), **change))


def test_a_mean_on_the_scale_of_bytes_is_a_doubt(tmp_path):
    np.savez(tmp_path / "d.npz", x=pixels(4, 8, 8), y=np.arange(4))
    batches = read_batches(DataSpec((str(tmp_path / "d.npz"),), mean=(125.0,), std=(60.0,)))
    assert "lies outside of the inputs" in batches.doubts[-1]


def idx_head(*shape, code=8):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_head(2, 3, 3) + b"\0" * 17, "but 17 follow"),
        (idx_head(2, 3, 3) + b"\0" * 19, "but more follow"),
        (idx_head(2, 3, 3)[:9], "ends inside its header"),
        (gzip.compress(idx_head(2, 3, 3) + b"\0" * 18)[:-9], "gzip data ends"),
        (idx_head(3, 3, 3) + b"\0" * 27, "3 examples.*2 labels"),
        (idx_head(4_000_000, 1000) + b"\0", "decompression bomb"),
        (idx_head(4_000_000_000, 1000) + b"\0", "more than 4 GiB"),
        (gzip.compress(idx_head(100_000, 1000) + b"\0" * 10**8), "decompression bomb"),
        (idx_head(2) + b"\0\0", "one must be images"),
    ],
)
def test_idx_files_that_are_refused(tmp_path, content, message):
    (tmp_path / "images").write_bytes(content)
    labels = write_idx(tmp_path / "labels", np.array([0, 1], np.uint8))
    with pytest.raises(DataError, match=message) as caught:
        read_batches(DataSpec((str(tmp_path / "images"), labels)))
    assert "images" in str(caught.value)


def test_one_idx_file_alone_is_refused(pair):
    with pytest.raises(DataError, match="two files, images and labels, 1 given"):
        read_batches(DataSpec(pair[0][:1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x80\x04\x95", "pickle"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01\x00", "numpy.savez"),
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"\x89PNG\r\n\x1a\n", "single image"),
        (b"abc\0def", "no data that is known"),
        (b"x" * 257 + b"ustar", "tar archive"),
    ],
)
def test_foreign_files_are_named(tmp_path, content, message):
    (tmp_path / "thing.dat").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_batches(DataSpec((str(tmp_path / "thing.dat"),)))
    assert str(caught.value).startswith("thing.dat is ")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"gone\.npz does not exist"):
        read_batches(DataSpec((str(tmp_path / "gone.npz"),)))
    with pytest.raises(DataError, match="No data was given"):
        read_batches(DataSpec(()))


def test_names_of_stored_files_are_used(pair):
    files, _, _ = pair
    names = {files[0]: "train-images-idx3-ubyte.gz", files[1]: "train-labels-idx1-ubyte.gz"}
    batches = read_batches(DataSpec(files), names)
    assert batches.ids[0] == "train-images[0]" and batches.about["source"] == list(names.values())


def test_preview_counts_classes_and_draws(pair):
    files, images, labels = pair
    seen = preview(DataSpec(files, examples=6), count=4)
    assert seen["examples"] == 6 and seen["shape"] == [1, 5, 4] and seen["dtype"] == "uint8"
    assert seen["classes"] == [[str(each), int((labels[:6] == each).sum())] for each in range(4)]
    assert seen["range"] == pytest.approx([images[:6].min() / 255, images[:6].max() / 255])
    assert seen["labels"] == ["3", "1", "0", "2"] and seen["about"]["of"] == 7


def test_preview_sheet_shows_the_pixels(pair):
    import base64

    from PIL import Image

    files, images, _ = pair
    sheet = preview(DataSpec(files), count=4)["sheet"]
    head, content = sheet.split(",")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"))
    assert head == "data:image/png;base64" and image.shape == (84, 4 * (67 + 6) - 6)
    assert image[2, 2] == images[0, 0, 0] and image[81, 2] == images[0, 4, 0] and image[2, 73 + 65] == images[1, 0, 3]


def test_half_of_a_pair_finds_the_other_beside_it(real: Path, tmp_path: Path) -> None:
    whole = read_batches(DataSpec((str(real / "mnist"),), examples=20))
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        half = read_batches(DataSpec((str(real / "mnist" / name),), examples=20))
        assert half.sha256 == whole.sha256
        alone = tmp_path / name
        alone.write_bytes((real / "mnist" / name).read_bytes())
        with pytest.raises(DataError, match="two files"):
            read_batches(DataSpec((str(alone),), examples=20))
        alone.unlink()
