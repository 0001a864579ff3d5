"""Damaged and hostile .npz files: refused by the name of the array, before any memory is taken."""

import io
import struct
import zipfile

import numpy as np
import pytest

from probes.data import read_batches
from probes.errors import DataError
from probes.specs import DataSpec


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return DataSpec((str(path),))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2))}, "none of the arrays labels, y, targets"),
        ({"x": np.ones((3, 2)), "images": np.ones((3, 2)), "y": np.ones(3)}, "has 2 of the arrays images"),
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, r"'x' has shape \(3, 2\) and 'y' \(4,\)"),
        ({"x": np.array([object()] * 3), "y": np.ones(3)}, "Python objects"),
        ({"x": np.ones((3, 2)), "y": np.array([1.0, np.nan, 2.0])}, "label of example 1 is nan"),
        ({"x": np.array([[1.0], [np.inf]]), "y": np.ones(2)}, "not finite"),
        ({"x": np.full((2, 3, 3), np.nan), "y": np.ones(2)}, "not finite"),
        ({"x": np.full((2, 3), 1e300), "y": np.ones(2)}, "not finite in float32"),
        ({"x": np.ones((2, 3)), "y": np.array([1.0, 1e300])}, r"label of example 1 is 1e\+300"),
        ({"x": np.array([["a"], ["b"]]), "y": np.ones(2)}, "give numbers"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "no examples"),
        ({"x": np.ones((3, 2)), "y": np.ones((3, 2, 2))}, "give one number or string each"),
    ],
)
def test_npz_files_that_are_refused_by_name(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        read_batches(npz(tmp_path / "d.npz", **arrays))
    assert "d.npz" in str(caught.value) or "d:" in str(caught.value)


def npy_header(shape, descr="<f4"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return DataSpec((str(path),))


def labels_bytes():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy_header((1_000_000, 1_000_000)) + b"\0" * 12, "3.638 TiB|3725 GiB"),
        (npy_header((3, -4)), "negative size"),
        (npy_header((10**12,), "<U0"), "objects or nothing"),
        (npy_header((3, 1)) + b"\0" * 11, "11 bytes follow"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "no readable array header"),
        (b"not an array at all", "no readable array header"),
        (npy_header((3, 1), "|O") + b"\0" * 24, "Python objects"),
        (b"\0" * 200_000_000, "decompression bomb"),
    ],
)
def test_hostile_npz_members(tmp_path, member, message):
    with pytest.raises(DataError, match=message):
        read_batches(zip_of(tmp_path / "d.npz", **{"x.npy": member, "y.npy": labels_bytes()}))


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy"])
def test_zip_members_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads out of it"):
        read_batches(zip_of(tmp_path / "d.npz", **{name: b"", "y.npy": labels_bytes()}))


@pytest.mark.parametrize("place", [0, 1])
def test_odd_member_names_are_refused(tmp_path, place):
    np.savez(tmp_path / "d.npz", x=pixels(4, 8, 8), y=np.arange(4))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    record = content.index(b"PK\x01\x02")
    if place == 0:  # the name becomes empty
        content[record + 28 : record + 30] = b"\0\0"
    else:  # the name claims to be UTF-8 and is not
        content[record + 9] |= 8
        content[record + 46] = 0xFF
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz (holds a file without a name|is a damaged or unusual zip)"):
        read_batches(DataSpec((str(tmp_path / "d.npz"),)))


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path):
    np.savez(tmp_path / "d.npz", x=pixels(4, 8, 8), y=np.arange(4))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[content.index(b"\x93NUMPY") + 200] ^= 4
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_batches(DataSpec((str(tmp_path / "d.npz"),)))
